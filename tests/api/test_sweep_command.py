"""`llmsim sweep` and `ls.sweep` from outside: table, folder, page, exit codes."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from html.parser import HTMLParser

import pandas as pd
import pytest
from blocks import environment
from clusters import need_cluster
from typer.testing import CliRunner

import llmsim as ls
from llmsim.cli.app import app
from llmsim.core.errors import InputError
from llmsim.core.paths import list_data

TINY = [
    *("--set", "traffic.requests=60"),
    *("--set", "traffic.lengths={kind: fixed, prompt_tokens: 300, output_tokens: 10}"),
]
OVER = ["--over", "engine.max_num_seqs=1,64", "--over", "traffic.arrivals.rate_rps=4..16:2"]
LOCAL = ["--jobs", "1"]


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """Keep points and folders of these tests to themselves."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def sweep(*words):
    return CliRunner().invoke(app, ["sweep", *words, *LOCAL])


class Page(HTMLParser):
    """What a page refers to, and its words."""

    def __init__(self, text):
        super().__init__()
        self.links, self.words, self.ids, self.svgs = [], [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.svgs += tag == "svg"
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "data")]
        self.ids += [v for k, v in attrs if k == "id"]

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One sweep for several tests: what it printed, and where its folder is."""
    folder = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.chdir(folder)
        told = sweep("quickstart", *TINY, *OVER, "--subject-to", "ttft_p99_s<=0.5", "--out", "made")
    assert told.exit_code == 0, told.output
    return told.output, folder / "made"


def test_the_table_marks_the_best_and_who_is_not_feasible(done):
    assert "quickstart  4 points, seed 7" in done[0]
    (best,) = [line for line in done[0].splitlines() if line.strip().startswith("★◆")]
    assert "feasible" in best
    assert "Wanted: most goodput_rps with ttft_p99_s <= 0.5." in done[0]
    assert "saved in made" in done[0]


def test_the_folder_holds_tables_and_a_file_that_makes_it_again(done, tmp_path):
    names = {"meta.json", "points.csv", "points.parquet", "report.html", "runs.parquet"}
    assert {path.name for path in done[1].iterdir()} == names | {"sweep.yaml"}
    again = sweep(str(done[1] / "sweep.yaml"), "--out", "again", "--fresh")
    assert again.exit_code == 0, again.output
    first, second = (
        pd.read_parquet(folder / "runs.parquet") for folder in (done[1], tmp_path / "again")
    )
    pd.testing.assert_frame_equal(first, second)


def test_the_page_needs_nothing_but_a_browser(done):
    page = Page((done[1] / "report.html").read_text(encoding="utf-8"))
    assert page.svgs == 2
    assert all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)
    text = " ".join(page.words)
    assert "Best: engine.max_num_seqs=" in text
    assert text.count("feasible") >= 4


@pytest.mark.slow
def test_a_browser_draws_the_page_without_a_complaint(done, tmp_path):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on PATH")
    picture = tmp_path / "page.png"
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    words += ["--window-size=1600,1200", f"--screenshot={picture}"]
    page = (done[1] / "report.html").as_uri()
    ran = subprocess.run(
        [chromium, *words, page], capture_output=True, text=True, timeout=120, check=True
    )
    assert "CONSOLE" not in ran.stderr
    assert picture.stat().st_size > 20_000


def test_json_names_the_best_point():
    told = sweep("quickstart", *TINY, *OVER, "--json", "--minimise", "ttft_p99_s")
    found = json.loads(told.stdout)
    assert found["objectives"] == ["least ttft_p99_s"]
    frame = pd.read_csv(f"{found['folder']}/points.csv")
    good = frame[frame["status"] == "feasible"]
    assert found["best"]["point"] == good.loc[good["ttft_p99_s"].idxmin(), "point"]


def test_drawn_axes_take_samples_and_seeds_give_intervals():
    told = sweep(
        "quickstart",
        *TINY,
        *("--over", "traffic.arrivals.rate_rps=1..8:sobol", "--samples", "2", "--seeds", "2"),
        *("--out", "made"),
    )
    assert told.exit_code == 0, told.output
    assert "2 points under 2 seeds" in told.output
    assert " ± " in told.output
    frame = pd.read_csv("made/points.csv")
    assert (frame["goodput_rps_ci_low"] < frame["goodput_rps"]).all()
    assert (frame["runs"] == 2).all()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["quickstart"], "over: names no field."),
        (["quickstart", "--over", "engine.max_num_seq=1,2"], "Did you mean 'max_num_seqs'?"),
        (["quickstart", *OVER, "--maximise", "goodput"], "Did you mean 'goodput_rps'?"),
        (["quickstart", *OVER, "--subject-to", "ttft_p99_s"], "'ttft_p99_s' is no condition."),
        (
            ["quickstart", *OVER, "--scheduler", "tcp://h:1"],
            "scheduler: is for the executors dask and ray",
        ),
        (["quickstrat", *OVER], "Did you mean 'quickstart'?"),
    ],
)
def test_what_is_wrong_is_told_and_the_exit_code_is_2(words, told):
    ended = sweep(*words)
    assert ended.exit_code == 2
    assert told in ended.output
    assert "Traceback" not in ended.output


def test_a_folder_that_is_taken_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("")
    ended = sweep("quickstart", *OVER, "--out", "taken")
    assert ended.exit_code == 2
    assert "taken is not empty" in ended.output


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(monkeypatch):
    from llmsim.study import sweep as sweeping

    whole, begun = sweeping.try_point, []

    def third_is_interrupted(scenario):
        if len(begun) == 2:
            raise KeyboardInterrupt
        begun.append(scenario)
        return whole(scenario)

    monkeypatch.setattr(sweeping, "try_point", third_is_interrupted)
    words = ["quickstart", *TINY, *OVER]
    ended = sweep(*words, "--out", "cut")
    assert ended.exit_code == 130
    assert "Interrupted: 2 of 4 points are done; the same command goes on" in ended.output
    assert pd.read_csv("cut/points.csv")["status"].tolist().count("not done") == 2
    begun.clear()
    monkeypatch.setattr(sweeping, "try_point", lambda s: begun.append(s) or whole(s))
    assert sweep(*words, "--out", "whole").exit_code == 0
    assert len(begun) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [["--jobs", "2", "--executor", kind] for kind in ("local", "dask", "ray")]
)
def test_ctrl_c_on_a_terminal_reaches_every_process_and_none_complains(more, tmp_path):
    need_cluster(more[-1])
    words = ["sweep", "quickstart", "--set", "traffic.requests=3000", "--out", "cut", *more]
    started = subprocess.Popen(
        ["llmsim", *words, "--over", "engine.max_num_seqs=17..80:64"],
        env=environment() | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of its own, as a terminal makes one
    )
    try:
        while len(list((tmp_path / "cache").rglob("*.json"))) < 3:
            assert started.poll() is None, started.communicate()
            time.sleep(0.1)
        os.killpg(started.pid, signal.SIGINT)
        _, err = started.communicate(timeout=120)
    finally:
        started.kill()
    assert started.returncode == 130, err
    assert re.fullmatch(r"Interrupted: \d+ of 64 points are done; the same command .*\n", err)
    kept = len(list((tmp_path / "cache").rglob("*.json")))
    done = int(re.search(r"\d+", err)[0])
    assert 3 <= done <= kept < 64
    assert pd.read_parquet("cut/runs.parquet").shape[0] == done


BAD_FILE = """\
scenario: quickstrat
over:
  engine.max_num_seqs: 1..8
