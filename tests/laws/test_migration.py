"""Running requests that change replicas: nothing is lost, whatever comes in between."""

from __future__ import annotations

from dataclasses import replace

import pytest
from abilities import together
from endings import assert_all_ended
from hypothesis import given
from hypothesis import strategies as st
from prices import MS
from test_fast_forward import assert_same
from world_strategies import laws, worlds
from worlds import Job, World, run

from llmsim.policies import BATCHING


@pytest.mark.parametrize("batching", [name for name in BATCHING.names() if not together(name)])
@laws(50)
@given(data=st.data())
def test_every_block_comes_back_and_every_request_ends(batching, data):
    world = data.draw(worlds(batching=batching, handoff=None, moves=True, turns=True))
    ran = run(world)
    assert_all_ended(ran)


@pytest.mark.parametrize("lookahead", [0, 1])
@laws(80)
@given(data=st.data())
def test_merging_steps_changes_nothing(lookahead, data):
    assert_same(data.draw(worlds(lookahead=lookahead, handoff=None, moves=True)))


@laws(40)
@given(world=worlds(clients_leave=False, handoff=None, moves=True))
def test_gaps_and_tokens_add_up(world):
    ran = run(world)
    gaps = sum(row.output_tokens - 1 for row in ran.rows if row.output_tokens)
    assert sum(ran.facts.itl.counts.values()) == gaps
    told = sum(r.timeline.totals["output_tokens"].sum() for r in ran.facts.replicas)
    assert round(told) == sum(row.output_tokens for row in ran.rows)


def test_transfers_slow_both_ends_a_little_and_no_longer_than_they_last():
    """Two replicas decode; 1 MB a request over 1 MB/s: a copy of a second, at 1% a step."""
    jobs = (Job(0, 100, 400), Job(0, 100, 400))
    quiet = World(jobs, cost="flat", replicas=2, port_bytes_per_s=1e6, last_blocks=0)
    moved = replace(quiet, shuffle_ns=500 * MS, copy_rounds=1, drag_frac=0.01)
    still, slowed = run(quiet), run(moved)
    assert any(change.what == "migrate" for change in slowed.facts.changes)
    stays = [row for row in slowed.rows if row.itl_max_ns < 6 * MS]
    longer = max(row.itl_max_ns for row in stays) / still.rows[0].itl_max_ns
    assert 1.0099 < longer < 1.0201
