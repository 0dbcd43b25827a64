"""Ctrl-C: the run so far is printed and saved as a valid run folder."""

import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from blocks import environment

import llmsim as ls

LONG = ["--set", "traffic.requests=30000000", "--set", "traffic.arrivals.rate_rps=4"]
ENDLESS_S = 60


def interrupted(folder, words, after_s):
    """Run the command, press Ctrl-C, and return what it left."""
    started = subprocess.Popen(
        ["llmsim", "run", "quickstart", *words, "--out", "run"],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        time.sleep(after_s)
        assert started.poll() is None, started.communicate()
        started.send_signal(signal.SIGINT)
        out, err = started.communicate(timeout=ENDLESS_S)
    finally:
        started.kill()
    return started.returncode, out, err


def interrupted_midway(folder):
    """Press Ctrl-C when the run has begun, however long a busy machine takes to get going."""
    for after_s in (5, 20, 60):
        code, out, err = interrupted(folder, LONG, after_s)
        if "nothing was written" not in err:
            break
        assert code == 130
        assert list(folder.iterdir()) == []
    return code, out, err


@pytest.mark.slow
def test_a_long_run_ends_with_130_and_a_valid_folder(tmp_path):
    code, out, err = interrupted_midway(tmp_path)
    assert code == 130, err
    assert "Interrupted: the result covers the run up to that point." in err
    assert "Traceback" not in err
    assert "saved in run" in out
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # no half-written folder
    result = ls.load(tmp_path / "run")
    assert result.facts.interrupted
    frame = result.requests
    assert len(frame) > 100
    assert frame.request.tolist() == list(range(len(frame)))
    assert {"finished"} <= set(frame.outcome) <= {"finished", "queued_at_end", "running_at_end"}
    assert any("interrupted" in text.lower() for text in result.warnings)


@pytest.mark.slow
def test_what_it_holds_is_the_beginning_of_the_whole_run(tmp_path):
    for after_s in (4, 12, 36):  # a busy machine takes long to get going
        folder = tmp_path / f"after-{after_s}"
        folder.mkdir()
        assert interrupted(folder, LONG, after_s=after_s)[0] == 130
        if not (folder / "run").exists():
            continue  # nothing had been run yet
        part = ls.load(folder / "run").requests
        part = part[(part.outcome == "finished") & (part.request < 1500)]
        if len(part) > 100:
            break
    whole = ls.run("quickstart", {"traffic.requests": 4000, "traffic.arrivals.rate_rps": 4})
    same = whole.requests.loc[part.index]
    columns = ["request", "arrival_s", "ttft_s", "tpot_s", "e2e_s", "replica"]
    assert len(part) > 100
    pd.testing.assert_frame_equal(part[columns], same[columns])


def test_ctrl_c_before_anything_ran_writes_nothing(tmp_path):
    code, out, err = interrupted(tmp_path, LONG, after_s=0.35)
    if code == 130 and "nothing was written" in err:
        assert list(tmp_path.iterdir()) == []
    else:  # the machine was quicker, or the interpreter was still starting
        assert code != 0
        assert out == "" or "saved in run" in out


FORGOTTEN = """
import os, signal
from llmsim.core.interrupt import watch
import llmsim as ls
watch()
try:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(10**6):
        pass
except KeyboardInterrupt:
    print("lost")
ls.run("quickstart")
"""


@pytest.mark.slow
def test_ctrl_c_that_was_swallowed_still_stops_the_run(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FORGOTTEN], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "lost\n"
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")
