import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsim.results.histogram import BINS, LogHistogram, bin_of, upper_edge_ns


@given(
    st.lists(st.integers(2_000, 10**14), min_size=1, max_size=200),
    st.floats(0.0, 1.0),
)
def test_a_quantile_is_known_to_0_4_percent(durations, fraction):
    histogram = LogHistogram()
    for duration in durations:
        histogram.add(duration)
    # a rank that lands on an integer may fall to either neighbour by one rounding
    low = np.quantile(durations, max(0.0, fraction - 1e-9), method="inverted_cdf")
    high = np.quantile(durations, min(1.0, fraction + 1e-9), method="inverted_cdf")
    found = histogram.quantiles_s(fraction)[0] * 1e9
    assert low / 1.004 <= found <= high * 1.004


RUN = st.tuples(
    st.integers(1, 10**9), st.integers(1, 10**9), st.integers(1, 300), st.integers(1, 64)
)


@given(st.lists(RUN, min_size=1, max_size=20), st.floats(0.0, 1.0))
def test_runs_count_like_their_durations_one_by_one(runs, fraction):
    one, many = LogHistogram(), LogHistogram()
    for first, last, steps, weight in runs:
        for duration in np.linspace(first, last, steps) if steps > 1 else [max(first, last)]:
            one.add(duration, weight)
    # one step has one duration
    rows = [(max(f, t), max(f, t), s, w) if s == 1 else (f, t, s, w) for f, t, s, w in runs]
    many.add_runs(*np.array(rows, dtype=np.int64).T)
    assert many.total == one.total == sum(steps * weight for _, _, steps, weight in runs)
    # a duration may fall one bin off
    wanted, found = one.quantiles_s(fraction)[0], many.quantiles_s(fraction)[0]
    assert found == pytest.approx(wanted, rel=0.0081)


def test_weights_count_like_repeats():
    one, many = LogHistogram(), LogHistogram()
    one.add(5_000_000, 3)
    for _ in range(3):
        many.add(5_000_000)
    assert one.counts == many.counts
    assert one.total == 3


def test_merging_is_adding_everything_to_one():
    left, right, both = LogHistogram(), LogHistogram(), LogHistogram()
    for i, duration in enumerate(range(10_000, 1_000_000, 7_919)):
        (left if i % 2 else right).add(duration, i)
        both.add(duration, i)
    left.merge(right)
    assert left.counts == both.counts


def test_the_mean_of_known_durations():
    histogram = LogHistogram()
    histogram.add(10_000_000, 3)
    histogram.add(50_000_000)
    assert histogram.mean_s() == pytest.approx(0.020, rel=0.002)


def test_an_empty_histogram_knows_nothing():
    assert np.isnan(LogHistogram().quantiles_s([0.5, 0.9])).all()
    assert math.isnan(LogHistogram().mean_s())
    weightless = LogHistogram()
    weightless.add(1_000_000, 0)
    assert np.isnan(weightless.quantiles_s(0.5)).all()
    assert math.isnan(weightless.mean_s())


def test_the_ends_of_the_scale():
    assert bin_of(0) == 0
    assert bin_of(1e30) == BINS - 1
    assert upper_edge_ns(BINS - 1) >= 1e15
