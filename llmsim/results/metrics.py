"""One table says what a metric means; it makes the docs and fixes the order of a summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from llmsim.results.columns import OUTCOMES, Column

QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
"""Quantiles reported of every latency."""


@dataclass(frozen=True, slots=True)
class MetricDef:
    """What a metric is.

    Parameters
    ----------
    name : str
    unit : str
    meaning : str
        One sentence.
    interval : str
        How its 95% interval is made; empty if it has none.
    """

    name: str
    unit: str
    meaning: str
    interval: str = ""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric's value in one run.

    Parameters
    ----------
    name : str
    value : float
        In `unit`; NaN when the run has nothing to measure it by.
    unit : str
    ci_low, ci_high : float
        95% interval, in `unit`; NaN where there is none.
    note : str
        What must be known before the value is used; mostly empty.
    """

    name: str
    value: float
    unit: str
    ci_low: float
    ci_high: float
    note: str = ""


_OUTCOME_MEANING: Final = {
    "finished": "delivered their last output token",
    "rejected": "were turned away by admission",
    "unservable": "could never fit: their KV exceeds a replica's",
    "timed_out": "lost a client that had waited too long",
    "aborted": "lost a client that went away, as the workload says",
    "provider_failed": "failed in the recorded service and put no load on the fleet",
    "queued_at_end": "had never run when the run ended",
    "running_at_end": "had not delivered their last token when the run ended",
}

_LATENCIES: Final = {
    "ttft": ("time to first token", "with a first token"),
    "tpot": ("time per output token after the first", "that finished with two tokens or more"),
    "itl": ("gap between two consecutive output tokens", ""),
    "e2e": ("time from arrival to the last output token", "that finished"),
    "queue": ("time from arrival to the first step that computed something", "that ever ran"),
}

_OBJECTIVES: Final = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL (every gap)", "e2e": "E2E"}


def _latency_defs() -> list[MetricDef]:
    found = []
    for key, (what, over) in _LATENCIES.items():
        where = f"requests {over}, arrived after the warm-up" if over else "all gaps of the run"
        for stat in (*QUANTILES, "mean"):
            word = "Mean" if stat == "mean" else f"{stat[1:]}th percentile"
            how = "batch means" if stat == "mean" else "sectioning"
            found.append(
                MetricDef(f"{key}_{stat}_s", "s", f"{word} of the {what}; {where}", over and how)
            )
    return found


METRICS: Final = (
    MetricDef("requests", "requests", "Requests that arrived, whole run"),
    *(
        MetricDef(f"requests_{o}", "requests", f"Requests that {_OUTCOME_MEANING[o]}")
        for o in OUTCOMES
    ),
    MetricDef("not_served_frac", "fraction", "Share rejected, timed out or not done at the end"),
    *_latency_defs(),
    MetricDef(
        "throughput_rps", "requests/s", "Requests finished per second of the window", "window parts"
    ),
    MetricDef(
        "output_tokens_per_s",
        "tokens/s",
        "Output tokens delivered to requests that ended in the window, per second of it",
        "window parts",
    ),
    MetricDef(
        "undrained_output_tokens_per_s",
        "tokens/s",
        "The same until the last arrival: without the time in which the fleet empties",
        "window parts",
    ),
    MetricDef(
        "total_tokens_per_s",
        "tokens/s",
        "The same plus the prompt tokens of requests finished in the window",
        "window parts",
    ),
    MetricDef(
        "goodput_rps",
        "requests/s",
        "Requests finished in the window that met every objective set, per second of it",
        "window parts",
    ),
    MetricDef(
        "slo_attained_frac",
        "fraction",
        "Share of the requests arrived after the warm-up that finished and met every objective",
        "batch means, at least Wilson's",
    ),
    *(
        MetricDef(
            f"slo_{key}_attained_frac",
            "fraction",
            f"Share of them that finished and met the {name} objective alone",
            "batch means, at least Wilson's",
        )
        for key, name in _OBJECTIVES.items()
    ),
    MetricDef(
        "kv_used_mean_frac",
        "fraction",
        "KV blocks in use over KV blocks there are, mean over the window",
    ),
    MetricDef("kv_used_peak_frac", "fraction", "Highest share any replica reached, whole run"),
    MetricDef(
        "prefix_hit_frac",
        "fraction",
        "Prompt tokens found in the prefix cache over those looked up, whole run",
    ),
    MetricDef("preemptions", "-", "Preemptions on all replicas, whole run"),
    MetricDef(
        "recomputed_tokens",
        "tokens",
        "Tokens computed again because preemption lost their KV, whole run",
    ),
    MetricDef(
        "prefill_tokens",
        "tokens",
        "Tokens computed by prefills, those computed again included, whole run",
    ),
    MetricDef(
        "busy_mean_frac",
        "fraction",
        "Share of the window in which a replica ran a step, mean of the replicas",
    ),
    MetricDef("busy_min_frac", "fraction", "The same for the idlest replica"),
    MetricDef("busy_max_frac", "fraction", "The same for the busiest replica"),
    MetricDef(
        "power_mean_w", "W", "Power of all GPUs of the fleet, idle and active, mean over the window"
    ),
    MetricDef(
        "joules_per_output_token", "J", "Energy of the window over the output tokens of the window"
    ),
    MetricDef("usd_per_hour", "USD/h", "Price of all GPUs of the fleet"),
    MetricDef(
        "usd_per_million_output_tokens",
        "USD",
        "Fleet price over output tokens per second, times a million",
    ),
    MetricDef(
        "usd_per_million_tokens", "USD", "Fleet price over total tokens per second, times a million"
    ),
    MetricDef("window_s", "s", "From the end of the warm-up to the end of the last request"),
)
"""Every metric of a summary, in its order."""

