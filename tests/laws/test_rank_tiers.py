"""Tiers of KV below attention ranks: each rank loads and writes for itself, nothing is lost."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from abilities import together
from endings import assert_tiers_back
from hypothesis import given
from hypothesis import strategies as st
from prices import COSTS, MS
from test_fast_forward import assert_same
from test_ranks import step_ns
from test_tiers import SWAP
from world_strategies import laws, worlds
from worlds import Job, World, run

from llmsim.policies import BATCHING

GIVEN = {"ranks": True, "tiers": True, "turns": True, "handoff": None}


@pytest.mark.parametrize("cost", sorted(COSTS))
@laws(6)
@given(data=st.data())
def test_merging_changes_nothing(cost, data):
    assert_same(data.draw(worlds(cost=cost, **GIVEN)))


@pytest.mark.parametrize("batching", [name for name in BATCHING.names() if not together(name)])
@laws(4)
@given(data=st.data())
def test_every_block_comes_back(batching, data):
    ran = run(data.draw(worlds(batching=batching, most=20, **GIVEN)))
    assert len(ran.rows) == len(ran.world.jobs)
    assert_tiers_back(ran)


TEXT = ((7, 64),)
PAIR = World(
    (Job(0, 80, 2, (*TEXT, (1, 16))), Job(100 * MS, 80, 2, (*TEXT, (2, 16)))),
    cost="round",
    ranks=2,
    ranks_in_turn=True,
    prefix_caching=True,
    kv_blocks=20,
    tier_chunks=(30,),
    chunk_blocks=1,
    tier_scopes=("pool",),
    tier_writes=("through",),
    tier_bytes_per_s=1e8,
    port_bytes_per_s=1e12,
)
"""In turn: the second request is on rank 1, whose GPU has never seen the text."""


@pytest.mark.parametrize("fast_forward", [True, False])
def test_what_one_rank_has_computed_another_loads(fast_forward):
    """64 tokens of 10 kB come at 100 MB/s in 6.4 ms; then 16 are computed."""
    first, second = run(PAIR, fast_forward).rows
    assert (first.replica, second.replica) == (0, 1)
    assert (first.cached_tokens, second.cached_tokens) == (0, 64)
    assert second.scheduled_ns == second.arrival_ns + 64 * MS // 10
    alone = replace(PAIR, tier_scopes=("replica",))
    assert run(alone, fast_forward).rows[1].cached_tokens == 0


@pytest.mark.parametrize(("bytes_per_s", "found"), [(1e9, 64), (1e8, 0)])
def test_loading_or_computing_again_goes_by_what_a_joint_step_takes(bytes_per_s, found):
    """Of 80 tokens 64 fewer take 64 x (20 + 3.0003 + 20) us = 2.75 ms less, loading 0.64 or 6.4."""
    world = replace(PAIR, loading="cheaper", tier_bytes_per_s=bytes_per_s)
    assert run(world).rows[1].cached_tokens == found


@pytest.mark.parametrize("fast_forward", [True, False])
def test_all_ranks_wait_for_the_layers_that_one_of_them_loads(fast_forward):
    """Rank 0 decodes while 64 tokens come to rank 1: 6.4 ms for four layers, one after another."""
    jobs = (replace(PAIR.jobs[0], output=40), PAIR.jobs[1])
    slowed, loads = run(replace(PAIR, jobs=jobs, by_layer=True), fast_forward).rows
    assert (slowed.replica, loads.replica, loads.cached_tokens) == (0, 1, 64)
    # 16 tokens are computed on rank 1, one on rank 0: the last layer begins when all has come
    step = step_ns(16, 17, 20_000 * 16)
    assert loads.first_token_ns - loads.scheduled_ns == math.ceil(64 * MS // 10 + step / 4)
    assert slowed.itl_max_ns == loads.first_token_ns - loads.scheduled_ns


@pytest.mark.parametrize("fast_forward", [True, False])
def test_a_stage_waits_with_all_ranks_for_the_layers_of_one(fast_forward):
    """The same on two stages of two layers: the first has its last when all has come."""
    jobs = (replace(PAIR.jobs[0], output=40), PAIR.jobs[1])
    world = replace(PAIR, jobs=jobs, by_layer=True, stages=(0.5, 0.5))
    slowed, loads = run(world, fast_forward).rows
    assert (slowed.replica, loads.replica, loads.cached_tokens) == (0, 1, 64)
    stage = round(step_ns(16, 17, 20_000 * 16) / 2)
    assert loads.first_token_ns - loads.scheduled_ns == math.ceil(64 * MS // 10 + stage / 2) + stage
    assert slowed.itl_max_ns == loads.first_token_ns - loads.scheduled_ns


def test_all_ranks_wait_for_what_one_of_them_swaps():
    """Two requests of rank 0 have room for one; rank 1 pays for the copies, out and back."""
    jobs = (Job(0, 16, 40), Job(0, 16, 44), Job(0, 16, 40))
    world = replace(SWAP, jobs=jobs, ranks=2, ranks_in_turn=True, kv_blocks=4)
    ends, steps = {}, {}
    for rate in (1e9, 1e7):
        ran = run(replace(world, port_bytes_per_s=rate))
        assert [row.replica for row in ran.rows] == [0, 1, 0]
        assert ran.rows[1].preemptions == 0
        swap, other = ran.facts.tiers
        assert (swap.replica, other.written_bytes, other.read_bytes) == (0, 0, 0)
        ends[rate] = ran.rows[1].end_ns
        steps[rate] = ran.rows[1].itl_max_ns
    assert swap.written_bytes == swap.read_bytes == 2 * 16 * 10_000
    copy_ns = round(swap.written_bytes * (1 / 1e7 - 1 / 1e9) * 1e9)
    assert ends[1e7] - ends[1e9] == 2 * copy_ns
    assert steps[1e7] > copy_ns
