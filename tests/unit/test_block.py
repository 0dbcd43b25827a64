"""Block: the request goes where a copy of the replica says that it would end first."""

from __future__ import annotations

import numpy as np
import pytest

import llmsim as ls
from llmsim.policies import RequestView
from llmsim.policies.routing import NEVER
from llmsim.systems.block import Block

REQUEST = RequestView(0, 0, 100, -1, -1, 0, None)


class Foretold:
    """A fleet whose predictions are given."""

    def __init__(self, *ends, loads=None):
        self.ends, self.replicas = ends, len(ends)
        self.loads = loads or [0] * len(ends)
        self.asked = []

    def outstanding(self, replica):
        return self.loads[replica]

    def least_outstanding(self):
        return self.loads.index(min(self.loads))

    def last_token_ns(self, replica, request, before_ns=NEVER):
        self.asked.append(replica)
        return self.ends[replica] if self.ends[replica] <= before_ns else NEVER

    def first_token_ns(self, replica, request, before_ns=NEVER):
        return -self.ends[replica]


def chosen(block: Block, fleet: Foretold) -> int:
    block.start(fleet, np.random.default_rng(1))
    return block.choose(REQUEST)


def test_where_it_ends_first():
    assert chosen(Block(), Foretold(9, 4, 7)) == 1
    assert chosen(Block(objective="first-token"), Foretold(9, 4, 7)) == 0


def test_of_equals_the_less_loaded():
    assert chosen(Block(), Foretold(5, 5, 5, loads=[3, 1, 2])) == 1


def test_where_nothing_fits_the_least_loaded():
    assert chosen(Block(), Foretold(NEVER, NEVER, loads=[2, 1])) == 1


def test_of_two_drawn():
    fleet = Foretold(*range(8))
    block = Block(candidates=2)
    block.start(fleet, np.random.default_rng(1))
    took = [block.choose(REQUEST) for _ in range(400)]
    pairs = [fleet.asked[at : at + 2] for at in range(0, 800, 2)]
    assert took == [min(pair) for pair in pairs]
    assert all(len(set(pair)) == 2 for pair in pairs)
    # the best of eight is in a quarter of the pairs: four standard errors
    assert sum(0 in pair for pair in pairs) == pytest.approx(100, abs=4 * 75**0.5)


RUSH = {
    "traffic.requests": 300,
    "traffic.arrivals.rate_rps": 45,
    "engine": {"prefix_caching": False, "max_num_seqs": 16},
    "fleet.pools.main.replicas": 3,
    "estimators.output_length": "oracle",
}


def ran(**changes):
    return ls.run("quickstart", RUSH | {key.replace("__", "."): v for key, v in changes.items()})


def test_deciding_takes_its_time():
    at_once = ran(fleet__routing="block").metrics["ttft_p50_s"]
    later = ran(fleet__routing={"kind": "block", "decision_s": 0.5}).metrics["ttft_p50_s"]
    assert later >= at_once + 0.5


@pytest.mark.slow
def test_the_same_run_twice():
    for routing in ("block", {"kind": "block", "candidates": 2}):
        digests = {
            ran(fleet__routing=routing, fleet__view_age_s=0.1).facts.digest for _ in range(2)
        }
        assert len(digests) == 1
