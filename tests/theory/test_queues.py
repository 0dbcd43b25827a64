"""What queueing theory knows, the engine must find.

Each law is tested twice: request by request against the recursion that the textbook formula comes
from, on the same arrivals and services; and in the mean against the formula itself, within four
standard errors over fixed seeds (one chance in 16,000 per test, were the seeds not fixed), with
standard errors small enough to tell the formulas apart.
"""

from __future__ import annotations

from math import factorial

import numpy as np
import pytest
from queues import (
    TICK_NS,
    PerStep,
    Poisson,
    Served,
    constant,
    exponential,
    first_come_first_served,
    mean_over_seeds,
    serve,
    two_sizes,
)

SEEDS = 8
REQUESTS = 6_000

SECOND_MOMENT = {exponential: 2.0, constant: 1.0, two_sizes: 0.9 * 0.25 + 0.1 * 30.25}
"""E[S^2] of the laws, all of mean 1."""


def pollaczek_khinchine(load: float, law) -> float:
    """Mean wait of M/G/1 in mean services: rho E[S^2] / (2 (1 - rho))."""
    return load * SECOND_MOMENT[law] / (2 * (1 - load))


def erlang_c(servers: int, load: float) -> float:
    """Mean wait of M/M/c in mean services."""
    offered = servers * load
    top = offered**servers / factorial(servers) / (1 - load)
    busy = top / (sum(offered**k / factorial(k) for k in range(servers)) + top)
    return busy / (servers * (1 - load))


@pytest.mark.parametrize("law", SECOND_MOMENT, ids=lambda law: law.__name__)
@pytest.mark.parametrize("load", [0.3, 0.9])
def test_one_server_follows_lindley_to_the_nanosecond(law, load):
    workload = Poisson(1, 3_000, load, law)
    waits = first_come_first_served(
        workload.arrival_ns.tolist(), (workload.ticks.astype(np.int64) * TICK_NS).tolist(), 1
    )
    served = serve(workload, 1)
    assert waits.max() > 0
    np.testing.assert_array_equal(served.waits, waits)
    np.testing.assert_array_equal(
        served.sojourns, waits + workload.ticks.astype(np.int64) * TICK_NS
    )


@pytest.mark.parametrize(
    ("law", "load"),
    [
        pytest.param(exponential, 0.5, marks=pytest.mark.slow),
        pytest.param(exponential, 0.7, marks=pytest.mark.slow),
        (constant, 0.7),
        pytest.param(two_sizes, 0.5, marks=pytest.mark.slow),
    ],
)
def test_mean_wait_of_one_server(law, load):
    """M/M/1, M/D/1 and an M/G/1 between them and worse."""
    mean, error = mean_over_seeds(
        lambda seed: serve(Poisson(seed, REQUESTS, load, law), 1).waits, SEEDS
    )
    expected = pollaczek_khinchine(load, law)
    assert abs(mean - expected) < 4 * error
    assert error < 0.06 * expected


@pytest.mark.slow
@pytest.mark.parametrize(("servers", "load"), [(2, 0.7), (4, 0.8)])
def test_mean_wait_of_several_servers(servers, load):
    """M/M/c is a replica of c seats whose step time does not depend on who sits in them."""

    def waits(seed: int) -> np.ndarray:
        return serve(Poisson(seed, REQUESTS, servers * load, exponential), servers).waits

    mean, error = mean_over_seeds(waits, SEEDS)
    expected = erlang_c(servers, load)
    assert abs(mean - expected) < 4 * error
    assert error < 0.1 * expected
    assert abs(expected - pollaczek_khinchine(load, exponential)) > 4 * error  # not M/M/1


def test_several_servers_follow_kiefer_and_wolfowitz():
    """Who finds a seat free still waits for the step under way: a tick per start."""
    workload = Poisson(2, 4_000, 3 * 0.85, exponential)
    service = workload.ticks.astype(np.int64) * TICK_NS
    waits = first_come_first_served(workload.arrival_ns.tolist(), service.tolist(), 3)
    served = serve(workload, 3)
    assert waits.mean() > 0.1 * service.mean()
    assert np.abs(served.waits - waits).max() < 1e-3 * service.mean()


def test_erlang_c_against_itself():
    assert erlang_c(1, 0.7) == pytest.approx(pollaczek_khinchine(0.7, exponential))
    assert erlang_c(2, 0.5) == pytest.approx(1 / 3)  # rho^2 / (1 - rho^2)


@pytest.mark.parametrize("law", [exponential, constant, two_sizes])
@pytest.mark.slow
def test_a_replica_that_slows_down_with_its_batch_shares_its_processor(law):
    """M/G/1 processor sharing: the mean sojourn is E[S] / (1 - rho) whatever the law."""
    sharing = PerStep(0, TICK_NS)
    load = 0.6
    mean, error = mean_over_seeds(
        lambda seed: serve(Poisson(seed, REQUESTS, load, law), 10**6, sharing).sojourns, SEEDS
    )
    assert abs(mean - 1 / (1 - load)) < 4 * error
    assert error < 0.05 / (1 - load)


@pytest.mark.slow
def test_two_replicas_in_turn_are_two_queues_of_erlang_arrivals():
    """Round robin halves a Poisson stream into Erlang-2 gaps: shorter waits than M/M/1 each."""
    load = 0.7

    def waits(seed: int) -> np.ndarray:
        return serve(Poisson(seed, REQUESTS, 2 * load, exponential), 1, replicas=2).waits

    mean, error = mean_over_seeds(waits, SEEDS)
    # E2/M/1: sigma solves s = (2 rho' / (2 rho' + 1 - s))^2 with rho' = lambda / mu per queue
    sigma = 0.5
    for _ in range(200):
        sigma = (2 * load / (2 * load + 1 - sigma)) ** 2
    assert abs(mean - sigma / (1 - sigma)) < 4 * error
    assert sigma / (1 - sigma) < pollaczek_khinchine(load, exponential) - 4 * error


def area(served: Served) -> float:
    """Time integral of running and waiting requests over the whole fleet."""
    return sum(
        part.timeline.levels[name].sum()
        for part in served.facts.replicas
        for name in ("running", "waiting")
    )


@pytest.mark.parametrize("servers", [1, 3])
@pytest.mark.parametrize("replicas", [1, 2])
def test_little_law_holds_exactly(servers, replicas):
    """The area under the number of requests is the sum of their sojourns, to rounding."""
    rate = 0.8 * servers * replicas
    served = serve(Poisson(4, 3_000, rate, exponential), servers, replicas=replicas)
    assert area(served) == pytest.approx(served.sojourns.sum(), rel=1e-9)
    waiting = sum(part.timeline.levels["waiting"].sum() for part in served.facts.replicas)
    assert waiting == pytest.approx(served.waits.sum(), rel=1e-9)


def test_utilisation_is_the_load():
    """A single server is busy exactly as long as its services take."""
    workload = Poisson(5, 3_000, 0.6, exponential)
    served = serve(workload, 1)
    busy = served.facts.replicas[0].timeline.totals["busy_ns"].sum()
    assert busy == pytest.approx(int(workload.ticks.sum()) * TICK_NS, rel=1e-12)
    assert served.facts.replicas[0].steps == workload.ticks.sum()
