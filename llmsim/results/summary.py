"""From recorded requests to metrics: the one place that says how a number is made.

Two populations, so that a warm-up cut biases neither: latencies and attainment look at requests
that *arrived* after the warm-up; rates and money look at requests that *ended* in the window from
the warm-up to the end of the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from llmsim.core.errors import Fault, InputError, InvariantError
from llmsim.core.units import NS_PER_S
from llmsim.results.classes import ClassSummary, joint_claim, least_ratio
from llmsim.results.facts import RunFacts
from llmsim.results.intervals import (
    BATCHES,
    MIN_PER_BATCH,
    Interval,
)
from llmsim.results.metrics import (
    CLASS_METRICS,
    METRICS,
    PROGRAM_METRICS,
    QUANTILES,
    REFUSAL_METRICS,
    STATION_METRICS,
    STOP_METRICS,
    TOKEN_METRICS,
    Metric,
)
from llmsim.results.parts import class_summaries
from llmsim.results.programs import program_metrics
from llmsim.results.reading import Reading
from llmsim.results.series import (
    W_PER_UJ_PER_NS,
    blocks_of,
    capacity_blocks,
    fleet_integrals,
    idle_w_of,
    integrals,
    there_frac,
)
from llmsim.results.slo import Slo
from llmsim.results.stations import station_metrics
from llmsim.results.stops import stop_metrics
from llmsim.results.store import RequestTable
from llmsim.results.tokens import token_metrics
from llmsim.results.verdict import SloClaim, Verdict, claim, judge

if TYPE_CHECKING:
    import pandas as pd

Bools = npt.NDArray[np.bool_]

LENGTH_NOTE: Final = "depends on run length: the fleet was overloaded"


@dataclass(frozen=True, slots=True)
class ReplicaUse:
    """One replica's share of the work.

    Parameters
    ----------
    pool : str
    index : int
    busy_frac, kv_used_mean_frac, kv_used_peak_frac : float
        Means over the window; the peak over the whole run.
    preemptions : int
    prefix_hit_frac : float
        NaN if it looked nothing up.
    """

    pool: str
    index: int
    busy_frac: float
    kv_used_mean_frac: float
    kv_used_peak_frac: float
    preemptions: int
    prefix_hit_frac: float


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run says.

    Parameters
    ----------
    metrics : tuple of Metric
        In the order of `metrics.METRICS`; those of `metrics.PROGRAM_METRICS` and
        `metrics.TOKEN_METRICS` follow where there are programs and token times.
    slo : Slo
    warmup_s : float [s]
    verdict : Verdict
    claim : SloClaim
    replicas : tuple of ReplicaUse
    warnings : tuple of str
        What the run itself warned of, then what must be known about these numbers.
    classes : tuple of ClassSummary
        What it says per SLO class, those without one first; empty without classes.
    """

    metrics: tuple[Metric, ...]
    slo: Slo
    warmup_s: float
    verdict: Verdict
    claim: SloClaim
    replicas: tuple[ReplicaUse, ...]
    warnings: tuple[str, ...]
    classes: tuple[ClassSummary, ...] = ()

    def values(self) -> dict[str, float]:
        """Return every metric's value by name."""
        return {m.name: m.value for m in self.metrics}

    def table(self) -> pd.DataFrame:
        """Return one row per metric: metric, value, unit, ci_low, ci_high, note."""
        import pandas as pd

        rows = [(m.name, m.value, m.unit, m.ci_low, m.ci_high, m.note) for m in self.metrics]
        return pd.DataFrame(rows, columns=["metric", "value", "unit", "ci_low", "ci_high", "note"])

    def as_json(self) -> dict[str, Any]:
        """Return plain values for ``summary.json``; what is not a number becomes None."""
        classes = {"slo_classes": [asdict(c) for c in self.classes]} if self.classes else {}
        cleaned: dict[str, Any] = _plain(
            {
                "metrics": {m.name: asdict(m) for m in self.metrics},
                "slo": asdict(self.slo),
                "warmup_s": self.warmup_s,
                "saturation": asdict(self.verdict) | {"slope": self.verdict.slope._asdict()},
                "slo_claim": asdict(self.claim),
                "replicas": [asdict(r) for r in self.replicas],
                "warnings": list(self.warnings),
                **classes,
            }
        )
        return cleaned


