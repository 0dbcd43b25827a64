"""Pinned KV keeps what a program left behind, gives it back in time, and loses no block."""

from __future__ import annotations

from dataclasses import replace

import pytest
from abilities import foresees, movable
from hypothesis import given
from hypothesis import strategies as st
from prices import MS
from test_fast_forward import assert_same
from test_programs import calls_of, program_worlds
from world_strategies import laws
from worlds import Job, Turn, World, run

from llmsim.policies import RETENTION
from llmsim.policies.retention import FixedRetention

KINDS = sorted(set(RETENTION.names()) - {"none"})


@st.composite
def pinning_worlds(draw, **given):
    """Programs whose KV is pinned, on replicas that are often too small for it."""
    world = draw(program_worlds(**given))
    if world.together or world.swap_blocks or world.allocation != "paged":
        world = replace(world, batching="vllm", swap_blocks=0, allocation="paged")
    return replace(
        world,
        prefix_caching=True,
        retention=draw(st.sampled_from(KINDS)),
        ttl_ns=draw(st.sampled_from([0, 0, 1, 5 * MS, 40 * MS, 10_000 * MS])),
        gives_way=draw(st.sampled_from(["deadlock", "preemption", "admission"])),
        timeout_ns=draw(st.sampled_from([0, 0, 60 * MS, 333 * MS])),
    )


def parts_of(data):
    """Whether replicas are several attention ranks, and pipelines."""
    return {"ranks": data.draw(st.booleans()), "stages": data.draw(st.booleans())}


def check(ran):
    for replica in ran.replicas:
        replica.ledger.check()
        keeper = replica.draft.keeper  # may be writing when the run ends
        kept = 0 if keeper is None else sum(keep.blocks for keep in keeper.writer.keeps)
        assert replica.ledger.free <= ran.world.kv_blocks <= replica.ledger.free + kept
    for facts in ran.facts.replicas:
        pins = facts.pins
        assert pins.pins == pins.kept + pins.expired + pins.gave_way + pins.left
        assert pins.block_ns >= 0


@pytest.mark.parametrize("batching", movable())
@laws(4)
@given(data=st.data())
def test_every_pin_ends_and_every_block_comes_back(batching, data):
    world = data.draw(pinning_worlds(tiers=None, batching=batching, **parts_of(data)))
    ran = run(world)
    check(ran)
    assert ran.facts.digest == run(world).facts.digest
    for rows in calls_of(ran).values():
        assert [row.turn for row in rows] == list(range(len(rows)))


@pytest.mark.parametrize("batching", movable())
@laws(6)
@given(data=st.data())
def test_merged_and_single_steps_are_the_same_with_pins(batching, data):
    given = {"handoff": None, "tiers": None} | parts_of(data)
    world = data.draw(pinning_worlds(batching=batching, **given))
    if world.decoders:
        world = replace(world, decoders=0)
    assert_same(world)


@laws(15)
@given(data=st.data())
def test_programs_that_move_lose_no_pin(data):
    check(run(data.draw(pinning_worlds(moves=True, **parts_of(data)))))


@laws(15)
@given(data=st.data())
def test_with_memory_for_all_pins_change_nothing(data):
    world = data.draw(pinning_worlds(**parts_of(data)))
    world = replace(world, kv_blocks=100_000, watermark_blocks=0)
    if foresees(world.routing):  # which worlds do without pins only
        world = replace(world, routing="least-loaded")
    assert run(world).facts.digest == run(replace(world, retention="")).facts.digest


# --- by hand ---------------------------------------------------------------------------------

TWO = World(
    # a step takes 5 ms however much it computes; 12 blocks of 4 tokens
    jobs=(Job(0, 20, 5, ((1, 20),)), Job(1, 40, 5, ((2, 40),))),
    turns=((Turn(4, 5, 100 * MS),), ()),
    block_tokens=4,
    kv_blocks=12,
    prefix_caching=True,
    cost="flat",
)
"""A program pauses for 100 ms, and a request that needs all but two blocks waits meanwhile."""


def waits(world):
    rows = {(row.session, row.turn): row for row in run(world).rows}
    other, back = rows[1, 0], rows[0, 1]
    return other.scheduled_ns - rows[0, 0].end_ns, back.cached_tokens, back


def test_without_pins_the_one_in_line_takes_the_blocks():
    wait_ns, cached, _ = waits(TWO)
    assert (wait_ns, cached) == (0, 4)  # of 24 tokens computed, blocks went from the end


BUSY = replace(
    TWO,
    jobs=(TWO.jobs[0], Job(0, 1, 20), Job(1, 44, 5, ((2, 44),))),
    turns=(*TWO.turns, ()),
    kv_blocks=16,
)
"""The same while a third one decodes for 100 ms, so that something else can run."""


