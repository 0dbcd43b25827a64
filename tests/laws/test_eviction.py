"""Which cached KV is overwritten first: any order loses no block, and vLLM's is one of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_fast_forward import assert_same
from test_pins import check, pinning_worlds
from world_strategies import laws, worlds
from worlds import Job, World, run

from llmsim.policies.tiering import EVICTION

KINDS = sorted(EVICTION.names())


@laws(20)
@given(world=worlds(turns=True, tiers=None, moves=None))
def test_latest_use_is_the_order_of_the_plain_ledger(world):
    world = replace(world, prefix_caching=True, allocation="paged", stages=())
    assert run(world).facts.digest == run(replace(world, evicts="lru")).facts.digest


@pytest.mark.parametrize("lookahead", [0, 1])
@laws(12)
@given(data=st.data())
def test_merged_and_single_steps_are_the_same_in_any_order(lookahead, data):
    world = data.draw(pinning_worlds(lookahead=lookahead, tiers=None, moves=None))
    kind = data.draw(st.sampled_from(KINDS))
    assert_same(replace(world, evicts=kind))


@pytest.mark.parametrize("kind", KINDS)
@laws(20)
@given(data=st.data())
def test_merged_and_single_steps_are_the_same_in_any_order_for_every_batching(kind, data):
    world = data.draw(worlds(turns=True, tiers=None, moves=None))
    world = replace(world, prefix_caching=True, allocation="paged", stages=(), evicts=kind)
    assert_same(world)


@laws(12)
@given(world=pinning_worlds(tiers=None), kind=st.sampled_from(KINDS))
def test_any_order_loses_no_block(world, kind):
    check(run(replace(world, evicts=kind)))


# --- by hand ---------------------------------------------------------------------------------

HEAD = ((1, 16),)


def told(evicts):
    """A head of 4 blocks is read twice, then two prompts of 6 blocks come, then the head again."""
    jobs = (
        *(Job(at * 10**9, 17, 1, (*HEAD, (10 + at, 1))) for at in range(3)),
        *(Job(at * 10**9, 24, 1, ((20 + at, 24),)) for at in (3, 4)),
        Job(5 * 10**9, 17, 1, (*HEAD, (15, 1))),
    )
    ran = run(World(jobs, block_tokens=4, kv_blocks=11, prefix_caching=True, evicts=evicts))
    return ran.rows[-1].cached_tokens


def test_what_is_read_often_stays():
    assert told("") == 0  # ten blocks of the two others, and one that is left of the head's
    assert told("lru") == told("")
    assert told("lfu") == 16
    assert told("fifo") == told("")


def test_nothing_goes_before_what_was_computed_from_it():
    """First in, first out would take the head, and leave what follows it to be found by nobody."""
    tail = (*HEAD, (2, 16))
    jobs = (
        Job(0, 17, 1, (*HEAD, (10, 1))),
        Job(10**9, 33, 1, (*tail, (11, 1))),
        Job(2 * 10**9, 20, 1, ((20, 20),)),  # takes three free blocks, and two that were cached
        Job(3 * 10**9, 33, 1, (*tail, (12, 1))),
    )
    ran = run(World(jobs, block_tokens=4, kv_blocks=11, prefix_caching=True, evicts="fifo"))
    assert ran.rows[-1].cached_tokens == 24


@pytest.mark.parametrize("evicts", ["", "lru", "fifo"])
def test_what_branches_off_inside_does_not_need_what_is_behind_the_branch(evicts):
    """Blocks of one token, 12 of them. Four of a text of 4, then the first of them and an answer.

    A prompt of 6 takes the 3 that are empty and the last 3 of the text: the answer was computed
    from the first alone, and is found whole, but for its last token.
    """
    jobs = (
        Job(0, 4, 1, ((1, 4),)),
        Job(10**9, 1, 5, ((1, 1),)),
        Job(2 * 10**9, 6, 1),
        Job(3 * 10**9, 7, 1, ((1, 1), (-2, 5), (50, 1))),
    )
    world = World(jobs, block_tokens=1, kv_blocks=12, prefix_caching=True, evicts=evicts)
    assert [row.cached_tokens for row in run(world).rows] == [0, 0, 0, 5]
