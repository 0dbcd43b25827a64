"""The fit recovers what it should, ignores outliers, refuses what is out of bounds, leaves out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llmsim.core.errors import InputError
from llmsim.fidelity import calibrating
from llmsim.fidelity.calibrating import group_named
from llmsim.fidelity.calibration import (
    LIMITS,
    Calibration,
    Prior,
    Provenance,
    Runs,
    after_steps,
    fit,
    of_other_gpus,
    read_calibrations,
    solve,
    terms_of,
    worth_using,
    write_calibration,
)
from llmsim.fidelity.cases import Case, layout_of
from llmsim.fidelity.replay import prepare, simulate_all
from llmsim.fidelity.scenarios import Options, scenario_data
from llmsim.fidelity.scores import errors_of
from llmsim.specs import read_calibration
from llmsim.specs.calibration import TERMS

PRIOR = Prior()
ORIGIN = Provenance("vllm", "h100-sxm", "a test")


class Linear:
    """Evidence whose logarithmic errors are linear in those of the factors: truth is known."""

    def __init__(self, truth, groups, rows=60, seed=0, kin=None):
        rng = np.random.default_rng(seed)
        self.groups = {f"{group}-{i}": group for group in groups for i in range(rows)}
        self._effect = {key: rng.uniform(0.0, 1.0, len(TERMS)) for key in self.groups}
        self._truth = {
            group: np.array([math.log(truth[group].get(name, 1.0)) for name in TERMS])
            for group in groups
        }
        self.kin = {key: kin[group] for key, group in self.groups.items()} if kin else {}
        self.asked = []

    def errors(self, terms, only=None):
        self.asked.append((dict(terms), only))
        at = np.array([math.log(terms.get(name, 1.0)) for name in TERMS])
        return {
            key: float(self._effect[key] @ (at - self._truth[group]))
            for key, group in self.groups.items()
            if only is None or key in only
        }


def test_a_plain_effect_is_found_and_an_outlier_hardly_moves_it():
    rng = np.random.default_rng(0)
    effect = rng.uniform(0.0, 1.0, (400, len(TERMS)))
    truth = np.array([0.2, -0.1, 0.0, 0.1, 0.0, 0.0])
    errors = -effect @ truth  # at the truth all errors vanish
    assert solve(errors, effect, np.zeros(6), PRIOR) == pytest.approx(truth, abs=0.02)
    errors[:20] += 3.0
    assert solve(errors, effect, np.zeros(6), PRIOR) == pytest.approx(truth, abs=0.06)


def test_without_evidence_the_prior_stays():
    blank = np.zeros((1, len(TERMS)))
    assert solve(np.array([0.3]), blank, np.zeros(6), PRIOR) == pytest.approx(np.zeros(6))
    believed = Prior({"gemm_scale": 1.2})
    found = solve(np.array([0.3]), blank, np.zeros(6), believed)
    assert found[0] == pytest.approx(math.log(1.2))


def test_steps_hold_the_runs_that_come_after():
    truth = {"a": {"gemm_scale": 1.3}, "b": {"gemm_scale": 1.3}}
    steps = fit(Linear(truth, ("a", "b")))
    prior = after_steps(steps, "a model of steps")
    assert prior.terms["gemm_scale"] == pytest.approx(1.3, rel=0.03)
    assert prior.sd["gemm_scale"] < PRIOR.sd["gemm_scale"]


def test_a_group_is_never_in_the_fit_that_predicts_it():
    truth = {"a": {"gemm_scale": 1.2}, "b": {"gemm_scale": 1.2}, "odd": {"gemm_scale": 0.8}}
    evidence = Linear(truth, ("a", "b", "odd"))
    found = fit(evidence)
    assert found.without["odd"]["gemm_scale"] == pytest.approx(1.2, rel=0.02)
    assert found.without["a"]["gemm_scale"] < 1.15
    assert found.count == {"a": 60, "b": 60, "odd": 60}
    # each fold was asked for its own group alone
    folds = [only for terms, only in evidence.asked if only is not None]
    assert [{evidence.groups[key] for key in only} for only in folds] == [{"a"}, {"b"}, {"odd"}]
    assert found.unseen_after is not None
    assert found.unseen_after.median > found.after.median


def test_other_layouts_of_a_model_say_more_than_other_models_and_its_own_nothing():
    layouts = {"a tp1": "a", "a tp2": "a", "a tp4": "a", "b tp1": "b", "b tp2": "b"}
    truth = {name: {"gemm_scale": 1.2 if model == "a" else 0.9} for name, model in layouts.items()}
    truth["a tp4"] = {"gemm_scale": 1.5}
    plain = fit(Linear(truth, tuple(truth))).without
    tied = fit(Linear(truth, tuple(truth), kin=layouts)).without
    assert tied["a tp4"]["gemm_scale"] == pytest.approx(1.2, rel=0.03)
    assert tied["b tp1"]["gemm_scale"] == pytest.approx(0.9, rel=0.04)  # one layout says so
    assert plain["a tp4"]["gemm_scale"] < 1.12
    assert plain["b tp1"]["gemm_scale"] > 1.1


def test_a_lone_layout_of_a_model_is_predicted_by_other_models():
    truth = {"a tp1": {"gemm_scale": 1.4}, "b tp1": {"gemm_scale": 1.1}}
    found = fit(Linear(truth, tuple(truth), kin={"a tp1": "a", "b tp1": "b"})).without
    assert found["a tp1"]["gemm_scale"] == pytest.approx(1.1, rel=0.03)


def test_a_lone_group_is_predicted_without_any_fit():
    found = fit(Linear({"a": {"gemm_scale": 1.2}}, ("a",)))
    assert found.without == {"a": {}}
    assert found.unseen_after is None


def test_a_lone_group_has_what_steps_of_another_model_say():
    prior = Prior({"gemm_scale": 1.1}, PRIOR.sd, "steps")
    lone = fit(Linear({"a": {}}, ("a",)), prior).without
    assert lone["a"] == {"gemm_scale": 1.1}
    assert lone["steps"].get("gemm_scale", 1.0) == pytest.approx(1.0, abs=0.02)  # of runs alone
    assert fit(Linear({"steps": {}}, ("steps",)), prior).without == {"steps": {}}


def test_a_factor_out_of_bounds_is_refused():
    assert LIMITS == (0.6, 1.7)
    with pytest.raises(InputError, match="outside"):
        fit(Linear({"a": {"gemm_scale": 4.0}}, ("a",), rows=400))


LAB = {
    "source": "lab",
    "model_key": "llama-3.1-8b",
    "gpu": "H100-80G-SXM",
    "tp": "1",
    "engine": "vllm",
    "engine_version": "0.12.0",
    "isl": "200",
    "osl": "16",
    "arrival": "closed loop",
    "num_requests": "8",
}


def cases_of(terms):
    """Cases "measured" by the simulator itself with other terms: the truth is known."""
    loads = [{**LAB, "concurrency": str(slots)} for slots in (1, 2, 4, 8)]
    blank = [Case(str(i), "A", fields, {}) for i, fields in enumerate(loads)]
    work, _ = prepare(blank, None, Options({"kind": "roofline", **terms}, {}))
    key = ("tpot", "mean")
    return [
        Case(r.case.case_id, "A", r.case.fields, {key: r.prediction.values[key]})
        for r in simulate_all(work)
    ]


def test_a_layout_is_a_precision_and_a_split_of_a_model():
    four = Case("x", "A", {**LAB, "tp": "4.0", "quant": "fp8"}, {})
    assert layout_of(four) == "llama-3.1-8b fp8 tp4 ep1"
    plain = Case("y", "A", LAB, {})
    assert layout_of(plain) == "llama-3.1-8b unquantised tp1 ep1"
    runs = Runs([four, plain], {"kind": "roofline"}, by="layout")
    assert runs.groups == {"x": layout_of(four), "y": layout_of(plain)}
    assert runs.kin == {"x": "llama-3.1-8b", "y": "llama-3.1-8b"}
    assert Runs([four], {}).kin == {}
    with pytest.raises(InputError, match=r"'layuot' cannot be left out.*layout"):
        group_named("layuot")


def test_a_case_is_predicted_by_the_fit_without_its_layout(tmp_path):
    layouts = ("llama-3.1-8b unquantised tp1 ep1", "llama-3.1-8b unquantised tp2 ep1")
    truth = dict(zip(layouts, ({"gemm_scale": 1.2}, {"gemm_scale": 1.1}), strict=True))
    found = fit(Linear(truth, layouts, kin=dict.fromkeys(layouts, "llama-3.1-8b")))
    write_calibration(found, ORIGIN, tmp_path, "layout")
    cards = read_calibrations(tmp_path)
    case = Case("x", "A", {**LAB, "concurrency": "2"}, {})
    options = Options({"kind": "roofline"}, {}, cards)
    cost = scenario_data(case, options)["fleet"]["pools"]["main"]["cost"]
    without = found.without[layouts[0]]["gemm_scale"]
    assert cost["gemm_scale"] == without != found.terms["gemm_scale"]


@pytest.mark.slow
def test_a_known_distortion_of_runs_is_undone():
    cases = cases_of({"gemm_scale": 1.2, "host_scale": 1.3})
    found = fit(Runs(cases, {"kind": "roofline"}))
    assert found.before.median > 0.15
    assert found.after.median < 0.04
    assert found.count == {"llama-3.1-8b": 4}


def test_a_file_comes_back_as_written_and_finds_its_cases(tmp_path):
    truth = {"llama-3.1-8b": {"gemm_scale": 1.2}, "qwen3-14b": {"gemm_scale": 1.2}}
    found = fit(Linear(truth, tuple(truth)))
    path = write_calibration(found, ORIGIN, tmp_path)
    assert path.name == "vllm_h100-sxm.yaml"
    card = read_calibrations(tmp_path)["vllm", "h100-sxm"]
    assert card.terms == {name: found.terms.get(name, 1.0) for name in TERMS}
    assert card.terms_for("llama-3.1-8b") == found.without["llama-3.1-8b"]
    assert card.terms_for("a model of tomorrow") == card.terms
    stated = {row.field: row.value for row in card.rows()}
    assert stated["errors.never_seen.cases"] == 120
    case = Case("x", "A", {**LAB, "concurrency": "2"}, {})
    options = Options({"kind": "roofline"}, {}, {("vllm", "h100-sxm"): card})
    cost = scenario_data(case, options)["fleet"]["pools"]["main"]["cost"]
    fitted = {"kind": "roofline", **found.without["llama-3.1-8b"]}
    assert cost == fitted | {"expert_skew": 0.69}  # a rule for every engine; no experts here


def test_a_wrong_file_is_refused_with_every_fault(tmp_path):
    path = tmp_path / "vllm_h100-sxm.yaml"
    path.write_text("engine: vllm\nterms: {gemm_scle: 1.1, moe_scale: -1}\n")
    with pytest.raises(InputError) as error:
        read_calibrations(tmp_path)
    told = str(error.value)
    assert "gpu" in told
    assert "gemm_scale" in told
    assert "above 0" in told


def test_the_mean_of_other_gpus_leaves_this_one_out(tmp_path):
    for gpu, factor in (("h100-sxm", 1.44), ("b200", 1.0), ("h200-sxm", 0.7)):
        found = fit(Linear({"a": {"gemm_scale": factor}}, ("a",), rows=400))
        write_calibration(found, Provenance("vllm", gpu, "a test"), tmp_path)
    cards = read_calibrations(tmp_path)
    mean = of_other_gpus(cards, "vllm", "h200-sxm")
    assert mean["gemm_scale"] == pytest.approx(1.2, rel=0.02)
    assert of_other_gpus(cards, "trtllm", "h200-sxm") == {}


def test_factors_that_are_one_are_left_out():
    assert terms_of(np.zeros(len(TERMS))) == {}


def test_a_scenario_takes_a_calibration_by_name(tmp_path, monkeypatch):
    from llmsim.scenario.costs import Roofline
    from llmsim.specs import HostTerms

    folder = tmp_path / "profiles" / "calibrations"
    truth = {"a": {"gemm_scale": 1.2, "host_scale": 1.2}}
    write_calibration(fit(Linear(truth, ("a",))), Provenance("lab", "x", "a test"), folder)
    monkeypatch.setenv("LLMSIM_PATH", str(tmp_path))
    card = read_calibration(folder / "lab_x.yaml")
    cost = Roofline(calibration="lab_x", gemm_scale=2.0)
    assert cost.scales().gemm == pytest.approx(2.0 * card.terms["gemm_scale"])
    host = cost.host(HostTerms(base_s=1e-3))
    assert host.base_s == pytest.approx(1e-3 * card.terms["host_scale"])


@pytest.mark.parametrize(("odd", "helps"), [(1.3, True), (0.8, False)])
def test_a_card_that_makes_groups_never_seen_worse_is_left_aside(tmp_path, odd, helps):
    truth = {"a": {"gemm_scale": 1.3}, "odd": {"gemm_scale": odd}}
    write_calibration(fit(Linear(truth, tuple(truth))), ORIGIN, tmp_path)
    cards = read_calibrations(tmp_path)
    assert cards["vllm", "h100-sxm"].helps is helps
    assert worth_using(cards) == (cards if helps else {})


@pytest.mark.parametrize(
    ("models", "by", "count"),
    [(("llama-3.1-8b",), "layout", 4), (("llama-3.1-8b", "x"), "model", 4)],
)
def test_one_model_alone_is_left_out_layout_by_layout(models, by, count, monkeypatch, tmp_path):
    cases = [
        Case(f"{model} {tp} {i}", "A", {**LAB, "model_key": model, "tp": tp}, {})
        for model in models
        for tp in "12"
        for i in range(5)
    ]
    seen = []

    def note(runs, prior, name):
        seen.append(runs)
        errors = errors_of([0.1])
        return Calibration({}, {}, {}, errors, errors)

    monkeypatch.setattr(calibrating, "read_cases", lambda folder: cases)
    monkeypatch.setattr(calibrating, "read_steps", lambda folder: [])
    monkeypatch.setattr(calibrating, "fit", note)
    order = calibrating.CalibrateOrder(tmp_path, "vllm", "h100-sxm", sources=("lab",), most=2)
    assert calibrating.calibrate(order).by == by
    (runs,) = seen
    assert (runs.by, len(runs.cases)) == (by, count)  # two of each group
