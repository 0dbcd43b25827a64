"""What something was fitted to does not count in the headline."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmsim.fidelity.cases import Case
from llmsim.fidelity.prediction import Prediction
from llmsim.fidelity.replay import Replayed
from llmsim.fidelity.tables import headline_rows
from llmsim.fidelity.validation import report_of

RUN = {
    "source": "aic-silicon-internal",
    "engine": "vllm",
    "engine_version": "0.12.0",
    "model_key": "qwen3-32b",
    "gpu": "H100-80G-SXM",
}


def replayed(case_id: str, tp: str, predicted_s: float) -> Replayed:
    case = Case(case_id, "A", {**RUN, "tp": tp}, {("tpot", "mean"): 0.01})
    return Replayed(case, Prediction({("tpot", "mean"): predicted_s}, 1, ()))


def test_fitted_cases_have_a_row_of_their_own():
    report = report_of(Path(), [replayed("a", "4", 0.012), replayed("b", "8", 0.01)])
    (headline,) = report.groups["headline"]
    assert headline.cases == 1
    assert headline.errors["tpot"].median == pytest.approx(0.2)
    (seen,) = report.groups["seen"]
    assert (seen.name, seen.cases) == ("fitted: engine card vllm-0.12", 1)
    (both,) = report.groups["all"]
    assert both.cases == 2
    assert [row[0] for row in headline_rows(report)][-1] == "fitted: engine card vllm-0.12"
