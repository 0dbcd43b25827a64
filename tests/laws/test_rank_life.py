"""Attention ranks in fleets that change: all of a replica come, go and fail together."""

from __future__ import annotations

from dataclasses import replace

import pytest
from abilities import movable
from endings import assert_all_ended
from hypothesis import given
from hypothesis import strategies as st
from prices import COSTS, MS
from test_controllers import controlled
from test_fast_forward import assert_same
from test_life import restless
from test_pipeline_moves import Script
from test_ranks import step_ns
from test_roles import changeable
from world_strategies import laws, worlds
from worlds import Job, World, run

from llmsim.policies.control import Add, Drain, Fail, Migrate, SetRole

RANKS = {"ranks": True}
BOTH = {"ranks": True, "stages": True}


KINDS = st.sampled_from([RANKS, BOTH])


@pytest.mark.parametrize("batching", movable())
@laws(8)
@given(data=st.data())
def test_nothing_is_lost_where_replicas_come_and_go(batching, data):
    ran = run(restless(data, batching=batching, **data.draw(KINDS)))
    assert_all_ended(ran)
    gaps = sum(row.output_tokens - 1 for row in ran.rows if row.output_tokens)
    if all(row.ended_as == "finished" for row in ran.rows):
        assert sum(ran.facts.itl.counts.values()) == gaps


@pytest.mark.parametrize("cost", sorted(COSTS))
@laws(10)
@given(data=st.data())
def test_merging_changes_nothing_where_replicas_come_and_go(cost, data):
    assert_same(restless(data, cost=cost, **data.draw(KINDS)))


@pytest.mark.parametrize("batching", movable())
@laws(8)
@given(data=st.data())
def test_nothing_is_lost_where_roles_change(batching, data):
    ran = run(changeable(data, batching=batching, **data.draw(KINDS)))
    assert_all_ended(ran)


@pytest.mark.parametrize("cost", sorted(COSTS))
@laws(10)
@given(data=st.data())
def test_merging_changes_nothing_where_roles_change(cost, data):
    assert_same(changeable(data, cost=cost, **data.draw(KINDS)))


@pytest.mark.parametrize("batching", movable())
@laws(6)
@given(data=st.data())
def test_who_moves_between_ranks_of_pipelines_ends_once(batching, data):
    given = BOTH | {"moves": True, "handoff": None, "turns": True}
    assert_all_ended(run(data.draw(worlds(batching=batching, **given))))


@pytest.mark.parametrize("cost", sorted(COSTS))
@laws(8)
@given(data=st.data())
def test_merging_changes_nothing_where_requests_move_between_ranks_of_pipelines(cost, data):
    assert_same(data.draw(worlds(cost=cost, moves=True, handoff=None, **BOTH)))


class Scripted(World):
    """A world in which things happen by a script; see `test_pipeline_moves`."""

    def control(self):
        return replace(super().control(), policies=(self.script,))


def by_script(script, *jobs, **given):
    world = Scripted(jobs, **({"shuffle_ns": MS, "ranks": 2, "ranks_in_turn": True} | given))
    object.__setattr__(world, "script", Script(script))
    return run(world)


@pytest.mark.parametrize("asked", [0, 1])
def test_all_ranks_fail_at_the_end_of_their_step(asked):
    """Either rank is told to fail; both lose what they have, and both prompts go elsewhere."""
    script = [(1, Add(0)), (4, Fail(asked))]
    ran = by_script(script, Job(0, 100, 2), Job(0, 60, 2), spare=1)
    first = step_ns(100, 160, 20_000 * 100)
    assert [row.first_token_ns for row in ran.rows] == [first, first]
    assert [row.recomputed_tokens for row in ran.rows] == [100, 60]
    # noticed 11 ms later; a machine in 7 ms, 1 MB for both ranks at 1 GB/s, a warm-up of 3
    changes = [(change.time_ns, change.what, change.replica) for change in ran.facts.changes]
    up = (MS + 7 * MS + MS + 3 * MS, "up", 2)
    assert changes == [(MS, "booting", 2), (4 * MS, "failed", 0), up]
    again = first + 11 * MS + step_ns(101, 162, 20_000 * 101)
    assert [row.end_ns for row in ran.rows] == [again, again]
    assert {row.replica for row in ran.rows} == {2, 3}
    # both ranks are paid for alike: until the failure, and since the machine is there
    paid = [replica.billed_ns for replica in ran.facts.replicas]
    assert paid == [4 * MS, 4 * MS, again - 8 * MS, again - 8 * MS]


