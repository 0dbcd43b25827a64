"""The reference engine on a CPU with a tiny model: files, conservation, decisions."""

from __future__ import annotations

import csv
import importlib.util
import json
import random
import sys
from pathlib import Path

import pytest
from llmsim_kernels.engine.model import DecoderShape
from llmsim_kernels.engine.scheduler import EngineSettings

from llmsim.policies.batching import VllmBatching
from llmsim.policies.rules import ENGINE_RULES
from llmsim.serving.config import EngineConfig

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

TINY = DecoderShape(3, 64, 4, 2, 16, 128, 256)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trace(count: int, seed: int = 5):
    from llmsim_kernels.engine.replay import TraceRequest

    draw = random.Random(seed)
    return [
        TraceRequest(0.01 * index, draw.randint(3, 90), draw.randint(1, 25))
        for index in range(count)
    ]


def run(requests, folder=None, **others):
    from llmsim_kernels.engine.replay import run_reference

    limits = EngineSettings(12, 64, 256, 16, others.pop("kv_blocks", 40))
    return run_reference(requests, TINY, limits, device="cpu", out=folder, **others)


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def simulated(requests, kv_blocks: int):
    """Return the simulator's decisions for an offline batch, step by step."""
    path = Path(__file__).parents[1] / "golden" / "replay.py"
    spec = importlib.util.spec_from_file_location("golden_replay", path)
    golden = importlib.util.module_from_spec(spec)
    sys.modules["golden_replay"] = golden
    spec.loader.exec_module(golden)
    config = EngineConfig(
        max_num_seqs=12,
        max_num_batched_tokens=64,
        max_model_len=256,
        block_tokens=16,
        kv_blocks=kv_blocks,
        prefix_caching=False,
        chunked_prefill=True,
        chunk_limit_tokens=0,
        watermark_blocks=0,
        reserve_prompt=True,
        lookahead=0,
        fast_forward=False,
        rules=ENGINE_RULES["vllm-0.33"],
    )
    asks = [
        golden.Ask(f"{index:04d}", 0, request.prompt_tokens, request.output_tokens)
        for index, request in enumerate(requests)
    ]
    bench = golden.Bench(asks, config, golden.RecordedClock(5_000_000, 20_000, 20), VllmBatching())
    bench.run()
    return [
        (
            [(int(name), new, past) for name, new, past in call.rows],
            [int(n) for n in call.preempted],
        )
        for call in bench.calls
    ]


@pytest.mark.parametrize("kv_blocks", [200, 24])
def test_decisions_are_the_simulators_step_by_step(kv_blocks):
    requests = trace(40)
    measured = run(requests, offline=True, kv_blocks=kv_blocks)
    got = [([part[:3] for part in step.slices], list(step.preempted)) for step in measured.steps]
    assert got == simulated(requests, kv_blocks)
    assert any(preempted for _, preempted in got) == (kv_blocks == 24)


def test_files_have_the_columns_of_measured_runs(tmp_path):
    requests = trace(10)
    run(requests, tmp_path, name="tiny")
    rows = table(tmp_path / "tiny_requests.csv")
    assert list(rows[0])[:7] == (
        ["index", "arrival_s", "input_tokens", "output_tokens", "ttft_s", "e2e_s", "error"]
    )
    steps = table(tmp_path / "tiny_steps.csv")
    assert list(steps[0])[:13] == [
        *("run", "phase", "segment", "dp_rank", "prefill_tokens", "prefill_reqs"),
        *("prefill_kv_tokens", "decode_reqs", "decode_kv_tokens", "queued_prefill_reqs"),
        *("queued_prefill_tokens", "queued_decode_reqs", "latency_ms"),
    ]
    assert set(table(tmp_path / "tiny_decisions.csv")[0]) == (
        {"step", "request", "new_tokens", "computed_before"}
    )
    meta = json.loads((tmp_path / "tiny_meta.json").read_text())
    assert meta["config"]["kv_blocks_total_gpu"] == 40
    assert meta["num_requests"] == 10


