"""Nothing that a scenario says is dropped in silence when its fleet is deployed."""

import pytest

from llmsim.core.errors import InvariantError
from llmsim.deployment import deploy, keys
from llmsim.deployment.keys import FLEET_NOTES, POOL_NOTES, notes_of_pool, unknown_keys
from llmsim.deployment.made import pool_line
from llmsim.deployment.site import find_sites
from llmsim.scenario import Scenario

MAIN = "fleet.pools.main."


def said_by(program):
    (site,) = find_sites(Scenario.load("quickstart"), program, {})
    return pool_line(site).said


@pytest.mark.parametrize("program", ["vllm", "sglang"])
def test_every_key_of_a_scenario_goes_somewhere(program):
    assert unknown_keys(said_by(program)) == []


@pytest.mark.parametrize("program", ["vllm", "sglang"])
def test_a_key_that_nobody_knows_is_found(program, monkeypatch):
    monkeypatch.setattr(keys, "POOL_NOTES", {k: v for k, v in POOL_NOTES.items() if k != "stop"})
    assert any(key.startswith("fleet.pools.<pool>.stop") for key in unknown_keys(said_by(program)))
    with pytest.raises(InvariantError, match=r"nothing becomes of stop\."):
        notes_of_pool("main", Scenario.load("quickstart").fleet.pools["main"], said_by(program))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stage_link", "nvlink4"),
        ("inter_node_link", "ib-hdr"),
        ("clock_frac", 0.8),
        ("power_cap_w", 500.0),
        ("kv.swap", {}),
        ("allocation", "power-of-two"),
        ("batching", "orca"),
    ],
)
def test_a_setting_without_words_is_noted_once(key, value):
    changes = {MAIN + key: value}
    if key == "stage_link":
        changes[MAIN + "pp"] = 2
    if key == "kv.swap":
        changes = {MAIN + "kv": {"swap": {}}}
    if key == "allocation":
        changes[MAIN + "engine.prefix_caching"] = False
    found = [note for note in deploy("quickstart", changes).notes if note.path == MAIN + key]
    assert len(found) == 1
    assert not [note for note in deploy("quickstart").notes if note.path == MAIN + key]


@pytest.mark.parametrize(
    ("scenario", "key"),
    [("urgent-prompts", "stop"), ("pinned", "retention"), ("live-migration", "migration")],
)
def test_what_only_some_fleets_can_say_is_noted(scenario, key):
    assert [note for note in deploy(scenario).notes if note.key == key]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("view_age_s", 0.5),
        ("report_period_s", 1.0),
        ("count_own_sends", True),
        ("gateway", {"most_per_replica": 4}),
        ("routing", "least-loaded"),
    ],
)
def test_a_fleet_without_words_is_noted(key, value):
    changes = {"fleet.routing": "round-robin"} | {f"fleet.{key}": value}
    assert [note.key for note in deploy("quickstart", changes).notes] == [key]


def test_every_order_of_the_line_is_said_or_noted():
    from typing import get_args, get_type_hints

    from llmsim.policies.batching import VllmBatching

    for order in get_args(get_type_hints(VllmBatching)["order"]):
        made = deploy("quickstart", {MAIN + "batching": {"kind": "vllm", "order": order}})
        said = any(each.flag == "--scheduling-policy" for each in made.launches[0].leader)
        noted = any(note.key == "batching.order" for note in made.notes)
        assert said + noted == (order != "fcfs")


def test_texts_are_for_keys_that_there_are():
    from llmsim.scenario.faults import all_keys
    from llmsim.scenario.fleet import Fleet, Pool

    assert set(POOL_NOTES) | set(keys.POOL_ELSEWHERE) <= set(all_keys(Pool))
    assert set(FLEET_NOTES) | set(keys.FLEET_ELSEWHERE) <= set(all_keys(Fleet))
