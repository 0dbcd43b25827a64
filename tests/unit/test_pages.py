"""Every page in a real browser: nothing fetched, nothing thrown, drawn, legible, for keyboards.

At 400 to 1600 px, light and dark: no scrolling sideways, text contrast of WCAG 2 AA (4.5), every
drawing drawn, everything that scrolls or opens reached by the tabulator key with its focus to be
seen, and a name for all that a screen reader speaks.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, complaints
from example_runs import INFO, MS, S, facts_of, queue_run, row, table_of
from plan_by_hand import PLAN

import llmsim as ls
from llmsim.fidelity.cases import Case
from llmsim.fidelity.kvmemory import KvRow
from llmsim.fidelity.page import render_page
from llmsim.fidelity.prediction import Prediction
from llmsim.fidelity.replay import Replayed
from llmsim.fidelity.validation import report_of
from llmsim.gallery.figure import render_gallery
from llmsim.gallery.reading import exhibits, read_exhibit
from llmsim.gallery.results import load_results
from llmsim.gallery.scoring import stand
from llmsim.planner.page import render_plan
from llmsim.planner.several import Plans
from llmsim.planner.several_folder import render_plans
from llmsim.report.compare_page import render_comparison
from llmsim.report.html import render_html
from llmsim.report.pdf import find_browser
from llmsim.report.sweep_page import render_sweep
from llmsim.results.result import Result
from llmsim.results.slo import Slo
from llmsim.scenario import Scenario
from llmsim.study.draws import HEADLINES
from llmsim.study.seeded import SeedComparison

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="no browser on PATH"),
]


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


def of_a_run():
    return render_html(ls.run("quickstart", {"traffic.requests": 400}))


def of_an_overloaded_run():
    return render_html(queue_run(1.4, 3_000, slo=Slo(ttft_s=1), warnings=("rows were <skipped>",)))


def of_a_run_of_many():
    rng = np.random.default_rng(1)
    rows = [
        row(
            i,
            "timed_out" if i % 9 == 0 else "finished",
            arrival_ns=i * MS,
            client=i % 2,
            priority=i % 3,
            first_token_ns=i * MS + S,
            end_ns=i * MS + int(rng.integers(2, 9)) * S,
            prompt_tokens=int(rng.integers(1, 100_000)),
            output_tokens=int(rng.integers(1, 9_000)),
        )
        for i in range(2_000)
    ]
    return render_html(Result(table_of(rows), facts_of(2_000, 20 * S), INFO))


def of_an_empty_run():
    return render_html(Result(table_of([]), facts_of(0, 0), INFO))


def of_a_sweep():
    small = {"traffic.requests": 100}
    return render_sweep(
        ls.sweep("quickstart", {"engine.max_num_seqs": [8, 16], "seed": [1, 2]}, small, jobs=1)
    )


def of_a_trace():
    return None


def of_a_gallery_card():
    exhibit = read_exhibit(next(iter(exhibits().values())))
    return render_gallery(stand(exhibit, load_results(exhibit.folder, exhibit.name)))


def of_a_comparison():
    values = {name: (np.array([3.0, 4, 5]), np.array([1.0, 3, 2])) for name in HEADLINES}
    compared = SeedComparison(("a", "b"), (1, 2, 3), values, (("stable", "stable"),) * 3)
    first = Scenario.load("quickstart")
    return render_comparison(compared, first, first.override({"engine.max_num_seqs": 8}))


def of_a_plan():
    return render_plan(PLAN)


def of_plans_of_two_models():
    both = {"chat": PLAN, "code": replace(PLAN, model="qwen3-8b", outcome="not proven")}
    return render_plans(Plans("both", both, {"h100-sxm": 8}, 90.0, "plan: 1\nname: both\n", 2.5))


def of_a_validation():
    """Twelve cases of seven sources that disagree, one of them of an engine without a model."""
    replayed = []
    for at in range(12):
        fields = {
            "source": f"laboratory-{at % 7}", "engine": "vllm" if at else "tgi",
            "gpu": "H100-80G-SXM", "model_key": "llama-3.1-8b", "isl": "200", "osl": "8",
            "concurrency": str(2 ** (at % 4)), "arrival": "closed loop", "tp": "1",
        }  # fmt: skip
        measured = {("tpot", "mean"): 7e-3 + 1e-3 * at, ("ttft", "mean"): 0.04 * (at + 1)}
        case = Case(f"case-{at}", "A", fields, measured)
        predicted = {key: value * (0.7 + 0.05 * at) for key, value in measured.items()}
        found = Prediction(predicted, 3000, ()) if at else None
        replayed.append(Replayed(case, found, "" if at else "tgi: the engine has no model here"))
    report = report_of(Path("laboratories"), replayed)
    note = "batch limit or version not logged, defaults assumed, and so it is not scored at all"
    return render_page(
        replace(report, memory=(KvRow("llama on 1 x H100", 2, 51.4, 51.2, False, note),))
    )


PAGES = (
    of_a_run,
    of_an_overloaded_run,
    of_a_run_of_many,
    of_an_empty_run,
    of_a_sweep,
    of_a_trace,
    of_a_gallery_card,
    of_a_comparison,
    of_a_plan,
    of_plans_of_two_models,
    of_a_validation,
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.__name__)
def test_a_browser_has_nothing_to_complain_of(page, browser, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "page.html"
    if page is of_a_trace:
        ls.trace.inspect("burstgpt-like.csv.gz", html=path)
    else:
        path.write_text(page(), encoding="utf-8")
    assert complaints(browser, path) == []


def test_the_browser_would_complain(browser, tmp_path):
    """Each check of `complaints` finds what it looks for."""
    path = tmp_path / "bad.html"
    path.write_text(
        "<style>p { color: #aaa } a:focus { outline: none } svg { width: 200px; height: 90px }"
        "</style><p>pale</p><a href='#'>seen?</a><div style='width: 3000px'>wide</div>"
        "<div style='overflow-x: auto; width: 90px'><b style='white-space: pre'>a long long line"
        "</b></div><svg role='img'></svg><script>console.error('loud'); x.y</script>"
        "<img src='missing.png'>"
    )
    found = "\n".join(map(str, complaints(browser, path)))
    for told in (
        "scrolls sideways",
        "pale: P",
        "not drawn",
        "scrolls, but not by keyboard",
        "nameless: image",
        "is not seen",
        "consoleAPICalled",
        "exceptionThrown",
        "missing.png",
        "dark is as light",
    ):
        assert told in found
