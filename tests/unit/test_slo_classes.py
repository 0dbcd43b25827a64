"""SLO classes: who is in which, what each keeps, and what policies see of it."""

import math
from dataclasses import asdict

import numpy as np
import pytest

import llmsim as ls
from llmsim.core.errors import LlmsimError
from llmsim.policies.batching import VllmBatching
from llmsim.policies.precedence import ByDeadline
from llmsim.policies.views import NO_DEADLINE, Promise, RequestView
from llmsim.report.html import render_html
from llmsim.results.result import Result
from llmsim.results.slo import Slo, SloClass
from llmsim.scenario import build_workload
from llmsim.serving.promised import promises

SMALL = {
    "llmsim": 1,
    "name": "classes",
    "model": "llama-3.1-8b",
    "slo": {"classes": {"soon": {"ttft_s": 0.5, "tpot_s": 0.1}, "late": {"e2e_s": 30.0}}},
    "traffic": {
        "arrivals": {"kind": "poisson", "rate_rps": 20},
        "lengths": {"kind": "fixed", "prompt_tokens": 800, "output_tokens": 30},
        "requests": 60,
        "slo_classes": {"soon": 3, "late": 1},
    },
    "fleet": {"pools": {"main": {"gpu": "l40s"}}},
}


def scenario(**overrides):
    return ls.Scenario.parse(SMALL).override(overrides)


@pytest.fixture(scope="module")
def ran():
    return ls.run(scenario())


def test_each_request_is_judged_by_its_own_class(ran):
    rows = ran.requests
    assert set(rows["slo_class"]) == {"soon", "late"}
    soon, late = rows[rows["slo_class"] == "soon"], rows[rows["slo_class"] == "late"]
    good_soon = (soon["ttft_s"] <= 0.5) & (soon["tpot_s"] <= 0.1)
    good_late = late["e2e_s"] <= 30.0
    assert 0 < good_soon.mean() < 1 == good_late.mean()
    by = ran.by_slo_class
    assert by["soon"]["slo_attained_frac"] == pytest.approx(good_soon.mean())
    assert by["late"]["slo_attained_frac"] == 1.0
    both = (good_soon.sum() + good_late.sum()) / len(rows)
    assert ran.metrics["slo_attained_frac"] == pytest.approx(both)
    # a class without a limit of a kind keeps it by finishing
    late_of_all = (soon["ttft_s"] > 0.5).sum() / len(rows)
    assert ran.metrics["slo_ttft_attained_frac"] == pytest.approx(1 - late_of_all)
    rates = by["soon"]["goodput_rps"] + by["late"]["goodput_rps"]
    assert ran.metrics["goodput_rps"] == pytest.approx(rates)
    least = min(by["soon"]["slo_attained_frac"], 1.0) / 0.95
    assert ran.metrics["slo_class_least_ratio"] == pytest.approx(least)


def test_classes_change_nothing_that_is_not_asked_by_them(ran):
    plain = ls.run(scenario(**{"slo.classes": None, "traffic.slo_classes": None}))
    assert plain.digest == ran.digest
    assert "slo_class" not in plain.requests
    assert plain.by_slo_class == {}
    assert "slo_class_least_ratio" not in plain.metrics


def test_a_run_comes_back_from_its_folder_with_its_classes(ran, tmp_path):
    ran.save(tmp_path / "run")
    back = Result.load(tmp_path / "run")
    assert back.slo == ran.slo
    assert back.by_slo_class == ran.by_slo_class
    assert back.evaluate().claim == ran.evaluate().claim
    whole = Slo(ttft_s=1.0, classes=(SloClass("a", Slo(e2e_s=3.0, attained_frac=0.5)),))
    assert Slo.from_json(asdict(whole)) == whole


def test_the_slo_is_met_where_every_class_meets_its_own_share(ran):
    def claimed(soon_s):
        told = [("soon", Slo(ttft_s=soon_s, attained_frac=0.9)), ("late", Slo(e2e_s=30.0))]
        return ran.evaluate(Slo(classes=tuple(SloClass(*each) for each in told)))

    strict, lax = claimed(1e-4), claimed(100.0)
    assert math.isclose(strict.values()["slo_class_least_ratio"], 0.0)
    assert lax.values()["slo_class_least_ratio"] == pytest.approx(1 / 0.95)
    assert [each.name for each in lax.classes] == ["soon", "late"]
    assert lax.claim.reason.startswith("soon: ")
    assert " late: " in lax.claim.reason


def test_clients_have_classes_and_others_have_none():
    shares = {"app": 1.0, "other": 1.0}
    given = scenario(
        **{
            "traffic.slo_classes": None,
            "traffic.clients": shares,
            "traffic.slo_class_by_client": {"app": "late"},
            "slo.ttft_s": 0.25,
        }
    )
    result = ls.run(given)
    rows = result.requests
    assert set(rows[rows["client"] == "app"]["slo_class"]) == {"late"}
    assert set(rows[rows["client"] == "other"]["slo_class"]) == {""}
    others = rows[rows["slo_class"] == ""]
    assert result.by_slo_class[""]["slo_attained_frac"] == (others["ttft_s"] <= 0.25).mean()


HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens,Tier"
LINES = [
    HEAD,
    "2023-11-16 18:15:46.0,100,10,late",
    "2023-11-16 18:15:47.0,200,10,",
    "2023-11-16 18:15:48.0,300,10,soon",
]


def traced(tmp_path, lines, column="Tier", kind="azure-2023", name="trace.csv"):
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    trace = {"kind": kind, "path": str(path), "slo_class_column": column}
    synthetic = dict.fromkeys(("arrivals", "lengths", "requests", "slo_classes"))
    return SMALL | {"traffic": {**SMALL["traffic"], **synthetic, "trace": trace}}


