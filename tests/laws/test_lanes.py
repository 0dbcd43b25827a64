"""Lanes on the same GPUs: merged steps stay exact while others change their pace."""

from __future__ import annotations

from dataclasses import replace

import pytest
from abilities import keeps_memory, together
from endings import assert_all_back
from hypothesis import given
from hypothesis import strategies as st
from prices import MS
from test_fast_forward import assert_same
from world_strategies import laws, worlds
from worlds import Job, World, run

from llmsim.policies import BATCHING

POLICIES = [name for name in BATCHING.names() if not (together(name) or keeps_memory(name))]


@pytest.mark.parametrize("batching", POLICIES)
@laws(60)
@given(data=st.data())
def test_merging_changes_nothing(batching, data):
    assert_same(data.draw(worlds(batching=batching, lanes=True, turns=True)))


def test_the_peak_of_shared_blocks_is_that_of_all_lanes():
    """A client leaves inside a stretch of one lane, whose blocks are the other's too."""
    jobs = [Job(MS, 87, 11), *[Job(MS, 1, 1)] * 6, Job(MS, 1, 2)]
    world = World(
        tuple(jobs),
        cost="all windowed",
        max_num_seqs=1,
        budget_tokens=4096,
        kv_blocks=8,
        prefix_caching=False,
        lookahead=0,
        batching="prefill-first",
        timeout_ns=60 * MS,
        decoders=1,
        port_bytes_per_s=1e12,
        lanes=(0.2, 0.2),
    )
    for fast_forward in (True, False):
        found = run(world, fast_forward).facts.replicas
        assert [part.peak_kv_blocks for part in found] == [8, 8]


@laws(60)
@given(world=worlds(lanes=True, turns=True))
def test_every_block_comes_back(world):
    ran = run(world)
    assert_all_back(ran)


@laws(40)
@given(world=worlds(lanes=True, clients_leave=False))
def test_everybody_is_served(world):
    ran = run(world)
    assert [row.output_tokens for row in ran.rows] == [job.output for job in world.jobs]
    for row in ran.rows:
        assert (row.replica < world.replicas) == (row.output_tokens == 1)


@pytest.mark.timeout(60)  # it would never end
def test_two_lanes_do_not_take_from_each_other_for_ever():
    """Each holds part of a prompt in KV that has room for one: whoever comes later waits."""
    jobs = (Job(0, 232, 26), Job(5 * MS, 232, 26))
    world = World(
        jobs,
        cost="all windowed",
        max_num_seqs=1,
        budget_tokens=32,
        kv_blocks=17,
        reserve_prompt=False,
        decoders=1,
        port_bytes_per_s=1e12,
        lanes=(0.2, 0.2),
    )
    assert [row.output_tokens for row in run(world).rows] == [26, 26]


BY_HAND = World((Job(0, 100, 3), Job(9 * MS, 100, 1)), decoders=1, lanes=(1.0, 1.0))


@pytest.mark.parametrize("fast_forward", [True, False])
def test_by_hand(fast_forward):
    """A prompt comes while another request decodes: both slow down until it is computed."""
    one, other = run(BY_HAND, fast_forward).rows
    assert one.first_token_ns == 7 * MS  # alone: 5 ms + 100 x 20 us
    # a prompt of 100 keeps 100/120 of the SMs busy, decode 40% of them
    pace = 1 / (100 / 120 + 0.4)
    first = 7 * MS + 5_020_000 + 101 * 20  # when the first decode step would have ended
    first = 9 * MS + round((first - 9 * MS) / pace)
    second = first + round((5_020_000 + 102 * 20) / pace)
    computed = 9 * MS + round(7 * MS / pace)
    assert first < computed < second
    assert other.first_token_ns == computed
    assert one.end_ns == computed + round((second - computed) * pace)
    assert one.itl_max_ns == one.end_ns - first


def test_alone_is_full_speed_and_shares_that_fit_do_not_hurt():
    alone = run(replace(BY_HAND, jobs=BY_HAND.jobs[:1])).rows[0]
    assert run(replace(BY_HAND, lanes=(0.5, 1.0))).rows[0].end_ns == alone.end_ns + 7 * MS


def test_more_of_the_gpu_for_one_lane_slows_the_other_no_less():
    ends = []
    for share in (0.2, 0.5, 0.8, 1.0):
        world = replace(BY_HAND, jobs=(Job(0, 100, 30), Job(9 * MS, 4000, 1)), lanes=(share, 1.0))
        ends.append(run(world).rows[0].end_ns - run(world).rows[0].first_token_ns)
    assert ends == sorted(ends)
    assert ends[0] < ends[-1]
