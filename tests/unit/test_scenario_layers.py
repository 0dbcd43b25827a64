"""What comes on top of what: extends, overrides, engines of pools, file names."""

import pickle
import shutil

import numpy as np
import pytest
from scenario_files import GOOD, write

import llmsim as ls
from llmsim.core.errors import RegistryError, ScenarioError
from llmsim.core.paths import list_data
from llmsim.results.slo import Slo as Objectives
from llmsim.scenario import Component, Scenario, load_scenario


@pytest.fixture
def good(tmp_path):
    return load_scenario(write(tmp_path, GOOD, "good.yaml"))


def test_override_returns_a_new_scenario(good):
    more = good.override({"fleet.pools.main.replicas": 4})
    assert more.fleet.pools["main"].replicas == 4
    assert good.fleet.pools["main"].replicas == 2
    assert more != good
    assert more.override({"fleet.pools.main.replicas": 2}) == good
    assert more.folder == good.folder


def test_a_scenario_cannot_be_changed_in_place(good):
    with pytest.raises(ValueError, match="frozen"):
        good.seed = 4
    params = good.fleet.routing.params
    params["max_imbalance"] = 99
    assert good.fleet.routing.params["max_imbalance"] == 4


def test_a_dotted_path_changes_one_parameter(good):
    changed = good.override({"fleet.routing.min_match_frac": 0.5}).fleet.routing
    assert (changed.params["min_match_frac"], changed.params["max_imbalance"]) == (0.5, 4)


def test_a_mapping_with_a_kind_replaces_the_component_whole(good):
    changed = good.override({"fleet.routing": {"kind": "prefix-affinity"}}).fleet.routing
    assert changed.params["max_imbalance"] == 16
    assert good.override({"fleet.routing": "round-robin"}).fleet.routing.kind == "round-robin"
    assert good.override({"fleet.routing.kind": "round-robin"}).fleet.routing.params == {}


def test_a_mapping_without_a_kind_is_merged(good):
    changed = good.override({"slo": {"tpot_s": 0.05}, "fleet.routing": {"max_imbalance": 7}})
    assert (changed.slo.ttft_s, changed.slo.tpot_s) == (1.0, 0.05)
    assert changed.fleet.routing.params["max_imbalance"] == 7


def test_a_kind_comes_before_its_parameters_in_any_order(good):
    for order in (1, -1):
        items = [("traffic.arrivals.rate_rps", 3), ("traffic.arrivals.kind", "poisson")][::order]
        changed = good.override(dict(items)).traffic.arrivals
        assert changed.plain() == {"kind": "poisson", "rate_rps": 3.0}


def test_none_takes_a_value_back(good):
    assert good.override({"slo.ttft_s": None}).slo.ttft_s is None
    changed = good.override({"engine.max_num_seqs": None})
    assert changed.fleet.pools["main"].engine.max_num_seqs == 256


def test_engine_overrides_reach_every_pool_that_says_nothing_else(good):
    two = good.override({"fleet.pools.big": {"gpu": "h200-sxm", "engine": {"max_num_seqs": 512}}})
    changed = two.override({"engine.max_num_seqs": 64, "engine.block_tokens": 32})
    engines = {name: pool.engine for name, pool in changed.fleet.pools.items()}
    assert (engines["main"].max_num_seqs, engines["main"].block_tokens) == (64, 32)
    assert (engines["big"].max_num_seqs, engines["big"].block_tokens) == (512, 32)


def test_values_from_python_may_be_numpy_numbers_paths_and_components(good, tmp_path):
    changed = good.override(
        {
            "seed": np.int64(9),
            "slo.ttft_s": np.float64(2.5),
            "fleet.routing": Component("routing", "round-robin"),
            "traffic.arrivals": good.traffic.arrivals,
        }
    )
    assert (changed.seed, changed.slo.ttft_s) == (9, 2.5)
    assert changed.traffic.arrivals == good.traffic.arrivals


def test_components_are_built_fresh(good):
    first, second = good.fleet.routing.build(), good.fleet.routing.build()
    assert first is not second
    assert first.max_imbalance == 4
    with pytest.raises(RegistryError, match="Did you mean 'routing'"):
        Component("rooting", "x").build()


