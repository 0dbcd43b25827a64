"""Policies of packages and scripts in studies: edited ones run anew, and workers know them."""

import os
import subprocess
import sys
import textwrap
from importlib.util import module_from_spec, spec_from_file_location

import pytest

import llmsim as ls
from llmsim.scenario.component import registry
from llmsim.scenario.owncode import own_code
from llmsim.study.points import Point, PointStore

ROUTER = """
    from dataclasses import dataclass

    import llmsim as ls
    from llmsim.policies import ROUTING


    @ROUTING.register("mine")
    @dataclass
    class Mine:
        def start(self, fleet, rng):
            self.fleet = fleet

        def choose(self, request):
            return CHOICE
"""

SWEEP = """
    if __name__ == "__main__":
        few = {"traffic.requests": 40, "fleet.pools.main.replicas": 2}
        swept = ls.sweep("quickstart", {"fleet.routing": ["mine", "least-loaded"]}, few, seeds=2)
        print(*swept.frame["ttft_mean_s"] > 0)
"""


def script(folder, choice, rest):
    """Run a script in which a router stands; return what it prints."""
    path = folder / "own.py"
    text = textwrap.dedent(ROUTER)
    path.write_text(text.replace("CHOICE", choice) + textwrap.dedent(rest), encoding="utf-8")
    there = {**os.environ, "LLMSIM_CACHE": str(folder), "XDG_CACHE_HOME": str(folder)}
    given = {"capture_output": True, "text": True, "cwd": folder, "env": there}
    ran = subprocess.run([sys.executable, path.name], **given, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Return where a point is kept whose router stands in a file of one's own."""
    routers = registry("routing")._classes

    def placed(name, choice):
        path = tmp_path / f"{name}.py"
        path.write_text(textwrap.dedent(ROUTER).replace("CHOICE", choice), encoding="utf-8")
        spec = spec_from_file_location(name, path)
        monkeypatch.setitem(sys.modules, name, module_from_spec(spec))
        spec.loader.exec_module(sys.modules[name])
        scenario = ls.Scenario.load("quickstart", {"fleet.routing": "mine"})
        return PointStore(tmp_path).place(scenario)

    yield placed
    routers.pop("mine", None)


def test_what_was_edited_is_not_found_again(place):
    assert place("first", "0") == place("again", "0") is not None
    assert place("edited", "1") != place("first", "0")


@pytest.mark.slow
def test_workers_know_what_a_script_has_registered(tmp_path):
    assert script(tmp_path, "self.fleet.least_outstanding()", SWEEP) == ["True", "True"]


def test_what_ships_has_no_hash_of_its_own():
    assert own_code(ls.Scenario.load("quickstart")) == {}


def test_what_cannot_be_read_is_not_kept(tmp_path, monkeypatch):
    store, scenario = PointStore(tmp_path), ls.Scenario.load("quickstart")
    store.keep(scenario, Point({"ttft_mean_s": 1.0}, "digest", "keeps up"))
    assert store.kept(scenario) is not None
    monkeypatch.setattr("llmsim.serving.build.own_code", lambda _: {"routing mine": ""})
    assert store.place(scenario) is None
