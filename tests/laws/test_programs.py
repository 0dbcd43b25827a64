"""Programs: a call exists only after the one before has ended, and repeats what was said."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prices import MS
from test_fast_forward import assert_same
from world_strategies import laws, worlds
from worlds import Job, Turn, World, run


@st.composite
def program_worlds(draw, **given):
    """Worlds whose jobs go on: some at once, some on a grid of times, some never."""
    world = draw(worlds(most=8, clients_leave=False, **given))
    turn = st.builds(
        Turn,
        own=st.integers(1, 40),
        output=st.integers(1, 12),
        after_ns=st.sampled_from((0, 1, 5 * MS, 40 * MS)),
    )
    each = st.lists(turn, max_size=3).map(tuple)
    turns = tuple(draw(each) for _ in world.jobs)
    jobs = tuple(
        Job(j.arrival_ns, j.prompt, j.output, j.segments or ((90_000 + i, j.prompt),), j.priority)
        for i, j in enumerate(world.jobs)
    )
    longest = max(j.prompt + j.output for j in jobs) + 3 * (40 + 12)
    return _sized(world, jobs, turns, longest)


def _sized(world, jobs, turns, longest):
    blocks = max(world.kv_blocks, -(-longest // world.block_tokens) + world.watermark_blocks)
    budget = world.budget_tokens if world.chunked_prefill else 8192
    return replace(world, jobs=jobs, turns=turns, kv_blocks=blocks, budget_tokens=budget)


def calls_of(ran):
    found = defaultdict(list)
    for row in ran.rows:
        found[row.session].append(row)
    return {program: sorted(rows, key=lambda r: r.turn) for program, rows in found.items()}


@laws(60)
@given(world=program_worlds())
def test_a_call_follows_the_end_of_the_one_before(world):
    ran = run(world)
    calls = calls_of(ran)
    assert set(calls) == set(range(len(world.jobs)))
    assert ran.facts.requests == sum(1 + len(turns) for turns in world.turns)
    for program, rows in calls.items():
        turns = world.turns[program]
        assert [row.turn for row in rows] == list(range(1 + len(turns)))
        assert [row.final for row in rows] == [0] * len(turns) + [1]
        for (before, after), turn in zip(pairwise(rows), turns, strict=True):
            assert after.arrival_ns == before.end_ns + turn.after_ns
            assert after.prompt_tokens == before.prompt_tokens + before.output_tokens + turn.own
            assert after.output_tokens == turn.output
    for replica in ran.replicas:
        replica.ledger.check()
        assert replica.ledger.free == world.kv_blocks


@pytest.mark.parametrize("lookahead", [0, 1])
@laws(40)
@given(data=st.data())
def test_merged_and_single_steps_are_the_same_programs(lookahead, data):
    assert_same(data.draw(program_worlds(lookahead=lookahead, handoff=None)))


@laws(20)
@given(world=program_worlds(handoff=True))
def test_programs_are_handed_over_like_anybody(world):
    assert run(world).facts.digest == run(world).facts.digest
    assert all(row.ended_as == "finished" for row in run(world).rows)


@pytest.mark.parametrize("block", [1, 16])
def test_the_prefix_holds_the_output_too(block):
    """All that was computed for a call is found by the next one; its last token never was."""
    turns = (Turn(10, 20, 5 * MS), Turn(7, 3, 5 * MS))
    world = World((Job(0, 50, 30, ((1, 50),)),), prefix_caching=True, block_tokens=block)
    rows = run(_sized(world, world.jobs, (turns,), 200)).rows
    known = 0
    for row in rows:
        assert row.cached_tokens == known // block * block
        known = row.prompt_tokens + row.output_tokens - 1


def test_a_program_ends_where_a_call_fails():
    turns = ((Turn(10, 400), Turn(10, 5)), (Turn(10, 5),))
    jobs = (Job(0, 20, 5, ((1, 20),)), Job(0, 30, 5, ((2, 30),)))
    ran = run(World(jobs, turns=turns, timeout_ns=500 * MS, prefix_caching=True))
    first, second = calls_of(ran)[0], calls_of(ran)[1]
    assert [row.ended_as for row in first] == ["finished", "timed_out"]
    assert [row.ended_as for row in second] == ["finished", "finished"]


def test_a_call_that_no_longer_fits_ends_its_program():
    turns = ((Turn(60, 5), Turn(10, 5)),)
    jobs = (Job(0, 20, 5, ((1, 20),)),)
    ran = run(World(jobs, turns=turns, max_model_len=64))
    assert [row.ended_as for row in ran.rows] == ["finished", "rejected"]


@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_slot_of_a_closed_loop_goes_from_program_to_program(in_flight):
    turns = tuple((Turn(5, 4, 3 * MS),) * (i % 3) for i in range(6))
    jobs = tuple(Job(0, 20, 5, ((i, 20),)) for i in range(6))
    ran = run(World(jobs, turns=turns, in_flight=in_flight, think_ns=7 * MS))
    spans = sorted((rows[0].arrival_ns, rows[-1].end_ns) for rows in calls_of(ran).values())
    starts = [begin for begin, _ in spans[in_flight:]]
    ends = sorted(end for _, end in spans)
    assert starts == [end + 7 * MS for end in ends[: len(starts)]]


def test_older_programs_go_first_where_the_queue_is_ordered_by_them():
    """Program 0's second call arrives last of all and is served before the calls of the others."""
    jobs = tuple(Job(i * MS, 16, 20, ((i, 16),)) for i in range(4))
    turns = ((Turn(8, 5, 50 * MS),), (), (), ())
    world = World(jobs, turns=turns, max_num_seqs=1)
    fair, old = run(world), run(replace(world, order="programs"))
    first = {row.request: row.scheduled_ns for row in fair.rows}
    then = {row.request: row.scheduled_ns for row in old.rows}
    assert max(first, key=first.get) == 4
    assert sorted(then, key=then.get) == [0, 1, 4, 2, 3]


@laws(15)
@given(world=program_worlds(batching="vllm", handoff=None))
def test_merged_steps_are_the_same_in_order_of_programs(world):
    assert_same(replace(world, order="programs"))
