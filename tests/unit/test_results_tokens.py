"""Fluidity: unit vectors, by hand and in whole nanoseconds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from example_runs import MS, S, row, table_of

from llmsim.results.tokens import TokenTimes, fluid_token_rate, fluidity_frame, missed_deadlines

LATE = 400


def gaps(*parts: tuple[int, int]) -> list[int]:
    return [gap * MS for count, gap in parts for _ in range(count)]


@pytest.mark.parametrize(
    ("stream", "missed"),
    [
        (gaps((20, 25), (1, LATE), (79, 25)), 0),  # 20 x 25 ms of slack cover 350 ms of delay
        (gaps((2, 25), (1, LATE), (97, 25)), 7),  # (400 - 50) / 50
        (gaps((250, 25), (1, 10_000), (249, 25)), 75),  # (10,000 - 6,250) / 50
        (gaps((100, 50)), 0),
        (gaps((100, 60)), 100),
        ([], 0),
    ],
)
def test_deadlines_of_the_decode_part(stream, missed):
    assert missed_deadlines(stream, 50 * MS) == missed


def test_floating_point_slack_counts_one_miss_less():
    """The published figure of the long stall, 74 of 500, is the rounding of summed floats."""
    slack = 0.0
    for _ in range(250):
        slack += 0.050 - 0.025
    assert math.floor((10.0 - slack) / 0.050) == 74


def test_both_stalls_have_the_same_mean_gap():
    early, late = gaps((2, 25), (1, LATE), (97, 25)), gaps((20, 25), (1, LATE), (79, 25))
    assert np.mean(early) == np.mean(late) == 28.75 * MS


@pytest.mark.parametrize(
    ("first", "stream", "missed"),
    [
        (1000, [60] * 3, 3),  # on time, without slack
        (900, [60] * 10, 0),  # 100 ms of slack, eaten up by ten gaps
        (900, [60] * 11, 1),
        (1049, [50], 1),
        (1100, [50], 3),  # one for itself, two that passed meanwhile
    ],
)
def test_the_first_token_has_a_deadline_of_its_own(first, stream, missed):
    told = [gap * MS for gap in stream]
    assert missed_deadlines(told, 50 * MS, 1000 * MS, first * MS) == missed


def test_constant_gaps_are_read_at_their_own_rate():
    times = np.concatenate([np.arange(101) * 40 * MS, np.arange(101) * 20 * MS])
    both = TokenTimes(np.repeat([0, 1], 101), times)
    # the slower stream misses 10% of its deadlines at most from about here on
    assert fluid_token_rate(both, missed_frac=0.0) == pytest.approx(25, rel=2e-3)
    assert fluid_token_rate(both, missed_frac=0.0, requests_frac=0.5) == pytest.approx(50, rel=2e-3)
    assert math.isnan(fluid_token_rate(TokenTimes(times[:1], times[:1])))


def test_what_a_client_missed_is_left_out():
    rows = [
        row(0, arrival_ns=S, first_token_ns=2 * S, end_ns=4 * S, output_tokens=3, prompt_tokens=8),
        row(1, "aborted", arrival_ns=S, first_token_ns=3 * S, end_ns=4 * S, output_tokens=1),
        row(2, "rejected", first_token_ns=-1, end_ns=S),
    ]
    table = table_of(rows)
    computed = TokenTimes(
        np.array([0, 0, 0, 1, 1]), np.array([int(1.5 * S), 3 * S, 4 * S, 3 * S, 5 * S])
    )
    told = computed.delivered(table)
    assert told.request.tolist() == [0, 0, 0, 1]
    assert told.time_ns.tolist() == [2 * S, 3 * S, 4 * S, 3 * S]
    frame = fluidity_frame(told, table, 1.0, lambda prompt: prompt / 16)
    # request 0: due at 0.5 s, came at 1.0 s: one missed; request 1: due at 0, 2 s late: three
    assert frame.values.tolist() == [[0, 3, 1, pytest.approx(2 / 3)], [1, 1, 3, 0.0]]


def test_lanes_and_token_times_do_not_go_together():
    from llmsim.core.errors import ScenarioError
    from llmsim.scenario import Scenario

    with pytest.raises(ScenarioError, match="tokens cannot be taken down"):
        Scenario.load("lanes", {"record.tokens": True})


def test_a_saved_run_gives_its_token_times_back(tmp_path):
    import llmsim as ls

    asked = {"record.tokens": True, "traffic.requests": 40, "slo.tpot_s": 0.01}
    run = ls.run("quickstart", asked, out=tmp_path / "run")
    again = ls.load(tmp_path / "run")
    assert again.tokens.equals(run.tokens)
    assert again.fluidity(0.01, 0.5).equals(run.fluidity(0.01, 0.5))
    assert again.metrics["missed_deadlines_p99_frac"] == run.metrics["missed_deadlines_p99_frac"]
    frame = run.fluidity(0.01, run.slo.ttft_s)
    shares = 1 - frame["fluidity"]
    assert run.metrics["missed_deadlines_mean_frac"] == pytest.approx(shares.mean())
    assert run.metrics["missed_deadlines_p99_frac"] == pytest.approx(shares.quantile(0.99))
    plain = ls.run("quickstart", asked | {"record.tokens": False})
    assert "missed_deadlines_p99_frac" not in plain.metrics
