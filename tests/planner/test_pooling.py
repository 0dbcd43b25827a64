"""How much a pool may be loaded: Erlang's formula, Kimura's wait, peaked arrivals; even splits."""

from __future__ import annotations

import math

import pytest

from llmsim.planner.pooling import Burst, erlang_c, late_frac, levels, usable
from llmsim.planner.problem import Bucket, Column
from llmsim.planner.splitting import split

POISSON = Burst(arrivals=1.0, services=1.0, wait=0.0, late_frac=0.05)


def erlang_by_hand(servers, load):
    """Erlang's C from its sum."""
    terms = [load**k / math.factorial(k) for k in range(servers)]
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    return last / (sum(terms) + last)


@pytest.mark.parametrize(("servers", "load"), [(1, 0.3), (2, 1.5), (16, 12.8), (64, 60.0)])
def test_erlang_c_is_erlangs_sum(servers, load):
    assert erlang_c(servers, load) == pytest.approx(erlang_by_hand(servers, load), rel=1e-9)


def test_one_server_waits_as_in_m_m_1():
    # P[wait > t] = rho exp(-(1 - rho) t / service)
    burst = Burst(1.0, 1.0, wait=2.0, late_frac=0.05)
    assert late_frac(1, 0.6, burst) == pytest.approx(0.6 * math.exp(-0.4 * 2.0))


def test_no_pool_carries_all_of_its_replicas_and_large_ones_more_of_each():
    found = [usable(count, 4.0, POISSON) / count for count in (1, 2, 4, 8, 16)]
    assert found == sorted(found)
    assert 0 < found[0] < found[-1] < 1


def test_bursts_cost_capacity_and_patience_gives_it_back():
    plain = usable(4, 10.0, POISSON)
    bursty = usable(4, 10.0, Burst(5.0, 1.0, 0.0, 0.05))
    patient = usable(4, 10.0, Burst(1.0, 1.0, 1.0, 0.05))
    assert bursty < plain < patient


def test_levels_end_when_they_carry_the_load():
    found = levels(3.0, 10.0, POISSON)
    assert found[-1] >= 3.0 > found[-2]
    assert len(levels(1e6, 10.0, POISSON)) == 24


BUCKETS = (Bucket("short", 4.0), Bucket("long", 1.0))
COLUMNS = {
    "small": Column("small", "l4", 1, 1.0, {"short": 2.0}),
    "big": Column("big", "h100-sxm", 1, 4.0, {"short": 8.0, "long": 2.0}),
}


def test_the_busiest_pool_is_as_idle_as_can_be():
    found = split(BUCKETS, COLUMNS, {"small": 1.0, "big": 1.0})
    # x of the short ones on the small: 2x = 0.5 + 4 (1 - x) / 8, so x = 0.4
    assert found.share["short", "small"] == pytest.approx(0.4)
    assert found.utilisation == pytest.approx({"small": 0.8, "big": 0.8})
    assert found.share["long", "big"] == pytest.approx(1.0)


def test_no_split_where_nobody_can_serve():
    assert split(BUCKETS, COLUMNS, {"small": 5.0}) is None
    assert split(BUCKETS, COLUMNS, {"small": 5.0, "big": 0.0}) is None
