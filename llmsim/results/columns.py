"""One table says what a column means; it makes the docs, the Parquet schema and the load check."""

from __future__ import annotations

from dataclasses import dataclass

OUTCOMES = (
    "finished",
    "rejected",
    "unservable",
    "timed_out",
    "aborted",
    "provider_failed",
    "queued_at_end",
    "running_at_end",
)
"""Every request ends in exactly one of these; the engine records the index."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a result table.

    Parameters
    ----------
    name : str
        With its unit as suffix where it has one.
    dtype : str
        NumPy dtype, or ``category``.
    unit : str
        Unit, or ``-``.
    meaning : str
        One sentence.
    """

    name: str
    dtype: str
    unit: str
    meaning: str


RAW_COLUMNS = (
    "request",
    "pool",
    "replica",
    "outcome",
    "arrival_ns",
    "scheduled_ns",
    "first_token_ns",
    "end_ns",
    "prompt_tokens",
    "output_tokens",
    "cached_tokens",
    "preemptions",
    "recomputed_tokens",
    "itl_max_ns",
    "itl_over_slo",
    "session",
    "client",
    "priority",
)
"""Order of the tuple of integers the engine records when a request ends; -1 means 'never'.

`output_tokens` counts tokens that were delivered. `cached_tokens` is the prefix hit at first
admission. `itl_max_ns` is 0 with fewer than two tokens.
"""

RAW_PROGRAM_COLUMNS = ("turn", "final")
"""What a row has besides where requests are calls of programs; the program is the session."""

RAW_CLASS_COLUMNS = ("slo_class",)
"""What a row has besides, before those of programs, where there are SLO classes; -1 for none."""
RAW_HANDOFF_COLUMNS = ("prefill_replica",)
"""What a row has besides, last, where some replicas compute prompts for others."""

REQUEST_COLUMNS = (
    Column("request", "int64", "-", "Index of the request in the workload, from 0"),
    Column("pool", "category", "-", "Pool that served it; empty if none did"),
    Column("replica", "int32", "-", "Replica index within the fleet; -1 if none"),
    Column("outcome", "category", "-", "How it ended; exactly one outcome per request"),
    Column("arrival_s", "float64", "s", "Arrival since the start of the workload"),
    Column(
        "queue_s", "float64", "s", "From arrival to the first step that computed one of its tokens"
    ),
    Column("ttft_s", "float64", "s", "Time to first token: from arrival to the first output token"),
    Column(
        "tpot_s", "float64", "s", "Time per output token after the first; NaN with fewer than two"
    ),
    Column("itl_max_s", "float64", "s", "Longest gap between two consecutive output tokens"),
    Column("itl_over_slo", "int32", "tokens", "Gaps between tokens longer than the ITL objective"),
    Column(
        "e2e_s", "float64", "s", "From arrival to the last output token; NaN unless it finished"
    ),
    Column(
        "end_s", "float64", "s", "When it ended, however it did, since the start of the workload"
    ),
    Column("prompt_tokens", "int32", "tokens", "Prompt length"),
    Column("output_tokens", "int32", "tokens", "Output tokens delivered"),
    Column(
        "cached_tokens",
        "int32",
        "tokens",
        "Prompt tokens found in the prefix cache at first admission",
    ),
    Column("preemptions", "int32", "-", "Times it was preempted"),
    Column(
        "recomputed_tokens",
        "int32",
        "tokens",
        "Tokens whose KV was lost to preemption and computed again",
    ),
    Column("session", "int64", "-", "Session id; -1 outside a session"),
    Column("client", "category", "-", "Client name; empty if the trace has none"),
    Column("priority", "int32", "-", "Priority class; smaller is more urgent"),
)
"""Columns of ``requests.parquet``."""

CLASS_COLUMNS = (Column("slo_class", "category", "-", "SLO class; empty where it has none"),)
"""Columns of ``requests.parquet`` besides, where the scenario has SLO classes."""

CALL_COLUMNS = (
    Column("turn", "int32", "-", "Which call of its program it is, from 0"),
    Column("final", "bool", "-", "Whether its program is over when it has been served"),
)
"""Columns of ``requests.parquet`` besides, where requests are calls of programs."""

HANDOFF_COLUMNS = (
    Column(
        "prefill_replica",
        "int32",
        "-",
        "Replica that computed its prompt and handed it over to `replica`; -1 if none did",
    ),
)
"""Columns of ``requests.parquet`` besides, where some replicas compute prompts for others."""

PROGRAM_COLUMNS = (
    Column("program", "int64", "-", "Index of the program; the session of its calls"),
    Column("client", "category", "-", "Client name; empty if the workload has none"),
    Column("outcome", "category", "-", "`finished`, or how the call that it failed at ended"),
    Column("arrival_s", "float64", "s", "Arrival of its first call"),
    Column(
        "jct_s",
        "float64",
        "s",
        "Job completion time: from its first call to its last token; NaN unless it finished",
    ),
    Column("pause_s", "float64", "s", "Time in it that nobody waited for the fleet: tools, people"),
    Column("queue_s", "float64", "s", "Time that its calls waited for their first step"),
    Column("calls", "int32", "-", "Calls that were sent"),
    Column("prompt_tokens", "int64", "tokens", "Prompt tokens of all its calls"),
    Column("cached_tokens", "int64", "tokens", "How many of them were found in a prefix cache"),
    Column("output_tokens", "int64", "tokens", "Output tokens delivered"),
    Column("preemptions", "int32", "-", "Times a call of it was preempted"),
)
"""Columns of ``programs.parquet``."""

TIMELINE_COLUMNS = (
    Column("replica", "int32", "-", "Replica index within the fleet"),
    Column("pool", "category", "-", "Pool of the replica"),
    Column("start_ns", "int64", "ns", "Start of the bin, since the start of the workload"),
    Column("bin_ns", "int64", "ns", "Width of the bin"),
    Column("running", "float64", "request * ns", "Time integral of the requests running"),
    Column("waiting", "float64", "request * ns", "Time integral of the requests waiting"),
    Column("kv_blocks", "float64", "block * ns", "Time integral of the KV blocks in use"),
    Column("kv_claimed", "float64", "block * ns", "Time integral of the KV blocks claimed"),
    Column("prefill_tokens", "float64", "tokens", "Prompt tokens computed in the bin"),
    Column("output_tokens", "float64", "tokens", "Output tokens delivered in the bin"),
    Column("busy_ns", "float64", "ns", "Time in the bin during which a step was running"),
    Column("active_uj", "float64", "uJ", "Energy above idle that the replica's GPUs took"),
)
"""Columns of ``timelines.parquet``."""
