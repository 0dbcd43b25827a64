"""The page of a comparison says what the numbers say, and nothing that they do not."""

import io
import math

import numpy as np
import pytest
from rich.console import Console
from test_report_html import Page
from typer.testing import CliRunner

from llmsim.cli.app import app
from llmsim.report.bands import print_seeds, sureness
from llmsim.report.compare_page import Line, headline, lines_of, render_comparison
from llmsim.scenario import Scenario
from llmsim.study.comparison import CostComparison
from llmsim.study.draws import HEADLINES, CostDraws
from llmsim.study.seeded import SeedComparison

A = Scenario.load("quickstart")
B = A.override({"engine.max_num_seqs": 8})


def seeded(first, second):
    """A comparison in which every metric has these values."""
    values = {name: (np.array(first), np.array(second)) for name in HEADLINES}
    return SeedComparison(("a", "b"), (1, 2, 3), values, (("stable", "overloaded"),) * 3)


def words(text):
    return " ".join(" ".join(Page(text).words).split())


def test_better_means_that_the_interval_holds_no_zero():
    lines = {line.metric: line for line in lines_of(seeded([10.0, 11, 12], [5.0, 6.5, 7]))}
    assert lines["ttft_p99_s"].verdict == "B"  # less time
    assert lines["goodput_rps"].verdict == "A"  # less work
    assert lines["ttft_p99_s"].difference == pytest.approx((18.5 - 33) / 3)
    lines = lines_of(seeded([10.0, 11, 12], [5.0, 16, 12]))
    assert {line.verdict for line in lines} == {"open"}
    assert {line.verdict for line in lines_of(seeded([1.0, 2, 3], [1.0, 2, 3]))} == {"alike"}


def test_what_never_differs_is_alike_and_no_coin_thrown():
    same = seeded([1.0, 2, 3], [1.0, 2, 3])
    assert {sureness(same, metric) for metric in HEADLINES} == {"alike"}
    assert all(line.tied for line in lines_of(same))
    assert not any(line.tied for line in lines_of(seeded([1.0, 2, 3], [2.0, 1, 3])))
    even = seeded([1.0, 2, 3], [2.0, 1, 3])  # one better, one worse, one alike
    assert {sureness(even, metric) for metric in HEADLINES} == {"50.0%"}
    for compared, said in ((same, True), (even, False)):
        console = Console(record=True, width=80, file=io.StringIO())
        print_seeds(compared, console=console)
        text = console.export_text()
        assert ("No difference: A and B did the same every time." in text) == said
        assert ("50.0%" in text) == (not said)
        assert max(map(len, text.splitlines())) <= 80


def test_pairs_without_a_number_are_left_out_of_means_and_difference():
    (line, *_) = lines_of(seeded([10.0, math.nan, 12], [5.0, 100.0, 7]))
    assert (line.first, line.second, line.difference) == (11, 6, -5)


def test_draws_give_the_difference_draw_by_draw():
    drawn = [np.array([1.0, 2, 3, 4]), np.array([2.0, 4, 6, 8])]
    sides = [
        CostDraws(
            "x",
            dict.fromkeys(HEADLINES, 2.5),
            dict.fromkeys(HEADLINES, each),
            ("stable",) * 4,
            ("met",) * 4,
        )
        for each in drawn
    ]
    compared = CostComparison(*sides)
    low, high = compared.interval("ttft_p50_s")
    assert (low, high) == pytest.approx(np.quantile([1.0, 2, 3, 4], (0.1, 0.9)))
    table = compared.table().set_index("metric")
    assert table.loc["ttft_p50_s", "difference_p10"] == low
    assert table.loc["ttft_p50_s", "difference_value"] == 0


def test_the_headline_names_both_sides():
    told = headline(
        [
            Line("ttft_p99_s", 2.0, 1.0, -1.2, -0.8, 0.0),
            Line("goodput_rps", 8.0, 4.0, -5.0, -3.0, 1.0),
            Line("tpot_p50_s", 1.0, 1.1, -0.1, 0.3, 0.4),
        ]
    )
    assert told == (
        "B is better than A in TTFT p99 (50.0% less). A is better than B in goodput, req/s "
        "(100.0% more). It is open which is better in TPOT p50."
    )
    assert headline([]) == "Nothing differs between A and B."


def test_the_page_says_what_differs_and_who_was_overloaded():
    text = render_comparison(seeded([10.0, 11, 12], [5.0, 6.5, 7]), A, B)
    said = words(text)
    assert "engine.max_num_seqs 256 8" in said
    assert "B was overloaded under 3 of 3" in said
    assert "A was overloaded" not in said
    page = Page(text)
    assert len(page.svgs) == 1
    assert len(set(page.ids)) == len(page.ids)
    assert "http" not in text
    assert "Nothing." in words(render_comparison(seeded([1.0, 2, 3], [1.0, 2, 3]), A, A))


def test_the_command_writes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ("--set", "traffic.requests=60", "--seeds", "2", "--jobs", "1", "--html", "page.html")
    other = ("--set-b", "engine.max_num_seqs=4")
    done = CliRunner().invoke(app, ["compare", "quickstart", "quickstart", *small, *other])
    assert done.exit_code == 0, done.output
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert "…" not in done.stdout
    assert "B  quickstart  engine.max_num_seqs=4" in done.stdout
    assert "engine.max_num_seqs 256 4" in words((tmp_path / "page.html").read_text())