@pytest.mark.parametrize("stages", [(), (0.5, 0.5)])
@pytest.mark.parametrize("fast_forward", [True, False])
def test_a_pin_keeps_them_until_its_time_is_up(fast_forward, stages):
    """Stages make no difference: all who run are in one micro-batch."""
    for ttl_ns, wait_ns in ((10 * MS, 10 * MS), (11 * MS, 15 * MS), (30 * MS, 30 * MS)):
        ran = run(replace(BUSY, retention="fixed", ttl_ns=ttl_ns, stages=stages), fast_forward)
        rows = {(row.session, row.turn): row for row in ran.rows}
        assert rows[2, 0].scheduled_ns - rows[0, 0].end_ns == wait_ns  # the next step's begin
        assert ran.facts.replicas[0].pins.expired >= 1
    rows = {(row.session, row.turn): row for row in run(BUSY).rows}
    assert rows[2, 0].scheduled_ns == rows[0, 0].end_ns


@pytest.mark.parametrize("fast_forward", [True, False])
def test_a_pin_need_not_give_way_while_somebody_is_in_flight(fast_forward):
    """With a budget of 20 tokens the program and who decodes are in micro-batches of their own.

    At 25 ms the program's last token is out, and nobody is left in its micro-batch; the other one
    comes out at 27.5 ms, and every 5 ms from then on. The pin ends at 55 ms.
    """
    world = replace(BUSY, retention="fixed", ttl_ns=30 * MS, stages=(0.5, 0.5), budget_tokens=20)
    ran = run(world, fast_forward)
    rows = {(row.session, row.turn): row for row in ran.rows}
    assert rows[0, 0].end_ns == 25 * MS
    assert rows[2, 0].scheduled_ns == 57_500_000
    assert ran.facts.replicas[0].pins.expired >= 1


def test_a_pin_lasts_until_the_next_call_runs():
    world = replace(TWO, jobs=(TWO.jobs[0], Job(1, 24, 5, ((2, 24),))), kv_blocks=13)
    _, cached, _ = waits(replace(world, retention="fixed", ttl_ns=500 * MS))
    assert cached == 24
    pins = run(replace(world, retention="fixed", ttl_ns=500 * MS)).facts.replicas[0].pins
    assert pins.kept == 1
    assert pins.block_ns >= 6 * 100 * MS


def test_where_nothing_else_can_run_a_pin_gives_way_at_once():
    wait_ns, cached, _ = waits(replace(TWO, retention="fixed"))
    assert (wait_ns, cached) == (0, 4)
    # the second one gives way to the next call of the first
    assert run(replace(TWO, retention="fixed")).facts.replicas[0].pins.gave_way == 2


def test_a_fixed_time_is_the_same_for_everybody():
    assert FixedRetention(2.0).hold_s(None) == 2.0
    assert FixedRetention().hold_s(None) == float("inf")


def test_who_comes_when_a_pin_ends_is_in_time():
    world = replace(TWO, jobs=TWO.jobs[:1], turns=TWO.turns[:1], retention="fixed")
    for ttl_ns, kept in ((99 * MS, 0), (100 * MS, 1)):
        pins = run(replace(world, ttl_ns=ttl_ns)).facts.replicas[0].pins
        assert pins.kept == kept


@pytest.mark.parametrize("fast_forward", [True, False])
def test_a_pin_gives_way_to_one_whom_the_watermark_keeps_out(fast_forward):
    """Ten blocks: three pinned, two of who decodes, five free, of which one is kept aside.

    Who needs five comes after 21 ms and is let in when the step ends, at 25 ms.
    """
    jobs = (Job(0, 48, 1, ((1, 48),)), Job(0, 16, 30), Job(21 * MS, 80, 1))
    world = World(
        jobs,
        cost="flat",
        kv_blocks=10,
        watermark_blocks=1,
        prefix_caching=True,
        turns=((Turn(own=16, output=1, after_ns=10**9),), (), ()),
        retention="fixed",
        gives_way="admission",
    )
    ran = run(world, fast_forward)
    assert [row.scheduled_ns for row in ran.rows[:3]] == [0, 0, 25 * MS]
    assert sum(facts.pins.gave_way for facts in ran.facts.replicas) == 1


@pytest.mark.parametrize("fast_forward", [True, False])
def test_a_pin_gives_way_to_one_who_would_come_and_go_for_ever(fast_forward):
    """Six blocks, three of them pinned for good; a prompt of five comes in chunks of one.

    Nothing is reserved, so that it is let in with its first chunk, and again whenever it has lost
    its KV at the fourth. Chunks end at 105, 110, ..., and the last one at 125 ms.
    """
    jobs = (Job(0, 48, 1, ((1, 48),)), Job(100 * MS, 80, 1))
    world = World(
        jobs,
        cost="flat",
        kv_blocks=6,
        budget_tokens=16,
        reserve_prompt=False,
        prefix_caching=True,
        turns=((Turn(own=16, output=1, after_ns=10**9),), ()),
        retention="fixed",
    )
    ran = run(world, fast_forward)
    assert (ran.rows[1].first_token_ns, ran.rows[1].preemptions) == (125 * MS, 0)
    assert sum(facts.pins.gave_way for facts in ran.facts.replicas) == 1
