"""The router of planned fleets: shares by prompt length, and who helps whom."""

from __future__ import annotations

from collections import Counter

import pytest

import llmsim as ls
from llmsim.core.errors import InputError
from llmsim.policies import PlannedSplit, RequestView


class Loads:
    """A fleet whose loads are given."""

    def __init__(self, *loads):
        self.loads, self.replicas = list(loads), len(loads)

    def outstanding(self, replica):
        return self.loads[replica]


def ask(prompt):
    return RequestView(0, 0, prompt, -1, -1, 0, None)


def router(fleet, pools, **given):
    made = PlannedSplit(**given)
    made.meet(pools)
    made.start(fleet, None)
    return made


def test_every_range_keeps_its_shares():
    shares = {"a": (0.75, None), "b": (0.25, 1.0)}
    made = router(
        Loads(0, 0, 0),
        {"a": 1, "b": 2},
        edges_tokens=(100,),
        shares=shares,
        capacity={"a": 9, "b": 9},
    )
    short = Counter(made.choose(ask(99)) for _ in range(400))
    assert (short[0], short[1] + short[2]) == (300, 100)
    assert {made.choose(ask(100)) for _ in range(20)} == {1}


def test_in_a_pool_the_least_loaded_is_taken():
    made = router(Loads(9, 3, 1, 2), {"x": 1, "a": 3}, shares={"a": (1.0,)}, capacity={"a": 9})
    assert made.choose(ask(5)) == 2


def test_a_full_pool_asks_one_with_room_that_may_take_the_range():
    shares = {"a": (1.0, 1.0), "b": (0.0, None), "c": (None, None)}
    fleet = Loads(4, 2, 0)
    made = router(
        fleet,
        {"a": 1, "b": 1, "c": 1},
        edges_tokens=(100,),
        shares=shares,
        capacity={"a": 4, "b": 8},
    )
    assert made.choose(ask(50)) == 1
    assert made.choose(ask(500)) == 0
    fleet.loads[0] = 3
    assert made.choose(ask(50)) == 0


def test_wrong_shares_are_told():
    with pytest.raises(InputError, match="1 shares for 2 ranges"):
        PlannedSplit(edges_tokens=(10,), shares={"a": (1.0,)})
    with pytest.raises(InputError, match="nobody takes range 1"):
        PlannedSplit(edges_tokens=(10,), shares={"a": (1.0, 0.0)})
    with pytest.raises(InputError, match="must increase"):
        PlannedSplit(edges_tokens=(10, 10))
    routing = {"kind": "planned-split", "shares": {"mian": [1.0]}}
    with pytest.raises(InputError, match="Did you mean 'main'"):
        ls.run("quickstart", {"fleet.routing": routing, "traffic.requests": 10})
