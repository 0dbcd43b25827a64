"""Prompts on some replicas, decoding on others: nothing is lost between them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from abilities import together
from endings import assert_all_back
from hypothesis import given
from hypothesis import strategies as st
from prices import MS
from test_fast_forward import assert_same
from world_strategies import laws, worlds
from worlds import Job, World, run

from llmsim.policies import BATCHING


@pytest.mark.parametrize("batching", [name for name in BATCHING.names() if not together(name)])
@laws(60)
@given(data=st.data())
def test_every_block_comes_back(batching, data):
    ran = run(data.draw(worlds(batching=batching, handoff=True, turns=True)))
    assert_all_back(ran)


@laws(60)
@given(world=worlds(handoff=True, clients_leave=False))
def test_prompts_here_outputs_there(world):
    ran = run(world)
    for row in ran.finished:
        assert (row.replica < world.replicas) == (row.output_tokens == 1)
    for replica in ran.replicas[: world.replicas]:
        assert replica.cohort.tick == 0


ONE = World((Job(0, 100, 3),), cost="round", decoders=1, port_bytes_per_s=1e9, message_ns=1000)
# a prompt of 100 tokens: 5 ms + 100 x 20 us; its KV: 1 MB at 1 GB/s after 7 messages of 1 us; a
# step of one decode: 5 ms + 20 us + 20 ns a token of context
PREFILL_NS = 7 * MS
TRANSFER_NS = MS + 7_000
STEPS_NS = (5_020_000 + 101 * 20, 5_020_000 + 102 * 20)


def test_by_hand():
    (row,) = run(ONE).rows
    assert row.first_token_ns == PREFILL_NS
    assert row.end_ns == PREFILL_NS + TRANSFER_NS + sum(STEPS_NS)
    assert row.itl_max_ns == TRANSFER_NS + STEPS_NS[0]
    assert row.replica == 1


def test_a_client_may_have_to_wait_for_the_kv():
    (row,) = run(replace(ONE, late_first_token=True)).rows
    assert row.first_token_ns == PREFILL_NS + TRANSFER_NS
    assert row.itl_max_ns == max(STEPS_NS)


# one decodes at a time, and the KV of the second is on its way before the first does: 10 ms each
NARROW = replace(
    ONE,
    jobs=(Job(0, 100, 50), Job(0, 100, 50)),
    max_num_seqs=1,
    port_bytes_per_s=1e8,
    late_first_token=True,
)


def test_a_client_may_have_to_wait_for_a_seat():
    """Where the decode replica answers, KV is of no use to a request that may not run yet."""
    first, second = run(NARROW).rows
    assert second.first_token_ns == first.end_ns
    assert second.itl_max_ns < 7 * MS  # a step


def test_who_leaves_without_a_seat_has_had_no_token():
    ends = run(NARROW).rows[0].end_ns
    first, second = run(replace(NARROW, timeout_ns=ends - 10 * MS)).rows
    assert first.output_tokens > 40
    assert (second.first_token_ns, second.output_tokens) == (-1, 0)


def test_two_share_the_port_of_the_replica_that_sends():
    two = replace(ONE, jobs=(Job(0, 100, 3), Job(0, 100, 3)), decoders=2, message_ns=0)
    rows = run(two).rows
    computed = 5 * MS + 200 * 20_000
    assert {row.first_token_ns for row in rows} == {computed}
    assert {row.end_ns for row in rows} == {computed + 2 * MS + sum(STEPS_NS)}
    assert {row.replica for row in rows} == {1, 2}


def test_a_link_that_is_too_thin_fills_the_memory_of_those_who_compute():
    jobs = tuple(Job(0, 100, 2) for _ in range(20))
    slow = World(jobs, decoders=1, port_bytes_per_s=1e8, kv_blocks=14)  # two prompts of 7 blocks
    rows = run(slow).rows
    # 1 MB each over 100 MB/s: the link, not the GPU, decides when the last prompt may start
    assert rows[-1].scheduled_ns > 17 * 10 * MS
    free = run(replace(slow, port_bytes_per_s=1e12)).rows
    assert free[-1].scheduled_ns < 20 * 10 * MS / 2


def test_who_leaves_on_the_way_gives_everything_back():
    during = PREFILL_NS + TRANSFER_NS // 2
    for at in (MS, PREFILL_NS - 1, PREFILL_NS, PREFILL_NS + 1, during, PREFILL_NS + TRANSFER_NS):
        for lookahead in (0, 1):
            world = replace(ONE, jobs=(Job(0, 100, 30, abort_ns=at),), lookahead=lookahead)
            ran = run(world)
            assert ran.rows[0].ended_as == "aborted"
            assert all(replica.ledger.free == world.kv_blocks for replica in ran.replicas)


def test_a_request_that_no_decode_replica_can_ever_hold_is_turned_away():
    world = replace(ONE, jobs=(Job(0, 100, 200), Job(0, 100, 2)), kv_blocks=8)
    assert [row.ended_as for row in run(world).rows] == ["unservable", "finished"]


FOUR = replace(ONE, sent_layers=4)
# the step's four layers end at 1.75, 3.5, 5.25 and 7 ms; each takes 0.25 ms and 1.75 us to send


def test_by_layer_only_the_last_layer_is_waited_for():
    for lookahead in (0, 1):
        (row,) = run(replace(FOUR, lookahead=lookahead)).rows
        assert row.first_token_ns == PREFILL_NS
        assert row.end_ns == PREFILL_NS + TRANSFER_NS // 4 + sum(STEPS_NS)
        assert row.replica == 1
        assert row.prefill_replica == 0


def test_a_thin_link_is_busy_from_the_first_layer_on():
    slow = replace(FOUR, port_bytes_per_s=1e8, message_ns=0)
    (row,) = run(slow).rows
    # 10 ms for 1 MB, from the end of the first layer on
    assert row.end_ns == PREFILL_NS // 4 + 10 * MS + sum(STEPS_NS)


# chunks of 64 and 36 tokens: 6.28 ms, then 5.72 ms, whose layers end 1.43 ms apart
CHUNKED = replace(FOUR, budget_tokens=64, message_ns=0)
CHUNKS_NS = (5 * MS + 64 * 20_000, 5 * MS + 36 * 20_000)


@pytest.mark.parametrize("lookahead", [0, 1])
def test_what_earlier_chunks_have_computed_goes_as_the_last_one_begins(lookahead):
    """On a fast link a layer of the last chunk is waited for, on a thin one all that is left."""
    world = replace(CHUNKED, lookahead=lookahead)
    (row,) = run(world).rows
    assert row.first_token_ns == sum(CHUNKS_NS)
    assert row.end_ns == sum(CHUNKS_NS) + 36 * 10_000 // 4 + sum(STEPS_NS)
    (row,) = run(replace(world, port_bytes_per_s=1e8)).rows
    assert row.end_ns == CHUNKS_NS[0] + 10 * MS + sum(STEPS_NS)
    # 50 MB/s: 12.8 ms for the first chunk, so that the last one is ready when its turn comes
    (row,) = run(replace(world, port_bytes_per_s=5e7)).rows
    assert row.end_ns == CHUNKS_NS[0] + 20 * MS + sum(STEPS_NS)


# two stages of two layers and 500 MB/s each: 3.5 ms, and half a megabyte
STAGED = replace(FOUR, stages=(0.5, 0.5), message_ns=0)
STAGED_STEPS_NS = sum(2 * (step // 2) for step in STEPS_NS)


def test_stages_send_their_layers_as_they_compute_them():
    """The last layer of the second stage is waited for, or on a thin link what that stage has."""
    (row,) = run(STAGED).rows
    assert row.first_token_ns == PREFILL_NS
    assert row.end_ns == PREFILL_NS + MS // 2 + STAGED_STEPS_NS
    (row,) = run(replace(STAGED, port_bytes_per_s=1e8)).rows
    # the first layer of the second stage is there at 5.25 ms, and its 500 kB take 10 ms
    assert row.end_ns == 5_250_000 + 10 * MS + STAGED_STEPS_NS
    (row,) = run(replace(STAGED, port_bytes_per_s=1e8, sent_layers=0)).rows
    assert row.end_ns == PREFILL_NS + 10 * MS + STAGED_STEPS_NS


def test_a_stage_sends_earlier_chunks_when_it_begins_the_last_one():
    """Chunks of 64 and 36 tokens in one another's wake; the last enters stages at 3.14 and 6.28."""
    (row,) = run(replace(STAGED, budget_tokens=64)).rows
    due = sum(CHUNKS_NS) - CHUNKS_NS[1] // 2
    assert row.first_token_ns == due == 9_140_000
    assert row.end_ns == due + 36 * 2500 * 2 + STAGED_STEPS_NS  # a layer: 90 kB at 500 MB/s
    # 50 MB/s: 320 kB from 6.28 ms on take 6.4 ms, so all else is ready then: 3.6 ms
    (row,) = run(replace(STAGED, budget_tokens=64, port_bytes_per_s=1e8)).rows
    assert row.end_ns == CHUNKS_NS[0] + 10 * MS + STAGED_STEPS_NS


