"""Merging steps changes nothing: the same decisions, rows and gaps as one event per step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prices import COSTS, MS, Cost
from world_strategies import laws, worlds
from worlds import Job, World, run

from llmsim.costmodel import RooflineCost
from llmsim.policies import BATCHING, ROUTING, RequestView, StepDraft
from llmsim.results.histogram import RATIO
from llmsim.specs import EngineLimits, load_gpu, load_model


def bins_of(ran):
    return [index for index, weight in sorted(ran.facts.itl.counts.items()) for _ in range(weight)]


def spread_bins(cost: Cost, world: World) -> int:
    """Bins by which a merged run of gaps may be off where gaps grow in jumps.

    Inside one stretch gaps are taken to grow evenly. They grow in jumps of one tile times the
    members that cross a tile together, so the bound is the largest such jump over the least gap.
    """
    if cost.context_tile == 1:
        return 1
    members = min(world.max_num_seqs, len(world.jobs))
    jump = cost.context_tile * members * (cost.per_token_ns + cost.per_windowed_ns)
    bins, ratio = 1, 1.0
    while ratio < 1 + jump / cost.base_ns:
        ratio *= RATIO
        bins += 1
    return bins


def assert_same(world: World, **given) -> None:
    merged, stepped = run(world, True, **given), run(world, False, **given)
    assert merged.decisions == stepped.decisions
    assert merged.facts.digest == stepped.facts.digest
    assert [row.values for row in merged.rows] == [row.values for row in stepped.rows]
    assert merged.facts.end_ns == stepped.facts.end_ns
    assert merged.facts.requests == stepped.facts.requests
    assert merged.facts.stations == stepped.facts.stations
    for one, other in zip(merged.facts.replicas, stepped.facts.replicas, strict=True):
        assert one.steps == other.steps
        assert one.preemptions == other.preemptions
        assert one.peak_kv_blocks == other.peak_kv_blocks
        assert (one.lookup_tokens, one.hit_tokens) == (other.lookup_tokens, other.hit_tokens)
        assert one.evicted_blocks == other.evicted_blocks
        assert one.events <= other.events
    have, want = bins_of(merged), bins_of(stepped)
    assert len(have) == len(want)
    off = max((abs(a - b) for a, b in zip(have, want, strict=True)), default=0)
    assert off <= spread_bins(COSTS[world.cost], world)


@pytest.mark.parametrize("cost", sorted(COSTS))
@pytest.mark.parametrize("batching", BATCHING.names())
@laws(25)
@given(data=st.data())
def test_for_every_batching_and_price(batching, cost, data):
    assert_same(data.draw(worlds(batching=batching, cost=cost, turns=True, handoff=None)))


@pytest.mark.parametrize("routing", ROUTING.names())
@pytest.mark.parametrize("lookahead", [0, 1])
@laws(30)
@given(data=st.data())
def test_for_every_routing(routing, lookahead, data):
    assert_same(data.draw(worlds(routing=routing, lookahead=lookahead, most=20, handoff=None)))


@pytest.mark.parametrize("lookahead", [0, 1])
@laws(40)
@given(data=st.data())
def test_when_clients_leave(lookahead, data):
    assert_same(data.draw(worlds(lookahead=lookahead, clients_leave=True, handoff=None)))


@pytest.fixture(scope="module", params=["llama-3.1-8b", "mixtral-8x7b"])
def roofline(request):
    limits = EngineLimits(max_num_seqs=64, max_num_batched_tokens=4096)
    return RooflineCost(load_model(request.param), load_gpu("b200"), limits=limits)


@laws(25)
@given(world=worlds(most=10))
def test_with_the_real_price(roofline, world):
    merged, stepped = run(world, True, cost=roofline), run(world, False, cost=roofline)
    assert merged.decisions == stepped.decisions
    assert [row.values for row in merged.rows] == [row.values for row in stepped.rows]


def test_one_end_sends_the_next_request_in_the_same_nanosecond():
    """Calls at one instant go by replica index, inside a merged stretch too.

    What ends on replica 1 at T sends the next request to replica 0 at T, where, with one event
    per step, the call at T has taken place already.
    """
    jobs = (Job(0, 1, 16), Job(0, 1, 2), Job(0, 1, 1), Job(0, 1, 1))
    assert_same(World(jobs, max_num_seqs=2, replicas=2, in_flight=2))


def test_merging_saves_events():
    """The law would hold for an engine that never merges, too."""
    world = World(tuple(Job(i * MS, 50, 400) for i in range(4)))
    merged, stepped = run(world, True), run(world, False)
    assert sum(r.events for r in stepped.facts.replicas) > 400
    assert sum(r.events for r in merged.facts.replicas) < 20


@dataclass
class Alternating:
    """Looks at the queue first in every second call, at the running requests first in others."""

    every_step: ClassVar[bool] = True
    turn: int = 0

    def urgency(self, request: RequestView) -> tuple[int, ...] | None:
        return (-request.prompt_tokens, request.index)

    def plan(self, step: StepDraft) -> None:
        self.turn += 1
        if self.turn % 2:
            if step.advance_running():
                step.admit_waiting()
            return
        step.admit_waiting(whole_prompts=True)
        if not step.admitted:
            step.advance_running()


@laws(40)
@given(world=worlds(batching="vllm"))
def test_a_policy_that_wants_every_step_gets_it(world):
    """A policy with a memory of its own sees the same calls whether or not steps may be merged."""
    world = replace(world, budget_tokens=4096)
    assert_same(world, policy=Alternating)
