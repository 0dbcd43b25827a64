"""Replicas for prompts and for outputs beside replicas for both, in one program."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from llmsim.core.errors import InputError
from llmsim.planner import Bucket, Column, Problem, pack
from llmsim.planner.splitting import split

CHAT, CODE = Bucket("chat", 6.0), Bucket("code", 2.0)
KV = {"chat": 0.2e9, "code": 0.8e9}


def columns(mixed=(1.2, 0.8), prompts=(5.0, 2.0), outputs=(3.0, 2.5), port=8e9):
    def of(name, rates, usd, role):
        by_bucket = dict(zip(("chat", "code"), rates, strict=True))
        apart = {} if role == "mixed" else {"handed_bytes": KV, "port_bytes_per_s": port}
        return Column(name, name, 1, usd, by_bucket, role=role, **apart)

    return (
        of("both", mixed, 3.0, "mixed"),
        of("prompts", prompts, 3.0, "prefill"),
        of("outputs", outputs, 2.0, "decode"),
    )


def problem(**changes):
    made = {
        key: changes.pop(key) for key in ("mixed", "prompts", "outputs", "port") & changes.keys()
    }
    return replace(Problem((CHAT, CODE), columns(**made)), **changes)


def fits(asked, fleet):
    """Whether a fleet carries the traffic, by the program that splits it."""
    of = {column.name: column for column in asked.columns}
    carried = {name: float(count) for name, count in fleet.items() if count}
    ports = {
        name: asked.port_usable_frac * of[name].port_bytes_per_s * n for name, n in carried.items()
    }
    divided = split(asked.buckets, of, carried, ports)
    return divided is not None and divided.peak <= 1 + 1e-9


def brute_force(asked, most=9):
    names = [column.name for column in asked.columns]
    price = [column.usd_per_hour for column in asked.columns]
    fleets = itertools.product(range(most + 1), repeat=len(names))
    cost = {each: sum(n * usd for n, usd in zip(each, price, strict=True)) for each in fleets}
    for each in sorted(cost, key=cost.__getitem__):
        if any(each) and fits(asked, dict(zip(names, each, strict=True))):
            return cost[each]
    return math.inf


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mixed": (2.5, 1.5)},  # both together are cheaper
        {"mixed": (2.5, 0.0)},  # each where it is best
        {"port": 0.5e9},  # links decide how many there are
        {"port": 0.5e9, "mixed": (1.9, 0.9)},
        {"outputs": (3.0, 0.0)},  # nobody decodes code that others have begun
    ],
)
@pytest.mark.many
def test_no_fleet_is_cheaper(changes):
    asked = problem(**changes)
    assert pack(asked).usd_per_hour == pytest.approx(brute_force(asked))


def test_what_is_handed_over_balances_and_fits_the_ports():
    asked = problem(port=1e9)
    packed = pack(asked)
    assert set(packed.replicas) >= {"prompts", "outputs"}
    handed = {"prompts": 0.0, "outputs": 0.0}
    for bucket in asked.buckets:
        rates = [packed.rate_rps.get((bucket.name, name), 0.0) for name in handed]
        assert rates[0] == pytest.approx(rates[1])
        both = packed.rate_rps.get((bucket.name, "both"), 0.0)
        assert rates[0] + both == pytest.approx(bucket.rate_rps)
        for name in handed:
            handed[name] += rates[0] * KV[bucket.name]
    for name, total in handed.items():
        assert total <= 0.6 * 1e9 * packed.replicas[name] + 1e-3


def test_thinner_links_are_never_cheaper_and_apart_is_never_dearer():
    costs = [pack(problem(port=port)).usd_per_hour for port in (8e9, 1e9, 0.5e9, 0.2e9)]
    assert costs == sorted(costs)
    together = replace(problem(), columns=columns()[:1])
    assert costs[-1] <= pack(together).usd_per_hour
    assert costs[0] < pack(together).usd_per_hour


def test_a_half_is_not_bought_alone_to_get_around_a_fleet_that_failed():
    """Where a fleet of both failed, one more that nobody works with is no other fleet."""
    asked = problem(mixed=(9.0, 9.0))
    first = pack(asked).replicas
    assert first == {"both": 1}
    again = pack(replace(asked, failed=(first,))).replicas
    assert again == {"both": 2}


def test_what_nobody_finishes_is_said():
    wrong = problem(mixed=(1.0, 0.0), outputs=(3.0, 0.0))
    with pytest.raises(InputError, match="some compute their prompts in time, none does the rest"):
        pack(wrong)
    wrong = problem(mixed=(1.0, 0.0), prompts=(3.0, 0.0))
    with pytest.raises(InputError, match="some decode them in time, none does the rest"):
        pack(wrong)


def test_thin_links_are_said_by_how_much_they_are_too_thin():
    asked = problem(port=0.4e9, mixed=(0.0, 0.0))
    limits = {"available_gpus": {"prompts": 3, "outputs": 4}}
    with pytest.raises(InputError, match="ports 4 times as fast would do") as caught:
        pack(replace(asked, **limits))
    assert {fault.path for fault in caught.value.faults} >= {"port_usable_frac"}
    assert fits(replace(asked, columns=columns(port=1.6e9)), {"prompts": 3, "outputs": 4})
    assert not fits(replace(asked, columns=columns(port=1.2e9)), {"prompts": 3, "outputs": 4})


def test_slices_are_not_handed_over():
    with pytest.raises(InputError, match="slices go to one replica each"):
        pack(problem(slices=2))


def one(rate=3.0, **column):
    made = Column("h100", "h100", 2, 7.0, {"chat": 1.0}, **column)
    return Problem((Bucket("chat", rate),), (made,))


def test_a_node_takes_all_its_replicas_with_it():
    assert pack(replace(one(node_replicas=4), spare_nodes=1)).replicas == {"h100": 7}
    assert pack(replace(one(node_replicas=4), spare_nodes=1, spare_replicas=5)).replicas == {
        "h100": 8
    }


@pytest.mark.parametrize(("zones", "replicas"), [(2, 6), (3, 5), (4, 4)])
def test_a_zone_takes_its_part_of_every_kind(zones, replicas):
    """What is left of n replicas is n less n / zones, rounded against us."""
    packed = pack(replace(one(), zones=zones)).replicas
    assert packed == {"h100": replicas}
    assert replicas - math.ceil(replicas / zones) >= 3
    assert replicas - 1 - math.ceil((replicas - 1) / zones) < 3


def test_losses_cost_and_the_worse_of_them_counts():
    plain = pack(one(7.0)).usd_per_hour
    zone = pack(replace(one(7.0), zones=3)).usd_per_hour
    both = pack(replace(one(7.0), zones=3, spare_replicas=2)).usd_per_hour
    assert plain < zone <= both
    with pytest.raises(InputError, match="1 zones: when one is lost"):
        pack(replace(one(), zones=1))
