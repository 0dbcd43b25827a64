import math
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from example_runs import INFO, MS, S, facts_of, queue_run, row, table_of
from hypothesis import given
from hypothesis import strategies as st

import llmsim as ls
from llmsim.report.figures import CDF_POINTS, cdf
from llmsim.report.groups import groups
from llmsim.report.html import render_html
from llmsim.report.lengths import by_length
from llmsim.report.typical import typical_steps
from llmsim.results.metrics import METRICS
from llmsim.results.result import Result
from llmsim.results.slo import Slo
from llmsim.results.wording import duration, number, share

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Checks that tags close in order, and gathers ids, references and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.references, self.words, self.svgs = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "svg":
            self.svgs.append(given)
        if "id" in given:
            self.ids.append(given["id"])
        self.references += [
            v for k, v in attrs if k in ("src", "href", "xlink:href", "data", "action")
        ]
        assert tag not in {"script", "link", "img", "iframe", "object"}

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def result():
    return queue_run(0.6, 3_000, slo=Slo(ttft_s=0.5), warnings=("2 <rows> were skipped",))


@pytest.fixture(scope="module")
def text(result):
    return render_html(result)


def test_it_is_well_formed_and_fetches_nothing(text):
    page = Page(text)
    assert len(set(page.ids)) == len(page.ids)
    assert all(ref.startswith("#") and ref[1:] in page.ids for ref in page.references)
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text.replace("url(#", "")
    assert "@import" not in text


def test_it_says_what_the_metrics_say(result, text):
    words = " ".join(" ".join(Page(text).words).split())
    value = result.metrics
    assert result.headline() in words
    assert duration(value["ttft_p99_s"]) in words
    assert share(value["slo_attained_frac"]) in words
    assert "Saturation: stable." in words
    assert f"Objectives: {result.evaluate().claim.value}." in words
    assert "2 <rows> were skipped" in words
    assert INFO.scenario_yaml.strip().replace("\n", " ") in words
    for metric in METRICS:
        assert metric.name in words


def test_drawings_are_described_and_take_the_pages_colours(text):
    page = Page(text)
    assert len(page.svgs) == 3
    for svg in page.svgs:
        assert svg["role"] == "img"
        assert len(svg["aria-label"]) > 30
        assert "width" not in svg
    assert "#0102" not in text  # every stand-in colour was replaced
    assert "currentColor" in text
    assert "prefers-color-scheme: dark" in text
    assert "TTFT" in page.words


def test_equal_runs_have_equal_pages(result, text):
    assert render_html(result) == text


def test_an_overloaded_and_an_empty_run_have_pages():
    words = " ".join(Page(render_html(queue_run(1.3, 3_000, slo=Slo(ttft_s=1)))).words)
    assert "depend on run length" in words
    Page(render_html(Result(table_of([]), facts_of(0, 0), INFO)))
    Page(render_html(queue_run(0.5, 1)))


def test_a_scenario_cannot_break_the_page(result):
    odd = replace(INFO, scenario="</title><script>", scenario_yaml="</pre><script>alert(1)")
    page = render_html(Result(result.table, result.facts, odd))
    assert "<script>" not in page
    Page(page)


def test_it_is_saved_with_the_run(result, tmp_path):
    run = Result(result.table, result.facts, INFO, result.slo, render=render_html)
    folder = run.save(tmp_path / "run")
    assert (folder / "report.html").read_text(encoding="utf-8") == render_html(run)


@given(st.lists(st.floats(1e-6, 1e4), min_size=1, max_size=3_000))
def test_a_curve_keeps_its_ends_and_lies_on_the_data(values):
    data = np.array(values)
    x, y = cdf(data)
    assert len(x) <= CDF_POINTS
    assert x[0] == data.min()
    assert (x[-1], y[-1]) == (data.max(), 1.0)
    assert np.all(np.diff(y) > 0)
    ordered = np.sort(data)
    assert np.array_equal(ordered[np.rint(y * len(data)).astype(int) - 1], x)


def test_a_long_curve_keeps_its_tail():
    x, y = cdf(np.arange(100_000, dtype=float))
    assert len(x) <= CDF_POINTS
    assert (y > 0.999).sum() >= 20


