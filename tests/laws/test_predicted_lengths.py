"""Orders by predicted lengths, whoever predicts; on paper, where a step lasts 5 ms."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from abilities import asks_lengths
from hypothesis import given
from hypothesis import strategies as st
from prices import MS
from test_fast_forward import assert_same
from world_strategies import laws, worlds
from worlds import Job, World, run

from llmsim.policies import BATCHING, OUTPUT_LENGTH
from llmsim.policies.shortest import ShortestFirst
from llmsim.policies.views import RequestView
from llmsim.systems.past_future import PastFuture, RecentLengths, chance_of

FLAT = {"cost": "flat", "block_tokens": 1, "kv_blocks": 4_000, "prefix_caching": False}
TOLD = FLAT | {"batching": "shortest-first", "believed": "oracle"}


def job(at_ms, output, prompt=10):
    return Job(at_ms * MS, prompt, output)


def begun_ms(ran):
    return [row.scheduled_ns // MS for row in ran.rows]


def ended_ms(ran):
    return [row.end_ns // MS for row in ran.rows]


@pytest.mark.parametrize("believed", OUTPUT_LENGTH.names())
@pytest.mark.parametrize("batching", [each for each in BATCHING.names() if asks_lengths(each)])
@laws(8)
@given(data=st.data())
def test_whatever_is_believed_merging_steps_changes_nothing(batching, believed, data):
    world = data.draw(worlds(batching=batching, handoff=None, tiers=None, turns=True))
    assert_same(replace(world, believed=believed))


@pytest.mark.parametrize("fast_forward", [True, False])
def test_who_has_least_left_is_next(fast_forward):
    world = World((job(0, 10), job(1, 3), job(1, 1)), max_num_seqs=1, **TOLD)
    ran = run(world, fast_forward, policy=ShortestFirst)
    assert begun_ms(ran) == [0, 55, 50]
    blind = run(World(world.jobs, max_num_seqs=1, **FLAT), fast_forward)
    assert begun_ms(blind) == [0, 50, 65]


@pytest.mark.parametrize("fast_forward", [True, False])
def test_the_shorter_takes_the_seat_of_the_longest(fast_forward):
    """At 15 ms the first has three tokens; it goes on at 25, its KV computed with the fourth."""
    world = World((job(0, 20), job(12, 2)), max_num_seqs=1, **TOLD)
    ran = run(world, fast_forward, policy=partial(ShortestFirst, preempts=True, lead_tokens=3))
    assert ended_ms(ran) == [110, 25]
    assert [row.preemptions for row in ran.rows] == [1, 0]
    # 17 tokens left against two, but a lead of 15 is asked for
    held = run(world, fast_forward, policy=partial(ShortestFirst, preempts=True, lead_tokens=15))
    assert ended_ms(held) == [100, 110]


def test_who_has_waited_long_enough_is_passed_no_more():
    """A token a millisecond: ten tokens at 0 rank like one at 9 ms."""
    jobs = (job(0, 10), *(job(5 * each, 1) for each in range(6)))
    world = World(jobs, max_num_seqs=1, **TOLD)
    assert begun_ms(run(world, policy=ShortestFirst))[0] == 30
    fair = run(world, policy=partial(ShortestFirst, ageing_tokens_per_s=1000.0))
    assert begun_ms(fair)[:4] == [10, 0, 5, 60]


def test_equal_lengths_are_served_by_arrival():
    jobs = tuple(job(each, 4) for each in range(5))
    order = run(World(jobs, max_num_seqs=1, **TOLD), policy=partial(ShortestFirst, preempts=True))
    assert begun_ms(order) == begun_ms(run(World(jobs, max_num_seqs=1, **FLAT)))


THREE = FLAT | {"kv_blocks": 70, "batching": "past-future"}


@pytest.mark.parametrize("fast_forward", [True, False])
def test_who_would_not_fit_at_the_fullest_moment_waits(fast_forward):
    """Two of 10 tokens with 20 to come need 60 at their ends; the third waits for them."""
    world = World(tuple(job(0, 20) for _ in range(3)), believed="oracle", **THREE)
    ran = run(world, fast_forward, policy=partial(PastFuture, memory="believed", reserve_frac=0))
    assert begun_ms(ran) == [0, 0, 100]
    assert not any(row.preemptions for row in ran.rows)
    bold = run(world, fast_forward, policy=partial(PastFuture, memory="watermark"))
    assert begun_ms(bold) == [0, 0, 0]
    assert sum(row.preemptions for row in bold.rows) == 1


@pytest.mark.parametrize(("past", "waits_ms"), [(5, 0), (20, 100)])
def test_the_past_says_what_the_future_needs(past, waits_ms):
    """After an answer of 5 tokens three are expected to fit, after one of 20 only two."""
    begin = 5 * past + 15
    jobs = (job(0, past), *(job(begin, 20) for _ in range(3)))
    ran = run(World(jobs, **THREE), policy=partial(PastFuture, reserve_frac=0, max_new_tokens=30))
    assert begun_ms(ran)[1:] == [begin, begin, begin + waits_ms]


def test_draws_come_from_longer_answers_of_late():
    recent = RecentLengths(3)
    for tokens in (50, 10, 30, 20):  # the first is forgotten
        recent.add(tokens)
    assert [recent.draw(0, at / 3 + 0.01) for at in range(3)] == [10, 20, 30]
    assert [recent.draw(10, at) for at in (0.0, 0.49, 0.51, 0.99)] == [20, 20, 30, 30]
    assert recent.draw(30, 0.5) == 0
    drawn = [chance_of(request, step) for request in range(40) for step in range(40)]
    assert len(set(drawn)) == len(drawn)
    assert 0.45 < sum(drawn) / len(drawn) < 0.55
    assert 0 <= min(drawn) < max(drawn) < 1


def test_s3_packs_the_largest_that_fits():
    """Of 40, 60, 70 and 30 tokens 70 and 30 fill the memory; when both are gone, 60 and 40."""
    jobs = tuple(job(0, output) for output in (30, 50, 60, 20))
    world = World(jobs, batching="s3", allocation="s3", believed="oracle", **FLAT)
    ran = run(World(**{**vars(world), "kv_blocks": 100}))
    assert begun_ms(ran) == [300, 300, 0, 0]
    assert not any(row.preemptions for row in ran.rows)


def test_a_request_without_an_estimate_counts_as_next_to_nothing():
    line = ShortestFirst()
    view = RequestView(0, 0, 10, -1, -1, 0, None)
    assert line.left(view, 5) == 1
    view.believed_tokens = 9
    assert line.left(view, 5) == 4
