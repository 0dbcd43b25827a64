"""Hostile and broken input: one clear message, the right exit code, nothing half-written.

The corpus (`hostile_corpus.py`) is run by `hostile.py` in one process under limits of memory and
processor time: an input that hangs or eats the memory ends it, and is named.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hostile import MOST_TOLD

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    script = Path(__file__).with_name("hostile.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder)], capture_output=True, text=True, timeout=600
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    begun = [line["begun"] for line in lines if "begun" in line]
    ended = {line["name"]: line for line in lines if "name" in line}
    unfinished = [name for name in begun if name not in ended]
    assert not unfinished, f"{unfinished} ended everything: {done.stderr[-2000:]}"
    assert done.returncode == 0, done.stderr[-2000:]
    return ended


def test_there_are_many_of_them_and_none_is_lost(outcomes):
    assert len(outcomes) >= 400


def test_every_one_is_refused_with_its_exit_code_and_no_traceback(outcomes):
    wrong = {
        name: (each["code"], each["said"][-400:])
        for name, each in outcomes.items()
        if each["broke"] or each["code"] not in each["codes"] or "Traceback" in each["said"]
    }
    assert wrong == {}


def test_every_one_has_one_clear_message(outcomes):
    wrong = {
        name: each["said"][:400]
        for name, each in outcomes.items()
        if not 10 <= len(each["said"].strip()) <= MOST_TOLD
        or each["says"] not in each["said"]
        or "llmsim found a fault in itself" in each["said"]
        or each["printed"]
    }
    assert wrong == {}


def test_nothing_is_half_written_and_nothing_is_run(outcomes):
    assert {name: each["left"] for name, each in outcomes.items() if each["left"]} == {}
