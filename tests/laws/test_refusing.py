"""Replicas that refuse, with what else a fleet may have: nobody is lost between the doors."""

from __future__ import annotations

from dataclasses import replace

import pytest
from endings import assert_all_back, assert_all_ended, assert_tiers_back
from hypothesis import given
from hypothesis import strategies as st
from prices import MS
from test_fast_forward import assert_same
from test_pins import check, pinning_worlds
from world_strategies import laws, worlds
from worlds import Job, World, run

BESIDE = {
    "tiers": {"tiers": True, "turns": True},
    "lanes": {"lanes": True},
    "handoff": {"handoff": True},
    "handoff and tiers": {"handoff": True, "tiers": True},
    "pins": {"tiers": None},
}
"""What a gateway stands in front of."""


def refusing(beside: str, data: st.DataObject) -> World:
    drawn = pinning_worlds if beside == "pins" else worlds
    world = data.draw(drawn(**BESIDE[beside]))
    if world.layered:  # that is refused beforehand
        world = replace(world, batching="vllm")
    return replace(
        world,
        refuse_at=data.draw(st.sampled_from([1, 1, 2, 4])),
        hold_ns=data.draw(st.sampled_from([0, 50 * MS])) if world.timeout_ns else 0,
        own_sends=data.draw(st.booleans()),
    )


@pytest.mark.parametrize("beside", BESIDE)
@laws(20)
@given(data=st.data())
def test_every_request_ends_once_and_every_block_comes_back(beside, data):
    world = refusing(beside, data)
    ran = run(world)
    if beside == "pins":
        check(ran)
    elif not world.tier_chunks:
        assert_all_back(ran) if world.lanes else assert_all_ended(ran)
    else:
        assert_tiers_back(ran)
        assert [row.request for row in ran.rows] == list(range(len(world.jobs)))
    assert ran.facts.digest == run(world).facts.digest


@pytest.mark.parametrize("beside", BESIDE)
@laws(20)
@given(data=st.data())
def test_merging_steps_changes_nothing(beside, data):
    assert_same(refusing(beside, data))


def test_refusals_are_counted_by_hand():
    """Two replicas of one request each: both refuse the third, which is held.

    The first is free again after 4 tokens; in turn the second is asked, which refuses once more.
    """
    jobs = (Job(0, 8, 4), Job(0, 8, 9), Job(1 * MS, 8, 2))
    world = World(jobs, replicas=2, refuse_at=1)
    facts = run(world).facts
    assert (facts.refusals, facts.holds) == (3, 1)
    assert run(replace(world, refuse_at=0)).facts.refusals == -1
