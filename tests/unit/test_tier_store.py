"""One tier: every chunk is in one place, whatever happens; and arithmetic of copies."""

from __future__ import annotations

import pytest
from drawing import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsim.core.errors import InvariantError
from llmsim.kvcache.store import TierStore, segments_to
from llmsim.policies import EVICTION
from llmsim.serving.swap import SwapPlan

SIZE = 4


def text_of(tokens: list[int]) -> tuple[tuple[int, int], ...]:
    """A text as segments: equal numbers stand for equal runs of six tokens."""
    return tuple((key, 6) for key in tokens)


@settings(max_examples=examples(60), deadline=None)
@given(data=st.data(), capacity=st.integers(1, 12), spare=st.integers(0, 2))
def test_every_chunk_is_in_one_place(data, capacity, spare):
    """Random writes, reads and cancellations against a set of what has been published."""
    kind = data.draw(st.sampled_from([None, *EVICTION.names()]))
    rank = None if kind is None else EVICTION.get(kind)().rank
    store = TierStore(capacity, SIZE, rank, min(spare, capacity))
    published: set[tuple[int, ...]] = set()
    arriving, held = [], []

    def forget(edge, lo, hi):
        if edge is not None:
            tokens = segments_to(edge, hi * SIZE)
            flat = [key for key, length in tokens for _ in range(length)]
            for chunk in range(lo, hi):
                published.discard(tuple(flat[: (chunk + 1) * SIZE]))

    store.on_evict = forget
    for _ in range(data.draw(st.integers(1, 25))):
        text = text_of(data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=5)))
        flat = [key for key, length in text for _ in range(length)]
        most = len(flat) // SIZE
        names = [tuple(flat[: (chunk + 1) * SIZE]) for chunk in range(most)]
        action = data.draw(st.sampled_from(["write", "land", "cancel", "read", "done"]))
        if action == "write":
            gaps = store.missing(text, 0, most)
            arrival = store.reserve(text, gaps)
            wanted = [chunk for lo, hi in gaps for chunk in range(lo, hi)][: arrival.chunks]
            assert sum(piece.hi - piece.lo for piece in arrival.pieces) == arrival.chunks
            arriving.append((arrival, [names[chunk] for chunk in wanted]))
        elif action == "land" and arriving:
            arrival, came = arriving.pop(data.draw(st.integers(0, len(arriving) - 1)))
            published.update(came)
            store.publish(arrival)
        elif action == "cancel" and arriving:
            store.cancel(arriving.pop()[0])
        elif action == "read":
            held.append(store.hold(store.find(text, 0, most)))
        elif action == "done" and held:
            store.release(held.pop(0))
        store.check()
        found = store.find(text, 0, most)
        count = found[-1][2] if found else 0
        assert all(name in published for name in names[:count]), "nothing unpublished is found"
        assert count == most or names[count] not in published, "nothing published is overlooked"
    for arrival, _ in arriving:
        store.cancel(arrival)
    for runs in held:
        store.release(runs)
    store.check()
    assert store.fresh + store.cached == capacity


def test_what_is_read_is_not_evicted():
    store = TierStore(2, SIZE)
    store.publish(store.reserve(text_of([1]), [(0, 1)]))
    held = store.hold(store.find(text_of([1]), 0, 1))
    assert store.reserve(None, [(0, 5)]).chunks == 1
    assert store.find(text_of([1]), 0, 1)
    store.release(held)
    store.check()


def test_policies_forget_different_things():
    """A was read twice and long ago, B once and lately, C came last and was never read."""
    gone = {}
    for kind in EVICTION.names():
        store = TierStore(3, SIZE, EVICTION.get(kind)().rank)
        for key in (1, 2):
            store.publish(store.reserve(text_of([key]), [(0, 1)]))
        for key in (1, 1, 2):
            store.release(store.hold(store.find(text_of([key]), 0, 1)))
        store.publish(store.reserve(text_of([3]), [(0, 1)]))
        store.publish(store.reserve(None, [(0, 1)]))
        gone[kind] = [key for key in (1, 2, 3) if not store.find(text_of([key]), 0, 1)]
    assert gone == {"lru": [1], "lfu": [3], "fifo": [1]}


def test_check_finds_a_lost_chunk():
    store = TierStore(3, SIZE)
    store.publish(store.reserve(text_of([1]), [(0, 1)]))
    store.fresh -= 1
    with pytest.raises(InvariantError, match="a tier of 3 chunks"):
        store.check()


def test_the_number_of_runs_prices_a_copy():
    """FastSwitch's arithmetic: 2,000 tokens of 131,072 bytes, 32 layers, 10 us a copy, 25 GB/s.

    Copies of 16 tokens of one layer's K or V; groups of 16 such blocks; one run; and 200 tokens
    that are new. By hand: 8,000 copies are 80 ms, 512 are 5.12, 64 are 0.64; bytes are 10.49 ms.
    """
    for run_blocks, blocks, seconds in (
        (1, 125, 0.0905),
        (16, 125, 0.0156),
        (125, 125, 0.0111),
        (125, 13, 0.0017),
    ):
        plan = SwapPlan(1000, 16 * 131072, 10e-6, parts=64, run_blocks=run_blocks)
        assert plan.copy_s(blocks, 25e9) == pytest.approx(seconds, rel=0.02)
