"""Images: encoded where their prompts are computed, or by replicas that do nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from abilities import foresees, together
from endings import assert_all_back, assert_all_ended
from hypothesis import given
from hypothesis import strategies as st
from prices import MS
from test_fast_forward import assert_same
from world_strategies import laws, worlds
from worlds import Job, World, run

from llmsim.policies import BATCHING, ROUTING

# an image of 50 tokens, encoded alone: 5 ms + 50 x 20 us; a prompt of 100: 5 ms + 100 x 20 us
ENCODED_NS = 6 * MS
PREFILL_NS = 7 * MS
ONE = World((Job(0, 100, 3, images=1),), image_tokens=50, port_bytes_per_s=1e9, message_ns=1000)
APART = replace(ONE, encoders=1)
SENT_NS = MS // 2 + 1000  # 50 tokens of 10 kB at 1 GB/s, and a message


def test_by_hand():
    (row,) = run(ONE).rows
    assert row.first_token_ns == ENCODED_NS + PREFILL_NS
    assert row.replica == 0
    (row,) = run(APART).rows
    assert row.first_token_ns == ENCODED_NS + SENT_NS + PREFILL_NS
    assert row.scheduled_ns == 0
    assert (row.replica, row.prompt_tokens, row.output_tokens) == (0, 100, 3)


def test_images_that_come_together_are_encoded_together():
    jobs = (Job(0, 100, 2, images=1), Job(0, 150, 2, images=2))
    both = 5 * MS + 150 * 20_000
    ran = run(replace(APART, jobs=jobs, message_ns=0, port_bytes_per_s=1e12))
    sent = [500, 1000]  # ns alone; the port is shared: twice the smaller, then the rest
    assert ran.rows[0].first_token_ns == both + 2 * sent[0] + PREFILL_NS
    alone = [run(replace(APART, jobs=(job,), message_ns=0)).rows[0] for job in jobs]
    assert [row.first_token_ns for row in alone] == [
        ENCODED_NS + MS // 2 + PREFILL_NS,
        PREFILL_NS + MS + 5 * MS + 150 * 20_000,
    ]


def test_an_image_is_encoded_with_its_first_chunk():
    """Of 64 tokens: two images begin in the first one, the third in the second."""
    job = Job(0, 160, 1, images=3)
    (row,) = run(replace(ONE, jobs=(job,), budget_tokens=64)).rows
    steps = [5 * MS + 64 * 20_000, 5 * MS + 64 * 20_000, 5 * MS + 32 * 20_000]
    assert row.first_token_ns == sum(steps) + (5 * MS + 100 * 20_000) + ENCODED_NS


def test_who_decodes_waits_for_the_images_of_others_only_where_they_are_encoded_beside_it():
    jobs = (Job(0, 100, 40), Job(20 * MS, 300, 2, images=4))
    beside = run(replace(ONE, jobs=jobs)).rows[0]
    apart = run(replace(APART, jobs=jobs)).rows[0]
    assert beside.itl_max_ns - apart.itl_max_ns == pytest.approx(5 * MS + 200 * 20_000, abs=1e5)


def test_a_client_may_leave_at_any_point_of_the_way():
    end = ENCODED_NS + SENT_NS + PREFILL_NS
    for at in (1, MS, ENCODED_NS, ENCODED_NS + 1, ENCODED_NS + SENT_NS, end - 1):
        jobs = (Job(0, 100, 3, images=1, abort_ns=at), Job(2 * MS, 100, 3, images=1))
        ran = run(replace(APART, jobs=jobs, max_num_seqs=1))
        assert [row.ended_as for row in ran.rows] == ["aborted", "finished"]
        assert ran.rows[0].prompt_tokens == 100
        assert_all_back(ran)
        assert all(r.board.outstanding(r.slot) == 0 for r in ran.replicas)


def test_more_images_than_fit_a_step_are_encoded_in_several():
    """A budget of 120 tokens is two images: three take two steps, and go on together."""
    jobs = (Job(0, 250, 3, images=3),)
    (row,) = run(replace(APART, jobs=jobs, budget_tokens=120)).rows
    encoded = 5 * MS + 100 * 20_000 + ENCODED_NS
    prefill = 2 * (5 * MS + 120 * 20_000) + 5 * MS + 10 * 20_000
    assert row.first_token_ns == encoded + 3 * MS // 2 + 1000 + prefill


def test_what_nobody_can_compute_is_not_encoded():
    assert run(replace(APART, max_model_len=90)).rows[0].ended_as == "rejected"
    assert run(replace(APART, kv_blocks=6)).rows[0].ended_as == "unservable"


def seen(data, **given):
    """A world some of whose requests bring images that are encoded by somebody."""
    batching = [n for n in BATCHING.names() if not together(n) and n != "layered-prefill"]
    routing = [n for n in ROUTING.names() if not foresees(n) and not _looks(n)]
    world = data.draw(
        worlds(
            batching=data.draw(st.sampled_from(batching)),
            routing=data.draw(st.sampled_from(routing)),
            moves=False,
            **given,
        )
    )
    size = data.draw(st.sampled_from([1, 7, 40]))
    most = st.integers(0, 4)
    jobs = [replace(j, images=min(j.prompt // size, data.draw(most))) for j in world.jobs]
    encoders = data.draw(st.sampled_from([0, 1, 1, 2]))
    layers = world.sent_layers if encoders else 0
    return replace(
        world, jobs=tuple(jobs), image_tokens=size, encoders=encoders, sent_layers=layers
    )


def _looks(name):
    return hasattr(ROUTING.get(name), "reads_caches")


@laws(150)
@given(data=st.data())
def test_merging_steps_changes_nothing(data):
    assert_same(seen(data, handoff=None))


@laws(60)
@given(data=st.data())
def test_every_request_ends_once_and_every_block_comes_back(data):
    ran = run(seen(data, handoff=None))
    assert_all_ended(ran)


@laws(40)
@given(data=st.data())
def test_who_encodes_is_nothing_to_those_without_images(data):
    """The null: without images neither an encoder nor the price of images changes anything."""
    world = seen(data, handoff=False)
    plain = replace(world, jobs=tuple(replace(job, images=0) for job in world.jobs))
    without = replace(plain, image_tokens=0, encoders=0)
    assert [r.values for r in run(plain).rows] == [r.values for r in run(without).rows]
