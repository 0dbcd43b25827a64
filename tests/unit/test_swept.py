"""What a sweep says of its points: who is feasible, who is best, who is beaten."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from llmsim.core.errors import InputError
from llmsim.scenario import Scenario
from llmsim.study.axes import parse_axes
from llmsim.study.goal import Condition, Goal, Objective, parse_goal
from llmsim.study.points import Point
from llmsim.study.swept import Row, Sweep

BASE = Scenario.load("quickstart")
FAST = Condition("ttft_p99_s", True, 0.5)
MOST = Objective("goodput_rps", True)
CHEAP = Objective("usd_per_hour", False)


def point(goodput=1.0, ttft=0.1, usd=4.0, verdict="stable"):
    values = {"goodput_rps": goodput, "ttft_p99_s": ttft, "usd_per_hour": usd}
    return Point(values, "digest", verdict)


def sweep_of(*points, goal=None, seeds=1):
    """A sweep whose points are given; each is a point per seed, or a reason."""
    rows = []
    for number, each in enumerate(points):
        change = {"engine.max_num_seqs": number + 1}
        if isinstance(each, str):
            rows.append(Row(change, (None,) * seeds, each))
        else:
            rows.append(Row(change, each if isinstance(each, tuple) else (each,)))
    listed = list(range(1, len(points) + 1))
    axes = parse_axes({"engine.max_num_seqs": listed})
    goal = goal or Goal((MOST,), (FAST,))
    return Sweep(BASE, tuple(axes), tuple(range(1, seeds + 1)), goal, tuple(rows))


def test_only_feasible_points_are_best():
    sweep = sweep_of(
        point(5),
        point(9, ttft=0.6),
        point(8, verdict="overloaded"),
        "does not fit",
        point(6),
        point(7, ttft=math.nan),
        (None,),
    )
    assert [status for status, _ in sweep.standings] == [
        "feasible",
        "infeasible",
        "overloaded",
        "impossible",
        "feasible",
        "infeasible",
        "not done",
    ]
    assert sweep.standings[1][1] == "not ttft_p99_s <= 0.5"
    assert sweep.best.change == {"engine.max_num_seqs": 5}


def test_overloaded_points_count_where_it_is_said():
    both = point(5), point(8, verdict="overloaded")
    assert sweep_of(*both).best_number == 0
    assert sweep_of(*both, goal=Goal((MOST,), (FAST,), overloaded_counts=True)).best_number == 1


def test_without_a_feasible_point_there_is_no_best():
    sweep = sweep_of(point(5, ttft=2), point(6, ttft=3))
    assert sweep.best is None
    assert len(sweep.pareto) == 0
    assert "none feasible" in repr(sweep)


def test_equals_are_told_apart_by_the_next_objective():
    goal = Goal((MOST, CHEAP))
    assert sweep_of(point(5, usd=8), point(5, usd=4), goal=goal).best_number == 1


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("ttft_p99_s<=0.5", 0.5, 0.51),
        ("ttft_p99_s < 0.5", 0.49, 0.5),
        ("slo_attained_frac>=0.95", 0.95, 0.94),
        ("slo_attained_frac>0.95", 0.96, 0.95),
        ("requests_rejected<=1e2", 100, 101),
    ],
)
def test_conditions_are_read_and_kept(text, inside, outside):
    (condition,) = parse_goal(BASE, subject_to=[text]).conditions
    assert condition.kept(inside)
    assert not condition.kept(outside)
    assert not condition.kept(math.nan)
    assert parse_goal(BASE, subject_to=[str(condition)]).conditions == (condition,)


def test_every_wrong_metric_and_condition_is_told():
    with pytest.raises(InputError, match="6 problems in sweep") as caught:
        parse_goal(
            BASE,
            maximise=["goodput", "requests"],
            minimise=["requests"],
            subject_to=["ttft_p99<=1", "ttft_p99_s<=fast", "ttft_p99_s=1", "quick"],
        )
    told = str(caught.value)
    assert "maximise: unknown metric 'goodput'. Did you mean 'goodput_rps'?" in told
    assert "minimise: requests is maximised as well." in told
    assert "subject_to: unknown metric 'ttft_p99'. Did you mean 'ttft_p99_s'?" in told
    assert "'fast' in 'ttft_p99_s<=fast' is no number. ttft_p99_s is in s." in told
    assert "Write ttft_p99_s<=1 or ttft_p99_s>=1." in told
    assert "'quick' is no condition. Write it like ttft_p99_s<=0.5." in told


def test_without_an_objective_it_is_goodput_where_something_is_promised():
    assert parse_goal(BASE).objectives == (MOST,)
    bare = BASE.override({"slo": None})
    assert parse_goal(bare).objectives == (Objective("output_tokens_per_s", True),)


def test_one_objective_trades_off_against_its_condition_or_the_price():
    assert Goal((MOST,), (FAST,)).trade_offs() == (MOST, Objective("ttft_p99_s", False))
    assert Goal((MOST,)).trade_offs() == (MOST, CHEAP)
    assert Goal((CHEAP,)).trade_offs() == (CHEAP, Objective("output_tokens_per_s", True))


triples = st.tuples(*[st.integers(0, 4)] * 3)


@given(st.lists(triples, min_size=1, max_size=12))
def test_the_front_is_who_nobody_beats(triples):
    goal = Goal((MOST, Objective("ttft_p99_s", False), CHEAP))
    sweep = sweep_of(*(point(*each) for each in triples), goal=goal)

    def beats(one, other):
        gains = [one[0] - other[0], other[1] - one[1], other[2] - one[2]]
        return min(gains) >= 0 and max(gains) > 0

    front = [n for n, own in enumerate(triples) if not any(beats(each, own) for each in triples)]
    assert sorted(sweep.front) == front
    assert sweep.best_number in front
    assert (
        sweep.front[0] == sweep.best_number or triples[sweep.front[0]] == triples[sweep.best_number]
    )


def seeded(*goodputs, ttft=0.1):
    return tuple(point(each, ttft) for each in goodputs)


def test_means_and_intervals_are_students():
    sweep = sweep_of(seeded(1.0, 2.0, 4.0), seeds=3)
    row = sweep.rows[0]
    low, high = stats.t.interval(0.95, 2, loc=7 / 3, scale=stats.sem([1.0, 2.0, 4.0]))
    assert row.mean("goodput_rps") == pytest.approx(7 / 3)
    assert row.interval("goodput_rps") == pytest.approx((low, high))
    assert sweep.frame.loc[0, "goodput_rps_ci_low"] == pytest.approx(low)


def test_an_interval_across_a_limit_is_unsure():
    crossing = tuple(point(1, ttft) for ttft in (0.3, 0.4, 0.6))
    inside = tuple(point(1, ttft) for ttft in (0.30, 0.31, 0.32))
    statuses = [status for status, _ in sweep_of(crossing, inside, seeds=3).standings]
    assert statuses == ["unsure", "feasible"]


def test_points_that_pairs_cannot_tell_from_the_best_are_named():
    best = seeded(10.0, 12.0, 14.0)
    noisy = seeded(9.0, 13.0, 13.0)  # differences to the best -1, 1, -1: the interval holds 0
    behind = seeded(9.9, 11.88, 13.89)  # less under every seed, by much the same
    sweep = sweep_of(best, noisy, behind, seeds=3)
    assert (sweep.best_number, sweep.ties) == (0, (1,))


def test_a_point_without_all_of_its_seeds_is_not_done():
    sweep = sweep_of((point(9), None), seeded(5.0, 5.0), seeds=2)
    assert sweep.standings[0][0] == "not done"
    assert sweep.best_number == 1
    assert sweep.frame["runs"].tolist() == [1, 2]


def test_labels_are_as_short_as_they_can_be():
    axes = parse_axes(
        {"fleet.pools.a.tp": [1], "fleet.pools.b.tp": [1], "traffic.arrivals.rate_rps": [1]}
    )
    row = Row({axis.path: 1 for axis in axes}, (point(),))
    sweep = Sweep(BASE, tuple(axes), (7,), Goal((MOST,)), (row,))
    assert list(sweep.labels.values()) == ["a.tp", "b.tp", "rate_rps"]


def test_tables_are_saved_as_they_are(tmp_path):
    sweep = sweep_of(point(5), point(6, ttft=0.7), "does not fit")
    folder = sweep.save(tmp_path / "sweep")
    assert sorted(path.name for path in folder.iterdir()) == [
        "meta.json",
        "points.csv",
        "points.parquet",
        "runs.parquet",
        "sweep.yaml",
    ]
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "points.parquet"), sweep.frame)
    assert pd.read_csv(folder / "points.csv")["status"].tolist() == sweep.frame["status"].tolist()
    runs = pd.read_parquet(folder / "runs.parquet")
    assert runs["engine.max_num_seqs"].tolist() == [1, 2]
    told = json.loads((folder / "meta.json").read_text())
    assert told["points"] == {"feasible": 1, "infeasible": 1, "impossible": 1}
    assert told["best"]["change"] == {"engine.max_num_seqs": 1}


def test_values_of_unlike_kinds_become_text_in_tables(tmp_path):
    listed = [{"kind": "least-loaded"}, "round-robin"]
    axes = parse_axes({"fleet.routing": listed})
    rows = tuple(Row({"fleet.routing": value}, (point(),)) for value in listed)
    sweep = Sweep(BASE, tuple(axes), (7,), Goal((MOST,)), rows)
    sweep.save(tmp_path / "sweep")
    assert sweep.frame["fleet.routing"].tolist() == ["{kind: least-loaded}", "round-robin"]
    assert np.all(sweep.runs["fleet.routing"] == sweep.frame["fleet.routing"])
