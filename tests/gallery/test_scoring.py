"""The rules by which results are judged."""

import math

import pytest

from llmsim.gallery.scoring import (
    BROKEN,
    FAILS,
    HOLDS,
    NOTHING,
    PARTLY,
    judge_band,
    judge_headline,
    judge_null,
)
from llmsim.study.paired import Paired, gain, paired


def test_a_gain_is_above_one_where_the_treatment_is_better():
    assert gain(2.0, 1.0, higher_is_better=False) == 2.0
    assert gain(2.0, 1.0, higher_is_better=True) == 0.5
    assert math.isnan(gain(math.nan, 1.0, higher_is_better=True))
    assert math.isnan(gain(0.0, 0.0, higher_is_better=True))


def test_the_interval_is_students_over_logarithms():
    pairs = Paired((1.0, 2.0, 4.0))
    assert pairs.mean == pytest.approx(2.0)
    low, high = pairs.interval()
    # three values with standard deviation log 2: t(2) = 4.3027
    half = 4.30265 * math.log(2) / math.sqrt(3)
    assert (math.log(low), math.log(high)) == pytest.approx(
        (math.log(2) - half, math.log(2) + half), rel=1e-5
    )


def test_common_randomness_cancels():
    seeds = [1.0, 10.0, 100.0]
    low, high = paired(seeds, [1.1 * each for each in seeds], True).interval()
    assert (low, high) == pytest.approx((1.1, 1.1))


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(1.06, 1.2, BROKEN), (1.04, 1.2, HOLDS), (0.9, 1.01, HOLDS), (math.nan, math.nan, NOTHING)],
)
def test_a_null_breaks_only_when_it_is_sure(low, high, verdict):
    assert judge_null(low, high, 0.05)[0] == verdict


@pytest.mark.parametrize(
    ("gains", "band", "verdict"),
    [
        ((2.0, 3.0), (2, 4), HOLDS),
        ((1.9, 3.0), (2, 4), PARTLY),
        ((1.1, 1.2), (2, 4), FAILS),
        ((9.0, 50.0), (4, None), HOLDS),
        ((math.nan, 3.0), (2, 4), PARTLY),
    ],
)
def test_a_band_wants_every_seed(gains, band, verdict):
    assert judge_band(Paired(gains), band)[0] == verdict


@pytest.mark.parametrize(
    ("mean", "low", "published", "verdict"),
    [
        (1.25, 1.1, 1.4, HOLDS),
        (1.15, 1.1, 1.4, PARTLY),
        (1.85, 1.1, 1.4, PARTLY),
        (3.0, 2.0, 4.5, HOLDS),
        (2.7, 2.0, 4.5, PARTLY),
        (8.0, 2.0, 4.5, PARTLY),
        (4.5, 0.9, 4.5, FAILS),
    ],
)
def test_a_headline_wants_direction_and_size(mean, low, published, verdict):
    assert judge_headline(mean, low, published)[0] == verdict