samples: none
seeds: [1, 1]
maximize: goodput_rps
"""


def test_a_sweep_file_tells_all_its_faults_with_their_lines(tmp_path):
    (tmp_path / "bad.yaml").write_text(BAD_FILE)
    told = sweep("bad.yaml").output
    assert "bad.yaml:4  samples: must be a whole number from 1 on (got 'none')" in told
    assert "bad.yaml:5  seeds: [1, 1] has one twice." in told
    assert "bad.yaml:6  maximize: unknown key. Did you mean 'maximise'?" in told
    (tmp_path / "bad.yaml").write_text(BAD_FILE.split("samples")[0])
    told = sweep("bad.yaml").output
    assert "bad.yaml:1  scenario: no shipped scenario is called 'quickstrat'" in told
    (tmp_path / "bad.yaml").write_text(BAD_FILE.split("samples")[0].replace("strat", "start"))
    told = sweep("bad.yaml").output
    assert "bad.yaml:3  engine.max_num_seqs: 1..8 does not say how many values" in told


def test_a_sweep_file_may_hold_its_scenario_and_options_come_on_top(tmp_path):
    told = {
        "scenario": ls.Scenario.load("quickstart", {"traffic.requests": 30}).resolved(),
        "over": {"engine.max_num_seqs": [1, 2, 4], "fleet.pools.main.replicas": [1, 2]},
        "seeds": 2,
    }
    (tmp_path / "own.yaml").write_text(json.dumps(told))
    swept = ls.sweep("own.yaml", {"engine.max_num_seqs": [8]}, seeds=[5], jobs=1)
    assert [tuple(row.change.values()) for row in swept.rows] == [(1, 8), (2, 8)]
    assert swept.seeds == (5,)


@pytest.mark.parametrize("name", list_data("scenarios/sweeps", ".yaml"))
def test_shipped_sweeps_run(name):
    swept = ls.sweep(name, overrides={"traffic.requests": 20}, jobs=1)
    assert all(row.done for row in swept.rows)


def test_a_notebook_gets_a_frame_the_best_and_pictures(tmp_path):
    swept = ls.sweep(
        "quickstart",
        {"engine.max_num_seqs": [1, 64], "traffic.arrivals.rate_rps": "4..16:sobol"},
        {"traffic.requests": 60},
        samples=4,
        minimise="ttft_p99_s",
        count_overloaded=True,
        jobs=1,
    )
    frame = swept.frame
    assert len(frame) == 8
    assert frame.loc[frame["best"], "ttft_p99_s"].item() == frame["ttft_p99_s"].min()
    assert ls.run("quickstart", {"traffic.requests": 60} | swept.best.change).digest in set(
        swept.runs["digest"]
    )
    assert set(swept.pareto["point"]) == set(frame.loc[frame["pareto"], "point"])
    shown = swept._repr_html_()
    assert shown.count("<svg") == 2
    file = swept.heat_map(metric="busy_mean_frac").save(tmp_path / "map.svg")
    drawn = file.read_text(encoding="utf-8")
    assert "busy_mean_frac" in drawn
    assert not re.search(r"var\(--|currentColor", drawn)
    with pytest.raises(InputError, match=r"no axis 'engine\.max_num_seq'.*Did you mean"):
        swept.heat_map(x="engine.max_num_seq")