def test_nobody_decodes_before_the_first_token_is_out():
    """Behind the last stage a millisecond more passes, in which all its KV could come."""
    world = replace(STAGED, hop_ns=10_000.0, port_bytes_per_s=1e12)
    for output in (1, 3):
        ran = run(replace(world, jobs=(Job(0, 100, output),)))
        (row,) = ran.rows
        assert row.first_token_ns == PREFILL_NS + 2 * MS
        assert row.replica == (output > 1)
        assert_all_back(ran)


@pytest.mark.parametrize("lookahead", [0, 1])
def test_nobody_knows_beforehand_that_a_first_token_is_the_last(lookahead):
    """It is sent like any other while its prompt is computed, and stopped with its only token."""
    pair = replace(FOUR, port_bytes_per_s=1e8, message_ns=0, lookahead=lookahead)
    ran = run(replace(pair, jobs=(Job(0, 100, 1), Job(0, 100, 3))))
    one, three = ran.rows
    step = 5 * MS + 200 * 20_000
    assert one.first_token_ns == one.end_ns == three.first_token_ns == step
    assert (one.replica, three.replica, one.ended_as) == (0, 1, "finished")
    # a quarter of 9 ms is waited for, then both have 50 MB/s each, and from 9 ms on one has 100
    shared = step - step // 4
    assert three.end_ns == step + 10 * MS - shared // 2 + sum(STEPS_NS)
    assert ran.facts.replicas[1].peak_kv_blocks == 14  # of both
    assert_all_back(ran)


