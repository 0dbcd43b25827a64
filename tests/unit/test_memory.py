"""What a run leaves behind: nothing but its result."""

import gc

import pytest

import llmsim as ls
from llmsim.serving.fleet import Fleet

SMALL = {"traffic.requests": 50}


def fleets() -> int:
    return sum(type(thing) is Fleet for thing in gc.get_objects())


def test_a_run_leaves_no_fleet_behind():
    """A fleet refers to itself; a process of many runs grew by every one of them."""
    gc.collect()
    before = fleets()
    results = [ls.run("quickstart", SMALL) for _ in range(3)]
    assert len(results) == 3
    assert fleets() == before


@pytest.mark.slow
def test_full_collections_still_happen():
    """What a caller leaves behind between runs is not kept from the collector either."""

    class Loop:
        def __init__(self):
            self.loop, self.weight = self, [[] for _ in range(10_000)]

    gc.collect()
    before = gc.get_stats()[2]["collections"]
    for _ in range(40):
        kept = [Loop() for _ in range(2)]
        ls.run("quickstart", {"traffic.requests": 5})
        del kept
    assert gc.get_stats()[2]["collections"] > before