PROGRAM_METRICS: Final = (
    MetricDef("programs", "programs", "Programs that began, whole run"),
    MetricDef("programs_finished", "programs", "Programs whose last call was served, whole run"),
    *(
        MetricDef(
            f"jct_{stat}_s",
            "s",
            f"{'Mean' if stat == 'mean' else f'{stat[1:]}th percentile'} of the time from a "
            "program's first call to its last token; finished programs begun after the warm-up",
            "batch means" if stat == "mean" else "sectioning",
        )
        for stat in (*QUANTILES, "mean")
    ),
    MetricDef(
        "slo_jct_attained_frac",
        "fraction",
        "Share of the programs begun after the warm-up that finished and met the JCT objective",
        "batch means, at least Wilson's",
    ),
    MetricDef(
        "program_calls_mean",
        "calls",
        "Calls sent per program begun after the warm-up",
        "batch means",
    ),
    MetricDef(
        "program_pause_mean_s",
        "s",
        "Time per such program in which tools or people were busy",
        "batch means",
    ),
)
"""Metrics that a summary has besides, where requests are calls of programs."""

TOKEN_METRICS: Final = (
    *(
        MetricDef(
            f"missed_deadlines_{stat}_frac",
            "fraction",
            f"{'Mean' if stat == 'mean' else '99th percentile'} of the share of its token "
            "deadlines that a request missed, slack carried over (1 - fluidity); the time between "
            "tokens is that of the TPOT objective; requests that got a token, arrived after the "
            "warm-up",
            "batch means" if stat == "mean" else "sectioning",
        )
        for stat in ("mean", "p99")
    ),
)
"""Metrics that a summary has besides, where token times were taken down."""


STOP_METRICS: Final = (
    MetricDef("stops", "-", "Steps that were stopped inside for a more urgent prompt, whole run"),
    MetricDef(
        "stop_wait_mean_s", "s", "Mean time from the arrival that stopped a step until the stop"
    ),
    MetricDef("stop_wait_max_s", "s", "The longest of these times"),
)
"""Metrics that a summary has besides, where steps can be stopped inside."""

STATION_METRICS: Final = (
    MetricDef(
        "bubble_frac",
        "fraction",
        "Share of the stages' time in which they stood idle while their pipeline had something in "
        "flight, whole run",
    ),
    MetricDef(
        "station_busy_max_frac",
        "fraction",
        "Share of that time in which the fullest stage, link or host worked",
    ),
)
"""Metrics that a summary has besides, where replicas have several stages."""

REFUSAL_METRICS: Final = (
    MetricDef(
        "refusals",
        "-",
        "How often a replica was asked to take a request and refused, whole run",
    ),
    MetricDef(
        "holds",
        "-",
        "How often a request was held because no replica took it, whole run",
    ),
)
"""Metrics that a summary has besides, where replicas may refuse."""

CLASS_METRICS: Final = (
    MetricDef(
        "slo_class_least_ratio",
        "-",
        "The least, over SLO classes, of the share that met every objective of its class over the "
        "share promised: from 1 up every class keeps its promise",
    ),
)
"""Metrics that a summary has besides, where there are SLO classes."""

EVERY_METRIC: Final = (
    *METRICS,
    *CLASS_METRICS,
    *PROGRAM_METRICS,
    *STOP_METRICS,
    *STATION_METRICS,
    *REFUSAL_METRICS,
    *TOKEN_METRICS,
)
"""Every metric that some run has."""


def metrics_table(metrics: Sequence[MetricDef] = METRICS) -> str:
    """Return metrics as a Markdown table, as it stands in ``docs/metrics.md``."""
    rows = ["| metric | unit | meaning | 95% interval |", "|---|---|---|---|"]
    rows += [f"| `{m.name}` | {m.unit} | {m.meaning} | {m.interval or 'none'} |" for m in metrics]
    return "\n".join(rows)


def columns_table(columns: Sequence[Column]) -> str:
    """Return columns of a result table as a Markdown table, as it stands in the docs."""
    rows = ["| column | dtype | unit | meaning |", "|---|---|---|---|"]
    rows += [f"| `{c.name}` | {c.dtype} | {c.unit} | {c.meaning} |" for c in columns]
    return "\n".join(rows)
