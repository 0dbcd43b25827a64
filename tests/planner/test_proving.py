"""Fleets put to the test: bounds of attainment, the loop against brute force, the laws of plans."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace

import pytest
from test_plan import ASKED

import llmsim as ls
from llmsim.core.errors import InputError
from llmsim.planner.judging import Judged, bounds, decided
from llmsim.planner.packing import pack
from llmsim.planner.plan import Evidence, Plan
from llmsim.planner.proving import Loop
from llmsim.planner.reading import read_plan
from llmsim.planner.simulating import Laboratory
from llmsim.planner.work import prepare
from llmsim.study.executor import Executor, open_workers
from llmsim.study.points import Point, PointStore

HERE = Executor("local", 1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Points are kept for the whole run of the tests, and for nobody else."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "points"))


def test_the_bound_is_students_where_seeds_differ():
    # mean 0.96, standard deviation 0.01, t(0.95, 2) = 2.920
    low, high = bounds([0.95, 0.96, 0.97], [1e9] * 3, 0.05)
    half = 2.9200 * 0.01 / math.sqrt(3)
    assert (low, high) == pytest.approx((0.96 - half, 0.96 + half), abs=1e-5)


def test_the_bound_is_wilsons_where_they_do_not():
    # Wilson's lower bound of 300 of 300 with z = 1.6449: n / (n + z^2)
    low, high = bounds([1.0, 1.0, 1.0], [100.0] * 3, 0.05)
    assert low == pytest.approx(300 / (300 + 1.6449**2), rel=1e-4)
    assert high == 1.0
    assert bounds([1.0], [1000.0], 0.05) == (0.0, 1.0)


def test_an_overloaded_run_decides_and_doubt_does_not():
    fine = [Point({}, "", "stable")]
    assert decided(fine, 0.95, 0.99, 0.95) == "passed"
    assert decided(fine, 0.94, 0.99, 0.95) == "undecided"
    assert decided(fine, 0.90, 0.94, 0.95) == "failed"
    assert decided([*fine, Point({}, "", "overloaded")], 0.99, 1.0, 0.95) == "failed"


@dataclass
class Oracle:
    """A laboratory in which a fleet does if its true load is at most what its replicas carry."""

    work: object
    true: dict
    fleets: int = 0
    asked: list = field(default_factory=list)

    def passes(self, fleet):
        columns = {
            name: replace(
                column,
                throughput_rps={b: r * self.true[name] for b, r in column.throughput_rps.items()},
            )
            for name, column in ((c.name, c) for c in self.work.candidates.columns)
        }
        from llmsim.planner.splitting import split

        own = {name: float(count) for name, count in fleet.items() if count}
        divided = split(self.work.buckets, {name: columns[name] for name in own}, own)
        return divided is not None and divided.peak <= 1.0

    def judge(self, fleet, stage, seeding="common", lossy=None):
        self.fleets += 1
        self.asked.append(dict(fleet))
        good = self.passes(fleet)
        attained = 0.97 if good else 0.9
        seen = Evidence(
            stage, dict(fleet), "", 0.0, (1,), (attained,), 0, attained, attained, good, "",
            (), None, None,
        )  # fmt: skip
        return Judged((seen,), () if good else tuple(fleet), False)

    def known(self):
        return []

    def undecided(self, below_usd_per_hour):
        return 0


def brute_force(work, passes, most=7):
    """Return the cost of the cheapest fleet of all that passes."""
    names = [column.name for column in work.candidates.columns]
    counts = itertools.product(*(range(most) for _ in names))
    fleets = [dict(zip(names, each, strict=True)) for each in counts]
    fleets.sort(key=lambda fleet: sum(work.price(name) * n for name, n in fleet.items()))
    best = next(fleet for fleet in fleets if any(fleet.values()) and passes(fleet))
    return sum(work.price(name) * count for name, count in best.items())


@pytest.fixture(scope="module")
def works():
    fast = {"traffic.requests": 800}
    return [
        prepare(read_plan(ASKED, fast | change))
        for change in (
            {"gpus.l40s.available": None},
            {"gpus.l40s.available": None, "traffic.arrivals.rate_rps": 55.0},
            {"gpus.l40s.available": None, "slo.tpot_s": 0.03, "gpus.h100-sxm.usd_per_hour": 6.0},
        )
    ]


@pytest.mark.parametrize("number", [0, pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_loop_finds_the_cheapest_fleet_that_does(works, number):
    """With a truth that programs do not know: replicas serve less than they are believed to."""
    work = works[number]
    oracle = Oracle(work, {"h100-sxm": 0.62, "a100-80gb-sxm": 0.8, "l40s": 0.55})
    first = dict(pack(work.problem(pooled=True), work.solver).replicas)
    found = Loop(work, oracle).run(first)
    cost = sum(work.price(name) * count for name, count in found.fleet.items())
    assert oracle.passes(found.fleet)
    assert found.floor <= cost + 1e-9
    assert cost <= brute_force(work, oracle.passes) * 1.03 + 1e-9
    assert found.outcome in ("proven", "good enough")
    assert found.relief == 1.0


def test_the_loop_says_when_nothing_does():
    work = prepare(read_plan(ASKED, {"traffic.requests": 800, "prove.most_fleets": 6}))
    oracle = Oracle(work, dict.fromkeys(("h100-sxm", "a100-80gb-sxm", "l40s"), 1e-3))
    found = Loop(work, oracle).run({"h100-sxm": 1})
    assert found.outcome == "not proven"
    assert "prove.most_fleets" in found.reason
    assert oracle.fleets == 6


LEAN = {"traffic.requests": 500, "prove.micro_columns": 0, "prove.seeds": [2], "search.tp": [1]}


def test_a_plan_is_shown_by_simulation_and_goes_on_where_it_was():
    one = {"gpus": {"h100-sxm": {"usd_per_hour": 4.0}}}
    found = ls.plan(ASKED | one, LEAN, executor=HERE)
    assert found.outcome in ("proven", "good enough", "simulated")
    proof = found.proof
    assert proof.stage == "confirm"
    assert proof.passed
    assert proof.low_frac >= ASKED["slo"].get("attained_frac", 0.95)
    assert found.waterfall[-1].name == "simulated"
    assert found.bound.usd_per_hour <= found.usd_per_hour
    assert Plan.from_json(found.as_json()) == found
    # the digest is that of the fleet's own scenario under that seed
    import yaml

    from llmsim.scenario import Scenario

    fleet = Scenario.parse(yaml.safe_load(found.scenario_yaml))
    assert ls.run(fleet, seed=proof.seeds[0]).digest == proof.digests[0]
    begun = []
    with open_workers(HERE) as workers:
        work = prepare(read_plan(ASKED | one, LEAN))
        laboratory = Laboratory(work, Counting(workers, begun), PointStore.default("plan"))
        again = laboratory.judge(found.replicas, "confirm", "fresh")
    assert again.evidence[0] == proof
    assert begun == []


@dataclass
class Counting:
    """Workers that note what they are asked to do."""

    inner: object
    begun: list

    def completed(self, call, tasks):
        self.begun += tasks
        return self.inner.completed(call, tasks)


@pytest.mark.slow
def test_micro_simulation_corrects_each_column():
    found = ls.plan(ASKED, {"traffic.requests": 1000, "prove.seeds": [2]}, executor=HERE)
    assert {each.column for each in found.corrected} >= {"h100-sxm", "l40s"}
    for each in found.corrected:
        assert each.factor == pytest.approx(each.simulated_rps / each.closed_rps)
        assert 0.3 < each.factor < 1.6


def evidence_of(found, stage):
    return [each for each in found.evidence if each.stage == stage]


@pytest.mark.slow
def test_bursts_break_the_naive_fleet_and_not_the_corrected_one():
    found = ls.plan("bursty", executor=HERE)
    (naive,) = evidence_of(found, "naive")
    assert naive.replicas == found.waterfall[0].replicas
    assert not naive.passed
    assert sum(naive.attained_frac) / len(naive.attained_frac) < 0.98
    assert found.proof.passed
    assert found.proof.low_frac >= 0.99
    assert found.waterfall[0].usd_per_hour < found.usd_per_hour


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"traffic.arrivals.rate_rps": 30.0},
        {"traffic.arrivals.rate_rps": 20.0, "slo.tpot_s": 0.03},
        {"traffic.arrivals.rate_rps": 12.0, "slo.ttft_s": 0.4},
    ],
)
def test_the_plan_is_within_three_percent_of_brute_force_by_simulation(change):
    asked = {"traffic.requests": 800, "prove.seeds": [3], "gpus.l40s.available": None} | change
    # the same closed forms, and so the same splits, for the loop and for brute force
    asked["prove.micro_columns"] = 0
    two = {gpu: ASKED["gpus"][gpu] for gpu in ("h100-sxm", "l40s")}
    found = ls.plan(ASKED | {"gpus": two}, asked, executor=HERE)
    assert found.bound.usd_per_hour <= found.usd_per_hour + 1e-9
    with open_workers(HERE) as workers:
        work = prepare(read_plan(ASKED | {"gpus": two}, asked))
        laboratory = Laboratory(work, workers, PointStore.default("plan"))
        cheapest = brute_force(work, lambda fleet: laboratory.judge(fleet, "all").passed, 5)
    assert found.usd_per_hour <= cheapest * 1.03 + 1e-9


@pytest.mark.slow
def test_laws_of_simulated_plans():
    """Tighter never cheaper, a further card never dearer, double demand twice as dear at most."""
    lean = {"traffic.requests": 800, "prove.seeds": [3], "gpus.l40s.available": None}
    lean["prove.tolerance_frac"] = 0.0  # what is near the bound would do, and be compared

    def cost(**changes):
        found = ls.plan(
            ASKED, lean | {k.replace("__", "."): v for k, v in changes.items()}, executor=HERE
        )
        assert found.bound.usd_per_hour <= found.usd_per_hour + 1e-9
        return found.usd_per_hour

    usual = cost()
    assert cost(slo__tpot_s=0.025) >= usual
    assert cost(gpus__l40s__available=0) >= usual
    double = cost(traffic__arrivals__rate_rps=60.0, traffic__requests=1600)
    assert usual <= double <= 2 * usual


@pytest.mark.slow
def test_a_formula_for_bursts_refuses_nothing_that_simulation_may_allow(tmp_path):
    """One H100 is too few by the formula, and too few it is; two are allowed and pass."""
    import yaml
    from typer.testing import CliRunner

    from llmsim.cli.app import app

    burst = {"kind": "gamma", "rate_rps": 20.0, "cv": 3.0}
    traffic = {**ASKED["traffic"], "arrivals": burst, "requests": 400}
    gpus = {"h100-sxm": {"usd_per_hour": 4.0, "available": 1}}
    prove = {"micro_columns": 0, "seeds": [2]}
    slo = {"ttft_s": 0.4, "tpot_s": 0.02, "attained_frac": 0.99}
    path = tmp_path / "tight.yaml"
    asked = ASKED | {"traffic": traffic, "gpus": gpus, "prove": prove, "slo": slo}
    path.write_text(yaml.safe_dump(asked))
    with pytest.raises(InputError, match=r"gpus\.h100-sxm\.available: 1 GPU is too few"):
        ls.plan(path, simulate=False)
    words = ["plan", str(path), "-o", str(tmp_path / "out"), "--jobs", "1"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1, done.output
    assert "not proven" in done.output
    assert "holds no larger one" in " ".join(done.output.split())
    enough = ls.plan(path, {"gpus.h100-sxm.available": 3}, executor=HERE)
    assert enough.proof.passed


@pytest.mark.slow
def test_the_command_tries_the_fleet_under_other_circumstances(tmp_path, monkeypatch):
    """Unless it was told not to, or nothing was simulated at all."""
    import yaml
    from typer.testing import CliRunner

    from llmsim.cli.app import app
    from llmsim.planner import outlook as looking
    from llmsim.planner.outlook import Outlook

    monkeypatch.setattr(looking, "LOADS", (1.0, 1.25))
    path = tmp_path / "small.yaml"
    traffic = {**ASKED["traffic"], "requests": 100}
    prove = {"micro_columns": 0, "seeds": [2], "most_fleets": 2}
    few = {"traffic": traffic, "prove": prove, "search": {"tp": [1]}, "gpus": {"h100-sxm": {}}}
    path.write_text(yaml.safe_dump(ASKED | few))
    words = ["plan", str(path), "--jobs", "1", "-o"]
    done = CliRunner().invoke(app, [*words, str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    outlook = Outlook.load(tmp_path / "out")
    assert {each.what for each in outlook.sensitivity} >= {"burstiness"}
    assert "operators cost other than" in done.output
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Not tried yet" not in page
    assert "burstiness x 1.25" in page
    for word in ("--no-outlook", "--no-simulate"):
        done = CliRunner().invoke(app, [*words, str(tmp_path / word), word])
        assert done.exit_code == 0, done.output
        assert Outlook.load(tmp_path / word) is None
    assert "Not tried yet" in (tmp_path / "--no-outlook" / "report.html").read_text()