def summarize(table: RequestTable, facts: RunFacts, slo: Slo, warmup_s: float = 0.0) -> Summary:
    """Make the metrics of a run.

    Parameters
    ----------
    table : RequestTable
        Read one column at a time: 10 million requests need about 0.6 GB.
    facts : RunFacts
    slo : Slo
        Need not be the one the run was made with.
    warmup_s : float [s]
        Requests that arrived before it count as load only.

    Raises
    ------
    InputError
        If `warmup_s` is negative or not finite.
    InvariantError
        If the table does not hold every request that arrived exactly once.
    """
    if not (warmup_s >= 0 and math.isfinite(warmup_s)):
        message = f"read {warmup_s}, but a warm-up is a number of seconds from 0 up"
        raise InputError("summary", [Fault("", "warmup_s", message)])
    if len(table) != facts.requests:
        raise InvariantError(f"{facts.requests} requests arrived, but {len(table)} have an outcome")
    reading = Reading(table, facts, warmup_s)
    counts = reading.outcomes()
    verdict = judge(facts, counts, *reading.arrival_period())
    met = reading.met(slo)
    found = {f"requests_{name}": _exact(n) for name, n in counts.items()}
    found["requests"] = _exact(facts.requests)
    found["not_served_frac"] = _exact(verdict.not_served_frac)
    found |= reading.latencies()
    found |= _gaps(facts)
    found |= reading.attainment(met)
    found |= reading.rates(met.get("slo"))
    replicas = _replica_use(facts, warmup_s)
    found |= _fleet_use(facts, replicas, warmup_s)
    found["recomputed_tokens"] = _exact(int(table.numbers("recomputed_tokens").sum()))
    found["prefill_tokens"] = _exact(_prefilled(facts))
    found |= _power(facts, found, warmup_s)
    found |= _money(facts, found)
    noted = verdict.value == "overloaded"
    defined = METRICS
    if table.has_programs:
        found |= program_metrics(table, slo, warmup_s)
        defined += PROGRAM_METRICS
    if facts.stops:
        found |= {name: _exact(value) for name, value in stop_metrics(facts.stops).items()}
        defined += STOP_METRICS
    if facts.stations:
        found |= {name: _exact(value) for name, value in station_metrics(facts.stations).items()}
        defined += STATION_METRICS
    if facts.refusals >= 0:
        found |= {"refusals": _exact(facts.refusals), "holds": _exact(facts.holds)}
        defined += REFUSAL_METRICS
    if facts.tokens is not None:
        found |= token_metrics(facts.tokens.delivered(table), table, slo, warmup_s)
        defined += TOKEN_METRICS
    classes = class_summaries(table, facts, slo, warmup_s, verdict)
    if classes:
        found["slo_class_least_ratio"] = _exact(least_ratio(classes))
        defined += CLASS_METRICS
    metrics = tuple(
        Metric(d.name, *found[d.name][:1], d.unit, *found[d.name][1:], _note(d.name, noted))
        for d in defined
    )
    said = joint_claim(classes) if classes else claim(slo, found["slo_attained_frac"], verdict)
    warnings = (*facts.warnings, *_warnings(facts, found, verdict, reading))
    return Summary(metrics, slo, warmup_s, verdict, said, replicas, warnings, classes)


def _gaps(facts: RunFacts) -> dict[str, Interval]:
    quantiles = facts.itl.quantiles_s(list(QUANTILES.values()))
    found = {f"itl_{q}_s": _exact(v) for q, v in zip(QUANTILES, quantiles, strict=True)}
    return found | {"itl_mean_s": _exact(facts.itl.mean_s())}


def _replica_use(facts: RunFacts, warmup_s: float) -> tuple[ReplicaUse, ...]:
    edges = np.array([min(warmup_s * NS_PER_S, facts.end_ns), facts.end_ns])
    width = float(edges[1] - edges[0])

    def mean(replica: Any, name: str) -> float:
        amount = float(integrals(replica, name, edges, facts.end_ns)[0])
        return amount / width if width > 0 else math.nan

    found = []
    for replica in facts.replicas:
        blocks = max(blocks_of(facts, replica), 1)
        found.append(
            ReplicaUse(
                replica.pool,
                replica.index,
                mean(replica, "busy_ns"),
                mean(replica, "kv_blocks") / blocks,
                replica.peak_kv_blocks / blocks,
                replica.preemptions,
                _ratio(replica.hit_tokens, replica.lookup_tokens),
            )
        )
    return tuple(found)


