"""A replica does not idle, nor keep a request in line that would fit, while it has work."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prices import MS
from world_strategies import laws, worlds
from worlds import Job, World, run

from llmsim.policies import BATCHING


def covered(spans: list[tuple[int, int]]) -> int:
    """Return the length of the union of spans."""
    total = end = 0
    for low, high in sorted(spans):
        total += max(0, high - max(low, end))
        end = max(end, high)
    return total


@pytest.mark.parametrize("batching", BATCHING.names())
@laws(60)
@given(data=st.data())
def test_busy_while_anybody_is_here(batching, data):
    """The time a replica computes is the time during which it has a request."""
    world = data.draw(worlds(batching=batching, lookahead=0))
    ran = run(world)
    for part in ran.facts.replicas:
        here = [
            (row.arrival_ns, row.end_ns)
            for row in ran.rows
            if row.replica == part.index and not is_alone_and_gone(row)
        ]
        busy = part.timeline.totals["busy_ns"].sum()
        # a step whose requests have all left runs to its end; the row ends with it or before
        assert busy == pytest.approx(covered(here), abs=1)


def is_alone_and_gone(row) -> bool:
    """Left before its first call: it came and went between two calls, or at one instant."""
    return row.scheduled_ns < 0


@laws(80)
@given(world=worlds(batching="vllm"))
def test_nobody_waits_who_would_fit(world):
    """After each call of vLLM's policy that preempted nobody, the head of the line cannot enter."""
    world = replace(world, allocation="paged")  # promises keep others out
    world = replace(world, prefix_caching=False)

    def look(replica, call):
        head = replica.line.head()
        if head is None or call.preempted or len(call.running) >= world.max_num_seqs:
            return
        spent = sum(tokens for _, tokens, _ in call.chunks)
        if call.decoding:
            spent += replica.cohort.count
        left = world.budget_tokens - spent
        known = head.prompt + head.generated
        limit = world.chunk_limit_tokens or known
        lone = len(call.running) + call.waiting == 1
        if lone and replica.config.rules.lone_request_unchunked:
            limit = known
        tokens = min(known, limit, left)
        if tokens <= 0 or (tokens < min(known, limit) and not world.chunked_prefill):
            return
        size = world.block_tokens
        need = -(-(known if world.reserve_prompt else tokens) // size)
        room = call.free_blocks - (world.watermark_blocks if call.running else 0)
        assert need > room, "it would fit"

    run(world, False, look)


def test_an_idle_replica_would_be_noticed():
    world = World((Job(0, 10, 3), Job(100 * MS, 10, 3)))
    ran = run(world)
    spans = [(row.arrival_ns, row.end_ns) for row in ran.rows]
    assert covered(spans) < ran.facts.end_ns
    assert covered([(0, 2), (1, 3), (5, 6)]) == 4


def test_who_gathers_gives_way_last_in_first_out():
    """Prompts in small chunks outgrow the memory: taking the first in line again never ended."""
    jobs = tuple(Job(index * MS, 300, 20) for index in range(4))
    world = World(
        jobs,
        batching="gathering",
        kv_blocks=98,
        block_tokens=4,
        chunk_limit_tokens=5,
        reserve_prompt=False,
        prefix_caching=False,
    )
    rows = run(world, False).rows
    assert [row.output_tokens for row in rows] == [20] * 4
    assert rows[0].preemptions == 0
