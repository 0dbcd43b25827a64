"""Requests that change places by rank, and the copies of their KV, by hand and in random worlds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from endings import assert_all_ended
from hypothesis import given
from hypothesis import strategies as st
from prices import MS
from test_fast_forward import assert_same
from world_strategies import laws, worlds
from worlds import Job, World, run

from llmsim.policies.batching import VllmBatching
from llmsim.systems.fastswitch import FastSwitch


class Turns(FastSwitch):
    """Two requests, each of them first for two steps."""

    def _rank(self, request):
        return (request.index + self._epoch) % 2


TWO = World(
    (Job(0, 30, 8), Job(0, 30, 8)),
    cost="round",
    kv_blocks=3,  # one request of two blocks, and the beginning of another
    swap_blocks=100,
    batching="fastswitch",
    port_bytes_per_s=1e8,
)
COPY_NS = 3_200_000  # two blocks of 160 kB at 100 MB/s; a token is 10 kB


def steps(contexts):
    """Steps of one decode: 5 ms + 20 us, and 20 ns a token of context."""
    return sum(5_020_000 + 20 * context for context in contexts)


@pytest.mark.parametrize("overlaps", [False, True])
def test_by_hand(overlaps):
    """The first computes its prompt, makes way after two decodes, and comes back after two more."""
    rows = run(replace(TWO, swap_overlaps=overlaps), policy=lambda: Turns(update_steps=2)).rows
    prompt = 5 * MS + 30 * 20_000
    # two decodes after its prompt; the other's prompt needs the blocks that are copied out
    assert rows[0].first_token_ns == prompt
    second = prompt + steps([31, 32]) + COPY_NS
    assert rows[1].first_token_ns == second + prompt
    assert rows[0].preemptions >= 1
    assert rows[0].recomputed_tokens == rows[1].recomputed_tokens == 0


@laws(40)
@given(data=st.data())
def test_in_any_world(data):
    """Merging changes nothing, everybody ends, and no block is lost, on the GPU or beside it."""
    world = data.draw(worlds(batching="fastswitch", tiers=None, handoff=None, turns=True))
    steps_between = data.draw(st.sampled_from([1, 2, 5, 50]))
    pattern = data.draw(st.sampled_from(["random", "markov"]))
    blocks = data.draw(st.sampled_from([0, 5, 1000])) if world.allocation == "paged" else 0
    world = replace(world, tier_chunks=(), swap_blocks=blocks)

    def policy():
        return FastSwitch(update_steps=steps_between, levels=3, pattern=pattern)

    assert_same(world, policy=policy)
    ran = run(world, policy=policy)
    assert_all_ended(ran)
    for replica in ran.replicas:
        if replica.draft.swapper is not None:
            replica.draft.swapper.check()


class Third(Turns):
    """A third request stays, whatever the others do."""

    def _rank(self, request):
        return -1 if request.index == 2 else super()._rank(request)


def test_others_run_beside_the_copies():
    """Two change places over a thin link: who stays waits for a copy, or does not."""
    jobs = (Job(0, 70, 20), Job(0, 70, 20), Job(0, 10, 40))
    # blocks of 64 tokens that nobody outgrows: two for each of the two, one for the third
    base = replace(TWO, jobs=jobs, block_tokens=64, kv_blocks=3, port_bytes_per_s=1e7)
    gaps = {}
    for overlaps in (False, True):
        world = replace(base, swap_overlaps=overlaps)
        rows = run(world, policy=lambda: Third(update_steps=4)).rows
        assert rows[0].preemptions + rows[1].preemptions > 1
        assert rows[2].preemptions == 0
        gaps[overlaps] = rows[2].itl_max_ns
    assert gaps[False] > 128 * MS  # two blocks of 640 kB at 10 MB/s
    assert gaps[True] < 20 * MS


class Sheds(VllmBatching):
    """The second request makes way once, before a step of decodes alone."""

    every_step = True
    steps = 0

    def plan(self, step):
        self.steps += 1
        if self.steps == 10:
            step.displace(1)
        super().plan(step)


def test_a_step_of_decodes_alone_waits_for_the_copy_of_who_has_made_way():
    """Nobody needs the blocks that are copied; as in vLLM v0 the step waits all the same."""
    jobs = (Job(0, 30, 30), Job(0, 30, 30))
    base = replace(TWO, jobs=jobs, batching="vllm", kv_blocks=10, port_bytes_per_s=1e7)
    (first, _), (plain, second) = (run(base, policy=kind).rows for kind in (Sheds, VllmBatching))
    assert second.preemptions == plain.preemptions == first.preemptions == 0
    there_and_back_ns = 2 * 48 * MS  # three blocks of 160 kB at 10 MB/s
    later_ns = first.end_ns - plain.end_ns
    assert there_and_back_ns - 10 * MS < later_ns < there_and_back_ns


def test_a_kept_copy_spares_what_it_holds():
    """Who goes out again has a full block on the host already; the last one was part full."""
    jobs = (Job(0, 70, 20), Job(0, 70, 20), Job(0, 10, 40))
    base = replace(TWO, jobs=jobs, block_tokens=64, kv_blocks=3)
    written = {}
    for keeps in (False, True):
        ran = run(replace(base, keeps_copies=keeps), policy=lambda: Third(update_steps=4))
        times = [row.preemptions for row in ran.rows]
        assert min(times[:2]) >= 2
        blocks = [each + 1 if keeps else 2 * each for each in times[:2]]  # two the first time
        (swap,) = ran.facts.tiers
        written[keeps] = swap.written_bytes
        assert swap.written_bytes == sum(blocks) * 640_000
    assert written[True] < written[False]


def test_a_kept_copy_gives_way_to_whoever_needs_its_place():
    """Pair after pair changes places; five blocks of host memory hold the copies of two at most."""
    pairs = [Job(number // 2 * 600 * MS, 70, 20) for number in range(8)]
    base = replace(TWO, jobs=tuple(pairs), block_tokens=64, kv_blocks=3, keeps_copies=True)
    for blocks, refused in ((5, False), (1, True)):
        ran = run(replace(base, swap_blocks=blocks), policy=lambda: Turns(update_steps=4))
        assert sum(row.preemptions > 0 for row in ran.rows) >= 4
        assert any(row.recomputed_tokens for row in ran.rows) == refused
        (swap,) = ran.facts.tiers
        assert bool(swap.refused_tokens) == refused
        assert swap.kept_tokens <= blocks * 64
        assert bool(swap.kept_tokens) != refused  # what the last ones left is still there


def test_a_seat_that_a_change_of_priorities_makes_is_given_away_at_the_next_step():
    """Three decode, one whose KV has come waits for a seat; the first change sends one of them out.

    Found at random: merged steps let it wait until somebody had all its tokens.
    """
    first = [Job(0, 1, 1), Job(0, 198, 32)]
    then = [
        (181, 2),
        (1, 20),
        (1, 21),
        (1, 1),
        (59, 15),
        (1, 1),
        (1, 1),
        (81, 33),
        (1, 1),
        (105, 2),
    ]
    world = World(
        (*first, *(Job(5 * MS, *lengths) for lengths in (*then, (1, 1), (1, 10)))),
        cost="knee",
        max_num_seqs=3,
        budget_tokens=8,
        block_tokens=4,
        kv_blocks=98,
        batching="fastswitch",
        routing="least-loaded",
        decoders=1,
        port_bytes_per_s=1e12,
    )
    assert_same(world)
    steps = []
    run(world, recorder=lambda replica, call: steps.append((replica, call)))
    calls = [call for replica, call in steps if replica.index == 1]
    sent_out = next(place for place, call in enumerate(calls) if call.preempted)
    assert len(calls[sent_out].running) == 2
    assert len(calls[sent_out + 1].running) == 3
    assert calls[sent_out + 1].now_ns == calls[sent_out].end_ns
