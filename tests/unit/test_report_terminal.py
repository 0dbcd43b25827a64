import io
import math
import re
from pathlib import Path

import pytest
from example_runs import INFO, facts_of, queue_run, table_of
from rich.console import Console

import llmsim as ls
from llmsim.report.terminal import fact_rows, print_summary
from llmsim.results.result import Result
from llmsim.results.slo import Slo
from llmsim.results.wording import NONE, duration, headline, number, share, usd


def printed(result, folder=None, width=80):
    out = io.StringIO()
    print_summary(result, folder, Console(file=out, width=width))
    return out.getvalue()


@pytest.fixture(scope="module")
def stable():
    return queue_run(0.6, 3_000, slo=Slo(ttft_s=0.5, itl_s=0.02), warnings=("2 rows skipped",))


def test_it_fits_80_columns_and_shows_all(stable):
    text = printed(stable, Path("runs/today"))
    assert max(len(line) for line in text.splitlines()) <= 80
    for word in ("TTFT", "TPOT", "ITL", "E2E", "p50", "p90", "p99", "goodput", "SLO", "saturation"):
        assert word in text
    for word in ("KV use", "prefix hits", "preemptions", "cost", "per million output tokens"):
        assert word in text
    assert "stable" in text
    assert "warning: 2 rows skipped" in text
    assert "saved in runs/today" in text
    assert "by-hand  llama-3.1-8b on 1 x h100-sxm, seed 7" in text


def test_its_numbers_are_the_metrics(stable):
    text = printed(stable)
    value = stable.metrics
    line = next(line for line in text.splitlines() if line.strip().startswith("TTFT"))
    cells = re.split(r"\s{2,}", line.strip())
    wanted = [duration(value[f"ttft_{q}_s"]) for q in ("p50", "p90", "p99", "mean")]
    assert cells == ["TTFT", *wanted, "≤ 500 ms", share(value["slo_ttft_attained_frac"])]
    assert number(value["goodput_rps"]) in text
    assert usd(value["usd_per_million_output_tokens"]) in text


def test_an_overloaded_run_is_marked():
    text = printed(queue_run(1.3, 3_000, slo=Slo(ttft_s=1)))
    assert "p99 *" in text
    assert "depends on run length" in text
    assert "not claimed" in text
    assert "p99 *" not in printed(queue_run(0.5, 3_000))


def test_without_objectives_and_with_few_requests():
    text = printed(queue_run(0.5, 20))
    assert "no objective is set" in text
    assert "kept by" not in text
    assert "too short to tell" in text
    empty = Result(table_of([]), facts_of(0, 0), INFO)
    line = next(line for line in printed(empty).splitlines() if line.strip().startswith("TTFT"))
    assert line.split() == ["TTFT", NONE, NONE, NONE, NONE]


def test_nothing_goes_to_stderr(stable, capsys):
    print_summary(stable)
    captured = capsys.readouterr()
    assert "TTFT" in captured.out
    assert captured.err == ""


def test_odd_names_are_not_markup(stable):
    odd = Result(stable.table, stable.facts, type(INFO)("[red]x", "m", "f", 1, "", "0"), stable.slo)
    assert "[red]x" in printed(odd, Path("runs/[bold]y"))
    assert "runs/[bold]y" in printed(odd, Path("runs/[bold]y"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 s"),
        (1.5, "1.50 s"),
        (0.99951, "1.00 s"),
        (0.0123, "12.3 ms"),
        (0.5, "500 ms"),
        (1e-3, "1 ms"),
        (1e-5, "10 us"),
        (4.56e-5, "45.6 us"),
        (1234, "1,234 s"),
        (math.nan, NONE),
    ],
)
def test_durations_in_words(value, text):
    assert duration(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "100.0%"), (0, "0.0%"), (0.98765, "98.8%"), (0.9999, "99.99%"), (0.00004, "0.004%")],
)
def test_shares_never_round_to_all_or_nothing(value, text):
    assert share(value) == text


def test_money_and_numbers_in_words():
    assert (usd(0.4213), usd(5.98), usd(1234.5), usd(math.nan)) == (
        "$0.421",
        "$5.98",
        "$1,234.50",
        NONE,
    )
    assert (number(0.0123), number(9.5), number(12.34), number(12345.6)) == (
        "0.0123",
        "9.50",
        "12.3",
        "12,346",
    )


def test_a_headline_says_what_a_manager_asks(stable):
    text = headline(stable.evaluate(), "llama-3.1-8b", "1 x h100-sxm")
    assert "3,000 of 3,000 requests" in text
    assert "The fleet kept up with the traffic." in text
    assert share(stable.metrics["slo_attained_frac"]) in text
    assert "$6.00 per hour" in text
    assert "overloaded" in headline(queue_run(1.4, 3_000).evaluate(), "m", "f")


def test_refusals_are_told_where_there_are_any(tmp_path):
    changes = {"traffic.requests": 60, "traffic.arrivals.rate_rps": 20.0}
    run = ls.run("quickstart", {**changes, "fleet.gateway": {"most_per_replica": 2}})
    found = run.evaluate().values()
    told = dict(fact_rows(run.evaluate(), run.facts))["refusals"]
    assert told == f"{found['refusals']:.0f}; {found['holds']:.0f} times a request was held"
    assert found["refusals"] >= found["holds"] > 0
    run.save(tmp_path / "run")
    saved = ls.load(tmp_path / "run")
    assert (saved.facts.refusals, saved.facts.holds) == (run.facts.refusals, run.facts.holds)
    free = ls.run("quickstart", changes)
    assert "refusals" not in dict(fact_rows(free.evaluate(), free.facts))
