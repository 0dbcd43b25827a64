"""Experts with and without tokens, block sizes; the sampler's limits and frequencies."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytestmark = pytest.mark.torch

from llmsim_kernels.ops import reference  # noqa: E402
from llmsim_kernels.ops.fused_moe import Tiles, align, fused_moe  # noqa: E402
from llmsim_kernels.ops.sampler import sample  # noqa: E402


@pytest.mark.parametrize("block", [16, 64, 128])
@pytest.mark.parametrize("experts_of", [[[0, 5]] * 3, [[i % 7, 7] for i in range(300)], [[2, 1]]])
def test_places_are_sorted_by_expert(block, experts_of):
    chosen = torch.tensor(experts_of, dtype=torch.int32)
    flat = chosen.flatten().tolist()
    found = align(chosen, 8, block)
    places, owners = found.places.tolist(), found.block_expert.tolist()
    used = [expert for expert in owners if expert >= 0]
    assert used == sorted(used)
    assert owners[len(used) :] == [-1] * (len(owners) - len(used))
    assert len(used) == sum(-(-flat.count(expert) // block) for expert in set(flat))
    seen = []
    for index, expert in enumerate(used):
        inside = [p for p in places[index * block : (index + 1) * block] if p < len(flat)]
        assert {flat[place] for place in inside} == {expert}
        seen += inside
    assert sorted(seen) == list(range(len(flat)))
    assert set(places[len(used) * block :]) <= {len(flat)}


@pytest.mark.parametrize("block", [16, 64, 128])
def test_empty_experts_and_a_crowded_one(block):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn((40, 32), generator=draw)
    gate_up = torch.randn((6, 48, 32), generator=draw) * 0.2
    down = torch.randn((6, 32, 24), generator=draw) * 0.2
    chosen = torch.tensor([[4, 1 if i % 9 else 5] for i in range(40)], dtype=torch.int32)
    routing = torch.rand((40, 2), generator=draw)
    found = fused_moe(x, gate_up, down, routing, chosen, Tiles(block, 32, 32, 4, 1))
    right = reference.experts_one_by_one(x, gate_up, down, routing, chosen)
    assert float((found - right).norm() / right.norm()) < 1e-6


def test_experts_of_other_gpus_add_nothing():
    """Two ranks with half of the experts each add up to all of them."""
    draw = torch.Generator().manual_seed(4)
    x = torch.randn((21, 32), generator=draw)
    gate_up = torch.randn((6, 48, 32), generator=draw) * 0.2
    down = torch.randn((6, 32, 24), generator=draw) * 0.2
    chosen = torch.stack([torch.randperm(6, generator=draw)[:2] for _ in range(21)]).int()
    routing = torch.rand((21, 2), generator=draw)
    cut = Tiles(16, 32, 32, 4, 1)
    first = fused_moe(x, gate_up[:3], down[:3], routing, chosen, cut, of_experts=6)
    second = fused_moe(x, gate_up[3:], down[3:], routing, (chosen - 3) % 6, cut, of_experts=6)
    right = reference.experts_one_by_one(x, gate_up, down, routing, chosen)
    assert float((first + second - right).norm() / right.norm()) < 1e-6


def draw_many(logits, k, p, *, draws, heat=1.0):
    uniform = (torch.arange(draws) + 0.5) / draws  # the quantiles: frequencies without luck
    rows = logits.expand(draws, -1).contiguous()
    limits = torch.full((draws,), k, dtype=torch.int32), torch.full((draws,), p)
    return sample(rows, *limits, torch.full((draws,), heat), uniform)


def test_frequencies_are_the_probabilities():
    odds = torch.tensor([0.5, 0.25, 0.125, 0.125])
    drawn = draw_many(odds.log(), 0, 1.0, draws=8)
    assert torch.bincount(drawn, minlength=4).tolist() == [4, 2, 1, 1]
    drawn = draw_many(odds.log(), 2, 1.0, draws=6)
    assert torch.bincount(drawn, minlength=4).tolist() == [4, 2, 0, 0]
    drawn = draw_many(odds.log(), 0, 0.7, draws=6)  # 0.5 is not enough, 0.75 is
    assert torch.bincount(drawn, minlength=4).tolist() == [4, 2, 0, 0]
    drawn = draw_many(odds.log() * 2, 0, 1.0, heat=2.0, draws=8)
    assert torch.bincount(drawn, minlength=4).tolist() == [4, 2, 1, 1]


def test_top_1_is_the_largest_logit():
    logits = torch.randn((5, 1500), generator=torch.Generator().manual_seed(2)) - 50
    ones = torch.ones(5)
    found = sample(logits, ones.int(), ones, ones, torch.linspace(0, 0.99, 5))
    assert torch.equal(found.long(), logits.argmax(1))


def test_both_limits_on_long_rows():
    draw = torch.Generator().manual_seed(3)
    logits = torch.randn((4, 2100), generator=draw) * 4
    top_k = torch.tensor([40, 0, 2100, 3000], dtype=torch.int32)
    top_p = torch.tensor([0.9, 0.6, 1.0, 0.95])
    heat, uniform = torch.tensor([1.0, 0.7, 1.3, 1.0]), torch.rand(4, generator=draw)
    found = sample(logits, top_k, top_p, heat, uniform)
    assert torch.equal(found, reference.sampled(logits, top_k, top_p, heat, uniform))


def test_masked_tokens_are_never_drawn():
    logits = torch.full((1500,), float("-inf"))
    logits[[3, 1400]] = torch.tensor([0.0, 1.0])
    assert set(draw_many(logits, 0, 1.0, draws=4).tolist()) == {3, 1400}