def test_slo_becomes_objectives(good):
    assert good.slo.objectives() == Objectives(ttft_s=1.0)


def test_scenarios_travel_between_processes(good):
    assert pickle.loads(pickle.dumps(good)) == good
    assert hash(good) == hash(good.override({}))


def family(folder, **files):
    for name, text in files.items():
        write(folder, text, f"{name}.yaml")


def test_a_chain_of_parents(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path, GOOD + "description: the first\n", "first.yaml")
    family(
        tmp_path / "sub",
        second="extends: ../first.yaml\nslo: {ttft_s: 2.0, e2e_s: 9}\n"
        "fleet: {routing: round-robin}\n",
        third="extends: second.yaml\nslo: {e2e_s: null}\nseed: 5\n"
        "fleet: {pools: {main: null, other: {gpu: l40s}}}\n",
    )
    found = load_scenario(tmp_path / "sub" / "third.yaml")
    assert (found.name, found.description) == ("third", "")
    assert (found.seed, found.slo.ttft_s, found.slo.e2e_s) == (5, 2.0, None)
    assert found.fleet.routing.kind == "round-robin"
    assert list(found.fleet.pools) == ["other"]
    assert found.fleet.pools["other"].engine.max_num_seqs == 128


def test_a_component_of_the_child_replaces_the_parents(tmp_path):
    family(
        tmp_path,
        base=GOOD,
        child="extends: base.yaml\n"
        "fleet: {routing: {kind: prefix-affinity, min_match_frac: 0.9}}\n",
        merged="extends: base.yaml\nfleet: {routing: {min_match_frac: 0.9}}\n",
    )
    assert load_scenario(tmp_path / "child.yaml").fleet.routing.params["max_imbalance"] == 16
    assert load_scenario(tmp_path / "merged.yaml").fleet.routing.params["max_imbalance"] == 4


def test_faults_name_the_file_they_stand_in(tmp_path):
    family(
        tmp_path,
        base=GOOD.replace("replicas: 2", "replicas: 0"),
        child="extends: base.yaml\nslo: {ttft: 3}\n",
    )
    with pytest.raises(ScenarioError) as caught:
        load_scenario(tmp_path / "child.yaml")
    assert [fault.where for fault in caught.value.faults] == ["base.yaml:16", "child.yaml:2"]


@pytest.mark.parametrize(
    ("files", "start", "where", "words"),
    [
        ({"a": "extends: a.yaml\n"}, "a", "a.yaml:1", "goes in a circle: a.yaml -> a.yaml"),
        (
            {"a": "extends: b.yaml\n", "b": "x: 1\nextends: c.yaml\n", "c": "extends: ./a.yaml\n"},
            "a",
            "c.yaml:1",
            "goes in a circle: a.yaml -> b.yaml -> c.yaml -> a.yaml",
        ),
        ({"a": "extends: bb.yaml\n", "b": GOOD}, "a", "a.yaml:1", "Did you mean 'b.yaml'?"),
        ({"a": "extends: quickstrt\n"}, "a", "a.yaml:1", "Did you mean 'quickstart'?"),
        ({"a": "extends: [b.yaml]\n"}, "a", "a.yaml:1", "should be a file or a shipped name"),
        ({"a": "extends: b.yaml\n", "b": "a: 1\na: 2\n"}, "a", "b.yaml:2", "stands twice"),
    ],
)
def test_wrong_parents(tmp_path, files, start, where, words):
    family(tmp_path, **files)
    with pytest.raises(ScenarioError) as caught:
        load_scenario(tmp_path / f"{start}.yaml")
    assert caught.value.faults[0].where == where
    assert words in str(caught.value)


