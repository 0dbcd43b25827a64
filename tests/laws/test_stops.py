"""Steps that are stopped inside and go on later: nothing is lost, timelines by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from endings import assert_all_ended
from hypothesis import given
from hypothesis import strategies as st
from prices import COSTS, MS, PRICES
from stop_plans import EvenPoints
from test_fast_forward import assert_same
from world_strategies import laws, worlds
from worlds import Job, World, run

from llmsim.policies import PRECEDENCE
from llmsim.serving.decisions import GO_ON, STOP
from llmsim.serving.stops import StoppingReplica


def stopping(ran):
    return [replica for replica in ran.replicas if isinstance(replica, StoppingReplica)]


@pytest.mark.parametrize("precedence", PRECEDENCE.names())
@laws(15)
@given(data=st.data())
def test_merging_changes_nothing(precedence, data):
    world = data.draw(worlds(stops=True))
    assert_same(replace(world, precedence=precedence))


@laws(40)
@given(world=worlds(stops=True))
def test_nothing_is_lost(world):
    ran = run(world)
    assert_all_ended(ran)
    for replica in stopping(ran):
        assert all(request.ended for request in replica._begun)
        kinds = replica_decisions(ran, replica)
        assert kinds.count(STOP) == replica.stops
        assert kinds.count(GO_ON) <= replica.stops


def replica_decisions(ran, replica):
    """Return the kinds of decisions of a replica; the end of a request has one number more."""
    told, at, kinds = ran.decisions[ran.replicas.index(replica)], 0, []
    while at < len(told):
        kinds.append(told[at])
        at += 4 if told[at] == 4 else 3
    return kinds


@laws(50)
@given(world=worlds(stops=True, clients_leave=False))
def test_work_is_conserved(world):
    """The parts of stopped steps add up to whole ones, to the nanosecond, and so do the prompts."""
    world = replace(world, agree_ns=0)
    whole: dict[int, int] = {}

    def watch(replica, call):
        if not isinstance(replica, StoppingReplica) or not call.chunks:
            return
        slices = [(tokens, past) for _, tokens, past in call.chunks]
        rows = sum(past + tokens == request.prompt for request, tokens, past in call.chunks)
        looks = world.check_ns * (world.stop_points or 0)
        took = PRICES[world.cost].step_ns(slices, 0, 0, 0, rows) + looks
        whole[replica.index] = whole.get(replica.index, 0) + took * (not gone_on(replica))

    ran = run(world, recorder=watch)
    computed = 0
    for replica, facts in zip(ran.replicas, ran.facts.replicas, strict=True):
        if isinstance(replica, StoppingReplica):
            assert facts.timeline.totals["busy_ns"].sum() == whole.get(replica.index, 0)
            computed += facts.timeline.totals["prefill_tokens"].sum()
    assert round(computed) == sum(job.prompt for job in world.jobs)


def gone_on(replica):
    """Return whether the step that has just been launched was begun before."""
    return replica._under_way.ran_ns > 0


# the price "round": 5 ms and 20 us a token; ten instants at which a step can be stopped
LONG = Job(0, 1000, 1, priority=1)  # 25 ms
BY_HAND = World(
    (LONG, Job(9 * MS, 100, 1)),
    decoders=1,
    stop_points=10,
    precedence="priority",
)


def test_by_hand():
    long, short = run(BY_HAND).rows
    # the short prompt comes at 9 ms; the boundary behind is at 10 ms; its 7 ms are over at 17
    assert short.first_token_ns == 17 * MS
    # 15 ms of the long one are left
    assert long.first_token_ns == 32 * MS


def test_without_points_it_waits_for_the_end_of_the_step():
    long, short = run(replace(BY_HAND, stop_points=0)).rows
    assert (long.first_token_ns, short.first_token_ns) == (25 * MS, 32 * MS)


def test_agreeing_and_looking_take_time():
    agreed = run(replace(BY_HAND, agree_ns=MS)).rows
    assert [row.first_token_ns for row in agreed] == [33 * MS, 18 * MS]
    looked = run(replace(BY_HAND, check_ns=100_000)).rows  # a step takes a millisecond longer
    assert [row.first_token_ns for row in looked] == [10_400_000 + 8 * MS + 15_600_000, 18_400_000]


def test_stopped_twice_and_again_inside():
    """A prompt that stops another is itself stopped; each goes on from where it was."""
    jobs = (
        replace(LONG, priority=2),
        Job(9 * MS, 500, 1, priority=1),
        Job(11 * MS, 100, 1, priority=0),
        Job(18 * MS, 100, 1, priority=1),
    )
    ran = run(replace(BY_HAND, jobs=jobs))
    # 10: the second begins, 15 ms, boundaries every 1.5; 11.5: the third, until 18.5; the second
    # goes on, with 13.5 left, until 32; the fourth until 39; 15 of the first are left
    assert [row.first_token_ns for row in ran.rows] == [54 * MS, 32 * MS, 18_500_000, 39 * MS]
    (replica,) = stopping(ran)
    assert replica.stops == 2
    assert replica.stop_wait_ns == 1_500_000
    assert replica.longest_stop_ns == MS


def test_nobody_stops_for_who_does_not_fit():
    full = replace(BY_HAND, kv_blocks=63 + 6)  # of 16 tokens: the short prompt needs seven
    assert [row.first_token_ns for row in run(full).rows] == [25 * MS, 32 * MS]
    seats = replace(BY_HAND, max_num_seqs=1)
    assert [row.first_token_ns for row in run(seats).rows] == [25 * MS, 32 * MS]


def test_a_client_that_leaves_takes_its_stopped_step_along():
    gone = replace(
        BY_HAND, jobs=(replace(LONG, abort_ns=12 * MS), BY_HAND.jobs[1], Job(18 * MS, 50, 1))
    )
    rows = run(gone).rows
    assert [row.ended_as for row in rows] == ["aborted", "finished", "finished"]
    assert rows[2].first_token_ns == 24 * MS


@pytest.mark.parametrize("cost", sorted(COSTS))
@laws(8)
@given(data=st.data())
def test_without_points_by_arrival_it_is_the_plain_replica(cost, data):
    """Same decisions at the same times as vLLM's order, whole prompts alike."""
    world = data.draw(worlds(stops=True, cost=cost))
    world = replace(
        world,
        stop_points=0,
        precedence="arrival",
        chunked_prefill=False,
        budget_tokens=4096,
        chunk_limit_tokens=0,
        batching="vllm",
        order="fcfs",
    )
    plain, stopped = run(replace(world, stop_points=None)), run(world)
    assert plain.decisions == stopped.decisions
    assert plain.facts.digest == stopped.facts.digest
    assert [row.values for row in plain.rows] == [row.values for row in stopped.rows]


def test_prompts_in_chunks_keep_their_rank():
    """Without stops inside, the end of a chunk is where a short prompt gets in."""
    long, short = run(replace(BY_HAND, stop_points=0, budget_tokens=200)).rows
    # chunks of 200 take 9 ms; the short one comes as the first ends, and half of the second is its
    assert short.first_token_ns == 18 * MS
    assert long.first_token_ns == 18 * MS + 3 * 9 * MS + 7 * MS


def test_points_of_the_tests():
    points = EvenPoints(10)
    assert points.next_ns([], 0, 25 * MS, 9 * MS) == 10 * MS
