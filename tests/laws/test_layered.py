"""Prompts that go through the model in groups of layers: nothing is lost, a timeline by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from endings import assert_all_ended
from hypothesis import given
from hypothesis import strategies as st
from prices import COSTS, MS, PRICES
from test_fast_forward import assert_same
from world_strategies import laws, worlds
from worlds import Job, World, run

from llmsim.serving.layered import LayeredReplica

LayeredPrefill = pytest.importorskip("llmsim.systems.layered_prefill").LayeredPrefill

KIND = "layered-prefill"


def layered(data, **given):
    world = data.draw(worlds(batching=KIND, **given))
    budget = data.draw(st.sampled_from([world.budget_tokens, 4096, 600]))
    # at most 512 tokens would go through the model at once: make prompts longer
    jobs = tuple(
        job if job.segments else replace(job, prompt=job.prompt * data.draw(st.integers(1, 12)))
        for job in world.jobs
    )
    size = world.block_tokens
    blocks = max(-(-(job.prompt + job.output) // size) for job in jobs) + world.watermark_blocks
    whole = not world.chunked_prefill
    return replace(
        world,
        jobs=jobs,
        allocation="paged",
        budget_tokens=4096 if whole else budget,
        kv_blocks=max(world.kv_blocks, blocks),
    )


@pytest.mark.parametrize("cost", sorted(COSTS))
@laws(12)
@given(data=st.data())
def test_merging_changes_nothing(cost, data):
    assert_same(layered(data, cost=cost))


@laws(50)
@given(data=st.data())
def test_nothing_is_lost(data):
    ran = run(layered(data))
    assert_all_ended(ran)
    for replica in ran.replicas:
        assert isinstance(replica, LayeredReplica)


@laws(40)
@given(data=st.data())
def test_steps_of_a_set_cost_its_prompts_once(data):
    """Without decodes beside it, a set costs one whole step, and a step's base for each more."""
    world = layered(data, clients_leave=False, cost="round")
    world = replace(world, jobs=tuple(replace(job, output=1) for job in world.jobs))
    price = PRICES["round"]
    whole: dict[int, int] = {}

    def watch(replica, call):
        if call.chunks and replica.group == 0:
            slices = [(tokens, past) for _, tokens, past in call.chunks]
            took = price.step_ns(slices, 0, 0, 0, 0) + (replica.groups - 1) * round(price.base_ns)
            whole[replica.index] = whole.get(replica.index, 0) + took

    ran = run(world, recorder=watch)
    for replica, facts in zip(ran.replicas, ran.facts.replicas, strict=True):
        spent = facts.timeline.totals["busy_ns"].sum()
        assert spent == pytest.approx(whole.get(replica.index, 0), abs=16 * len(world.jobs))


# the price "round": 5 ms, 20 us per new token or decode, 20 ns per token of context
BY_HAND = World((Job(0, 100, 40), Job(8 * MS, 2000, 2), Job(13 * MS, 100, 1)), batching=KIND)


def test_by_hand():
    """2,000 tokens in four groups of layers; a later prompt waits until all are through."""
    first, long, late = run(BY_HAND).rows
    assert first.first_token_ns == 7 * MS
    # the first decode step is under way until 12.022; its context grows by a token a step
    at = 7 * MS + 5_020_000 + 20 * 101
    for step in range(4):
        alone = 5_020_000 + 20 * (102 + step)
        at += alone + 2000 * 20_000 // 4
    assert long.first_token_ns == at
    # now the late one is let in, beside two decodes
    at += 5 * MS + 2 * 20_000 + 20 * (106 + 2001) + 100 * 20_000
    assert late.first_token_ns == at
    assert long.end_ns == at
    # nobody stalls: the longest gap is a step with a quarter of the long prompt
    assert first.itl_max_ns == 5_020_000 + 20 * 105 + 10 * MS


def test_groups_by_tokens():
    groups = LayeredPrefill().layer_groups
    told = {1: 1, 512: 1, 513: 2, 1024: 2, 1025: 4, 2048: 4, 2049: 8, 4096: 8, 4097: 16, 8192: 16}
    assert {tokens: groups(tokens) for tokens in told} == told
    assert groups(100_000) == 16
    assert LayeredPrefill(most_groups=12).layer_groups(8192) == 12
