"""Replicas that change their role: nobody is lost, whoever computes prompts or decodes when."""

from __future__ import annotations

from dataclasses import replace

import pytest
from abilities import movable
from endings import assert_all_ended
from hypothesis import given
from hypothesis import strategies as st
from prices import MS
from test_fast_forward import assert_same
from world_strategies import laws, worlds
from worlds import Job, World, run

from llmsim.policies.control import SetRole


def changeable(data, **given):
    """A world whose replicas change their roles at random, and whose requests move."""
    world = data.draw(worlds(handoff=True, moves=True, **given))
    return replace(
        world,
        flip_drains=data.draw(st.booleans()),
        switch_ns=data.draw(st.sampled_from([0, 0, MS, 90 * MS])),
        reloads=data.draw(st.booleans()),
        refuses_kv=False,
        refuse_at=data.draw(st.sampled_from([0, 0, 2])),
        hold_ns=data.draw(st.sampled_from([0, 50 * MS])) if world.timeout_ns else 0,
    )


@pytest.mark.parametrize("batching", movable())
@laws(7)
@given(data=st.data())
def test_every_request_ends_once_and_every_block_comes_back(batching, data):
    ran = run(changeable(data, batching=batching))
    assert_all_ended(ran)
    gaps = sum(row.output_tokens - 1 for row in ran.rows if row.output_tokens)
    if all(row.ended_as == "finished" for row in ran.rows):
        assert sum(ran.facts.itl.counts.values()) == gaps


@pytest.mark.parametrize("batching", movable())
@laws(7)
@given(data=st.data())
def test_merging_steps_changes_nothing(batching, data):
    assert_same(changeable(data, batching=batching))


class Script:
    """Changes roles at given times [ms]."""

    def __init__(self, actions):
        self.period_s, self.view_age_s, self._actions = 0.001, 0.0, actions
        self.seen = {}

    def start(self, rng):
        pass

    def act(self, fleet):
        self.seen[fleet.now_ns // MS] = [(r.role, r.state) for r in fleet.replicas]
        return [SetRole(*what) for at, *what in self._actions if at * MS == fleet.now_ns]


class Scripted(World):
    """A world whose roles change by a script."""

    def control(self):
        plan = super().control()
        return replace(plan, policies=(Script(self.script),), migration=None)


def by_script(script, *jobs, **given):
    # round prices: a step of a prompt of 100 tokens takes 5 ms + 100 x 20 us
    settings = {"shuffle_ns": MS, "flip_drains": True, "routing": "least-loaded"} | given
    world = Scripted(jobs, cost="round", message_ns=1000, **settings)
    object.__setattr__(world, "script", script)
    return run(world)


PREFILL_NS = 7 * MS
DECODED_NS = PREFILL_NS + MS + 7_000 + (5_020_000 + 101 * 20) + (5_020_000 + 102 * 20)


def changes(ran):
    return [(c.time_ns, c.what, c.replica) for c in ran.facts.changes]


def test_a_role_changes_when_the_old_work_is_done_and_the_price_is_paid():
    late = 30 * MS
    ran = by_script(
        [(9, 1, "prefill")],
        *(Job(0, 100, 3), Job(late, 100, 1), Job(late, 100, 1)),
        decoders=2,
        switch_ns=3 * MS,
    )
    # 0 hands the first prompt to 1, which decodes it to the end; 1 MB of weights at 1 GB/s, 3 ms
    assert ran.rows[0].end_ns == DECODED_NS
    assert changes(ran) == [(9 * MS, "to prefill", 1), (DECODED_NS + 3 * MS, "prefill", 1)]
    both = [row.first_token_ns for row in ran.rows[1:]]
    assert both == [late + PREFILL_NS] * 2
    alone = by_script([], *ran.world.jobs, decoders=2).rows[1:]
    assert [row.first_token_ns for row in alone] == [late + 5 * MS + 200 * 20_000] * 2
    reloads = by_script([(9, 1, "prefill")], *ran.world.jobs, decoders=2, reloads=True)
    assert changes(reloads)[1] == (DECODED_NS + MS, "prefill", 1)


def test_the_new_role_may_begin_beside_the_old_work():
    ran = by_script(
        [(9, 1, "prefill")],
        *(Job(0, 100, 3), *[Job(10 * MS, 100, 1)] * 3),
        decoders=2,
        flip_drains=False,
    )
    assert changes(ran) == [(9 * MS, "to prefill", 1), (9 * MS, "prefill", 1)]
    # two at 0; the third beside the last decode step at 1, whose load of one counts
    assert [row.replica for row in ran.rows] == [1, 0, 0, 1]
    last_step = DECODED_NS - (5_020_000 + 102 * 20)
    both_ns = 5 * MS + 101 * 20_000 + 102 * 20
    assert ran.rows[3].first_token_ns == ran.rows[0].end_ns == last_step + both_ns


def test_who_waits_for_the_old_role_is_sent_elsewhere_at_once():
    jobs = [Job(0, 100, 1)] * 2 + [Job(MS, 100, 1)] * 2
    ran = by_script([(2, 1, "decode")], *jobs, replicas=2, decoders=1)
    # 0 and 1 compute a prompt each; the third and fourth wait, and both go on at 0
    assert [row.replica for row in ran.rows] == [0, 1, 0, 0]
    assert [row.first_token_ns for row in ran.rows] == [
        PREFILL_NS,
        PREFILL_NS,
        PREFILL_NS + 5 * MS + 200 * 20_000,
        PREFILL_NS + 5 * MS + 200 * 20_000,
    ]
    assert changes(ran) == [(2 * MS, "to decode", 1), (PREFILL_NS, "decode", 1)]


def test_what_was_computed_here_is_decoded_here_without_a_copy():
    jobs = [Job(0, 100, 3), Job(0, 100, 3)]
    ran = by_script([(2, 0, "decode")], *jobs, replicas=2, decoders=1, flip_drains=False)
    kept = ran.rows[0]
    assert kept.replica == 0
    assert kept.first_token_ns == PREFILL_NS
    assert kept.end_ns == DECODED_NS - MS - 7_000  # without the transfer


def test_the_last_of_either_side_keeps_its_role():
    ran = by_script([(2, 0, "decode"), (3, 1, "mixed")], Job(0, 100, 3), decoders=1)
    assert [what for _, what, _ in changes(ran)] == [
        "to decode refused: the last that takes arrivals",
        "to mixed refused: the last that decodes for others",
    ]
