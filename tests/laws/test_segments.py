"""KV reused away from the front: so much is spared and no more, and no block is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest
from calls import blocks_in_use
from endings import assert_all_ended
from hypothesis import given
from hypothesis import strategies as st
from prices import MS
from test_fast_forward import assert_same
from world_strategies import laws, worlds
from worlds import Job, World, run

from llmsim.costmodel import RooflineCost
from llmsim.specs import EngineLimits, load_gpu, load_model

FRACS = [0.0, 0.15, 0.5, 0.99]


DOCUMENTS = {1: 5, 2: 16, 3: 40, 4: 100}
"""Lengths by key [tokens]."""


def retrieved(data, job, number):
    """The same request with documents in its prompt, in any order, and some tokens of its own."""
    left, parts = job.prompt, []
    for key in data.draw(st.permutations(sorted(DOCUMENTS))):
        length = min(DOCUMENTS[key], left)
        if length and data.draw(st.integers(0, 3)):
            parts.append((key, length))
            left -= length
    if left:
        parts.append((100 + number, left))
    return replace(job, segments=tuple(parts))


def reusing(data, frac=None, **given):
    world = data.draw(worlds(batching="vllm", **given))
    jobs = tuple(retrieved(data, job, number) for number, job in enumerate(world.jobs))
    share = data.draw(st.sampled_from(FRACS)) if frac is None else frac
    evicts = data.draw(st.sampled_from(["", "fifo", "lfu"])) if not world.decoders else ""
    return replace(
        world,
        jobs=jobs,
        prefix_caching=True,
        allocation="paged",
        recompute_frac=share,
        evicts=evicts,
    )


@laws(100)
@given(data=st.data())
def test_every_request_ends_once_and_every_block_comes_back(data):
    kind = data.draw(st.sampled_from(["plain", "ranks", "stages", "both", "moves"]))
    given = {} if kind == "plain" else {kind: True}
    given = {"ranks": True, "stages": True} if kind == "both" else given
    world = reusing(data, handoff=None, **given)
    assert_all_ended(run(world))


@laws(60)
@given(data=st.data())
def test_no_block_is_lost_or_counted_twice(data):
    world = reusing(data, turns=False)

    def look(replica, call):
        replica.ledger.check()
        assert world.kv_blocks - call.free_blocks == blocks_in_use(replica, call)

    run(world, True, look)


@laws(60)
@given(data=st.data())
def test_merging_steps_changes_nothing(data):
    assert_same(reusing(data, turns=False, handoff=None))


@laws(30)
@given(data=st.data())
def test_stages_and_ranks_reuse_as_well(data):
    parts = {"stages": True, "ranks": data.draw(st.booleans())}
    assert_same(reusing(data, handoff=None, **parts))


@laws(40)
@given(data=st.data())
def test_all_computed_anew_is_no_reuse(data):
    world = reusing(data, 1.0, handoff=None)
    plain = run(replace(world, recompute_frac=None))
    assert run(world).facts.digest == plain.facts.digest


@laws(40)
@given(data=st.data())
def test_where_only_prefixes_are_shared_nothing_more_is_spared(data):
    """Keys that occur behind one prefix only: all that comes before is made part of the key."""
    world = reusing(data)
    jobs = []
    keys: dict[tuple[tuple[tuple[int, int], ...], int], int] = {}
    for job in world.jobs:
        before, placed = (), []
        for key, length in job.segments or ():
            placed.append((keys.setdefault((before, key), len(keys)), length))
            before += ((key, length),)
        jobs.append(replace(job, segments=tuple(placed) if job.segments else None))
    world = replace(world, jobs=tuple(jobs))
    assert run(world).facts.digest == run(replace(world, recompute_frac=None)).facts.digest


A, B, C = (1, 64), (2, 48), (3, 32)


def asked(at_ms, number, *documents):
    segments = (*documents, (100 + number, 20))
    return Job(at_ms * MS, sum(length for _, length in segments), 2, segments)


GIVEN = {"cost": "flat", "prefix_caching": True, "kv_blocks": 200, "block_tokens": 16}


@pytest.mark.parametrize(
    ("frac", "spared"), [(0.0, [0, 64, 112, 144]), (0.25, [0, 48, 84, 108]), (1.0, [0, 0, 0, 0])]
)
@pytest.mark.parametrize("stages", [(), (0.5, 0.5)])
def test_by_hand(frac, spared, stages):
    """Documents of 64, 48 and 32 tokens behind others than before: all of them is found.

    The second prompt finds A behind C; the third B, behind A and now in front, and A; the fourth
    all three. Of what is found, `frac` is computed anew.
    """
    jobs = (asked(0, 0, A, B), asked(100, 1, C, A), asked(200, 2, B, A), asked(300, 3, B, C, A))
    if frac == 1.0:
        expected = [0, 0, 0, 48]  # B in front, as in the third prompt
    else:
        # the fourth has B's 48 tokens as a prefix and is spared a share of C's and A's 96
        expected = [*spared[:3], 48 + spared[3] - int((1 - frac) * 48)]
    rows = run(World(jobs, recompute_frac=frac, stages=stages, **GIVEN)).rows
    assert [row.cached_tokens for row in rows] == expected


def test_blocks_at_the_border_belong_to_what_ends_in_them():
    """A of 60 tokens: its last 12 lie in a block that ends in what follows, and are not found."""
    short = (1, 60)
    jobs = (asked(0, 0, short, B), asked(100, 1, C, short))
    rows = run(World(jobs, recompute_frac=0.0, **GIVEN)).rows
    assert [row.cached_tokens for row in rows] == [0, 48]


def test_one_token_at_least_is_computed():
    jobs = (Job(0, 112, 2, (A, B)), Job(100 * MS, 112, 2, (B, A)))
    rows = run(World(jobs, recompute_frac=0.0, **GIVEN)).rows
    assert [row.cached_tokens for row in rows] == [0, 111]


def test_what_would_give_way_to_its_own_copy_is_not_reused():
    """Ten blocks: the second prompt needs six of its own, beside the four that A lies in."""
    jobs = (asked(0, 0, A), asked(100, 1, B, A))  # 84 tokens; then 132, of which A's 64 are cached
    for blocks, found in ((13, 64), (12, 0), (9, 0)):
        world = World(jobs, recompute_frac=0.0, **(GIVEN | {"kv_blocks": blocks}))
        rows = run(world).rows
        assert [row.cached_tokens for row in rows] == [0, found]
        assert rows[1].ended_as == "finished"


def test_four_fifths_found_and_a_fifth_of_them_computed_anew():
    """Of 4,000 tokens 0.2 + 0.8 x 0.2 are computed: 2.4 to 2.9 times as soon (KVShare)."""
    limits = EngineLimits(max_num_seqs=64, max_num_batched_tokens=8192)
    cost = RooflineCost(load_model("llama-3.1-8b"), load_gpu("a100-80gb-sxm"), limits=limits)
    documents = [(key, 800) for key in range(1, 5)]
    jobs = tuple(
        Job(number * 2000 * MS, 4000, 2, (*order, (100 + number, 800)))
        for number, order in enumerate((documents, [*documents[1:], documents[0]]))
    )
    world = World(jobs, budget_tokens=8192, prefix_caching=True, kv_blocks=4000)
    took = {}
    for frac in (None, 0.2, 1.0):
        _, row = run(replace(world, recompute_frac=frac), cost=cost).rows
        assert row.cached_tokens == (2560 if frac == 0.2 else 0)
        took[frac] = row.first_token_ns - row.arrival_ns
    assert took[1.0] == took[None]
    assert 2.4 < took[None] / took[0.2] < 2.9
