"""Tiers below the GPU: nothing is lost on the way there and back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from abilities import together
from calls import blocks_in_use
from endings import assert_tiers_back
from hypothesis import given
from hypothesis import strategies as st
from prices import MS
from test_fast_forward import assert_same
from world_strategies import laws, worlds
from worlds import Job, World, run

from llmsim.policies import BATCHING


@pytest.mark.parametrize("batching", [name for name in BATCHING.names() if not together(name)])
@laws(15)
@given(data=st.data())
def test_every_block_comes_back(batching, data):
    ran = run(data.draw(worlds(batching=batching, tiers=True, handoff=None, turns=True)))
    assert_tiers_back(ran)


@laws(40)
@given(world=worlds(tiers=True, turns=True))
def test_no_block_is_lost_or_counted_twice(world):
    def look(replica, call):
        replica.ledger.check()
        if replica.draft.swapper is not None:
            replica.draft.swapper.check()
        for tier in replica.draft.keeper.tiers:
            tier.store.check()
        assert world.kv_blocks - call.free_blocks == blocks_in_use(replica, call)

    run(world, True, look)


@pytest.mark.parametrize("lookahead", [0, 1])
@laws(40)
@given(data=st.data())
def test_merging_steps_changes_nothing(lookahead, data):
    assert_same(data.draw(worlds(lookahead=lookahead, tiers=True, turns=True, handoff=None)))


@laws(20)
@given(world=worlds(tiers=True, clients_leave=False))
def test_the_same_tokens_are_served(world):
    ran = run(world)
    assert [row.output_tokens for row in ran.rows] == [job.output for job in world.jobs]


TEXT = ((1, 64),)
AGAIN = (*TEXT, (2, 16))
TWICE = World(
    (Job(0, 64, 2, TEXT), Job(100 * MS, 80, 2, AGAIN)),
    tier_chunks=(100,),
    chunk_blocks=2,
    tier_bytes_per_s=1e12,
    port_bytes_per_s=1e9,
)
# without a prefix cache on the GPU, what is found again lies in the tier: two chunks of 32 tokens,
# 640 kB over 1 GB/s; a prompt takes 5 ms + 20 us a token
LOAD_NS = 640_000


def test_by_hand():
    first, second = run(TWICE).rows
    assert first.first_token_ns == 5 * MS + 64 * 20_000
    assert second.first_token_ns == 100 * MS + LOAD_NS + 5 * MS + 16 * 20_000
    assert (first.cached_tokens, second.cached_tokens) == (0, 64)


def test_messages_come_before_bytes():
    _, second = run(replace(TWICE, message_ns=MS)).rows
    assert second.first_token_ns == 100 * MS + 2 * MS + LOAD_NS + 5 * MS + 16 * 20_000


def test_a_tail_below_a_chunk_is_not_kept():
    _, second = run(replace(TWICE, chunk_blocks=3)).rows
    assert second.cached_tokens == 48
    assert second.first_token_ns == 100 * MS + 480_000 + 5 * MS + 32 * 20_000


def test_what_is_being_written_is_found_by_nobody():
    """The first prompt is computed at 6.28 ms and written until 6.92 ms."""
    for at, hit in ((6_919_999, 0), (6_920_000, 64)):
        world = replace(TWICE, jobs=(Job(0, 64, 1, TEXT), Job(at, 80, 2, AGAIN)))
        assert [row.cached_tokens for row in run(world).rows] == [0, hit]


def test_who_waits_for_the_same_prefix_loads_nothing():
    """With a prefix cache that has forgotten: the second to ask waits, or loads it once more."""
    filler = Job(50 * MS, 160, 1, ((7, 160),))
    jobs = (Job(0, 64, 1, TEXT), filler, Job(100 * MS, 80, 1, AGAIN), Job(100 * MS, 80, 1, AGAIN))
    world = replace(TWICE, jobs=jobs, prefix_caching=True, kv_blocks=10)
    for joins, loaded in ((True, 64), (False, 128)):
        ran = run(replace(world, joins_loads=joins))
        (tier,) = ran.facts.tiers
        assert tier.loaded_tokens == loaded
        assert [row.cached_tokens for row in ran.rows] == [0, 0, 64, 64]
    assert ran.rows[2].first_token_ns > 100 * MS + 2 * LOAD_NS  # the link is shared


@pytest.mark.parametrize("by_layer", [False, True])
def test_who_shares_less_than_a_block_of_what_is_loaded_waits_for_nothing(by_layer):
    """Of a prefix that is loaded for the third the fourth has one token: no block, no wait."""
    jobs = (
        Job(0, 16, 1, ((1, 16),)),
        Job(50 * MS, 48, 1, ((7, 48),)),  # whose blocks are all there are
        Job(100 * MS, 17, 1, ((1, 17),)),
        Job(100 * MS, 2, 1, ((1, 1), (3, 1))),
    )
    world = replace(TWICE, jobs=jobs, prefix_caching=True, kv_blocks=3, chunk_blocks=1)
    ran = run(replace(world, by_layer=by_layer))
    assert [row.ended_as for row in ran.rows] == ["finished"] * 4
    assert [row.cached_tokens for row in ran.rows] == [0, 0, 16, 0]
    first_ns = {row.request: row.first_token_ns for row in ran.rows}
    assert by_layer or first_ns[3] < first_ns[2]
    (tier,) = ran.facts.tiers
    assert tier.loaded_tokens == 16


def test_two_tiers_continue_one_another():
    """Room for one chunk nearby: the rest comes from the second tier, at half the speed."""
    world = replace(
        TWICE, tier_chunks=(1, 100), tier_writes=("through", "evict"), tier_bytes_per_s=1e9
    )
    jobs = (Job(0, 32, 1, ((1, 32),)), Job(50 * MS, 32, 1, ((3, 32),)), Job(100 * MS, 80, 1, AGAIN))
    ran = run(replace(world, jobs=jobs))
    near, far = ran.facts.tiers
    assert (near.loaded_tokens, far.loaded_tokens) == (0, 32)
    assert near.evicted_tokens == 2 * 32  # for the second prompt, and for the third
    assert ran.rows[2].cached_tokens == 32
    assert ran.rows[2].first_token_ns == 100 * MS + 640_000 + 5 * MS + 48 * 20_000


def test_a_client_that_leaves_during_a_load_gives_everything_back():
    for at in (1, LOAD_NS // 2, LOAD_NS - 1, LOAD_NS, LOAD_NS + 1):
        for lookahead in (0, 1):
            jobs = (TWICE.jobs[0], replace(TWICE.jobs[1], output=9, abort_ns=at))
            ran = run(replace(TWICE, jobs=jobs, lookahead=lookahead))
            assert ran.rows[1].ended_as == "aborted"
            (replica,) = ran.replicas
            assert replica.ledger.free == TWICE.kv_blocks
            assert replica.draft.keeper.tiers[0].store.held == 0
            replica.draft.keeper.tiers[0].store.check()


def test_loading_is_a_choice():
    quick, slow = replace(TWICE, loading="cheaper"), replace(TWICE, loading="cheaper")
    slow = replace(slow, port_bytes_per_s=4e8)  # 640 kB: 1.6 ms; computing 64 tokens: 1.28 ms
    assert [run(world).rows[1].cached_tokens for world in (quick, slow)] == [64, 0]
    assert run(replace(TWICE, loading="never")).rows[1].cached_tokens == 0


def test_layers_compute_while_others_are_loaded():
    """Four layers, each ready a quarter of the load later than the one before."""
    step_ns = 5 * MS + 16 * 20_000
    for bytes_per_s, load_ns in ((1e9, LOAD_NS), (1e7, 100 * LOAD_NS)):
        _, second = run(replace(TWICE, by_layer=True, port_bytes_per_s=bytes_per_s)).rows
        behind = max(load_ns // 4 + step_ns, load_ns + step_ns // 4)
        assert second.first_token_ns == 100 * MS + behind
        assert second.cached_tokens == 64


def test_a_layer_waits_for_a_link_that_is_shared_for_a_while():
    """Two loads of 640 kB begin together on two replicas with a store of 1 GB/s between them."""
    jobs = (Job(0, 64, 2, TEXT), Job(0, 64, 2, ((5, 64),)))
    jobs += (Job(100 * MS, 80, 2, AGAIN), Job(100 * MS, 80, 2, ((5, 64), (6, 16))))
    world = replace(
        TWICE,
        jobs=jobs,
        replicas=2,
        tier_scopes=("pool",),
        tier_bytes_per_s=1e9,
        port_bytes_per_s=1e12,
        by_layer=True,
    )
    step_ns = 5 * MS + 16 * 20_000
    for row in run(world).rows[2:]:
        assert row.first_token_ns == 100 * MS + 2 * LOAD_NS // 4 + step_ns


SWAP = World(
    # a block of 16 tokens each, and one block more than that: at 17 tokens the second is preempted
    (Job(0, 16, 40), Job(0, 16, 40)),
    kv_blocks=4,
    swap_blocks=100,
    port_bytes_per_s=1e9,
    reserve_prompt=True,
)


def test_swapping_computes_nothing_again():
    swapped, recomputed = run(SWAP), run(replace(SWAP, swap_blocks=0))
    for ran in (swapped, recomputed):
        assert ran.rows[1].preemptions > 0
        assert [row.output_tokens for row in ran.rows] == [40, 40]
    assert swapped.rows[1].recomputed_tokens == 0
    assert recomputed.rows[1].recomputed_tokens > 0
    (swap,) = swapped.facts.tiers
    assert swap.read_bytes == swap.written_bytes > 0


def test_swapping_pays_for_its_link():
    """Out and back over the same link: a hundred times slower costs ninety-nine times the copy."""
    ends = {}
    for rate in (1e9, 1e7):
        ran = run(replace(SWAP, port_bytes_per_s=rate))
        (swap,) = ran.facts.tiers
        assert ran.rows[1].preemptions == 1
        ends[rate] = ran.facts.end_ns, swap.written_bytes
    copies = 2 * ends[1e9][1]
    assert ends[1e7][0] - ends[1e9][0] == round(copies * (1 / 1e7 - 1 / 1e9) * 1e9)


def test_a_full_host_means_computing_again():
    ran = run(replace(SWAP, swap_blocks=1))
    assert ran.rows[1].recomputed_tokens > 0
    assert ran.facts.tiers[0].refused_tokens == ran.rows[1].preemptions


def test_nobody_new_gets_in_while_somebody_is_out():
    jobs = (*SWAP.jobs, Job(200 * MS, 5, 1))
    first, second, third = run(replace(SWAP, jobs=jobs)).rows
    assert second.preemptions == 1
    assert third.scheduled_ns >= first.end_ns


STRANDED = World(
    (Job(0, 1, 1), Job(0, 1, 17), Job(0, 1, 32)), cost="all windowed", max_num_seqs=1,
    budget_tokens=8, kv_blocks=3, decoders=1, port_bytes_per_s=1e12, tier_chunks=(1,),
    tier_scopes=("replica",), tier_bytes_per_s=1e7, eviction="fifo", joins_loads=False,
    swap_blocks=5,
)  # fmt: skip


@pytest.mark.parametrize("fast_forward", [True, False])
def test_who_is_on_the_host_comes_back_when_a_write_gives_its_blocks_back(fast_forward):
    """Nobody else runs or waits then, so nothing but the end of the write can wake the replica."""
    ran = run(STRANDED, fast_forward)
    assert [row.output_tokens for row in ran.rows] == [1, 17, 32]
    assert sum(row.preemptions for row in ran.rows) > 0


ROOM_FOR_ONE = World(
    (Job(0, 85, 3, ((1, 85),)), Job(0, 85, 1), Job(0, 85, 1, ((1, 85),))), kv_blocks=7,
    chunk_limit_tokens=5, batching="vllm", order="priority", tier_chunks=(30,),
    tier_bytes_per_s=1e8,
)  # fmt: skip


@pytest.mark.parametrize("fast_forward", [True, False])
def test_who_gave_up_what_it_had_loaded_does_not_load_it_again(fast_forward):
    """The third gives up five blocks for the second, whose chunks would find them taken again."""
    rows = run(ROOM_FOR_ONE, fast_forward).rows
    assert [row.output_tokens for row in rows] == [3, 1, 1]


COMING = World(
    (Job(0, 13, 13), Job(0, 17, 14), Job(0, 4, 13)), block_tokens=4, kv_blocks=17,
    swap_blocks=5, swap_overlaps=True,
)  # fmt: skip


def test_blocks_of_who_comes_back_beside_steps_are_counted():
    seen = set()

    def look(replica, call):
        assert COMING.kv_blocks - call.free_blocks == blocks_in_use(replica, call)
        seen.add(replica.draft.swapper.blocks_aside() > 0)

    run(COMING, True, look)
    assert seen == {False, True}


LEAVING = World(
    (
        Job(0, 40, 28), Job(0, 40, 1), Job(0, 40, 26, ((1, 40),)), Job(0, 40, 1), Job(0, 40, 29),
        Job(0, 40, 1), Job(85 * MS, 40, 1, ((1, 35), (10, 5)), abort_ns=200 * MS), Job(0, 40, 1),
        Job(0, 40, 10),
    ), max_num_seqs=2, kv_blocks=9, replicas=2, tier_chunks=(30,), tier_writes=("finish", "evict"),
)  # fmt: skip


def test_who_leaves_the_line_with_loaded_kv_makes_room_at_once():
    """Not as the head: somebody who was preempted meanwhile stands before it."""
    assert_same(LEAVING)
