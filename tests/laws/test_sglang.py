"""SGLang's scheduler, step by step: timelines that can be checked on paper. A step lasts 5 ms."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from prices import MS
from worlds import Job, World, run

from llmsim.systems.sglang import Sglang

FLAT = {"cost": "flat", "block_tokens": 1, "batching": "sglang"}
DOCUMENT = ((7, 40),)


def asks(tokens, **more):
    return partial(Sglang, max_new_tokens=tokens, **more)


def times(ran, name):
    return [getattr(row, name) // MS for row in ran.rows]


def test_a_prompt_stops_everybody_and_is_cut_where_the_step_is_full():
    """Steps of 10 tokens: 8 of the first; the second's 12 in chunks of 10 and 2 while the first
    waits; then both decode. The first's second token comes at 20 instead of 10 ms."""
    jobs = (Job(0, 8, 4), Job(1 * MS, 12, 2))
    ran = run(World(jobs, budget_tokens=10, kv_blocks=100, **FLAT), policy=asks(4))
    assert times(ran, "first_token_ns") == [5, 15]
    assert times(ran, "end_ns") == [30, 20]
    assert ran.rows[0].itl_max_ns == 15 * MS


def test_mixed_chunks_let_decodes_run_along():
    """The second prompt's 12 tokens: 9 beside one decode, then 3."""
    jobs = (Job(0, 8, 4), Job(1 * MS, 12, 2))
    world = World(jobs, budget_tokens=10, kv_blocks=100, **FLAT)
    ran = run(world, policy=asks(4, mixed_chunk=True))
    assert times(ran, "first_token_ns") == [5, 15]
    assert times(ran, "end_ns") == [20, 20]
    assert ran.rows[0].itl_max_ns == 5 * MS


def test_memory_for_outputs_keeps_others_out_until_one_has_ended():
    """Pool of 40: the first takes 10, and may write 15 more, of which 70% are kept: 10.5 of 29.
    A second of 10 + 15 and a page does not fit beside it, and is looked at only one step after
    the step before which the first has ended."""
    jobs = (Job(0, 10, 3), Job(1 * MS, 10, 1), Job(30 * MS, 4, 1))
    ran = run(World(jobs, kv_blocks=35, **FLAT), policy=asks(15))
    assert times(ran, "scheduled_ns") == [0, 15, 30]
    fits = run(World(jobs, kv_blocks=50, **FLAT), policy=asks(15))
    assert times(fits, "scheduled_ns") == [0, 5, 30]


def test_a_seat_is_filled_one_step_late():
    """One ends after 10 ms, another decodes on: the step from 10 to 15 ms is theirs."""
    jobs = (Job(0, 4, 2), Job(0, 4, 6), Job(0, 4, 1))
    ran = run(World(jobs, max_num_seqs=2, **FLAT), policy=asks(8))
    assert times(ran, "end_ns")[0] == 10
    assert times(ran, "scheduled_ns") == [0, 0, 15]


def test_two_prompts_of_one_step_share_nothing_and_a_later_one_does():
    jobs = tuple(Job(at * MS, 41, 2, (*DOCUMENT, (90 + at, 1))) for at in (0, 0, 20))
    world = World(jobs, prefix_caching=True, kv_blocks=400, **FLAT)
    ran = run(world, policy=asks(4))
    assert [row.cached_tokens for row in ran.rows] == [0, 0, 40]
    # by the longest prefix, the second waits for the first
    ran = run(world, policy=asks(4, order="lpm"))
    assert [row.cached_tokens for row in ran.rows] == [0, 0, 40]


def test_by_longest_prefix_one_of_two_alike_waits_for_the_other():
    """A step holds two prompts. By arrival the two that are alike compute the same."""
    jobs = tuple(Job(0, 41, 2, (*DOCUMENT, (90 + at, 1))) for at in (0, 1))
    other = Job(0, 41, 2, ((5, 41),))
    world = World((*jobs, other), prefix_caching=True, budget_tokens=82, kv_blocks=400, **FLAT)
    ran = run(world, policy=asks(4))
    assert times(ran, "scheduled_ns") == [0, 0, 5]
    assert [row.cached_tokens for row in ran.rows] == [0, 0, 0]
    ran = run(world, policy=asks(4, order="lpm"))
    assert times(ran, "scheduled_ns") == [0, 5, 0]
    assert [row.cached_tokens for row in ran.rows] == [0, 40, 0]


def test_with_lookahead_a_result_is_in_a_step_later():
    """A step holds one prompt; the second step is planned before the first one's result is in."""
    jobs = tuple(Job(at * MS, 41, 2, (*DOCUMENT, (90 + n, 1))) for n, at in enumerate((0, 0, 11)))
    for lookahead, cached in ((0, [0, 40, 40]), (1, [0, 0, 40])):
        world = World(jobs, prefix_caching=True, budget_tokens=41, kv_blocks=400, **FLAT)
        ran = run(replace(world, lookahead=lookahead), policy=asks(4))
        assert [row.cached_tokens for row in ran.rows] == cached


def test_who_has_written_least_loses_its_kv():
    """Both write more than they asked for, and outgrow a pool of 56 tokens."""
    jobs = (Job(0, 10, 30), Job(6 * MS, 10, 30))
    world = World(jobs, kv_blocks=56, **FLAT)
    ran = run(world, policy=asks(8))
    assert [row.preemptions for row in ran.rows] == [0, 1]
    assert {row.ended_as for row in ran.rows} == {"finished"}


def test_arrivals_are_looked_for_at_intervals():
    """The first decodes from 5 ms on, and the calls at 5 and 25 ms look for arrivals; so does the
    one at 30 ms, after a prompt, and the one four decodes later."""
    jobs = (Job(0, 4, 20), Job(7 * MS, 4, 1), Job(31 * MS, 4, 1))
    ran = run(World(jobs, **FLAT), policy=asks(30, recv_interval_steps=4))
    assert times(ran, "scheduled_ns") == [0, 25, 50]


def test_a_step_takes_no_further_prompt_that_reaches_the_limit():
    jobs = tuple(Job(0, 10, 1) for _ in range(5))
    ran = run(World(jobs, **FLAT), policy=asks(4, max_prefill_tokens=21))
    assert times(ran, "scheduled_ns") == [0, 0, 5, 5, 10]
    ran = run(World(jobs, **FLAT), policy=asks(4, max_prefill_tokens=5))
    assert times(ran, "scheduled_ns") == [0, 5, 10, 15, 20]
