"""A copy of a tier's store does as the store would, and leaves the store alone."""

from __future__ import annotations

from typing import Any

import pytest
from drawing import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsim.kvcache.mirror import StoreMirror
from llmsim.kvcache.store import TierStore, segments_to
from llmsim.policies import EVICTION

SIZE = 4

ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "land", "cancel", "read", "done", "nameless"]),
        st.lists(st.integers(0, 2), min_size=1, max_size=5),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=25,
)


class Life:
    """What happens to a store, and what it says to that."""

    def __init__(self, store: TierStore) -> None:
        self.store = store
        self.arriving: list[Any] = []
        self.held: list[Any] = []

    def go_on(self, actions: Any) -> list[Any]:
        store, said = self.store, []
        store.on_evict = lambda edge, lo, hi: said.append(
            (None if edge is None else segments_to(edge, hi * SIZE), lo, hi)
        )
        for action, keys, number in actions:
            text = tuple((key, 6) for key in keys)
            most = 6 * len(keys) // SIZE
            if action == "write":
                gaps = store.missing(text, 0, most)
                self.arriving.append(store.reserve(text, gaps))
                said.append((gaps, self.arriving[-1].chunks))
            elif action == "nameless":
                self.arriving.append(store.reserve(None, [(0, number + 1)]))
            elif action == "land" and self.arriving:
                store.publish(self.arriving.pop(number % len(self.arriving)))
            elif action == "cancel" and self.arriving:
                store.cancel(self.arriving.pop(number % len(self.arriving)))
            elif action == "read":
                self.held.append(store.hold(store.find(text, 0, most)))
            elif action == "done" and self.held:
                store.release(self.held.pop(number % len(self.held)))
            found = store.find(text, 0, most)
            said.append([(lo, hi, piece.refs, piece.reads) for piece, lo, hi in found])
            said.append((store.fresh, store.cached, store.held, store.arriving, store.evicted))
        return said


def copy_of(life: Life, mirror: StoreMirror, whole: bool) -> Life:
    """Take over a store, what is under way to it, and who reads it."""
    base = life.store
    mirror.mirror(base, whole)
    copy = Life(mirror)
    copy.arriving = [mirror.arrival(arrival) for arrival in life.arriving]
    copy.held = [mirror.runs(runs) for runs in life.held]
    return copy


@pytest.mark.parametrize("kind", [None, *EVICTION.names()])
@settings(max_examples=examples(80), deadline=None)
@given(
    before=ACTIONS, after=ACTIONS, later=ACTIONS, capacity=st.integers(1, 12), whole=st.booleans()
)
def test_it_does_as_the_store_would(kind, before, after, later, capacity, whole):
    rank = None if kind is None else EVICTION.get(kind)().rank
    life, twin = (Life(TierStore(capacity, SIZE, rank, min(1, capacity))) for _ in range(2))
    assert life.go_on(before) == twin.go_on(before)
    mirror = StoreMirror(life.store)
    copy = copy_of(life, mirror, whole)
    again = copy_of(copy, StoreMirror(mirror), False) if whole else copy
    expected = twin.go_on(after)
    assert again.go_on(after) == expected
    assert life.go_on(after) == expected, "the copy has left the store alone"
    life.store.check()
    copy = copy_of(life, mirror, False)  # the same object is loaded again
    assert copy.go_on(later) == twin.go_on(later)


def test_it_costs_what_is_looked_at():
    store = TierStore(10_000, SIZE)
    for key in range(2_000):
        text = ((key, 4 * SIZE),)
        store.publish(store.reserve(text, store.missing(text, 0, 4)))
    mirror = StoreMirror(store)
    mirror.mirror(store)
    assert mirror.find(((7, 4 * SIZE),), 0, 4)[-1][2] == 4
    mirror.reserve(((9_999, 4 * SIZE),), [(0, 4)])  # there is room
    assert len(mirror._pieces) == 1
    text = ((5_555, 3_000 * SIZE),)
    mirror.reserve(text, mirror.missing(text, 0, 3_000))  # evicts 1,004 chunks of four
    assert 251 <= len(mirror._pieces) < 260
