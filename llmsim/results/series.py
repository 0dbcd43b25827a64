"""Load over time: exact integrals of timelines over any window, one replica or many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from llmsim.core.errors import Fault, InputError, nearest
from llmsim.core.units import NS_PER_S
from llmsim.results.facts import ReplicaFacts, RunFacts
from llmsim.results.timeline import LEVELS, TOTALS

Floats = npt.NDArray[np.float64]

W_PER_UJ_PER_NS: Final = 1e3
"""A microjoule in a nanosecond is a kilowatt."""

SERIES: Final = (
    "t_s",
    "running",
    "waiting",
    "kv_used_frac",
    "kv_claimed_frac",
    "prefill_tokens_per_s",
    "output_tokens_per_s",
    "busy_frac",
    "power_w",
)
"""Columns of `load_over_time`."""


def integrals(replica: ReplicaFacts, name: str, edges_ns: Floats, end_ns: int) -> Floats:
    """Return the integral (or sum) of one series of a replica between successive edges.

    Parameters
    ----------
    replica : ReplicaFacts
    name : str
        One of `timeline.LEVELS` or `timeline.TOTALS`.
    edges_ns : ndarray of float64 (n + 1,) [ns]
        Increasing.
    end_ns : int [ns]
        End of the run: the last bin ends there.

    Returns
    -------
    ndarray of float64 (n,)
        [level * ns], or the unit of the total. Exact at the edges of bins; inside a bin the
        amount is taken as evenly spread.
    """
    data = replica.timeline
    values = data.levels[name] if name in LEVELS else data.totals[name]
    if not len(values):
        return np.zeros(len(edges_ns) - 1)
    at = np.arange(len(values) + 1, dtype=np.float64) * data.bin_ns
    if at[-2] < end_ns < at[-1]:
        at[-1] = end_ns
    total = np.concatenate(([0.0], np.cumsum(values)))
    between: Floats = np.diff(np.interp(edges_ns, at, total))
    return between


def fleet_integrals(
    replicas: Sequence[ReplicaFacts], name: str, edges_ns: Floats, end_ns: int
) -> Floats:
    """Return the sum of `integrals` over replicas (n,)."""
    total = np.zeros(len(edges_ns) - 1)
    for replica in replicas:
        total += integrals(replica, name, edges_ns, end_ns)
    return total


def load_over_time(
    facts: RunFacts, pool: str | None = None, replica: int | None = None
) -> dict[str, Floats]:
    """Return load over time, summed over the replicas that are asked for.

    Parameters
    ----------
    facts : RunFacts
    pool : str, optional
        Only this pool.
    replica : int, optional
        Only the replica with this index within the fleet.

    Returns
    -------
    dict of str to ndarray of float64 (n,)
        By the names in `SERIES`: `t_s` is the start of a bin; `running` and `waiting` are time
        averages [requests] summed over the replicas; `kv_used_frac`, `kv_claimed_frac` and
        `busy_frac` are shares of what these replicas have; `power_w` [W] is NaN where no power is
        known.

    Raises
    ------
    InputError
        If there is no such pool or replica.
    """
    chosen = _choose(facts, pool, replica)
    bin_ns = max(r.timeline.bin_ns for r in chosen)
    last_ns = max(facts.end_ns, 1)
    edges = np.minimum(np.arange(-(-last_ns // bin_ns) + 1, dtype=np.float64) * bin_ns, last_ns)
    width = np.diff(edges)
    blocks = capacity_blocks(facts, chosen)
    found = {
        name: fleet_integrals(chosen, name, edges, facts.end_ns) for name in (*LEVELS, *TOTALS)
    }
    busy = found["busy_ns"] / width / len(chosen)
    # a step that runs when the last client leaves ends after the run, in a bin cut at its end
    stepping = width * np.maximum(busy, 1.0)
    return {
        "t_s": edges[:-1] / NS_PER_S,
        "running": found["running"] / stepping,
        "waiting": found["waiting"] / width,
        "kv_used_frac": found["kv_blocks"] / stepping / max(blocks, 1),
        "kv_claimed_frac": found["kv_claimed"] / stepping / max(blocks, 1),
        "prefill_tokens_per_s": found["prefill_tokens"] / width * NS_PER_S,
        "output_tokens_per_s": found["output_tokens"] / width * NS_PER_S,
        "busy_frac": np.minimum(busy, 1.0),
        "power_w": idle_w_of(facts, chosen) + found["active_uj"] / stepping * W_PER_UJ_PER_NS,
    }


def idle_w_of(facts: RunFacts, replicas: Sequence[ReplicaFacts]) -> float:
    """Return the idle power of replicas, models loaded [W]; NaN where it is not known."""
    by_pool = {pool.name: pool.idle_w for pool in facts.pools}
    return sum(by_pool[replica.pool] * there_frac(facts, replica) for replica in replicas)


def there_frac(facts: RunFacts, replica: ReplicaFacts) -> float:
    """Return the share of a run for which a replica was there, and paid for."""
    if replica.billed_ns < 0 or not facts.end_ns:
        return 1.0
    return replica.billed_ns / facts.end_ns


def blocks_of(facts: RunFacts, replica: ReplicaFacts) -> int:
    """Return the KV blocks that a replica has [blocks]."""
    return next(pool.kv_blocks for pool in facts.pools if pool.name == replica.pool)


def capacity_blocks(facts: RunFacts, replicas: Sequence[ReplicaFacts]) -> int:
    """Return the KV blocks of replicas together; lanes of one device share theirs [blocks]."""
    guests = {pool.name for pool in facts.pools if not pool.gpus_per_replica}
    hosts = [r for r in replicas if r.pool not in guests] or replicas
    return sum(blocks_of(facts, r) for r in hosts)


def _choose(facts: RunFacts, pool: str | None, replica: int | None) -> list[ReplicaFacts]:
    names = [p.name for p in facts.pools]
    if pool is not None and pool not in names:
        hint = nearest(pool, names)
        raise InputError("timeline", [Fault("", "pool", f"there is no pool '{pool}'.", hint)])
    chosen = [
        r
        for r in facts.replicas
        if (pool is None or r.pool == pool) and (replica is None or r.index == replica)
    ]
    if not chosen:
        inside = f" in pool '{pool}'" if pool else ""
        known = ", ".join(str(r.index) for r in facts.replicas[:12])
        message = f"there is no replica {replica}{inside}; the fleet starts with: {known}"
        raise InputError("timeline", [Fault("", "replica", message)])
    return chosen
