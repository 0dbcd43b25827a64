"""KV below a pipeline: stages wait for what is theirs, victims come back, nothing is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest
from abilities import together
from endings import assert_tiers_back
from hypothesis import given
from hypothesis import strategies as st
from prices import COSTS, MS
from test_fast_forward import assert_same
from test_pipeline import in_whole_ns
from world_strategies import laws, worlds
from worlds import Job, World, run

from llmsim.policies import BATCHING
from llmsim.scenario import Scenario
from llmsim.serving.storeplan import kv_plan
from llmsim.specs import load_model

GIVEN = {"stages": True, "tiers": True, "turns": True, "handoff": None}
BATCHINGS = [name for name in BATCHING.names() if not together(name)]


@pytest.mark.parametrize("cost", sorted(COSTS))
@laws(8)
@given(data=st.data())
def test_merging_changes_nothing(cost, data):
    assert_same(data.draw(worlds(cost=cost, **GIVEN)))


@pytest.mark.parametrize("batching", BATCHINGS)
@laws(8)
@given(data=st.data())
def test_every_block_comes_back(batching, data):
    ran = run(data.draw(worlds(batching=batching, most=20, **GIVEN)))
    assert len(ran.rows) == len(ran.world.jobs)
    assert_tiers_back(ran)


@laws(30)
@given(data=st.data())
def test_one_stage_is_a_plain_replica(data):
    """Bit for bit, decisions, rows, and what went to and from every tier."""
    cost = data.draw(st.sampled_from([name for name in sorted(COSTS) if in_whole_ns(COSTS[name])]))
    world = data.draw(
        worlds(cost=cost, batching="vllm", routing="round-robin", lookahead=0, tiers=True)
    )
    plain, piped = run(world), run(replace(world, stages=(1.0,)))
    assert plain.decisions == piped.decisions
    assert [row.values for row in plain.rows] == [row.values for row in piped.rows]
    assert plain.facts.tiers == piped.facts.tiers


TEXT = ((1, 64),)
AGAIN = (*TEXT, (2, 16))
# the price "round": 5 ms, 20 us per new prompt token, 20 us per decode, 20 ns per token of context
STAGED = World(
    (Job(0, 64, 2, TEXT), Job(100 * MS, 80, 2, AGAIN)),
    stages=(0.5, 0.5),
    tier_chunks=(100,),
    chunk_blocks=2,
    tier_bytes_per_s=1e12,
    port_bytes_per_s=1e9,
)
LOAD_NS = 640_000  # 64 tokens of 10 kB over 1 GB/s


def test_by_hand():
    """Nothing is in flight: the second is loaded, and computes its rest on one stage, then two."""
    first, second = run(STAGED).rows
    assert first.first_token_ns == 5 * MS + 64 * 20_000
    assert (first.cached_tokens, second.cached_tokens) == (0, 64)
    assert second.first_token_ns == 100 * MS + LOAD_NS + 5 * MS + 16 * 20_000


def test_what_has_come_is_seen_when_a_micro_batch_is_out():
    """Another prompt is admitted in the same call and has the pipeline from 100 to 107 ms."""
    jobs = (*STAGED.jobs, Job(100 * MS, 100, 1, ((5, 100),)))
    _, loaded, other = run(replace(STAGED, jobs=jobs)).rows
    assert other.first_token_ns == 107 * MS
    assert loaded.first_token_ns == 107 * MS + 5 * MS + 16 * 20_000


ROOM_FOR_ONE = World(
    (
        Job(0, 64, 1, ((0, 48), (11, 16))),
        Job(0, 107, 1),
        Job(0, 30, 1, ((0, 9), (100, 5), (7, 16))),
    ), block_tokens=1, kv_blocks=109, chunk_limit_tokens=30, batching="continuum",
    tier_chunks=(30, 4), stages=(0.5, 0.5),
)  # fmt: skip


@pytest.mark.parametrize("fast_forward", [True, False])
def test_who_gave_up_what_it_had_loaded_does_not_load_it_again(fast_forward):
    """The last gives up nine blocks for the second, whose chunks need them after the first one."""
    rows = run(ROOM_FOR_ONE, fast_forward).rows
    assert [row.ended_as for row in rows] == ["finished"] * 3


LAYER_NS = (5 * MS + 16 * 20_000) // 4  # of two on each stage


def test_each_stage_waits_for_its_own_layers():
    """Half of the load brings the first layer of both stages; the second stage has all by then."""
    _, second = run(replace(STAGED, by_layer=True)).rows
    assert second.first_token_ns == 100 * MS + LOAD_NS // 2 + 4 * LAYER_NS
    # a hundred times slower: the last layer of the first stage waits for the end of the load
    _, second = run(replace(STAGED, by_layer=True, port_bytes_per_s=1e7)).rows
    assert second.first_token_ns == 100 * MS + 100 * LOAD_NS + 3 * LAYER_NS


def test_who_comes_behind_waits_too():
    """A second micro-batch of as many tokens enters the first stage when the first has left it."""
    jobs = (*STAGED.jobs, Job(100 * MS, 16, 1, ((5, 16),)))
    for host_ns in (0, MS):  # the host prepares a micro-batch while its KV is on the way
        world = replace(STAGED, jobs=jobs, by_layer=True, budget_tokens=16, stage_host_ns=host_ns)
        _, loaded, other = run(world).rows
        begins = 100 * MS + max(LOAD_NS // 2, host_ns)
        assert loaded.first_token_ns == begins + 4 * LAYER_NS
        assert other.first_token_ns == begins + 6 * LAYER_NS


SWAP = World(
    # a block each, and one more: at 17 tokens the second is preempted, and copied out
    (Job(0, 16, 40), Job(0, 16, 40)),
    kv_blocks=4,
    swap_blocks=100,
    stages=(0.5, 0.5),
)


def test_swapping_computes_nothing_again_and_pays_for_its_link():
    """Out and back, nobody else in flight: every stage waits as long as all copies take."""
    ends = {}
    for rate in (1e9, 1e7):
        ran = run(replace(SWAP, port_bytes_per_s=rate))
        (swap,) = ran.facts.tiers
        assert [row.output_tokens for row in ran.rows] == [40, 40]
        assert (ran.rows[1].preemptions, ran.rows[1].recomputed_tokens) == (1, 0)
        assert swap.read_bytes == swap.written_bytes > 0
        ends[rate] = ran.facts.end_ns
    assert ends[1e7] - ends[1e9] == round(2 * swap.written_bytes * (1 / 1e7 - 1 / 1e9) * 1e9)


def test_who_is_in_flight_is_not_held_up_by_a_copy():
    """Two micro-batches of one each; the first needs a third block when the second is in flight.

    It has 32 tokens, so its two blocks are copied out, and the second goes on beside it. Its own
    next micro-batch, 2.5 ms later, waits for the copy if that takes longer.
    """
    # a prompt, then 16 decodes, the first of which waits for the second stage until 7.98 ms
    out_ns = 7_980_000 + 2_510_170 + sum(5 * MS + 20_000 + 20 * n for n in range(18, 33))
    in_flight_until_ns = 88_307_990
    assert out_ns == 85_797_670
    ends = {}
    for rate in (1e9, 1e7):
        ran = run(replace(SWAP, budget_tokens=16, port_bytes_per_s=rate))
        first, second = ran.rows
        copy_ns = round(32 * 1e4 / rate * 1e9)
        assert (first.preemptions, second.preemptions, first.recomputed_tokens) == (1, 0, 0)
        rest = sum(5 * MS + 20_000 + 20 * n for n in range(33, 56))
        assert first.end_ns == second.end_ns + copy_ns + rest  # comes back when the second ends
        ends[rate] = second.end_ns
    assert ends[1e7] - ends[1e9] == out_ns + 32 * MS - in_flight_until_ns


def kv_of(pp: int, messages="per-chunk", **kv):
    tiers = [{"name": "host", "capacity_bytes": 1e12, "messages": messages}]
    pool = {"pp": pp, "kv": {"tiers": tiers, **kv}}
    changes = {f"fleet.pools.main.{key}": value for key, value in pool.items()}
    scenario = Scenario.load("quickstart", changes)
    return kv_plan(scenario.fleet.pools["main"], load_model("llama-3.1-8b"), None)


def test_every_stage_copies_its_layers_over_links_of_its_own():
    """32 layers on 3 stages are 11, 11 and 10: the eleven take 11/32 of the bytes of a link."""
    one, two, three = (kv_of(pp) for pp in (1, 2, 3))
    assert two.host_bytes_per_s == 2 * one.host_bytes_per_s
    assert three.host_bytes_per_s == pytest.approx(one.host_bytes_per_s * 32 / 11)
    assert one.tiers == two.tiers == three.tiers  # a token has as many bytes as ever
    assert [kv_of(pp, gate="layer").layers for pp in (1, 3)] == [(32,), (11, 11, 10)]
    swaps = [kv_of(pp, swap={}).swap for pp in (1, 3)]
    assert [swap.parts for swap in swaps] == [2 * 32, 2 * 11]  # copies of a run of blocks
    assert swaps[0].block_bytes == swaps[1].block_bytes
    messages = [kv_of(pp, messages="per-block").tiers[0].messages_per_chunk for pp in (1, 2, 3)]
    assert messages == [2 * layers * 256 / 16 for layers in (32, 16, 11)]