def classes_of(document):
    workload = build_workload(ls.Scenario.parse(document))
    return np.concatenate([chunk.slo_class for chunk in workload.chunks()]).tolist()


def test_a_trace_names_classes_in_a_column(tmp_path):
    assert classes_of(traced(tmp_path, LINES)) == [1, -1, 0]
    burst = [
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
        "5,late,10,20,30,API log",
        "6,soon,10,20,30,API log",
    ]
    assert classes_of(traced(tmp_path, burst, "Model", "burstgpt")) == [1, 0]
    json_lines = [
        '{"timestamp": 0, "input_length": 5, "output_length": 2, "hash_ids": [1], "Tier": "soon"}',
        '{"timestamp": 1, "input_length": 5, "output_length": 2, "hash_ids": [1]}',
    ]
    assert classes_of(traced(tmp_path, json_lines, "Tier", "mooncake", "t.jsonl")) == [0, -1]


@pytest.mark.parametrize(
    ("lines", "column", "told"),
    [
        (
            LINES,
            "Teir",
            "Teir: no such column (slo_class_column). Did you mean 'Tier'",
        ),
        (LINES, "ContextTokens", "holds numbers or times"),
        (
            [HEAD, "2023-11-16 18:15:46.0,9,9,sonn"],
            "Tier",
            "names class 'sonn'. Did you mean 'soon'",
        ),
    ],
)
def test_what_is_wrong_with_a_column_is_told(tmp_path, lines, column, told):
    with pytest.raises(LlmsimError) as error:
        classes_of(traced(tmp_path, lines, column))
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"slo.classes": None}, "traffic.slo_classes: needs slo.classes"),
        ({"traffic.slo_classes": None}, "slo.classes: are nobody's"),
        (
            {"traffic.slo_classes": {"sonn": 1.0}},
            "no class 'sonn' in slo.classes. Did you mean 'soon'",
        ),
        ({"traffic.slo_class_by_client": {"a": "soon"}}, "excludes traffic.slo_classes"),
        ({"traffic.samples": 2}, "do not go with samples"),
        (
            {"slo.classes.soon.ttft_s": None, "slo.classes.soon.ttft_per_prompt_token_s": 0.1},
            "added",
        ),
        ({"slo.classes.soon.tttft_s": 1.0}, "slo.classes.soon.tttft_s"),
    ],
)
def test_what_does_not_go_together_is_told(overrides, told):
    with pytest.raises(ls.ScenarioError) as error:
        scenario(**overrides)
    assert told in str(error.value)


def test_a_client_that_never_turns_up_is_told():
    wrong = {
        "traffic.slo_classes": None,
        "traffic.clients": {"app": 1.0},
        "traffic.slo_class_by_client": {"apo": "soon"},
    }
    with pytest.raises(LlmsimError, match=r"no client 'apo'. Did you mean 'app'"):
        ls.run(scenario(**wrong))


def test_policies_see_when_things_are_due():
    rules = promises(scenario(**{"slo.tpot_s": 0.2}), 7)
    assert rules.timeout_ns == 7
    assert rules.promise.tpot_ns == 200_000_000
    soon, late = rules.classes
    assert (soon.number, soon.ttft_ns, soon.e2e_ns) == (0, 500_000_000, NO_DEADLINE)
    assert late.due_ns(5, 100) == 5 + 30 * 10**9

    def view(index, arrival_ns, promise):
        made = RequestView(index, arrival_ns, 100, -1, -1, 0, None)
        made.promise = promise
        return made

    order = VllmBatching(order="deadline").urgency
    line = [
        view(0, 0, Promise()),
        view(1, 10, Promise(e2e_ns=1000)),
        view(2, 20, Promise(ttft_ns=100, ttft_per_prompt_token_ns=2.0)),
        view(3, 30, Promise(ttft_ns=100, e2e_ns=150)),
    ]
    assert [each.index for each in sorted(line, key=order)] == [3, 2, 1, 0]
    assert ByDeadline().deadline_ns(line[2]) == 320
    assert ByDeadline(ttft_s=1e-6).deadline_ns(line[2]) == 1020
    assert ByDeadline().deadline_ns(line[0]) == NO_DEADLINE


def test_by_deadline_the_urgent_class_waits_less():
    waits = {}
    for order in ("fcfs", "deadline"):
        rush = {"traffic.arrivals.rate_rps": 60, "fleet.pools.main.batching.order": order}
        by = ls.run(scenario(**rush, **{"engine.max_num_seqs": 4})).by_slo_class
        waits[order] = by["soon"]["ttft_mean_s"], by["late"]["ttft_mean_s"]
    assert waits["deadline"][0] < 0.9 * waits["fcfs"][0]
    assert waits["deadline"][1] > waits["fcfs"][1]


def test_all_calls_of_a_program_have_the_class_of_its_first():
    result = ls.run(
        "agents",
        {
            "slo.classes": SMALL["slo"]["classes"],
            "traffic.slo_classes": {"late": 2, "soon": 1},
            "traffic.duration_s": 25,
            "traffic.warmup_s": 0,
        },
    )
    of = result.requests.groupby("session")["slo_class"].nunique()
    assert len(result.requests) > 2 * len(of)
    assert (of == 1).all()
    assert set(result.requests["slo_class"]) == {"soon", "late"}


def test_the_report_names_the_share_that_each_class_is_promised():
    late = {"slo.classes.late.attained_frac": 0.5, "slo.attained_frac": 0.9}
    page = render_html(ls.run(scenario(**late)))
    assert "; 90.0% of soon, 50.0% of late must keep all of them.</caption>" in page
    assert "<span>soon: " in page  # the name of a class begins no sentence
