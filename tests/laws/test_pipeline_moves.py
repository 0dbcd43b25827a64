"""Pipelines in fleets that change: requests move, replicas come, go, fail, refuse, change roles."""

from __future__ import annotations

from dataclasses import replace

import pytest
from abilities import movable
from endings import assert_all_ended
from hypothesis import given
from hypothesis import strategies as st
from prices import COSTS, MS
from test_fast_forward import assert_same
from test_life import restless
from test_roles import changeable
from world_strategies import laws, worlds
from worlds import Job, World, run

from llmsim.policies.control import Add, Fail, Migrate

BATCHINGS = movable()
MOVED = {"stages": True, "moves": True}


@pytest.mark.parametrize("batching", BATCHINGS)
@laws(6)
@given(data=st.data())
def test_who_moves_ends_once_and_every_block_comes_back(batching, data):
    world = data.draw(worlds(batching=batching, handoff=None, turns=True, **MOVED))
    assert_all_ended(run(world))


@pytest.mark.parametrize("cost", sorted(COSTS))
@laws(8)
@given(data=st.data())
def test_merging_changes_nothing_where_requests_move(cost, data):
    assert_same(data.draw(worlds(cost=cost, handoff=None, **MOVED)))


@laws(15)
@given(world=worlds(clients_leave=False, handoff=None, **MOVED))
def test_gaps_and_tokens_add_up(world):
    ran = run(world)
    gaps = sum(row.output_tokens - 1 for row in ran.rows if row.output_tokens)
    assert sum(ran.facts.itl.counts.values()) == gaps
    told = sum(r.timeline.totals["output_tokens"].sum() for r in ran.facts.replicas)
    assert round(told) == sum(row.output_tokens for row in ran.rows)


@pytest.mark.parametrize("batching", BATCHINGS)
@laws(6)
@given(data=st.data())
def test_nothing_is_lost_where_replicas_come_and_go(batching, data):
    ran = run(restless(data, batching=batching, stages=True))
    assert_all_ended(ran)
    gaps = sum(row.output_tokens - 1 for row in ran.rows if row.output_tokens)
    if all(row.ended_as == "finished" for row in ran.rows):
        assert sum(ran.facts.itl.counts.values()) == gaps


@pytest.mark.parametrize("cost", sorted(COSTS))
@laws(8)
@given(data=st.data())
def test_merging_changes_nothing_where_replicas_come_and_go(cost, data):
    assert_same(restless(data, cost=cost, stages=True))


@pytest.mark.parametrize("batching", BATCHINGS)
@laws(6)
@given(data=st.data())
def test_nothing_is_lost_where_roles_change(batching, data):
    ran = run(changeable(data, batching=batching, stages=True))
    assert_all_ended(ran)


@pytest.mark.parametrize("cost", sorted(COSTS))
@laws(8)
@given(data=st.data())
def test_merging_changes_nothing_where_roles_change(cost, data):
    assert_same(changeable(data, cost=cost, stages=True))


class Script:
    """Does what it is told at given times [ms]."""

    period_s, view_age_s = 0.001, 0.0

    def __init__(self, actions):
        self._actions = actions
        self.decoding = {}

    def start(self, rng):
        pass

    def act(self, fleet):
        at = fleet.now_ns // MS
        running = [fleet.decoding(each) for each in range(len(fleet.replicas))]
        self.decoding[at] = [[(one.request.index, one.tokens) for one in each] for each in running]
        return [what for when, what in self._actions if when == at]


class Scripted(World):
    """A world in which things happen by a script."""

    def control(self):
        return replace(super().control(), policies=(self.script,))


def by_script(script, *jobs, **given):
    """Run on two stages of half of the price "round"; see `test_pipeline`."""
    settings = {"shuffle_ns": MS, "stages": (0.5, 0.5), "budget_tokens": 100} | given
    world = Scripted(jobs, **settings)
    told = Script(script)
    object.__setattr__(world, "script", told)
    return run(world), told


