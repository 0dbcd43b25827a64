"""The replica on which the first token would come first: which one that is, by hand."""

from __future__ import annotations

import pytest
from test_dualmap import BUSY, Fleet, ask

import llmsim as ls
from llmsim.core.rng import stream
from llmsim.policies import ROUTING


def routed(fleet):
    router = ROUTING.get("min-ttft")()
    router.start(fleet, stream(1, "routing"))
    return router


def test_what_is_cached_outweighs_as_much_that_is_to_be_computed_before_it():
    fleet = Fleet(3)
    router = routed(fleet)
    one = ask(0, (1, 900))
    fleet.cached = {(1, 0): 800}  # 100 tokens are left there, 900 elsewhere
    fleet.begun = [50, 849, 0]
    assert router.choose(one) == 2  # 950, 949 and 900 tokens
    fleet.begun = [50, 799, 0]
    assert router.choose(one) == 1  # 899 are the least
    fleet.begun = [800, 1600, 800]
    assert router.choose(one) == 0  # 1,700 on all of them, nobody in line: the first


def test_a_line_is_as_long_as_what_its_prompts_had_not_cached():
    fleet = Fleet(2)
    router = routed(fleet)
    first, second = ask(0, (1, 900)), ask(1, (1, 900))
    fleet.cached = {(0, 0): 800, (0, 1): 800}
    for view in (first, second):
        assert router.choose(view) == 0
        fleet.lines[0].append(view)
    # 200 tokens wait on 0, not 1,800; of who came from elsewhere nothing is known but its length
    stranger = ask(2, (2, 500))
    assert router.choose(stranger) == 1
    fleet.begun = [0, 201]
    assert router.choose(stranger) == 0
    fleet.lines[0].append(ask(7, (9, 100)))
    assert router.choose(stranger) == 1


@pytest.mark.slow
def test_in_a_run_it_finds_more_than_load_alone():
    short = BUSY | {"traffic.duration_s": 8.0, "traffic.arrivals.rate_rps": 120.0}
    ours = ls.run("quickstart", short | {"fleet.routing": "min-ttft"}).metrics
    by_load = ls.run("quickstart", short | {"fleet.routing": "least-loaded"}).metrics
    assert ours["prefix_hit_frac"] > by_load["prefix_hit_frac"] + 0.2
    assert ours["ttft_mean_s"] < 0.5 * by_load["ttft_mean_s"]
