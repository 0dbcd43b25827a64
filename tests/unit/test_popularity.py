"""Experts of unlike popularity: how many a step hits, and on which rank most of them."""

from __future__ import annotations

import numpy as np
import pytest

from llmsim.costmodel.popularity import experts_hit, loads, visited
from llmsim.specs import MoeMlp, ParallelPlan

SKEW = 0.69


def dealt(ep, spare=0, balancing=False):
    """Experts on `ep` GPUs."""
    return ParallelPlan(ep, ep, spare_experts=spare, expert_balancing=balancing)


def drawn(experts, active, tokens, rng):
    """Experts that tokens visit, one row a token: draws by popularity without replacement."""
    popularity = np.arange(1.0, experts + 1.0) ** -SKEW
    arrivals = rng.exponential(size=(tokens, experts)) / popularity
    return np.argpartition(arrivals, active, axis=1)[:, :active]


def test_the_busiest_expert_is_that_of_olmoe():
    """OLMoE-1B-7B on GSM8K: 5.1 times the mean, of 64 experts with 8 a token."""
    assert visited(64, 8, SKEW)[0] == pytest.approx(5.1 * 8 / 64, rel=0.01)


@pytest.mark.parametrize(("experts", "active"), [(64, 8), (128, 4), (256, 8)])
def test_shares_add_up_and_fall(experts, active):
    shares = visited(experts, active, SKEW)
    assert shares.sum() == pytest.approx(active)
    assert (np.diff(shares) < 0).all()
    assert shares[0] < 1


@pytest.mark.parametrize(("experts", "active"), [(128, 4), (256, 8)])
@pytest.mark.parametrize("tokens", [1, 4, 32, 256])
def test_hits_are_those_of_draws(experts, active, tokens):
    rng = np.random.default_rng(7)
    hits = [len(np.unique(drawn(experts, active, tokens, rng))) for _ in range(300)]
    expected = experts_hit(experts, active, np.array([float(tokens)]), SKEW)[0]
    assert expected == pytest.approx(np.mean(hits), rel=0.02)


def test_popular_experts_are_shared():
    tokens = np.array([1.0, 2.0, 16.0, 64.0, 1e5])
    even = experts_hit(128, 8, tokens)
    skewed = experts_hit(128, 8, tokens, SKEW)
    assert skewed[0] == pytest.approx(even[0])
    assert (skewed[1:4] < even[1:4]).all()
    assert skewed[4] == pytest.approx(128)


@pytest.mark.parametrize("ep", [2, 4, 8])
@pytest.mark.parametrize("tokens", [4, 32, 2048])
def test_the_busiest_rank_is_that_of_draws(ep, tokens):
    """Experts are shuffled over the ranks anew each time."""
    rng = np.random.default_rng(11)
    hits, rows = [], []
    for _ in range(200 if tokens < 1000 else 60):
        rank_of = rng.permutation(np.arange(256) % ep)
        chosen = drawn(256, 8, tokens, rng)
        hits.append(np.bincount(rank_of[np.unique(chosen)], minlength=ep).max())
        rows.append(np.bincount(rank_of[chosen.ravel()], minlength=ep).max())
    moe = MoeMlp(256, 8, 1536, skew=SKEW)
    hit, row = loads(moe, dealt(ep), np.array([float(tokens)]))
    assert hit[0] == pytest.approx(np.mean(hits), rel=0.06)
    if tokens > 1000:  # with few, which of them come together adds to it
        assert row[0] == pytest.approx(np.mean(rows), rel=0.05)


def test_without_skew_ranks_are_alike():
    moe = MoeMlp(256, 8, 1536)
    tokens = np.array([1.0, 16.0, 512.0])
    hit, rows = loads(moe, dealt(8), tokens)
    assert hit == pytest.approx(256 * (1 - (1 - 8 / 256) ** tokens) / 8)
    assert rows == pytest.approx(tokens)


def test_all_experts_for_every_token():
    hit, rows = loads(MoeMlp(8, 8, 64, skew=SKEW), dealt(1), np.array([1.0, 5.0]))
    assert hit == pytest.approx([8, 8])
    assert rows == pytest.approx([8, 40])
