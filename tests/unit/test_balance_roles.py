"""Who turns replicas over to the other phase, and what that needs."""

import pytest

import llmsim as ls
from llmsim.policies.control import BalanceRoles, SetRole
from llmsim.policies.reports import ReplicaReport


class Fleet:
    now_ns = 0

    def __init__(self, *replicas):
        self.replicas = [
            ReplicaReport(index, 0, 0, role, state, 1, 1, tokens, 0, 0, 100, used)
            for index, (role, state, tokens, used) in enumerate(replicas)
        ]


def asked(*replicas, calls=1, **given):
    policy = BalanceRoles(**{"patience": 1} | given)
    return [policy.act(Fleet(*replicas)) for _ in range(calls)][-1]


BUSY, CALM = ("prefill", "up", 20_000, 90), ("prefill", "up", 100, 10)
FULL, FREE = ("decode", "up", 0, 95), ("decode", "up", 0, 20)


def test_prompts_that_pile_up_get_the_emptiest_decode_replica():
    assert asked(BUSY, FREE, ("decode", "up", 0, 10), FREE) == [SetRole(2, "prefill")]


def test_decodes_that_pile_up_get_the_idlest_prefill_replica():
    assert asked(("prefill", "up", 200, 0), CALM, FULL) == [SetRole(1, "decode")]


def test_both_sides_keep_what_they_need():
    assert asked(CALM, FULL) == []  # the last of its role
    assert asked(BUSY, BUSY, FULL) == []  # both are short
    assert asked(BUSY, FREE) == []
    assert asked(CALM, CALM, FREE) == []  # neither is


def test_it_waits_for_a_change_under_way_and_for_its_patience():
    assert asked(BUSY, FREE, FREE, ("decode", "draining", 0, 50)) == []
    assert asked(BUSY, FREE, FREE, patience=2) == []
    assert asked(BUSY, FREE, FREE, patience=2, calls=2) == [SetRole(1, "prefill")]


@pytest.mark.slow
def test_a_load_that_shifts_is_served_better_and_nothing_is_lost():
    moved = ls.run("roles")
    fixed = ls.run("roles", {"fleet.control": []})
    assert moved.metrics["slo_attained_frac"] > fixed.metrics["slo_attained_frac"] + 0.2
    assert (moved.requests["outcome"] == "finished").all()
    assert {"to prefill", "prefill"} <= set(moved.changes["what"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fleet.flip": None}, "flip: is missing"),
        (
            {"fleet.pools.prefill.role": "mixed", "fleet.pools.decode.role": "mixed"},
            "is for fleets",
        ),
        ({"fleet.boot": {}}, "does not go together with prefill"),
        ({"fleet.pools.decode.kv": {"swap": {"capacity_bytes": 1e9}}}, "tiers of KV"),
    ],
)
def test_what_changes_roles_says_at_what_price_and_where(changes, message):
    with pytest.raises(ls.LlmsimError, match=message):
        ls.run("roles", changes)
