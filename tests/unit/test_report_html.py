import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from example_runs import INFO, facts_of, queue_run, table_of
from hypothesis import given
from hypothesis import strategies as st

from llmsim.report.figures import CDF_POINTS, cdf
from llmsim.report.html import render_html
from llmsim.results.metrics import METRICS
from llmsim.results.result import Result
from llmsim.results.slo import Slo
from llmsim.results.wording import duration, share

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
