"""Live migration from and to attention ranks: nothing is lost, and all wait for a slowed rank."""

from __future__ import annotations

from dataclasses import replace

import pytest
from abilities import together
from endings import assert_all_ended
from hypothesis import given
from hypothesis import strategies as st
from prices import COSTS, MS
from test_fast_forward import assert_same
from world_strategies import laws, worlds
from worlds import Job, World, run

from llmsim.policies import BATCHING

GIVEN = {"ranks": True, "moves": True, "handoff": False}


@pytest.mark.parametrize("batching", [name for name in BATCHING.names() if not together(name)])
@laws(3)
@given(data=st.data())
def test_every_block_comes_back_and_every_request_ends(batching, data):
    assert_all_ended(run(data.draw(worlds(batching=batching, turns=True, **GIVEN))))


@pytest.mark.parametrize("cost", sorted(COSTS))
@laws(4)
@given(data=st.data())
def test_merging_steps_changes_nothing(cost, data):
    assert_same(data.draw(worlds(cost=cost, **GIVEN)))


@laws(10)
@given(world=worlds(clients_leave=False, **GIVEN))
def test_gaps_and_tokens_add_up(world):
    ran = run(world)
    gaps = sum(row.output_tokens - 1 for row in ran.rows if row.output_tokens)
    assert sum(ran.facts.itl.counts.values()) == gaps
    told = sum(r.timeline.totals["output_tokens"].sum() for r in ran.facts.replicas)
    assert round(told) == sum(row.output_tokens for row in ran.rows)


def test_a_transfer_of_one_rank_slows_all_of_them():
    """Two ranks of one replica decode; a copy between them of a second or more, at 1% a step."""
    jobs = (Job(0, 100, 400), Job(0, 100, 400), Job(0, 100, 400))
    quiet = World(jobs, cost="flat", ranks=3, port_bytes_per_s=1e6, last_blocks=0)
    moved = replace(quiet, shuffle_ns=500 * MS, copy_rounds=1, drag_frac=0.01)
    still, slowed = run(quiet), run(moved)
    assert {row.replica for row in still.rows} == {0, 1, 2}
    assert any(change.what == "migrate" for change in slowed.facts.changes)
    stays = [row for row in slowed.rows if row.itl_max_ns < 6 * MS]
    assert stays
    # either end of a move is slowed by a hundredth for every move that it takes part in
    longer = max(row.itl_max_ns for row in stays) / still.rows[0].itl_max_ns
    assert 1.0099 < longer < 1.0201


@pytest.mark.parametrize("lookahead", [0, 1])
@laws(60)
@given(data=st.data())
def test_merging_changes_nothing_where_ranks_hand_over_and_are_moved_between(lookahead, data):
    given = GIVEN | {"handoff": True, "turns": data.draw(st.booleans())}
    world = data.draw(worlds(lookahead=lookahead, **given))
    assert_same(world)
    assert_all_ended(run(world))


def test_who_was_handed_over_is_moved_between_the_ranks_that_decode():
    """Prompts on ranks 0 and 1, outputs on 2 and 3: those that decode are moved, there alone."""
    jobs = tuple(Job(number * MS, 100, 300) for number in range(4))
    base = World(jobs, ranks=2, decoders=1, shuffle_ns=100 * MS, port_bytes_per_s=1e9)
    ran = run(base)
    assert_all_ended(ran)
    moved = [(c.replica, c.other) for c in ran.facts.changes if c.what == "migrated"]
    assert moved
    assert {index for pair in moved for index in pair} == {2, 3}
    assert all(row.prefill_replica in (0, 1) and row.replica in (2, 3) for row in ran.rows)
