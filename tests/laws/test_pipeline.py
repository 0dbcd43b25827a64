"""Pipelines: timelines by hand, nothing lost, one stage is a plain replica bit for bit."""

from __future__ import annotations

from dataclasses import astuple, replace

import pytest
from abilities import foresees
from endings import assert_all_ended
from hypothesis import given
from hypothesis import strategies as st
from prices import COSTS, MS, Cost
from test_fast_forward import assert_same
from world_strategies import laws, worlds
from worlds import Job, World, run

from llmsim.policies import BATCHING
from llmsim.results.stations import station_metrics
from llmsim.serving.microbatch import SlotCohort
from llmsim.serving.request import PROBE, Request

# the price "round": 5 ms, 20 us per new prompt token, 20 us per decode, 20 ns per token of context
PAIR = World((Job(0, 100, 3), Job(0, 50, 3)), stages=(0.5, 0.5))


def test_one_request_alone_waits_for_every_stage():
    (row,) = run(replace(PAIR, jobs=(Job(0, 100, 3),))).rows
    assert row.first_token_ns == 7 * MS
    assert row.end_ns == 7 * MS + sum(2 * round((5 * MS + 20_000 + 20 * n) / 2) for n in (101, 102))


def test_two_unequal_micro_batches_by_hand():
    """A budget of 100 tokens makes two micro-batches of two prompts, 7 and 6 ms, on two stages."""
    ran = run(replace(PAIR, budget_tokens=100))
    long, short = ran.rows
    # stage 0 works 0..3.5 and 3.5..6.5, stage 1 3.5..7 and 7..10: its input was there at 6.5
    assert long.first_token_ns == 7 * MS
    assert short.first_token_ns == 10 * MS
    # at 7 the first decode enters stage 0, idle since 6.5, and waits for stage 1 until 10
    half = {tokens: (5 * MS + 20_000 + 20 * tokens) // 2 for tokens in (101, 102, 51, 52)}
    out = 10 * MS + half[101]
    # at 10 the other enters stage 0; stage 1 is busy until the first is out
    other = max(10 * MS + half[51], out) + half[51]
    # and so on: each enters when it is out
    assert long.end_ns == max(out + half[102], other) + half[102]
    second = max(out + half[102], other)  # stage 0 is done with the first again
    assert short.end_ns == max(second + half[52], long.end_ns) + half[52]
    (replica,) = ran.replicas
    assert replica.busy_ns[1] == 6_500_000 + sum(half.values())
    assert replica.busy_ns[1] == replica.busy_ns[3]


def in_whole_ns(cost: Cost) -> bool:
    """Whether steps take whole nanoseconds: a stretch rounds their sum, a pipeline each."""
    return all(float(value).is_integer() for value in astuple(cost))


@laws(30)
@given(data=st.data())
def test_one_stage_is_a_plain_replica(data):
    """Bit for bit, decisions and rows."""
    cost = data.draw(st.sampled_from([name for name in sorted(COSTS) if in_whole_ns(COSTS[name])]))
    world = data.draw(worlds(cost=cost, lookahead=0, handoff=False, moves=False, tiers=False))
    if world.allocation != "paged":
        return
    if foresees(world.routing):  # it goes by a copy of the replica, which a pipeline has not
        return
    plain, piped = run(world), run(replace(world, stages=(1.0,)))
    assert plain.facts.digest == piped.facts.digest
    assert plain.decisions == piped.decisions
    assert [row.values for row in plain.rows] == [row.values for row in piped.rows]
    for one, other in zip(plain.facts.replicas, piped.facts.replicas, strict=True):
        assert (one.steps, one.preemptions) == (other.steps, other.preemptions)
        assert one.peak_kv_blocks == other.peak_kv_blocks
        assert (one.lookup_tokens, one.hit_tokens) == (other.lookup_tokens, other.hit_tokens)


def test_who_leaves_first_is_let_go_first():
    """At one instant, a prompt in progress, which is in no micro-batch, and a decode in one."""
    world = World((Job(0, 85, 1), Job(0, 41, 5)), chunk_limit_tokens=5, timeout_ns=60 * MS)
    assert run(world).decisions == run(replace(world, stages=(1.0,))).decisions


def test_routers_see_prompts_that_are_between_two_micro_batches():
    """Of a prompt of 18 tokens, 8 have been launched; who comes then goes to the other replica."""
    jobs = (Job(0, 9, 1), Job(0, 18, 1), Job(46_981, 19, 1))
    world = World(jobs, budget_tokens=8, routing="dualmap", replicas=2)
    assert run(world).decisions == run(replace(world, stages=(1.0,))).decisions


@pytest.mark.parametrize("batching", BATCHING.names())
@laws(12)
@given(data=st.data())
def test_nothing_is_lost(batching, data):
    ran = run(data.draw(worlds(batching=batching, stages=True, most=20, handoff=None)))
    assert_all_ended(ran)
    for replica in ran.replicas:
        assert replica.busy_ns[-2] <= ran.facts.end_ns


@laws(30)
@given(data=st.data())
def test_merging_changes_nothing(data):
    assert_same(data.draw(worlds(stages=True, turns=True, handoff=None)))


def test_a_saturated_pipeline_is_as_fast_as_its_slowest_stage():
    """Prompts of one size, one after another: a prompt comes out every 3 ms, the slowest stage."""
    jobs = tuple(Job(0, 100, 1) for _ in range(50))
    world = World(jobs, stages=(0.2, 0.5, 0.3), budget_tokens=100, max_num_seqs=50)
    ends = [row.end_ns for row in run(world).rows]
    assert ends[0] == 7 * MS
    assert ends[-1] - ends[0] == 49 * 3_500_000


def test_a_prompt_goes_through_in_chunks_behind_one_another():
    """Chunk after chunk, without waiting for the one before to come out."""
    world = World((Job(0, 300, 1),), stages=(0.5, 0.5), budget_tokens=100)
    # chunks of 7 ms on two stages: 0..3.5, 3.5..7 | 3.5..7, 7..10.5 | the third when one is out
    assert run(world).rows[0].end_ns == 14 * MS


def test_who_arrives_is_seen_when_the_oldest_comes_out():
    """Also where a stage stands idle: the scheduler waits for a result."""
    jobs = (Job(0, 100, 50), Job(8 * MS, 100, 1))
    rows = run(World(jobs, stages=(0.5, 0.5))).rows
    first = 5 * MS + 20_000 + 20 * 101
    # the second is admitted beside the second decode of the first, not at 8 ms
    assert rows[1].first_token_ns == 7 * MS + first + (7 * MS + 20_000 + 20 * 102)


@pytest.mark.parametrize("fast_forward", [True, False])
def test_steps_of_who_keeps_the_line_are_micro_batches(fast_forward):
    """Two decode in a micro-batch each, out every 5 ms in turn; the third waits for seven of them.

    It comes at 20.1 ms and is seen at 22.5.
    """
    jobs = (Job(0, 100, 30), Job(0, 50, 30), Job(20_100_000, 10, 1))
    world = World(jobs, cost="flat", stages=(0.5, 0.5), budget_tokens=100)
    gathers = replace(world, batching="gathering", order="priority")  # wait_steps 7
    assert run(world, fast_forward).rows[2].scheduled_ns == 22_500_000
    assert run(gathers, fast_forward).rows[2].scheduled_ns == 22_500_000 + 7 * 2_500_000


def test_results_leave_together_from_each_micro_batch():
    """Two static batches of one prompt each; the third prompt is in the one that is over first."""
    jobs = (Job(0, 100, 3), Job(0, 50, 5), Job(MS, 30, 2))
    world = World(jobs, cost="flat", stages=(0.5, 0.5), budget_tokens=100)
    rows = run(replace(world, batching="static-batching")).rows
    # tokens every 5 ms, from 5 and 7.5 ms on; clients have all of them with the last one
    assert [row.end_ns for row in rows] == [15 * MS, 27_500_000, 25 * MS]
    assert [row.first_token_ns for row in rows] == [row.end_ns for row in rows]
    assert rows[2].scheduled_ns == 15 * MS


def test_unequal_prompts_make_bubbles_and_equal_chunks_do_not():
    """Prompts of 2, 8, 2 and 8 tokens, a millisecond each, half of it on each of two stages."""
    jobs = tuple(Job(0, prompt, 1) for prompt in (2, 8, 2, 8))
    base = World(jobs, cost="a millisecond a token", stages=(0.5, 0.5))
    # whole: stage 0 has 0..1, 1..5, 5..6 and 9..13, as the second is out at 9; stage 1 has 1..2,
    # 5..9, 9..10 and 13..17: it waits from 2 to 5 and from 10 to 13
    whole = run(replace(base, batching="prefill-first", budget_tokens=8))
    assert [row.end_ns / MS for row in whole.rows] == [2, 9, 10, 17]
    # chunks: 2 + 3, 5, 2 + 3 and 5 tokens, each 2.5 ms on each stage, one behind the other
    equal = run(replace(base, budget_tokens=5))
    assert [row.end_ns / MS for row in equal.rows] == [5, 7.5, 10, 12.5]
    # of the time from the first micro-batch at stage 1 to the last
    bubbles = [17 - 1 - 10, 12.5 - 2.5 - 10]
    for ran, bubble, first in ((whole, bubbles[0], 1), (equal, bubbles[1], 2.5)):
        (replica,) = ran.replicas
        idle = max(row.end_ns for row in ran.rows) - first * MS - replica.busy_ns[3]
        assert idle / MS == bubble
    assert bubbles == [6, 0]
    told = station_metrics(whole.facts.stations)
    assert told["bubble_frac"] == pytest.approx(1 - 20 / (2 * 17))
    assert told["station_busy_max_frac"] == pytest.approx(10 / 17)


def test_links_and_hosts_are_passed_in_order_too():
    world = World((Job(0, 100, 1),), stages=(0.5, 0.5), hop_ns=10_000.0, stage_host_ns=3 * MS)
    # host 3, stage 3.5, link 1, stage 3.5, and what stands behind the last stage
    assert run(world).rows[0].end_ns == 12 * MS


def test_who_goes_on_in_another_micro_batch_does_not_end_in_the_one_it_has_left():
    """Its last tick there may have the number that it would have had here."""
    first, second = SlotCohort(1, 16, 0), SlotCohort(1, 16, 0)
    short, mover, long = (Request(PROBE, output) for output in (5, 10, 20))
    for request in (short, mover, long):
        first.join(request)
    first.leave(mover)
    second.join(mover)
    assert mover.finish_tick == second.due == 10
    assert first.due == 5
    first.advance(5, 0)
    assert first.pop_finished() is short
    assert first.due == 20
