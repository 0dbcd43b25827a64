"""Nothing is lost, nothing comes from nowhere, nothing happens before its cause."""

from __future__ import annotations

from dataclasses import replace

import pytest
from calls import blocks_in_use
from hypothesis import given
from hypothesis import strategies as st
from reference import TokenLog
from world_strategies import laws, worlds
from worlds import Job, World, run

from llmsim.policies import BATCHING, ROUTING
from llmsim.serving.request import FINISHING


@pytest.mark.parametrize("routing", ROUTING.names())
@pytest.mark.parametrize("batching", BATCHING.names())
@laws(20)
@given(data=st.data())
def test_every_request_ends_once_and_in_order(batching, routing, data):
    world = data.draw(worlds(batching=batching, routing=routing, turns=True, handoff=None))
    ran = run(world)
    assert [row.request for row in ran.rows] == list(range(len(world.jobs)))
    assert ran.facts.requests == len(world.jobs)
    for row, job in zip(ran.rows, world.jobs, strict=True):
        assert row.prompt_tokens == job.prompt
        assert row.slo_class == job.priority - 1
        assert (row.ended_as == "provider_failed") == job.failed
        if row.ended_as == "finished":
            assert row.output_tokens == job.output
            assert row.first_token_ns >= 0
        else:
            assert row.output_tokens <= job.output
        if job.failed:
            assert (row.replica, row.pool, row.output_tokens) == (-1, -1, 0)
        else:
            assert 0 <= row.replica < world.replicas + world.decoders
        if job.abort_ns < 0 and not world.timeout_ns and not job.failed:
            assert row.ended_as == "finished"  # the pool takes each of them alone
    assert ran.facts.end_ns == max(row.end_ns for row in ran.rows)


@pytest.mark.parametrize("batching", BATCHING.names())
@pytest.mark.parametrize("lookahead", [0, 1])
@laws(40)
@given(data=st.data())
def test_causes_come_before_effects(batching, lookahead, data):
    world = data.draw(worlds(batching=batching, lookahead=lookahead, handoff=None))
    ran = run(world)
    for row, job in zip(ran.rows, world.jobs, strict=True):
        if not world.in_flight:
            assert row.arrival_ns == job.arrival_ns
        assert row.arrival_ns <= row.end_ns
        if row.scheduled_ns >= 0:
            assert row.arrival_ns <= row.scheduled_ns <= row.end_ns
        assert (row.first_token_ns >= 0) == (row.output_tokens > 0)
        if row.output_tokens:
            assert row.scheduled_ns < row.first_token_ns <= row.end_ns
        if row.ended_as == "finished":
            assert row.itl_max_ns <= row.end_ns - row.first_token_ns
            whole = row.output_tokens == 1 or world.together
            assert (row.end_ns == row.first_token_ns) == whole
        if row.ended_as == "timed_out":
            assert row.end_ns >= row.arrival_ns + world.timeout_ns
        if row.ended_as == "aborted":
            assert row.end_ns >= row.arrival_ns + job.abort_ns


@pytest.mark.parametrize("fast_forward", [True, False])
@laws(80)
@given(world=worlds(turns=True))
def test_no_block_is_lost_or_counted_twice(fast_forward, world):
    clock: dict[int, tuple[int, int]] = {}

    def look(replica, call):
        replica.ledger.check()
        assert 0 <= call.free_blocks <= world.kv_blocks
        assert call.free_blocks == replica.ledger.free
        assert world.kv_blocks - call.free_blocks == blocks_in_use(replica, call)
        before = clock.get(replica.index, (0, 0))
        assert before[0] <= call.now_ns <= call.start_ns <= call.end_ns
        if not fast_forward:  # a merged stretch may be cut before the end it was planned to have
            assert call.start_ns >= before[1], "one step at a time"
        clock[replica.index] = (call.now_ns, call.end_ns)
        assert len(call.running) <= world.max_num_seqs
        assert sum(tokens for _, tokens, _ in call.chunks) <= world.budget_tokens

    ran = run(world, fast_forward, look)
    for replica in ran.replicas:
        replica.ledger.check()
        assert replica.ledger.free == world.kv_blocks
        assert (replica.running, replica.waiting) == (0, 0)
        assert replica.meter.peak_kv_blocks <= world.kv_blocks


@pytest.mark.parametrize("batching", BATCHING.names())
@laws(60)
@given(data=st.data())
def test_tokens_computed_are_tokens_accounted(batching, data):
    world = data.draw(worlds(batching=batching, turns=True))
    log = TokenLog()
    vanished = set()

    def look(replica, call):
        log(replica, call)
        vanished.update(r.view.index for r in call.preempted if r.state == FINISHING)

    for row in run(world, False, look).rows:
        account = log.accounts[row.request]
        if row.ended_as != "finished" or row.request in vanished:
            continue  # whoever loses its KV with its last token on the way computes nothing anew
        assert account.computed + account.hits - account.lost == (
            row.prompt_tokens + row.output_tokens - 1
        )
        assert row.recomputed_tokens == account.lost
        assert row.preemptions >= (account.lost > 0)
        assert len(account.admissions) == row.preemptions + 1
        assert row.scheduled_ns == account.admissions[0]


@laws(40)
@given(world=worlds(clients_leave=False))
def test_chunks_and_steps_do_not_change_what_is_served(world):
    """Any two engines deliver the same tokens to clients that stay."""
    ran = run(world)
    other = run(replace(world, max_num_seqs=1, prefix_caching=False, lookahead=0))
    assert [row.output_tokens for row in ran.rows] == [row.output_tokens for row in other.rows]


def test_a_lost_token_would_be_noticed():
    """The account fails when a step starts anywhere else than where the last one ended."""
    world = World((Job(0, 40, 3),), budget_tokens=16)
    log = TokenLog()

    def look(replica, call):
        log(replica, call)
        log.accounts[0].held -= 1

    with pytest.raises(AssertionError, match="where the one before ended"):
        run(world, False, look)
