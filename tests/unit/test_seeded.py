"""Two scenarios under the same seeds."""

import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

import llmsim as ls
from llmsim import api
from llmsim.cli.app import app
from llmsim.study.draws import HEADLINES
from llmsim.study.seeded import SeedComparison


def comparison(first, second):
    nothing = np.full(len(first), math.nan)
    values = dict.fromkeys(HEADLINES, (nothing, nothing))
    values |= {"ttft_p50_s": (np.array(first), np.array(second))}
    seeds = tuple(range(len(first)))
    return SeedComparison(("a", "b"), seeds, values, (("stable", "stable"),) * len(first))


def test_difference_and_interval_by_hand():
    """Differences 1, 2, 3: mean 2, deviation 1, and t of 2 degrees of freedom is 4.3027."""
    compared = comparison([1.0, 5.0, 2.0], [2.0, 7.0, 5.0])
    low, high = compared.interval("ttft_p50_s")
    assert (low + high) / 2 == pytest.approx(2)
    assert (high - low) / 2 == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert compared.first_better_frac("ttft_p50_s") == 1
    row = compared.table().set_index("metric").loc["ttft_p50_s"]
    assert row["difference"] == pytest.approx(row["second"] - row["first"])
    assert math.isnan(compared.first_better_frac("goodput_rps"))
    assert comparison([1.0, 1.0], [1.0, 0.5]).first_better_frac("ttft_p50_s") == 0.25


def test_command_and_call_say_the_same():
    given = {"traffic.requests": 40}
    words = ["compare", "quickstart", "quickstart", "--set", "traffic.requests=40", "--seeds", "2"]
    words += ["--set-b", "fleet.pools.main.replicas=1", "--jobs", "1"]
    told = CliRunner().invoke(app, [*words, "--json"])
    assert told.exit_code == 0, told.output
    rows = {row["metric"]: row for row in json.loads(told.stdout)["metrics"]}
    second = ls.Scenario.load("quickstart", given | {"fleet.pools.main.replicas": 1})
    same = api.compare_seeds("quickstart", second, given, seeds=(1, 2), jobs=1)
    low, high = same.interval("ttft_p50_s")
    assert (rows["ttft_p50_s"]["ci_low"], rows["ttft_p50_s"]["ci_high"]) == pytest.approx(
        (low, high), rel=1e-6
    )
    shown = CliRunner().invoke(app, words)
    assert "recomputed" in shown.output
    assert "2 seeds" in shown.output
    assert shown.output.startswith("A  quickstart\nB  quickstart  fleet.pools.main.replicas=1\n")


def test_one_seed_is_refused():
    with pytest.raises(ls.InputError, match="two or more"):
        api.compare_seeds("quickstart", "quickstart", seeds=(1,))
