"""No step of a run is faster than physics: FLOPs over peak, bytes over bandwidth.

The floor is computed here from the published shape of the model and the data sheet of the GPU,
not from the package's cards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from calls import works
from prices import MS
from worlds import Job, World, run

from llmsim.core.rng import stream
from llmsim.costmodel import RooflineCost
from llmsim.specs import EngineLimits, HostTerms, load_gpu, load_model


@dataclass(frozen=True)
class Dense:
    """A dense decoder in 16 bits; numbers from its config.json on Hugging Face."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    ffn: int
    vocab: int

    @property
    def layer_weights(self) -> int:
        attention = 2 * self.hidden * self.head * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.ffn)


MODELS = (
    Dense("llama-3.1-8b", 4096, 32, 32, 8, 128, 14336, 128256),
    Dense("llama-2-7b", 4096, 32, 32, 32, 128, 11008, 32000),
    Dense("qwen3-32b", 5120, 64, 64, 8, 128, 25600, 151936),
)

GPUS = {
    # dense BF16 FLOP/s and bytes/s from NVIDIA's data sheets, without sparsity
    "h100-sxm": (989.4e12, 3.35e12),
    "a100-80gb-sxm": (312e12, 2.039e12),
    "b200": (2.25e15, 8.0e12),
}


def floor_s(model: Dense, gpu: str, step: list[tuple[int, int]]) -> float:
    """Return the least time for a step of (new, past) tokens: weights and KV are read once."""
    peak, bandwidth = GPUS[gpu]
    tokens = sum(new for new, _ in step)
    pairs = sum(new * past + new * (new + 1) // 2 for new, past in step)
    flops = 2 * model.layer_weights * tokens + 4 * model.layers * model.heads * model.head * pairs
    cached = sum(past for _, past in step)
    moved = 2 * model.layer_weights + 4 * model.layers * model.kv_heads * model.head * cached
    return max(flops / peak, moved / bandwidth)


def load(prompts: tuple[int, int], outputs: tuple[int, int], gap_ns: int) -> World:
    rng = stream(11, "floor", *prompts)
    jobs = tuple(
        Job(i * gap_ns, int(rng.integers(*prompts)), int(rng.integers(*outputs))) for i in range(30)
    )
    return World(jobs, budget_tokens=4096, max_model_len=8192, kv_blocks=20_000, max_num_seqs=64)


LOADS = {
    "prefill": load((2000, 6000), (1, 3), 5 * MS),
    "decode": load((10, 50), (100, 200), 0),
    "long contexts": load((4000, 7000), (50, 100), 0),
    "mixed": load((100, 3000), (20, 80), 30 * MS),
}


@pytest.mark.parametrize("kind", LOADS)
@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
@pytest.mark.parametrize("lookahead", [0, 1])
def test_no_step_beats_physics(model, gpu, kind, lookahead):
    limits = EngineLimits(max_num_seqs=64, max_num_batched_tokens=4096, max_model_len=8192)
    host = HostTerms(0.0, 0.0, 0.0)
    cost = RooflineCost(
        load_model(model.name), load_gpu(gpu), limits=limits, lookahead=lookahead, host=host
    )
    least = []

    def look(replica, call):
        step = [(work.new, work.past) for work in works(replica, call)]
        if step:
            least.append((call.end_ns - call.start_ns) * 1e-9 / floor_s(model, gpu, step))

    world = replace(LOADS[kind], lookahead=lookahead)
    run(world, False, look, cost=cost)
    assert min(least) >= 1
    assert min(least) < 2.5  # the floor is worth testing: some step comes near it
    # merged stretches run no faster than their steps
    assert run(world, True, cost=cost).facts.end_ns == run(world, False, cost=cost).facts.end_ns
