"""What a run leaves behind: nothing but its result."""

import gc

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


def test_what_the_caller_has_frozen_stays_so():
    gc.freeze()
    try:
        ls.run("quickstart", SMALL)
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
