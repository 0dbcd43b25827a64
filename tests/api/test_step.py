"""`ls.step`: what a step costs, as the command prints it."""

import json

import pytest
from typer.testing import CliRunner

import llmsim as ls
from llmsim.cli.app import app


def test_rows_add_up_to_the_step():
    price = ls.step("llama-3.1-8b", "h100-sxm", batch=64, context=2000, prefill=[(512, 0)])
    table = price.table()
    assert table.seconds.sum() == pytest.approx(price.seconds)
    assert table.share_frac.sum() == pytest.approx(1)
    assert set(table.bound) <= {"compute", "memory", "latency", "network", "host"}
    assert price.output_tokens_per_s == pytest.approx(64 / price.seconds)


def test_the_command_prints_the_same():
    words = "show step --model llama-3.1-70b --gpu h100-sxm --tp 2 --pp 2 --batch 8 --json"
    told = json.loads(CliRunner().invoke(app, words.split()).stdout)
    price = ls.step("llama-3.1-70b", "h100-sxm", batch=8, tp=2, pp=2)
    assert told["seconds"] == price.seconds
    assert [name for name, _ in told["stations_s"]] == ["host", "stage 0", "link 0", "stage 1"]
    assert sum(time for _, time in price.stations_s) == pytest.approx(price.seconds)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "the step is empty"),
        ({"batch": -1, "prefill": [(0, 3)]}, "(0, 3) is no slice of a prompt"),
        ({"batch": 1, "context": 0}, "0 tokens of context"),
    ],
)
def test_what_no_engine_would_run_is_refused(given, said):
    with pytest.raises(ls.InputError, match="problem") as told:
        ls.step("llama-3.1-8b", "h100-sxm", **given)
    assert said in str(told.value)
