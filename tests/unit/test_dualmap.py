"""DualMap: where a prompt may go, which of two takes it, and who changes lines."""

from __future__ import annotations

from collections import Counter

import pytest

import llmsim as ls
from llmsim.core.rng import stream
from llmsim.policies import RequestView
from llmsim.policies.routing import Reroute
from llmsim.systems.dualmap import DualMap


class Fleet:
    """Replicas whose caches and lines are set by hand."""

    def __init__(self, replicas):
        self.replicas = replicas
        self.cached = {}
        self.begun = [0] * replicas
        self.lines = [[] for _ in range(replicas)]

    def outstanding(self, replica):
        return len(self.lines[replica])

    def cached_tokens(self, replica, request):
        return self.cached.get((replica, request.index), 0)

    def waiting(self, replica):
        return self.lines[replica]

    def begun_tokens(self, replica):
        return self.begun[replica]


def ask(index, *segments, session=-1):
    return RequestView(index, 0, sum(length for _, length in segments), session, -1, 0, segments)


def routed(fleet, **given):
    router = DualMap(**given)
    router.start(fleet, stream(1, "routing"))
    return router


def test_equal_beginnings_have_the_same_two_candidates():
    fleet = Fleet(8)
    router = routed(fleet)
    went = set()
    for index in range(40):
        chosen = router.choose(ask(index, (7, 600), (100 + index, 50)))
        fleet.begun[chosen] += 1  # the other one is less loaded now
        went.add(chosen)
    assert len(went) == 2


def test_unequal_beginnings_spread():
    """Choosing the emptier of two hashed places: nobody gets half as much again as the mean."""
    fleet = Fleet(8)
    router = routed(fleet)
    went = Counter()
    for index in range(800):
        chosen = router.choose(ask(index, (index, 600)))
        fleet.begun[chosen] += 600
        went[chosen] += 1
    assert len(went) == 8
    assert max(went.values()) < 150


def test_the_longer_cached_prefix_wins_until_its_first_token_would_be_late():
    fleet = Fleet(2)  # both are candidates
    router = routed(fleet, ttft_slo_s=1.0, prefill_tokens_per_s=1000.0)
    one = ask(0, (1, 900))
    for home in (0, 1):
        fleet.cached = {(home, 0): 800}
        fleet.begun = [0, 0]
        fleet.begun[home] = 900
        assert router.choose(one) == home  # 900 + 100 tokens in a second: just in time
        fleet.begun[home] = 901
        assert router.choose(one) == 1 - home
    fleet.cached = {(0, 0): 400, (1, 0): 400}
    fleet.begun = [50, 20]
    assert router.choose(one) == 1  # alike: the less loaded


def test_a_hot_beginning_is_extended_and_shrinks_again():
    fleet = Fleet(8)
    router = routed(fleet, window=80)  # a fair share is 10 requests
    for index in range(20):
        router.choose(ask(index, (7, 512), (100 + index, 512)))
    before = {pair for pair, _ in (router._sent[index] for index in range(20))}
    assert len(before) == 1
    for index in range(20, 80):
        router.choose(ask(index, (7, 512), (100 + index, 512)))
    spread = {router._sent[index].pair for index in range(30, 80)}
    assert len(spread) > 10  # the second block is in the key: unlike for all
    for index in range(80, 160):
        router.choose(ask(index, (9 + index, 512)))
    router.choose(ask(160, (7, 512), (100, 512)))
    assert router._sent[160].pair == router._sent[0].pair


def test_who_waits_changes_over_where_both_are_overloaded():
    """Three replicas: who came when only its own two were known late goes to the third."""
    fleet = Fleet(3)
    router = routed(fleet, ttft_slo_s=1.0, prefill_tokens_per_s=1000.0)
    asked = [ask(index, (index, 400)) for index in range(30)]
    for view in asked:
        fleet.lines[router.choose(view)].append(view)
        for move in router.moves():
            moved = next(v for v in fleet.lines[move.source] if v.index == move.request)
            fleet.lines[move.source].remove(moved)
            fleet.lines[move.target].append(moved)
            assert isinstance(move, Reroute)
            assert {move.source, move.target} == set(router._sent[move.request].pair)
    quiet = routed(Fleet(3), ttft_slo_s=100.0)
    assert quiet.choose(asked[0]) in range(3)
    assert quiet.moves() == ()


def test_one_move_by_hand():
    """Both of a pair are late; who waits second on one has the empty third as other choice."""
    fleet = Fleet(3)
    router = routed(fleet, ttft_slo_s=1.0, prefill_tokens_per_s=1000.0)
    pairs = {}
    for index in range(200):  # prompts for each pair of candidates
        view = ask(index, (index, 300))
        router.choose(view)
        pairs.setdefault(frozenset(router._sent[index].pair), []).append(view)
    first, second = next(iter(pairs)), None
    second = next(pair for pair in pairs if len(pair & first) == 1)
    (shared,) = first & second
    (other,) = first - second
    (empty,) = second - first
    waits = pairs[second][0]
    fleet.lines[shared] = [pairs[first][0], waits]
    fleet.begun[shared] = fleet.begun[other] = 900
    router.choose(pairs[first][1])
    assert router.moves() == [Reroute(waits.index, shared, empty)]
    assert router.moves() == ()  # only once


BUSY = {
    "traffic.arrivals.rate_rps": 160.0,
    "traffic.prompts": {"kind": "shared-prefix", "prefix_tokens": 4000, "groups": 60,
                        "zipf_exponent": 1.0},
    "traffic.lengths": {"kind": "fixed", "prompt_tokens": 100, "output_tokens": 40},
    "traffic.duration_s": 15.0,
    "traffic.requests": None,
    "engine.kv_blocks": 4000,
    "engine.max_model_len": 8192,
    "fleet.pools.main": {"gpu": "a100-80gb-sxm", "replicas": 8},
    "model": "llama-3.1-8b",
}  # fmt: skip


def busy(routing, **changes):
    changes = {f"traffic.{key}": value for key, value in changes.items()}
    return ls.run("quickstart", BUSY | {"fleet.routing": routing} | changes).metrics


@pytest.mark.slow
def test_under_skew_prefixes_are_found_and_nobody_is_swamped():
    """Sixty prefixes, Zipf 1, of which a replica holds twelve: by load alone few are found."""
    ours = busy("dualmap")
    by_load = busy("least-loaded")
    assert ours["prefix_hit_frac"] > 0.9
    assert by_load["prefix_hit_frac"] < 0.7
    assert ours["ttft_mean_s"] < 0.2 * by_load["ttft_mean_s"]


@pytest.mark.slow
def test_one_prefix_needs_the_extension():
    """All prompts begin alike: without telling them apart two replicas of eight do all the work."""
    one = {"prompts.groups": 1, "lengths.prompt_tokens": 2000, "duration_s": 6.0}
    few = busy({"kind": "dualmap", "split_above": 1e6}, **one)
    all_eight = busy({"kind": "dualmap", "window": 100}, **one)
    by_load = busy("least-loaded", **one)
    assert few["ttft_mean_s"] > 3 * by_load["ttft_mean_s"]
    assert all_eight["ttft_mean_s"] < 0.5 * few["ttft_mean_s"]