def test_a_shipped_scenario_by_name_and_as_a_parent(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = Scenario.load("quickstart")
    assert quick.name == "quickstart"
    write(tmp_path, "extends: quickstart\nseed: 99\n", "mine.yaml")
    mine = Scenario.load("mine.yaml")
    assert (mine.name, mine.seed, mine.fleet) == ("mine", 99, quick.fleet)


def test_own_scenarios_are_found_through_llmsim_path(tmp_path, monkeypatch):
    (tmp_path / "scenarios").mkdir()
    write(tmp_path / "scenarios", GOOD.replace("name: good\n", ""), "team-chat.yaml")
    monkeypatch.setenv("LLMSIM_PATH", str(tmp_path))
    assert Scenario.load("team-chat").name == "team-chat"


def test_a_file_name_becomes_a_run_name(tmp_path):
    write(tmp_path, GOOD.replace("name: good\n", ""), "my chat (2).yaml")
    assert load_scenario(tmp_path / "my chat (2).yaml").name == "my-chat-2"


TRACE = "  trace: {kind: burstgpt, path: burstgpt-like.csv.gz}\n"


def with_trace(path):
    head, rest = GOOD.split("  arrivals:")
    return head + TRACE.replace("burstgpt-like.csv.gz", path) + rest[rest.index("engine:") :]


def test_trace_files_start_from_the_folder_of_the_file_that_names_them(tmp_path, monkeypatch):
    shipped = list_data("traces", ".csv.gz")["burstgpt-like"]
    (tmp_path / "data").mkdir()
    (tmp_path / "sub").mkdir()
    shutil.copy(shipped, tmp_path / "data" / "own.csv.gz")
    write(tmp_path, with_trace("data/own.csv.gz"), "base.yaml")
    write(tmp_path / "sub", "extends: ../base.yaml\n", "child.yaml")
    monkeypatch.chdir(tmp_path / "sub")
    found = load_scenario("child.yaml")
    assert found.traffic.trace.params["path"] == str((tmp_path / "data" / "own.csv.gz").resolve())

    bare = load_scenario(write(tmp_path, with_trace("burstgpt-like.csv.gz"), "bare.yaml"))
    assert bare.traffic.trace.params["path"] == str(shipped.resolve())

    monkeypatch.chdir(tmp_path / "data")
    put = load_scenario(tmp_path / "bare.yaml", {"traffic.trace.path": "own.csv.gz"})
    assert put.traffic.trace == found.traffic.trace


def test_a_resolved_scenario_loads_from_anywhere(tmp_path):
    (tmp_path / "runs").mkdir()
    first = load_scenario(write(tmp_path, with_trace("burstgpt-like.csv.gz"), "bare.yaml"))
    again = load_scenario(write(tmp_path / "runs", first.resolved_yaml(), "scenario.yaml"))
    assert again == first
    assert again.folder != first.folder


FETCHED = ("azure-conversation", "mooncake-affinity")
"""Scenarios whose trace is not shipped."""


@pytest.mark.parametrize("name", sorted(set(list_data("scenarios", ".yaml")) - set(FETCHED)))
def test_shipped_scenarios_are_right(name):
    found = Scenario.load(name)
    assert found.name == name
    assert found.description


@pytest.mark.parametrize("name", FETCHED)
def test_scenarios_that_need_a_fetched_trace_say_so_and_nothing_else(name):
    with pytest.raises(ScenarioError) as caught:
        Scenario.load(name)
    assert [fault.path for fault in caught.value.faults] == ["traffic.trace.path"]
    assert "--set traffic.trace.path=FILE" in str(caught.value)


def test_the_folder_of_a_run_stands_for_its_scenario(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ls.run("quickstart", {"traffic.requests": 20, "seed": 5}).save("kept")
    again = Scenario.load("quickstart").override({"traffic.requests": 20, "seed": 5})
    for name in ("kept", "./kept", tmp_path / "kept"):
        assert Scenario.load(name) == again
    (tmp_path / "quickstart").mkdir()
    shutil.copy("kept/scenario.yaml", "quickstart/scenario.yaml")
    assert Scenario.load("quickstart").seed == Scenario.load("./quickstart").seed + 2  # shipped: 7
    with pytest.raises(ScenarioError, match="this is a folder, not a file"):
        Scenario.load(tmp_path)


def test_a_file_beside_is_nearer_than_a_shipped_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickly.yaml").write_text("llmsim: 1\n")
    with pytest.raises(ScenarioError, match=r"Did you mean 'quickly\.yaml'\?$"):
        Scenario.load("quickly")
    with pytest.raises(ScenarioError, match=r"Did you mean 'azure-conversation'\?"):
        Scenario.load("Azure")
