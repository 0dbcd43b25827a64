"""Attention ranks in lock-step: merged or not the same run, nothing lost, timelines by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from abilities import together
from hypothesis import given
from hypothesis import strategies as st
from prices import COSTS, MS
from test_fast_forward import assert_same
from world_strategies import laws, worlds
from worlds import Job, World, run

from llmsim.policies import BATCHING


@pytest.mark.parametrize("cost", sorted(COSTS))
@laws(25)
@given(data=st.data())
def test_merging_changes_nothing(cost, data):
    assert_same(data.draw(worlds(cost=cost, ranks=True, turns=True, handoff=None)))


@pytest.mark.parametrize("batching", [name for name in BATCHING.names() if not together(name)])
@laws(25)
@given(data=st.data())
def test_nothing_is_lost(batching, data):
    ran = run(data.draw(worlds(batching=batching, ranks=True, handoff=None, most=20)))
    assert len(ran.rows) == len(ran.world.jobs)
    for rank in ran.replicas:
        rank.ledger.check()
        assert rank.ledger.free == rank.config.kv_blocks
        assert not rank.running
        assert not rank.waiting


# the price "round": 5 ms, 20 us per token of the largest rank, 3.0003 us per token of all (one for
# a rank without any), attention of the slowest rank: 20 us per prompt token, or 7 ns per decode
# and 20 ns per token of context
PAIR = World((Job(0, 100, 3), Job(0, 50, 3)), cost="round", ranks=2)


def step_ns(largest: int, total: int, attention_ns: float) -> int:
    return round(5 * MS + 20_000 * largest + 3_000.3 * total + attention_ns)


def test_two_ranks_by_hand():
    long, short = run(PAIR).rows
    assert (long.replica, short.replica) == (0, 1)
    prompts = step_ns(100, 150, 20_000 * 100)
    assert long.first_token_ns == short.first_token_ns == prompts
    tokens = step_ns(1, 2, 7 + 20 * 101), step_ns(1, 2, 7 + 20 * 102)  # the longer context counts
    assert long.end_ns == short.end_ns == pytest.approx(prompts + sum(tokens), abs=1)


def test_a_rank_without_requests_runs_a_dummy_batch():
    (row,) = run(replace(PAIR, jobs=(Job(0, 100, 2),))).rows
    assert row.first_token_ns == step_ns(100, 101, 20_000 * 100)
    assert row.end_ns == row.first_token_ns + step_ns(1, 2, 7 + 20 * 101)


def test_a_prompt_on_one_rank_holds_up_the_tokens_of_the_other():
    alone = replace(PAIR, jobs=(Job(0, 100, 30),))
    late = replace(alone, jobs=(*alone.jobs, Job(40 * MS, 1000, 1)))
    before, after = run(alone).rows[0], run(late).rows[0]
    extra = step_ns(1000, 1001, 20_000 * 1000) - step_ns(1, 2, 7 + 20 * 108)
    assert run(late).rows[1].replica == 1
    # its eighth token comes from the step that computes the prompt
    assert after.end_ns - before.end_ns == pytest.approx(extra, abs=2)
    assert after.itl_max_ns > 20_000 * 1000


def test_requests_go_to_the_shortest_queue_or_in_turn():
    jobs = tuple(Job(0, 10, 1 + 400 * (i == 0)) for i in range(4))
    later = (Job(1000 * MS, 10, 2), Job(1000 * MS, 10, 2))
    by_queue = run(replace(PAIR, jobs=jobs + later)).rows
    assert [row.replica for row in by_queue] == [0, 1, 0, 1, 1, 0]
    in_turn = run(replace(PAIR, jobs=jobs + later, ranks_in_turn=True)).rows
    assert [row.replica for row in in_turn] == [0, 1, 0, 1, 0, 1]


def test_reports_of_queues_are_as_old_as_their_interval():
    """Between two reports only what was sent is known, not what has ended."""
    jobs = (Job(0, 10, 1), Job(0, 10, 1), Job(0, 10, 400), Job(90 * MS, 10, 1), Job(99 * MS, 10, 1))
    assert [row.replica for row in run(replace(PAIR, jobs=jobs)).rows] == [0, 1, 0, 1, 0]


def test_merging_saves_events():
    """Also where the slowest rank changes: one long context against many that grow faster."""
    jobs = (Job(0, 600, 400), *(Job(0, 20, 400) for _ in range(7)))
    world = World(jobs, ranks=2, ranks_in_turn=True)
    merged, stepped = run(world, True), run(world, False)
    assert merged.facts.digest == stepped.facts.digest
    assert [r.steps for r in merged.facts.replicas] == [r.steps for r in stepped.facts.replicas]
    assert all(r.events > 400 for r in stepped.facts.replicas)
    assert all(r.events < 12 for r in merged.facts.replicas)


def test_the_slowest_rank_changes_on_the_way():
    """A context of 8,000 tokens against 40 that grow from 20: these are the slower from tick 280.

    Beyond 300 tokens a request, context costs half as much again.
    """
    jobs = [Job(0, 8000, 401)]
    for _ in range(40):
        jobs += [Job(0, 20, 401), Job(0, 1, 1)]
    world = World(tuple(jobs), ranks=2, ranks_in_turn=True, max_model_len=9000, budget_tokens=9000)
    world = replace(world, kv_blocks=2000)
    merged, stepped = run(world, True), run(world, False)
    assert [row.values for row in merged.rows] == [row.values for row in stepped.rows]
    assert all(r.events < 12 for r in merged.facts.replicas)
    time, changes, before = float(merged.rows[0].first_token_ns), 0, 0
    for tick in range(400):
        one = 8 + 30 * (8001 + tick)
        many = 7 * 40 + 20 * 40 * (21 + tick) if tick < 280 else 8 * 40 + 30 * 40 * (21 + tick)
        slowest = int(many > one)
        changes += slowest != before
        before = slowest
        time += 5 * MS + 20_000 * 40 + 3_000.3 * 41 + max(one, many)
    assert changes == 1
    assert merged.rows[0].end_ns == pytest.approx(time, abs=3)
