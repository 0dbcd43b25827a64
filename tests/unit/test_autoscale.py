"""The controller by thresholds never goes below its least, however old its reports are."""

from __future__ import annotations

from types import SimpleNamespace

from llmsim.core.units import NS_PER_S
from llmsim.policies.control import Add, Autoscale, Drain
from llmsim.policies.reports import ReplicaReport


def fleet(now_s, *states):
    now_ns = int(now_s * NS_PER_S)
    reports = [
        ReplicaReport(index, 0, now_ns, "mixed", state, 0, 0, 0, 0, 0, 1, 0)
        for index, state in enumerate(states)
    ]
    return SimpleNamespace(now_ns=now_ns, replicas=reports)


def eager(**given):
    return Autoscale(period_s=1.0, above=2.0, below=1.5, patience=1, **given)


def test_what_it_has_drained_does_not_count_while_reports_still_call_it_up():
    policy = eager(view_age_s=2.5)
    assert policy.act(fleet(1, "up", "up")) == [Drain(0)]
    for now_s in (2, 3):  # reports of -0.5 and 0.5 s
        assert policy.act(fleet(now_s, "up", "up")) == []
    assert policy.act(fleet(4, "off", "up")) == []
    assert policy.act(fleet(9, "up", "up")) == [Drain(0)]  # it came back, and is known to be up


def test_fresh_reports_are_taken_at_their_word():
    policy = eager()
    assert policy.act(fleet(1, "up", "up", "up")) == [Drain(0)]
    assert policy.act(fleet(2, "draining", "up", "up")) == [Drain(1)]
    assert policy.act(fleet(3, "off", "draining", "up")) == []


def test_fewer_than_the_least_are_added_to_though_nobody_waits():
    policy = eager(least=2)
    assert policy.act(fleet(1, "up", "failed", "off")) == [Add(0)]
    assert policy.act(fleet(2, "up", "booting", "off")) == []