def test_tokens_and_times_are_conserved(tmp_path):
    requests = trace(20)
    measured = run(requests, tmp_path, kv_blocks=24)
    rows = table(tmp_path / "reference_requests.csv")
    assert [int(row["input_tokens"]) for row in rows] == [r.prompt_tokens for r in requests]
    computed: dict[int, int] = {}
    for row in table(tmp_path / "reference_decisions.csv"):
        if row["computed_before"] == "0":
            computed[int(row["request"])] = 0  # admitted, or again after a preemption
        assert computed[int(row["request"])] == int(row["computed_before"])
        computed[int(row["request"])] += int(row["new_tokens"])
    for request in measured.requests:
        assert request.generated == request.output
        assert computed[request.index] == request.prompt + request.output - 1
        assert request.arrival_s <= request.scheduled_s < request.first_token_s
        assert request.first_token_s <= request.last_token_s
        assert request.blocks == []
    steps = table(tmp_path / "reference_steps.csv")
    tokens = sum(int(row["prefill_tokens"]) + int(row["decode_reqs"]) for row in steps)
    assert tokens == sum(new for step in measured.steps for _, new, _, _ in step.slices)
    ends = [float(row["start_s"]) + float(row["latency_ms"]) / 1e3 for row in steps]
    starts = [float(row["start_s"]) for row in steps]
    assert all(start >= end - 1e-6 for start, end in zip(starts[1:], ends, strict=False))


def test_batching_paging_and_chunks_do_not_change_the_text():
    requests = trace(6)
    together = run(requests, offline=True, kv_blocks=24)
    for index, request in enumerate(together.requests):
        decoder = _greedy(request.tokens[: request.prompt], request.output)
        assert request.tokens[request.prompt :] == decoder, f"request {index}"


def _greedy(prompt: list[int], count: int) -> list[int]:
    """Generate by recomputing the whole text for every token, without a cache."""
    from llmsim_kernels.engine.model import Decoder

    decoder = Decoder(TINY, torch.device("cpu"), torch.float32, 256, 0)
    text = list(prompt)

    def attend(layer, q, k, v):
        mixed = torch.nn.functional.scaled_dot_product_attention(
            q.transpose(0, 1),
            k.transpose(0, 1).repeat_interleave(2, 0),
            v.transpose(0, 1).repeat_interleave(2, 0),
            is_causal=True,
        )
        return mixed.transpose(0, 1)

    with torch.inference_mode():
        for _ in range(count):
            tokens, places = torch.tensor(text), torch.arange(len(text))
            last = torch.tensor([len(text) - 1])
            text.append(int(decoder.forward(tokens, places, last, attend)[0]))
    return text[len(prompt) :]


def test_a_command_line_of_its_own(tmp_path, capsys):
    from llmsim_kernels.engine.__main__ import main

    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 256,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        "max_position_embeddings": 512,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    trace_file = tmp_path / "t.csv"
    trace_file.write_text("arrival_s,input_tokens,output_tokens\n0.0,20,5\n0.1,9,3\n99,9,3\n")
    common = ["--model", str(tmp_path / "config.json"), "--device", "cpu", "--max-model-len", "128"]
    out = tmp_path / "out"
    given = ["--trace", str(trace_file), "--minutes", "0.5", "--out", str(out), *common]
    assert main(given) == 0
    assert "2 requests" in capsys.readouterr().out
    assert len(table(out / "reference_requests.csv")) == 2
    trace_file.write_text("arrival,input_tokens,output_tokens\n0.0,20,5\n")
    assert main(["--trace", str(trace_file), *common]) == 2
    assert "t.csv:1  arrival_s: no such column" in capsys.readouterr().err
    trace_file.write_text("arrival_s,input_tokens,output_tokens\n0.0,20,5\n1.0,many,2\n")
    assert main(["--trace", str(trace_file), *common]) == 2
    assert "t.csv:3: not three numbers: '1.0', 'many', '2'" in capsys.readouterr().err
