"""Replicas that come, go, fail and refuse: every request ends once, every block comes back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from abilities import movable
from endings import assert_all_ended
from hypothesis import given
from hypothesis import strategies as st
from prices import MS
from test_fast_forward import assert_same
from world_strategies import laws, worlds
from worlds import run


def restless(data, **given):
    """A world whose replicas drain, fail, boot and refuse."""
    world = data.draw(worlds(moves=True, **given))
    return replace(
        world,
        spare=data.draw(st.integers(1, 2)),
        refuse_at=data.draw(st.sampled_from([0, 1, 3])),
        hold_ns=data.draw(st.sampled_from([0, 50 * MS])) if world.timeout_ns else 0,
        own_sends=data.draw(st.booleans()),
        report_ns=data.draw(st.sampled_from([0, 0, 7 * MS, 200 * MS])),
        lost_frac=data.draw(st.sampled_from([0.0, 0.3])),
    )


@pytest.mark.parametrize("batching", movable())
@laws(10)
@given(data=st.data())
def test_every_request_ends_once_and_every_block_comes_back(batching, data):
    world = restless(data, turns=False, batching=batching)
    ran = run(world)
    assert_all_ended(ran)
    gaps = sum(row.output_tokens - 1 for row in ran.rows if row.output_tokens)
    if all(row.ended_as == "finished" for row in ran.rows):
        assert sum(ran.facts.itl.counts.values()) == gaps


@pytest.mark.parametrize("batching", movable())
@laws(10)
@given(data=st.data())
def test_merging_steps_changes_nothing(batching, data):
    assert_same(restless(data, batching=batching))
