"""Pipelines in scenarios whose fleets change: what they take, and what transfers cost them."""

from __future__ import annotations

import pytest

import llmsim as ls
from llmsim.scenario import Scenario
from llmsim.serving.build import build_control, build_pools

STAGES = {"fleet.pools.main.pp": 2}


def test_transfers_take_the_same_share_of_each_stages_memory():
    """A replica's ports and its memory are those of all its GPUs: one slows down as one does."""
    dragged, ports = [], []
    for pp in (1, 2):
        scenario = Scenario.load("live-migration", {"fleet.pools.main.pp": pp})
        plan = build_control(scenario, build_pools(scenario)[0]).migration
        dragged.append(plan.drag_frac)
        ports.append(plan.port_bytes_per_s)
    assert dragged[0] == dragged[1]
    assert ports[1][0] == 2 * ports[0][0]


@pytest.mark.parametrize(
    ("name", "done"),
    [
        ("autoscale", {"booting", "up", "draining", "off"}),
        ("live-migration", {"migrate", "migrated"}),
        ("roles", {"to decode", "decode"}),
    ],
)
def test_a_fleet_of_pipelines_changes(name, done):
    given = {"traffic.requests": None, "traffic.duration_s": 60}
    pools = Scenario.load(name).fleet.pools
    given |= {f"fleet.pools.{pool}.pp": 2 for pool in pools}
    if name == "roles":
        given["fleet.control"] = [{"kind": "balance-roles", "kv_above": 0.001, "kv_below": 0.0}]
    ran = ls.run(name, given)
    assert done <= {change.what for change in ran.facts.changes}
    stepped = ls.run(name, given | {"engine.fast_forward": False})
    assert ran.facts.digest == stepped.facts.digest