def test_a_replica_drains_until_its_last_rank_is_empty():
    """Rank 0 is empty before 30 ms, rank 1 is not; who comes meanwhile goes elsewhere."""
    outputs = (3, 1, 30, 1)
    jobs = (*(Job(0, 100, each) for each in outputs), Job(30 * MS, 50, 1), Job(200 * MS, 50, 1))
    ran = by_script([(9, Drain(1))], *jobs, replicas=2, spare=1)
    # in turn, with a third door that is closed: what is sent there is taken by the first
    assert [row.replica for row in ran.rows[:4]] == [0, 2, 1, 0]
    assert {row.replica for row in ran.rows[4:]} == {2, 3}
    assert ran.rows[0].end_ns < 30 * MS < ran.rows[2].end_ns
    changes = [(change.time_ns, change.what, change.replica) for change in ran.facts.changes]
    assert changes == [(9 * MS, "draining", 0), (ran.rows[2].end_ns, "off", 0)]


def test_a_full_replica_refuses_by_all_its_ranks():
    """Of two replicas of two ranks each takes two requests; the fifth has to wait for an end."""
    jobs = tuple(Job(0, 100, 1) for _ in range(5))
    ran = run(World(jobs, ranks=2, ranks_in_turn=True, replicas=2, refuse_at=2))
    first = step_ns(100, 200, 20_000 * 100)
    assert [row.first_token_ns for row in ran.rows[:4]] == [first] * 4
    assert {row.replica for row in ran.rows[:4]} == {0, 1, 2, 3}
    assert ran.rows[4].first_token_ns == first + step_ns(100, 101, 20_000 * 100)


def test_an_autoscaler_keeps_its_least_replicas_not_ranks():
    """Four ranks of one replica are not four replicas: with one at least, it is not drained."""
    jobs = tuple(Job(each * 40 * MS, 60, 3) for each in range(12))
    world = World(jobs, ranks=4, spare=1, shuffle_ns=5 * MS)
    ran = run(controlled("autoscale", world))
    assert_all_ended(ran)
    assert not [change for change in ran.facts.changes if change.what == "draining"]


def half(largest: int, total: int, attention_ns: float) -> int:
    return round(step_ns(largest, total, attention_ns) / 2)


STAGES = {"stages": (0.5, 0.5), "budget_tokens": 100}


def test_ranks_of_a_pipeline_lose_each_micro_batch_as_it_comes_out():
    """As in `test_ranked_pipeline`: two prompts, then one; it fails while both are in flight."""
    jobs = (Job(0, 100, 2), Job(0, 80, 2), Job(0, 60, 2))
    ran = by_script([(1, Add(0)), (2, Fail(1))], *jobs, spare=1, **STAGES)
    first, second = half(100, 180, 20_000 * 100), half(60, 61, 20_000 * 60)
    assert [row.first_token_ns for row in ran.rows[:2]] == [2 * first] * 2
    assert ran.rows[2].first_token_ns == 2 * first + second
    assert [row.recomputed_tokens for row in ran.rows] == [100, 80, 60]
    assert {row.replica for row in ran.rows} == {2, 3}


def test_a_transfer_of_one_rank_slows_every_stage_for_all():
    """A host of a millisecond, two stages of 2.5; copies of a second and more, at 1% a stage."""
    jobs = tuple(Job(0, 100, 400) for _ in range(3))
    given = {"ranks": 3, "port_bytes_per_s": 1e6, "last_blocks": 0, "copy_rounds": 1}
    given |= {"cost": "flat", "per_expert_ns": 0.0, "stage_host_ns": MS, "drag_frac": 0.01}
    ran = by_script([(500, Migrate(0, 0, 1))], *jobs, **STAGES | given)
    assert [change.what for change in ran.facts.changes] == ["migrate", "migrated"]
    slowed = round(round((5 * MS + 7) / 2) * 1.01)
    assert ran.rows[2].itl_max_ns == MS + 2 * slowed


def test_a_replica_changes_its_role_with_all_its_ranks():
    """Prompts on ranks 0 and 1, outputs on 2 to 5; 4 and 5 turn to prompts when both are empty."""
    jobs = (*(Job(0, 100, each) for each in (3, 3, 9, 9)), *(Job(200 * MS, 100, 2),) * 4)
    given = {"decoders": 2, "flip_drains": True, "routing": "least-loaded", "reloads": True}
    ran = by_script([(20, SetRole(5, "prefill"))], *jobs, **given)
    told = [(change.what, change.replica) for change in ran.facts.changes]
    assert told == [("to prefill", 4), ("prefill", 4)]
    begun = [row.replica for row in ran.rows[:4]]
    assert sorted(begun) == [2, 3, 4, 5]
    # its last one ends, and 1 MB of weights is read again: half by each rank
    last = max(row.end_ns for row in ran.rows[:4] if row.replica in (4, 5))
    assert ran.facts.changes[1].time_ns == last + MS
    assert sorted(row.prefill_replica for row in ran.rows[4:]) == [0, 1, 4, 5]
    assert {row.replica for row in ran.rows[4:]} == {2, 3}
