import math

import numpy as np
import pytest
import scipy.stats

from llmsim.results import intervals
from llmsim.results.intervals import (
    mean_interval,
    quantile_interval,
    rate_interval,
    share_interval,
    slope_interval,
)


def ar1(rng, n, phi, mean=0.0):
    noise = rng.normal(size=n)
    values = np.empty(n)
    values[0] = noise[0] / math.sqrt(1 - phi**2)
    for i in range(1, n):
        values[i] = phi * values[i - 1] + noise[i]
    return values + mean


def coverage(made, truth):
    return sum(i.low <= truth <= i.high for i in made) / len(made)


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
@pytest.mark.many
def test_batch_means_hold_the_true_mean_as_often_as_they_say(phi):
    rng = np.random.default_rng(11)
    made = [mean_interval(ar1(rng, 2_000, phi, mean=5.0)) for _ in range(400)]
    # 0.915 is 95% less three standard errors of 400 draws; above it may only be a little wide
    assert 0.915 <= coverage(made, 5.0) <= 0.99


def test_taking_requests_for_independent_would_be_wrong():
    rng = np.random.default_rng(11)
    hits = 0
    for _ in range(200):
        values = ar1(rng, 2_000, 0.9)
        half = 1.96 * values.std() / math.sqrt(len(values))
        hits += abs(values.mean()) <= half
    assert hits / 200 < 0.6


@pytest.mark.parametrize("fraction", [0.5, 0.9, 0.99])
@pytest.mark.many
def test_sectioning_holds_the_true_quantile(fraction):
    rng = np.random.default_rng(5)
    made = [quantile_interval(rng.exponential(size=20_000), fraction) for _ in range(200)]
    assert 0.90 <= coverage(made, -math.log(1 - fraction)) <= 0.99


def test_rate_intervals_hold_the_true_rate():
    rng = np.random.default_rng(3)
    made = [
        rate_interval(np.sort(rng.uniform(10, 60, rng.poisson(50 * 40))), None, 10, 60)
        for _ in range(200)
    ]
    assert 0.90 <= coverage(made, 40.0) <= 0.995


def test_slopes_hold_the_true_slope_of_a_wandering_line():
    rng = np.random.default_rng(9)
    made = [slope_interval(ar1(rng, 20, 0.5) + 0.3 * np.arange(20), 0.1) for _ in range(400)]
    assert 0.90 <= coverage(made, 3.0) <= 0.995


def test_slope_of_a_straight_line_is_exact():
    slope = slope_interval(2 + 0.5 * np.arange(20), 4.0)
    assert slope.value == slope.low == slope.high == pytest.approx(0.125)
    assert slope_interval(np.zeros(20), 1.0) == (0, 0, 0)


def test_too_few_values_have_an_estimate_but_no_interval():
    for n, known in ((199, False), (200, True)):
        for made in (
            mean_interval(np.arange(n, dtype=float)),
            share_interval(np.arange(n) % 2 == 0),
            rate_interval(np.linspace(0, 1, n), None, 0, 1),
        ):
            assert not math.isnan(made.value)
            assert math.isnan(made.low) is not known
            assert math.isnan(made.high) is not known
    for n, known in ((9_999, False), (10_000, True)):
        made = quantile_interval(np.arange(n, dtype=float), 0.99)
        assert made.value == pytest.approx(0.99 * (n - 1))
        assert math.isnan(made.low) is not known


def test_nothing_has_no_estimate():
    nothing = np.empty(0)
    for made in (
        mean_interval(nothing),
        quantile_interval(nothing, 0.5),
        share_interval(nothing.astype(bool)),
        rate_interval(nothing, None, 5, 5),
    ):
        assert all(math.isnan(part) for part in made)


def test_batch_means_by_hand():
    values = np.repeat([1.0, 3.0], 10).repeat(10)  # ten batches of 1, then ten of 3
    found = mean_interval(values)
    # away from 2 the batches are -1 (10 times) and +1: variance 20/19; of the
    # 19 pairs of neighbours 18 agree and one does not: lag-1 correlation 17/20
    half = 2.093024 * math.sqrt(1.85 / 0.15) * math.sqrt(20 / 19 / 20)
    assert found.value == 2.0
    assert found.low == pytest.approx(2 - half)
    assert found.high == pytest.approx(2 + half)


def test_what_is_never_negative_has_no_negative_bound():
    # waits of a queue that grows: batches are far apart
    queue = 500.0 * np.linspace(0.0, 1.0, 2000) ** 3
    steps = np.full(2000, -0.1)
    for made in (mean_interval, lambda values: quantile_interval(values, 0.5)):
        assert made(queue).low == 0.0
        below = made(queue + steps)  # some below 0: they may be so in the mean
        assert below.low < 0.0
        assert below.high == pytest.approx(made(queue).high - 0.1)
    late = np.concatenate([np.linspace(0, 9, 10), np.linspace(9, 10, 1990)])
    assert rate_interval(late, None, 0, 10).low == 0.0


def test_all_hits_are_not_certainty():
    found = share_interval(np.ones(300, dtype=bool))
    assert found.value == found.high == 1.0
    assert found.low == pytest.approx(1 - 1.959964**2 / (300 + 1.959964**2))


def test_weights_make_a_rate_of_tokens():
    found = rate_interval(np.arange(1, 5.0), np.array([10.0, 20, 30, 40]), 0, 10)
    assert found.value == 10.0


def test_constants_are_those_of_student_and_gauss():
    for df, value in intervals._T95.items():
        assert value == pytest.approx(scipy.stats.t.ppf(0.975, df), abs=1e-6)
    assert pytest.approx(scipy.stats.norm.ppf(0.975), abs=1e-6) == intervals._Z95
