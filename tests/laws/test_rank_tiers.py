"""Tiers of KV below attention ranks: each rank loads and writes for itself, nothing is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest
from abilities import together
from endings import assert_tiers_back
from hypothesis import given
from hypothesis import strategies as st
from prices import COSTS, MS
from test_fast_forward import assert_same
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
