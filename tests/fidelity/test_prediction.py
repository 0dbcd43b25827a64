"""What a simulated client reports, against numbers made by hand, and how errors are counted."""

import numpy as np
import pytest

from llmsim.fidelity.cases import Case
from llmsim.fidelity.prediction import Prediction, client_statistics, predict
from llmsim.fidelity.replay import Replayed, Store, prepare, simulate_all
from llmsim.fidelity.scenarios import scenario_data
from llmsim.fidelity.scores import LITTLE, capacities, errors_of, group_by, headline_scores
from llmsim.fidelity.scores import score_case as scored
from llmsim.results.columns import OUTCOMES, RAW_COLUMNS
from llmsim.results.facts import RunFacts
from llmsim.results.histogram import LogHistogram

MS = 1_000_000


def rows(*requests):
    """Raw rows of (sent, first token, end [ms], prompt, output tokens), all finished."""
    table = np.full((len(requests), len(RAW_COLUMNS)), -1, dtype=np.int64)
    names = ("arrival_ns", "first_token_ns", "end_ns", "prompt_tokens", "output_tokens")
    for index, request in enumerate(requests):
        scale = (MS, MS, MS, 1, 1)
        values = {name: x * s for name, x, s in zip(names, request, scale, strict=True)}
        values |= {"request": index, "outcome": OUTCOMES.index("finished")}
        for name, value in values.items():
            table[index, RAW_COLUMNS.index(name)] = value
    return table


FACTS = RunFacts("", 0, 0, 0, LogHistogram(), (), (), False, ())
TWO = rows((0, 100, 1100, 50, 11), (500, 700, 2700, 70, 21))


def test_statistics_as_a_client_defines_them():
    found = client_statistics(TWO, FACTS)
    assert found["ttft", "mean"] == pytest.approx(0.15)
    assert found["tpot", "mean"] == pytest.approx(0.1)  # 1.0 / 10 and 2.0 / 20
    assert found["e2e", "p50"] == pytest.approx((1.1 + 2.2) / 2)
    assert found["output_throughput", "mean"] == pytest.approx(32 / 2.7)
    assert found["total_throughput", "mean"] == pytest.approx((32 + 120) / 2.7)
    assert found["completed", "total"] == 2


def test_a_ratio_of_means_and_a_window():
    uneven = rows((0, 0, 1000, 1, 11), (0, 0, 1000, 1, 101))
    assert client_statistics(uneven, FACTS)["tpot", "mean"] == pytest.approx(0.055)
    of_means = client_statistics(uneven, FACTS, tpot_of_means=True)
    assert of_means["tpot", "mean"] == pytest.approx(1.0 / 55)
    second = client_statistics(TWO, FACTS, window=(1, 2))
    assert second["ttft", "mean"] == pytest.approx(0.2)


def case(measured, **fields):
    known = {"source": "lab", "arrival": "closed loop", "concurrency": "4", "osl": "11"}
    return Case(fields.pop("case_id", "x"), "A", {**known, **fields}, measured)


def test_signed_errors_and_throughput_by_littles_law():
    measured = {("ttft", "mean"): 0.1, ("tpot", "mean"): 0.01}
    predicted = {("ttft", "mean"): 0.15, ("tpot", "mean"): 0.008}
    scores = {
        (s.metric, s.stat): s
        for s in scored(Replayed(case(measured), Prediction(predicted, 1, ())))
    }
    assert scores["ttft", "mean"].error_frac == pytest.approx(0.5)
    assert scores["tpot", "mean"].error_frac == pytest.approx(-0.2)
    assert scores[LITTLE].measured == pytest.approx(4 * 11 / 0.2)
    assert scores[LITTLE].predicted == pytest.approx(4 * 11 / 0.23)


def test_errors_of_a_group():
    found = errors_of([-0.1, 0.3, -0.2, 0.05])
    assert (found.median, found.worst) == (pytest.approx(0.15), pytest.approx(0.3))
    assert found.bias == pytest.approx(-0.025)


def test_a_case_that_was_not_simulated_counts_as_wrong_by_all():
    good = case({("tpot", "mean"): 0.01}, case_id="a")
    done = Replayed(good, Prediction({("tpot", "mean"): 0.011}, 1, ()))
    left = Replayed(case({("tpot", "mean"): 0.01}, case_id="b"), None, "no card")
    chosen = headline_scores(scored(done))
    (group,) = group_by([done, left], chosen, lambda _: "all")
    assert (group.cases, group.simulated) == (2, 1)
    assert group.errors["tpot"].median == pytest.approx(0.1)
    assert group.covered["tpot"].median == pytest.approx(0.55)


def test_capacity_is_the_largest_throughput_of_a_ladder():
    scores = []
    for load, (seen, said) in enumerate([(10, 9), (20, 22), (30, 28), (25, 33)], 1):
        key = ("output_throughput", "mean")
        one = case({key: seen}, case_id=str(load), concurrency=str(load))
        scores += scored(Replayed(one, Prediction({key: said}, 1, ())))
    (ladder,) = capacities(headline_scores(scores))
    assert (ladder.points, ladder.measured, ladder.predicted) == (4, 30, 33)
    three = headline_scores(s for s in scores if s.case.case_id != "4")
    assert capacities(three) == []


LAB = {
    "model_key": "llama-3.1-8b",
    "gpu": "h100-sxm",
    "tp": "1",
    "engine": "vllm",
    "engine_version": "0.15.1",
    "isl": "200",
    "osl": "8",
}


def test_the_way_to_the_engine_counts_for_the_client():
    data = scenario_data(case({}, **LAB))
    way_s = data["traffic"]["arrivals"]["think_s"]
    seen = predict(data, front_s=way_s).values
    data["traffic"]["arrivals"]["think_s"] = 0.0
    bare = predict(data, front_s=0.0).values
    assert way_s == 0.0086
    assert seen["ttft", "mean"] > bare["ttft", "mean"]
    # four clients are in flight all the time: Little's law, up to start and end
    slots = seen["request_throughput", "mean"] * seen["e2e", "mean"]
    assert slots == pytest.approx(4, rel=0.05)


def test_results_are_kept_and_found_again(tmp_path):
    measured = {("tpot", "mean"): 0.01}
    twins = [case(measured, case_id=name, **LAB) for name in ("a", "b")]
    work, left = prepare(twins)
    assert left == []
    store, seen = Store(tmp_path / "kept.jsonl"), []
    first = simulate_all(work, store, progress=lambda done, of: seen.append((done, of)))
    again = simulate_all(work, store, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 1)]  # equal but for their names, and known the second time
    assert [r.prediction for r in first] == [r.prediction for r in again]


def test_a_model_that_does_not_fit_is_a_reason():
    (item,), _ = prepare([case({}, **{**LAB, "model_key": "llama-3.1-70b"})])
    (found,) = simulate_all([item])
    assert found.prediction is None
    assert "too large" in found.reason or "GiB" in found.reason
