"""The fit recovers what it should, ignores outliers, and refuses what is out of bounds."""

import numpy as np
import pytest

from llmsim.core.errors import InputError
from llmsim.fidelity import calibration
from llmsim.fidelity.calibration import (
    Bench,
    fit,
    read_calibrations,
    solve,
    terms_of,
    write_calibration,
)
from llmsim.fidelity.cases import Case
from llmsim.fidelity.replay import prepare, simulate_all
from llmsim.fidelity.scenarios import Options


def test_a_plain_effect_is_found_and_an_outlier_hardly_moves_it():
    rng = np.random.default_rng(0)
    effect = rng.uniform(0.0, 1.0, (200, 2))
    errors = -effect @ np.array([0.2, -0.1])  # at (0.2, -0.1) all errors vanish
    assert solve(errors, effect, np.zeros(2)) == pytest.approx([0.2, -0.1], abs=0.01)
    errors[:10] += 3.0
    assert solve(errors, effect, np.zeros(2)) == pytest.approx([0.2, -0.1], abs=0.05)


def test_without_evidence_the_prior_stays():
    found = solve(np.array([0.3]), np.zeros((1, 3)), np.zeros(3))
    assert found == pytest.approx([0.0, 0.0, 0.0])
    weak = solve(np.array([-0.3]), np.array([[0.1]]), np.zeros(1))
    assert 0 < weak[0] < 1.0  # one weak case does not move a factor by 3


def test_host_terms_are_never_negative():
    found = terms_of(("gemm_scale", "host_base_s"), np.array([0.1, -5.0]))
    assert found["gemm_scale"] == pytest.approx(np.exp(0.1), rel=1e-5)
    assert found["host_base_s"] == 0.0


LAB = {
    "source": "lab",
    "model_key": "llama-3.1-8b",
    "gpu": "h100-sxm",
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


def test_a_known_distortion_is_undone():
    cases = cases_of({"gemm_scale": 1.2, "host_base_s": 1.5e-3})
    found = fit(cases, Bench({"kind": "roofline"}), "vllm", "h100-sxm")
    assert found.before.median > 0.15
    assert found.after.median < 0.04
    assert found.fitted_on == ("llama-3.1-8b",)


def test_a_factor_out_of_bounds_is_refused(monkeypatch):
    monkeypatch.setattr(calibration, "PRIOR_SD", 10.0)
    cases = cases_of({"gemm_scale": 3.0})
    with pytest.raises(InputError, match="outside"):
        fit(cases, Bench({"kind": "roofline"}), "vllm", "h100-sxm")


def test_a_file_comes_back_as_written(tmp_path):
    cases = cases_of({})
    found = fit(cases, Bench({"kind": "roofline"}), "vllm", "h100-sxm")
    path = write_calibration(found, tmp_path)
    assert path.name == "vllm_h100-sxm.yaml"
    assert read_calibrations(tmp_path) == {("vllm", "h100-sxm"): dict(found.terms)}
    path.write_text("engine: vllm\n")
    with pytest.raises(InputError, match="terms"):
        read_calibrations(tmp_path)