def test_a_pipeline_that_fails_loses_each_micro_batch_as_it_comes_out():
    """Two prompts in flight when it fails at 4 ms; the other pipeline is up since 12."""
    script = [(1, Add(0)), (4, Fail(0))]
    ran, _ = by_script(script, Job(0, 100, 3), Job(0, 50, 3), spare=1)
    long, short = ran.rows
    # their first tokens come out at 7 and 10 ms, and are all that comes out
    assert (long.first_token_ns, short.first_token_ns) == (7 * MS, 10 * MS)
    assert (long.preemptions, short.preemptions) == (1, 1)
    assert [row.recomputed_tokens for row in ran.rows] == [100, 50]
    # 11 ms later each is sent elsewhere: at 18 the long one, in chunks of 100 tokens and 1
    chunks = 7 * MS // 2, 5_020_000 // 2
    last = 18 * MS + chunks[0] + chunks[0] + chunks[1]
    # the short one comes at 21, and is seen when the first chunk is out, at 25
    prompt = (5 * MS + 51 * 20_000) // 2
    short_out = 25 * MS + 2 * prompt
    # their last decodes: stage 0 is busy with the short prompt until 28.01, stage 1 until it is out
    decodes = [(5 * MS + 20_000 + 20 * n) // 2 for n in (102, 52)]
    assert last < 25 * MS + prompt
    assert long.end_ns == short_out + decodes[0]
    assert short.end_ns == long.end_ns + decodes[1]
    assert [row.replica for row in ran.rows] == [1, 1]


def test_who_moves_leaves_when_its_micro_batch_is_out():
    """One request, asked to move at 20 ms, without a copy beforehand: 10 kB a token, 10 GB/s."""
    script = [(20, Migrate(0, 0, 1))]
    ran, told = by_script(script, Job(0, 100, 20), replicas=2, copy_rounds=0, port_bytes_per_s=1e10)
    steps = [5 * MS + 20_000 + 20 * n for n in range(101, 120)]
    out = 7 * MS + sum(steps[:3])
    assert 20 * MS < out < 23 * MS
    # 103 tokens, of all stages, over all their ports; a millisecond for the change
    arrives = out + MS + 103 * 1_000
    (row,) = ran.rows
    assert row.replica == 1
    assert row.end_ns == arrives + sum(steps[3:])
    assert row.itl_max_ns == arrives + steps[3] - out
    # what is in flight counts for reports: at 20 ms the fourth token is on its way
    assert told.decoding[20] == [[(0, 104)], []]
    assert told.decoding[23] == [[], []]
    assert told.decoding[24] == [[], [(0, 105)]]


def test_transfers_slow_the_stages_and_nothing_else():
    """A host of a millisecond, two stages of 2.5; a copy of a second over 1 MB/s, at 1% a stage."""
    script = [(500, Migrate(0, 0, 1))]
    jobs = (Job(0, 100, 400), Job(0, 100, 400))
    given = {"port_bytes_per_s": 1e6, "last_blocks": 0, "stage_host_ns": MS, "drag_frac": 0.01}
    ran, _ = by_script(script, *jobs, replicas=2, cost="flat", copy_rounds=1, **given)
    assert [change.what for change in ran.facts.changes] == ["migrate", "migrated"]
    stays = ran.rows[1]
    assert stays.itl_max_ns == MS + 2 * 2_525_000


def test_who_is_full_refuses_by_all_its_micro_batches():
    """Two prompts on each of two pipelines, in a micro-batch each: the fifth has to wait."""
    jobs = (*(Job(0, 100, 1) for _ in range(4)), Job(5 * MS, 100, 1))
    ran = run(World(jobs, replicas=2, stages=(0.5, 0.5), budget_tokens=100, refuse_at=2))
    assert [row.first_token_ns for row in ran.rows[:4]] == [7 * MS, 7 * MS, 10_500_000, 10_500_000]
    # it is sent at 7 ms, when two have ended, and seen when the next micro-batch is out
    assert ran.rows[4].first_token_ns == 10_500_000 + 7 * MS