def test_heavy_libraries_are_loaded_only_when_needed():
    code = (
        "import sys, llmsim.results.result, llmsim.report.terminal, llmsim.report.html\n"
        "heavy = {'pandas', 'pyarrow', 'matplotlib', 'scipy', 'jinja2', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_operator_of_a_typical_step_is_told_with_its_bound():
    run = ls.run("quickstart", {"traffic.requests": 300})
    steps, missing = typical_steps(run)
    assert missing == ""
    decode, prompt = steps
    # the mean batch while busy, from the rows alone: time in decode over the time that steps ran
    rows = run.requests
    busy_s = sum(float(r.timeline.totals["busy_ns"].sum()) for r in run.facts.replicas) / 1e9
    running = float((rows.e2e_s - rows.queue_s).sum()) / busy_s
    assert abs(int(decode.what.split()[0]) - running) < 1.5
    words = " ".join(" ".join(Page(render_html(run)).words).split())
    for step in steps:
        assert step.what in words
        assert math.isclose(sum(r.share_frac for r in step.breakdown.rows), 1.0)
        longest = step.breakdown.rows[0]
        told = duration(longest.seconds), share(longest.share_frac)
        assert f"{longest.name} {' '.join(told)} {longest.bound}" in words
    assert decode.breakdown.rows[0].bound == "memory"
    assert prompt.breakdown.rows[0].bound == "compute"


def test_a_run_whose_cards_are_gone_says_so(result):
    steps, missing = typical_steps(result)
    assert steps == ()
    assert "cannot be read any more" in missing
    assert "cannot be read any more" in render_html(result)


def test_a_cell_of_the_length_table_is_the_share_of_its_requests():
    rng = np.random.default_rng(3)
    n = 4_000
    prompt, output = rng.integers(1, 9_000, n), rng.integers(1, 700, n)
    slow = (prompt > 2_000) & (output > 300)
    ended = rng.random(n) < 0.9
    rows = [
        row(
            i,
            "finished" if ended[i] else "timed_out",
            arrival_ns=i * MS,
            first_token_ns=i * MS + (3 if slow[i] else 1) * S,
            end_ns=i * MS + 4 * S,
            prompt_tokens=int(prompt[i]),
            output_tokens=int(output[i]),
        )
        for i in range(n)
    ]
    run = Result(table_of(rows), facts_of(n, n * MS + 4 * S), INFO, Slo(ttft_s=2), warmup_s=1.0)
    found = by_length(run)
    late = np.arange(n) * MS >= S
    assert found.unfinished == int((late & ~ended).sum())
    assert int(found.requests.sum()) == int((late & ended).sum())
    assert found.requests.shape == (len(found.output_edges) - 1, len(found.prompt_edges) - 1)
    for line in range(found.requests.shape[0]):
        for column in range(found.requests.shape[1]):
            inside = late & ended
            for edges, at, values in (
                (found.output_edges, line, output),
                (found.prompt_edges, column, prompt),
            ):
                inside = inside & (values >= edges[at]) & (values < edges[at + 1])
            assert found.requests[line, column] == inside.sum()
            if inside.any():
                assert math.isclose(found.values[line, column], (~slow[inside]).mean())
    assert "did not finish and are not shown" in render_html(run)


def test_without_objectives_the_cells_are_median_times():
    run = queue_run(0.5, 400)
    found = by_length(run)
    assert found.prompt_edges == (100, 101)  # all prompts are alike
    assert math.isclose(found.values[0, 0], float(run.requests.e2e_s.median()))
    assert "How long requests took, by length" in render_html(run)


def test_tenants_with_the_most_requests_come_first():
    rows = [
        row(i, client=i % 3 % 2, first_token_ns=S, end_ns=2 * S, output_tokens=2) for i in range(30)
    ]
    run = Result(table_of(rows), facts_of(30, 2 * S), INFO)
    (found,) = [each for each in groups(run) if each.head == "tenant"]
    assert [name for name, _ in found.lines] == ["alice", "bob"]
    assert [cells[0] for _, cells in found.lines] == ["20", "10"]
    words = " ".join(" ".join(Page(render_html(run)).words).split())
    assert "By tenant" in words


def test_the_evidence_is_a_line_for_each_objective(result, text):
    words = " ".join(" ".join(Page(text).words).split())
    kept = int((result.requests.ttft_s <= 0.5).sum())
    assert f"TTFT ≤ 500 ms {share(kept / 3_000)}" in words
    assert f"{number(3_000 - kept)} together" in words