def _fleet_use(
    facts: RunFacts, replicas: tuple[ReplicaUse, ...], warmup_s: float
) -> dict[str, Interval]:
    edges = np.array([min(warmup_s * NS_PER_S, facts.end_ns), facts.end_ns])
    blocks = capacity_blocks(facts, facts.replicas)
    held = float(fleet_integrals(facts.replicas, "kv_blocks", edges, facts.end_ns)[0])
    busy = [r.busy_frac for r in replicas] or [math.nan]
    looked = sum(r.lookup_tokens for r in facts.replicas)
    found = {
        "kv_used_mean_frac": _ratio(held, blocks * float(edges[1] - edges[0])),
        "kv_used_peak_frac": max((r.kv_used_peak_frac for r in replicas), default=math.nan),
        "prefix_hit_frac": _ratio(sum(r.hit_tokens for r in facts.replicas), looked),
        "preemptions": sum(r.preemptions for r in facts.replicas),
        "busy_mean_frac": sum(busy) / len(busy),
        "busy_min_frac": min(busy),
        "busy_max_frac": max(busy),
        "window_s": float(edges[1] - edges[0]) / NS_PER_S,
    }
    return {name: _exact(value) for name, value in found.items()}


def _prefilled(facts: RunFacts) -> float:
    edges = np.array([0, facts.end_ns])
    return float(fleet_integrals(facts.replicas, "prefill_tokens", edges, facts.end_ns)[0])


def _power(facts: RunFacts, found: Mapping[str, Interval], warmup_s: float) -> dict[str, Interval]:
    edges = np.array([min(warmup_s * NS_PER_S, facts.end_ns), facts.end_ns])
    active_uj = float(fleet_integrals(facts.replicas, "active_uj", edges, facts.end_ns)[0])
    active_w = _ratio(active_uj * W_PER_UJ_PER_NS, float(edges[1] - edges[0]))
    power_w = idle_w_of(facts, facts.replicas) + active_w
    return {
        "power_mean_w": _exact(power_w),
        "joules_per_output_token": _exact(_ratio(power_w, found["output_tokens_per_s"].value)),
    }


def _money(facts: RunFacts, found: Mapping[str, Interval]) -> dict[str, Interval]:
    usd = sum(p.replicas * p.gpus_per_replica * p.usd_per_gpu_hour for p in facts.pools)
    if any(replica.billed_ns >= 0 for replica in facts.replicas):
        each = {p.name: p.gpus_per_replica * p.usd_per_gpu_hour / p.ranks for p in facts.pools}
        usd = sum(each[r.pool] * there_frac(facts, r) for r in facts.replicas)
    usd_per_s = usd / 3600
    per_output = _ratio(usd_per_s * 1e6, found["output_tokens_per_s"].value)
    per_token = _ratio(usd_per_s * 1e6, found["total_tokens_per_s"].value)
    return {
        "usd_per_hour": _exact(usd if facts.pools else math.nan),
        "usd_per_million_output_tokens": _exact(per_output),
        "usd_per_million_tokens": _exact(per_token),
    }


def _warnings(
    facts: RunFacts, found: Mapping[str, Interval], verdict: Verdict, reading: Reading
) -> list[str]:
    said = []
    if facts.interrupted:
        said.append("The run was interrupted; every number covers only what happened before.")
    if verdict.value == "overloaded":
        said.append(f"The fleet was overloaded: {verdict.reason} Latencies depend on run length.")
    if verdict.value == "too short to tell":
        said.append(f"Too short to tell whether the fleet keeps up: {verdict.reason}")
    if not reading.late_requests:
        said.append("No request arrived after the warm-up.")
    elif reading.late_requests < BATCHES * MIN_PER_BATCH:
        said.append(
            f"Only {reading.late_requests} requests arrived after the warm-up: intervals need "
            f"{BATCHES * MIN_PER_BATCH}."
        )
    failed = int(found["requests_provider_failed"].value)
    if failed:
        said.append(
            f"{failed:,} requests failed in the recorded service; attainment leaves them out."
        )
    unpriced = [p.gpu for p in facts.pools if math.isnan(p.usd_per_gpu_hour)]
    if unpriced:
        said.append(f"No price is known for {', '.join(sorted(set(unpriced)))}: no cost is given.")
    return said


def _note(name: str, overloaded: bool) -> str:
    latency = name.endswith(("_p50_s", "_p90_s", "_p99_s", "_mean_s"))
    return LENGTH_NOTE if overloaded and (latency or "attained" in name) else ""


def _exact(value: float) -> Interval:
    return Interval(float(value), math.nan, math.nan)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
