"""Priorities that change, and what swapping beside steps does not go with."""

import pytest

import llmsim as ls
from llmsim.policies.views import RequestView
from llmsim.systems.fastswitch import FastSwitch


def order(policy, epoch, requests=400):
    policy._epoch = epoch
    return [policy._rank(RequestView(i, 0, 1, -1, -1, 0, None)) for i in range(requests)]


def test_random_priorities_are_drawn_anew_and_spread_evenly():
    policy = FastSwitch(levels=8)
    before, after = order(policy, 3), order(policy, 4)
    same = sum(a == b for a, b in zip(before, after, strict=True))
    assert same == pytest.approx(400 / 8, abs=3 * (400 / 8) ** 0.5)
    for level in range(8):
        assert before.count(level) == pytest.approx(50, abs=22)


def test_with_a_memory_most_keep_theirs():
    policy = FastSwitch(levels=8, pattern="markov", keep_percent=80)
    before, after = order(policy, 3), order(policy, 4)
    same = sum(a == b for a, b in zip(before, after, strict=True))
    expected = 400 * (0.8 + 0.2 / 8)
    assert same == pytest.approx(expected, abs=3 * (expected * 0.175) ** 0.5)


def test_one_level_is_first_come_first_served():
    policy = FastSwitch(levels=1)
    views = [RequestView(i, 0, 1, -1, -1, 0, None) for i in (4, 2, 7)]
    for view in views:
        policy.add(view, False)
    assert policy.head() is views[1]


def test_copies_beside_steps_do_not_go_with_cached_prefixes():
    with pytest.raises(ls.LlmsimError, match=r"swap\.overlaps does not go with"):
        ls.run("switching", {"engine.prefix_caching": True})
