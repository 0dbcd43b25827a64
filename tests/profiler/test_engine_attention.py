"""The reference engine's attention on a GPU beside that on a CPU, in Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

CODE = """
import json
from types import SimpleNamespace
import torch
from llmsim_kernels.engine.cache import PagedCache, StepAttention, slots_of
from llmsim_kernels.engine.graphs import DecodeAttention, DecodeGraphs
from llmsim_kernels.engine.launches import PromptSteps, Room, TwoLaunches, Views, table_row
from llmsim_kernels.engine.model import Decoder, DecoderShape
from llmsim_kernels.engine.scheduler import Sequence, Slice
from llmsim_kernels.profiler.blocks.whole import Case, OneLaunch
from llmsim.specs.engine import EngineLimits

torch.manual_seed(3)
shape, cpu = DecoderShape(2, 64, 4, 2, 32, 128, 200), torch.device("cpu")
cache = PagedCache(shape, 40, 16, cpu, torch.float32)
for tensor in (*cache.keys, *cache.values):
    tensor.normal_()
stock = list(range(40, 0, -1))

def part(index, new, past, prompt):
    sequence = Sequence(index, prompt, 5, tokens=[(7 * index + i) % 200 for i in range(past + new)])
    sequence.generated = max(0, past + new - prompt)
    sequence.blocks = [stock.pop() for _ in range(-(-(past + new) // 16))]
    return Slice(sequence, new, past)

decodes = [part(0, 1, 40, 40), part(1, 1, 3, 2), part(2, 1, 70, 60)]
prompts = [part(3, 20, 0, 20), part(4, 9, 30, 80)]
both = [*decodes, *prompts]
long = lambda values: torch.tensor(values, dtype=torch.int64)
slots = lambda slices: long([slot for each in slices for slot in slots_of(each, 16)])
pieces = lambda slices: [(each.new, each.past, long(each.sequence.blocks)) for each in slices]

class NoGraphs(DecodeGraphs):
    def _capture(self, size, longest):
        out = torch.zeros(size, dtype=torch.int64)
        return SimpleNamespace(replay=lambda: out.copy_(self._forward(size, longest))), out

decoder = Decoder(shape, cpu, torch.float32, 128, 1)
limits = EngineLimits(8, 64, 128, 16)
graphs = NoGraphs(decoder, cache, limits)

def whole(slices, attention):
    tokens = long([t for e in slices for t in e.sequence.tokens[e.past : e.past + e.new]])
    places = long([at for e in slices for at in range(e.past, e.past + e.new)])
    ends = long([sum(e.new for e in slices[: i + 1]) - 1 for i in range(len(slices))])
    return decoder.forward(tokens, places, ends, attention)

def mix(attention, slices, padded=0):
    count = sum(each.new for each in slices)
    torch.manual_seed(5)
    made = torch.randn(count, 4, 32), torch.randn(count, 2, 32), torch.randn(count, 2, 32)
    if padded:
        spare = torch.full((padded - count, 4, 32), torch.inf)
        made = [torch.cat([each, spare[:, : each.shape[1]]]) for each in made]
    return attention(1, *made)

table = torch.zeros((5, 8), dtype=torch.int32)
for row, each in enumerate(both):
    table[row, : len(each.sequence.blocks)] = torch.tensor(each.sequence.blocks)
steps = PromptSteps(decoder, cache, limits, capture=False)
width = steps.width

def decode_launch(slices):
    rows = torch.tensor([table_row(each.sequence, width).tolist() for each in slices])
    lengths = torch.tensor([each.past + 1 for each in slices], dtype=torch.int32)
    longest = int(lengths.max())
    return DecodeAttention(cache, slots(slices), rows.int(), lengths, longest)

class Quiet:
    launching = launched = lambda self: None

def two_launches(room):
    steps._fill(both, len(decodes), room)
    views = Views.of(room, *steps._there)
    return TwoLaunches(cache, views, room.decodes, 128, steps.cut)

def mixed_tokens(rooms):
    steps.rooms = rooms
    return steps.run(both, Quiet())

exact = Room(32, 3, 2, 2 * 4, 4, width)
padded = Room(48, 6, 4, 20, 7, width)  # more decodes than there are: rows of prompts among them
contexts = torch.tensor([each.past + each.new for each in both], dtype=torch.int32)
case = SimpleNamespace(requests=[(each.new, each.past) for each in both])
with torch.inference_mode():
    plain = StepAttention(cache, slots(both), pieces(both))
    alone = StepAttention(cache, slots(decodes), pieces(decodes))
    bench = SimpleNamespace(device=cpu)
    single = OneLaunch(bench, case, cache, slots(both), table, contexts, shape)
    found = {
        "mixed": float((mix(two_launches(exact), both) - mix(plain, both)).abs().max()),
        "padded": float(
            (mix(two_launches(padded), both, 48)[:32] - mix(plain, both)).abs().max()
        ),
        "one launch": float((mix(single, both) - mix(plain, both)).abs().max()),
        "decode": float((mix(decode_launch(decodes), decodes) - mix(alone, decodes)).abs().max()),
        "graph tokens": graphs.run(decodes),
        "plain tokens": whole(decodes, alone).tolist(),
        "sizes": graphs.sizes,
        "mixed tokens": mixed_tokens([]),
        "padded tokens": mixed_tokens([padded]),
        "plain mixed tokens": whole(both, plain).tolist()[:4],
    }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}

    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("way", ["decode", "mixed", "padded", "one launch"])
def test_attention_is_that_of_plain_torch(found, way):
    assert found[way] < 1e-5


def test_a_padded_graph_gives_the_tokens_of_an_eager_step(found):
    assert found["graph tokens"] == found["plain tokens"]
    assert found["sizes"] == [1, 2, 4, 8]
    assert 3 not in found["sizes"]  # three decodes run in a graph for four


def test_a_padded_mixed_step_gives_the_tokens_of_plain_torch(found):
    assert len(found["plain mixed tokens"]) == 4  # the last prompt is not at its end
    assert found["mixed tokens"] == found["plain mixed tokens"]
    assert found["padded tokens"] == found["plain mixed tokens"]


def test_graphs_of_one_kind_are_captured_on_one_stream_into_one_pool():
    from contextlib import contextmanager
    from types import SimpleNamespace

    from llmsim_kernels.engine.captures import Captures

    told = []

    class Stream:
        def wait_stream(self, other):
            told.append("waits")

    class Graph:
        def pool(self):
            return "the first one's"

    @contextmanager
    def within(*stream):
        yield

    @contextmanager
    def capture(graph, pool, stream):
        told.append((pool, stream))
        yield

    cuda = SimpleNamespace(
        Stream=Stream,
        CUDAGraph=Graph,
        current_stream=Stream,
        stream=within,
        graph=capture,
    )
    ran = []
    captures = Captures(SimpleNamespace(cuda=cuda))
    for _ in range(2):
        graph, out = captures.graph_of(lambda: ran.append(0) or len(ran))
        assert isinstance(graph, Graph)
    assert out == 4  # each ran once before it was captured
    (_, first), (_, second) = (one for one in told if isinstance(one, tuple))
    assert first is second
    assert [one[0] for one in told if isinstance(one, tuple)] == [None, "the first one's"]


EXPERTS = """
import json, torch
from llmsim_kernels.engine.model import DecoderShape
from llmsim_kernels.ops import reference
from llmsim_kernels.profiler.blocks import whole

whole.EXPERTS, whole.TOPK = 6, 2
torch.manual_seed(1)
shape = DecoderShape(1, 64, 4, 2, 16, 48, 100)
decoder = whole.ExpertDecoder(shape, torch.device("cpu"), torch.float32, 32)
x = torch.randn(5, 64)
with torch.inference_mode():
    found = decoder.feed_forward(0, x)
    odds = (x @ decoder.router[0].T).softmax(-1)
    shares, chosen = odds.topk(2, dim=-1)
    right = reference.experts_one_by_one(
        x, decoder.experts_up[0], decoder.experts_down[0], shares, chosen
    )
print(json.dumps(float((found - right).norm() / right.norm())))
"""


def test_the_decoder_of_experts_runs_the_experts_that_it_chose():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", EXPERTS],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) < 1e-5