def test_an_only_token_is_out_in_time_wherever_its_request_has_got_to():
    """In the line of a decode replica that is full, refused by all, or with its client gone."""
    full = replace(FOUR, jobs=(Job(0, 100, 60), Job(20 * MS, 100, 1)), kv_blocks=12)
    for refuses in (False, True):
        for lookahead in (0, 1):
            ran = run(replace(full, refuses_kv=refuses, lookahead=lookahead))
            assert ran.rows[1].end_ns == ran.rows[1].first_token_ns == 20 * MS + PREFILL_NS
            assert ran.rows[1].end_ns < ran.rows[0].end_ns
            assert ran.rows[1].replica == 0
            assert_all_back(ran)
    for at in (PREFILL_NS - 1, PREFILL_NS):
        ran = run(replace(FOUR, jobs=(Job(0, 100, 1, abort_ns=at), Job(9 * MS, 100, 1))))
        assert [row.ended_as for row in ran.rows] == ["aborted", "finished"]
        assert_all_back(ran)


@laws(60)
@given(world=worlds(handoff=True, turns=True), data=st.data())
def test_only_tokens_change_nothing_about_merging(world, data):
    short = [replace(j, output=1) if data.draw(st.booleans()) else j for j in world.jobs]
    if world.batching != "layered-prefill":
        world = replace(world, sent_layers=data.draw(st.sampled_from([1, 4])))
    assert_same(replace(world, jobs=tuple(short)))


def test_a_replica_without_room_refuses_and_another_takes_it():
    """By turns the third would wait behind the first; it goes where there is room."""
    jobs = (Job(0, 100, 200), Job(1, 100, 2), Job(2, 100, 2))
    world = World(jobs, cost="round", decoders=2, kv_blocks=19, port_bytes_per_s=1e12)
    for refuses in (False, True):
        rows = run(replace(world, refuses_kv=refuses)).rows
        assert rows[0].replica != rows[1].replica
        assert rows[2].end_ns < rows[0].end_ns


def test_nobody_has_room_and_it_is_held_where_it_was_computed():
    jobs = (Job(0, 100, 10), Job(1, 100, 10), Job(2, 100, 10))
    base = World(jobs, cost="round", decoders=2, kv_blocks=14, max_num_seqs=1)
    waits, refuses = (run(replace(base, refuses_kv=each)).rows for each in (False, True))
    first = min(refuses[:2], key=lambda row: row.end_ns)
    assert refuses[2].replica == first.replica  # the first that got room, whoever that is
    assert refuses[2].end_ns > first.end_ns
    assert waits[2].end_ns >= refuses[2].end_ns


def test_who_is_refused_gets_the_room_that_a_write_to_a_tier_gives_back():
    """The decode replica is idle, but what its last request wrote is still being copied."""
    jobs = (Job(0, 100, 2), Job(0, 100, 2))
    world = World(jobs, decoders=1, kv_blocks=8, refuses_kv=True, prefix_caching=True)
    slow = replace(world, tier_chunks=(30,), tier_scopes=("replica",), port_bytes_per_s=1e6)
    assert [row.ended_as for row in run(slow).rows] == ["finished", "finished"]


@pytest.mark.parametrize("lookahead", [0, 1])
def test_the_last_step_is_noted_though_its_answer_was_called_back(lookahead):
    """Sent by layer, an answer of one token ends as the replica that has computed it is called."""
    world = World((Job(0, 257, 1),), decoders=1, sent_layers=4, lookahead=lookahead)
    ran = run(world)
    assert [row.output_tokens for row in ran.rows] == [1]
    totals = [part.timeline.totals for part in ran.facts.replicas]
    assert sum(each["output_tokens"].sum() for each in totals) == 1
    assert sum(each["prefill_tokens"].sum() for each in totals) == 257
