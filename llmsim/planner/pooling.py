"""How much of its capacity a pool may use, since arrivals come in bursts: more, the larger it is.

A pool of c slots is a queue with c servers. Of an M/M/c queue the probability to wait is Erlang's
C, and who waits does so for an exponential time; for other arrivals and services Kimura (Operations
Research 34 (1986)) stretches that time by ``(ca2 + cs2) / 2``. Traffic that is peaked with factor z
loads c servers as Poisson traffic loads c/z (Hayward's approximation; Fredericks, Bell System
Technical Journal 59 (1980)), which is what makes large pools need headroom against bursts, too.
It is a seed: simulation corrects it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

HALVINGS = 40
"""Bisections of a load: twelve digits."""

MOST_LEVELS = 24
"""Pool sizes that the program tells apart; larger pools gain little by growing."""


@dataclass(frozen=True, slots=True)
class Burst:
    """How uneven traffic is, and how long it may wait.

    Parameters
    ----------
    arrivals : float
        Index of dispersion of the arrivals over about a service time.
    services : float
        Squared coefficient of variation of service times.
    wait : float [service times]
        Longest wait that the promise leaves; infinite where it does not say.
    late_frac : float
        Share of requests that may wait longer.
    """

    arrivals: float
    services: float
    wait: float
    late_frac: float


def erlang_c(servers: float, load: float) -> float:
    """Return the probability to wait in an M/M/c queue.

    Parameters
    ----------
    servers : float
        At least 1; Erlang's formula continued between whole numbers by gamma functions.
    load : float [servers]
        Offered; below `servers`.
    """
    from scipy.special import gammaincc, gammaln

    if load <= 0:
        return 0.0
    if load >= servers:
        return 1.0
    log = servers * math.log(load) - load - float(gammaln(servers + 1))
    below = float(gammaincc(servers + 1, load))
    blocked = math.exp(log) / below if below > 0 else 1.0
    return blocked / (1 - (load / servers) * (1 - blocked))


def late_frac(servers: float, load: float, burst: Burst) -> float:
    """Return the share of requests that wait longer than allowed.

    Parameters
    ----------
    servers : float
    load : float [servers]
    burst : Burst
    """
    if load >= servers:
        return 1.0
    variation = (burst.arrivals + burst.services) / 2
    peaked = max(variation, 1.0)
    chance = erlang_c(max(servers / peaked, 1.0), load / peaked)
    if not burst.wait or not chance:
        return chance
    if burst.wait == math.inf:
        return 0.0
    return chance * math.exp(-burst.wait * (servers - load) / variation) if variation else 0.0


def usable(replicas: int, slots: float, burst: Burst) -> float:
    """Return what so many replicas together carry with few enough late.

    Parameters
    ----------
    replicas : int
    slots : float [requests]
        That one replica serves at a time.
    burst : Burst

    Returns
    -------
    float [replicas]
        At most `replicas`.
    """
    servers = replicas * slots
    low, high = 0.0, servers
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if late_frac(servers, middle, burst) <= burst.late_frac:
            low = middle
        else:
            high = middle
    return low / slots


def levels(load: float, slots: float, burst: Burst) -> tuple[float, ...]:
    """Return what 1, 2, ... replicas together carry, up to a load or `MOST_LEVELS` replicas.

    Parameters
    ----------
    load : float [replicas]
        More is never asked for.
    slots, burst
        As for `usable`.

    Returns
    -------
    tuple of float (replicas,) [replicas]
        Not decreasing. Beyond it a replica adds at least the last pool's mean, since pools gain by
        being large.
    """
    found: list[float] = []
    while len(found) < MOST_LEVELS and (not found or found[-1] < load):
        most = usable(len(found) + 1, slots, burst)
        found.append(max(most, found[-1] if found else 0.0))
    return tuple(found)
