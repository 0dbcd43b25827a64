"""What a sweep goes over: every way to write an axis, and where its values lie."""

import numpy as np
import pytest

from llmsim.core.errors import InputError
from llmsim.scenario import Scenario
from llmsim.study.axes import all_points, parse_axes, settle_whole


def values(text):
    (axis,) = parse_axes([f"engine.max_num_seqs={text}"])
    return list(axis.values)


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("64,128,256", [64, 128, 256]),
        ("12", [12]),
        ("h100-sxm, l40s", ["h100-sxm", "l40s"]),
        ("true,false,null", [True, False, None]),
        ("1,1.0,true", [1, 1.0, True]),
        (
            "{kind: vllm}, {kind: sarathi, budget: 3}",
            [{"kind": "vllm"}, {"kind": "sarathi", "budget": 3}],
        ),
        ("1..7:4", [1, 3, 5, 7]),
        ("1..2:3", [1.0, 1.5, 2.0]),
        ("1..100:3:log", [1.0, 10.0, 100.0]),
        ("0.5 .. 2 : log : 3", [0.5, 1.0, 2.0]),
        ("-1..1:2", [-1, 1]),
    ],
)
def test_listed_values(text, made):
    assert values(text) == made
    assert [type(each) for each in values(text)] == [type(each) for each in made]


def test_values_may_come_as_a_mapping_and_as_text():
    axes = parse_axes({"a.b": [1, 2], "a.c": "1..8:sobol", "a.d": np.array([1.5, 2.5]), "a.e": 4})
    assert [axis.values for axis in axes] == [(1, 2), (), (1.5, 2.5), (4,)]
    assert axes[1].draw == "sobol"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a", "--over: 'a' has no values. Write it like engine.max_num_seqs=64,128,256."),
        ("a=", "'a=' has no values."),
        ("a=1..8", "a: 1..8 does not say how many values it has. Such as 1..8:5"),
        ("a=1..8:5:sobol", "does not say how many values"),
        ("a=1..8:sobool", "unknown word 'sobool' in 1..8:sobool. Did you mean 'sobol'?"),
        ("a=8..1:3", "8..1:3 must go from a smaller to a larger number."),
        ("a=0..1:sobol:log", "cannot be logarithmic from 0"),
        ("a=0..1:1", "1 values, must be at least 2."),
        ("a=1,2,1", "has 1 twice."),
        ("a=[1,2", "cannot be read as values"),
    ],
)
def test_wrong_texts_are_told(text, words):
    with pytest.raises(InputError) as caught:
        parse_axes([text])
    assert words in str(caught.value)


def test_every_wrong_axis_is_told_at_once():
    with pytest.raises(InputError, match="4 problems in sweep") as caught:
        parse_axes(["a=1..8", "b=2", "b=3", "c.d=1,2", "c={d: 1}", "x"])
    assert "b: is swept twice." in str(caught.value)
    assert "c.d: lies inside c, which is swept as well." in str(caught.value)


def test_a_grid_is_every_combination_its_first_axis_slowest():
    points = all_points(parse_axes(["a=1,2", "b=x,y,z"]), 1, 0)
    assert [(p["a"], p["b"]) for p in points] == [(a, b) for a in (1, 2) for b in "xyz"]


def test_every_point_of_the_grid_meets_the_same_samples():
    points = all_points(parse_axes(["a=1,2", "b=0.0..1.0:random", "c=0.0..1.0:sobol"]), 5, 3)
    assert len(points) == 10
    assert [(p["b"], p["c"]) for p in points[:5]] == [(p["b"], p["c"]) for p in points[5:]]


def test_sobol_points_fill_every_stratum_once():
    points = all_points(parse_axes(["a=0.0..16.0:sobol", "b=0.0..16.0:sobol"]), 16, 5)
    for path in "ab":
        assert sorted(int(p[path]) for p in points) == list(range(16))
    # and every box of a quarter by a quarter, as a (0, m, 2)-net in base 2 does
    assert len({(int(p["a"] / 4), int(p["b"] / 4)) for p in points}) == 16


def test_draws_depend_on_the_seed_alone_and_not_on_other_axes():
    def drawn(over, seed=1):
        return [p["a"] for p in all_points(parse_axes(over), 8, seed)]

    alone = drawn(["a=0.0..1.0:random"])
    assert alone == drawn(["a=0.0..1.0:random", "b=0.0..1.0:random"])
    assert alone != drawn(["a=0.0..1.0:random"], seed=2)


def test_logarithmic_draws_are_even_in_the_logarithm():
    points = all_points(parse_axes(["a=0.01..100:random:log"]), 4000, 1)
    logs = np.log10([p["a"] for p in points])
    assert np.all(np.abs(logs) <= 2)
    counts, _ = np.histogram(logs, bins=4, range=(-2, 2))
    assert np.all(np.abs(counts - 1000) < 5 * np.sqrt(1000 * 0.75))  # five binomial sigmas


def test_a_range_of_requests_is_whole_and_one_of_rates_is_not():
    base = Scenario.load("quickstart")
    axes = parse_axes(["engine.max_num_seqs=1..8:sobol", "traffic.arrivals.rate_rps=1..8:sobol"])
    points = all_points(settle_whole(axes, base), 64, 1)
    seqs = [p["engine.max_num_seqs"] for p in points]
    rates = [p["traffic.arrivals.rate_rps"] for p in points]
    assert all(type(each) is int for each in seqs)
    # both ends as likely as the rest: 64 Sobol points over 8 cells are 8 in each
    assert np.bincount(seqs)[1:].tolist() == [8] * 8
    assert all(type(each) is float for each in rates)
    assert all(1 <= each <= 8 for each in rates)
    assert len(set(rates)) == 64


def test_listed_values_can_be_drawn_too():
    points = all_points(parse_axes(["a=x,y,z,w:sobol", "b=0.0..1.0:sobol"]), 16, 1)
    assert sorted(p["a"] for p in points) == sorted("xyzw" * 4)


def test_samples_that_fall_together_are_one_point():
    base = Scenario.load("quickstart")
    axes = settle_whole(parse_axes(["engine.max_num_seqs=1..3:random"]), base)
    assert sorted(p["engine.max_num_seqs"] for p in all_points(axes, 50, 1)) == [1, 2, 3]


def test_too_many_points_and_too_few_samples_are_refused():
    axes = parse_axes(["a=1..1000:1000", "b=1..1000:1000"])
    with pytest.raises(InputError, match="1,000,000 points; at most 100,000"):
        all_points(axes, 1, 0)
    with pytest.raises(InputError, match="samples: 0, must be at least 1"):
        all_points(parse_axes(["a=1..8:sobol"]), 0, 0)


@pytest.mark.parametrize(
    "text", ["1,2,4", "x,y:random", "1..8:sobol", "0.5..8:random:log", "{kind: a},{kind: b}:sobol"]
)
def test_a_sweep_file_says_the_same_axis_again(text):
    (axis,) = parse_axes([f"a.b={text}"])
    (again,) = parse_axes({"a.b": axis.plain()})
    assert again == axis
