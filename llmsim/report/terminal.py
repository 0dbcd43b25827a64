"""The summary of a run for a terminal, 80 columns wide."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llmsim.results import stores
from llmsim.results.facts import RunFacts
from llmsim.results.metrics import QUANTILES
from llmsim.results.result import Result
from llmsim.results.summary import Summary
from llmsim.results.wording import NONE, duration, number, objectives, share, usd, worded_limits

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

LATENCIES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "E2E"}
"""Latencies shown, with their headings."""

MOST_CLIENTS = 12
"""More clients than this are left to `Result.by_client`."""

_COLOURS = {
    "stable": "green",
    "overloaded": "bold red",
    "too short to tell": "yellow",
    "met": "green",
    "missed": "bold red",
    "undecided": "yellow",
    "not claimed": "yellow",
    "not set": "dim",
}


def print_summary(
    result: Result, folder: Path | None = None, console: Console | None = None
) -> None:
    """Print the summary of a run.

    Parameters
    ----------
    result : Result
    folder : Path, optional
        Where the run was saved.
    console : rich.console.Console, optional
        Standard output when absent, at most 100 columns wide.
    """
    from rich.console import Console as RichConsole

    if console is None:
        console = RichConsole()
        console.width = min(console.width, 100)
    for part in summary_parts(result, folder):
        console.print(part)


def summary_parts(result: Result, folder: Path | None = None) -> list[RenderableType]:
    """Return the parts of the summary, for a `rich` console, top to bottom.

    Parameters
    ----------
    result : Result
    folder : Path, optional
    """
    from rich.text import Text

    summary = result.evaluate()
    info = result.info
    title = Text.assemble(
        (info.scenario, "bold"), f"  {info.model} on {info.fleet}, seed {info.seed}"
    )
    parts: list[RenderableType] = [title, _latency_table(summary), _fact_table(result)]
    by_model = result.by_model
    if by_model:
        parts.append(_part_table("model", by_model))
    if len(result.table.categories("client")) <= MOST_CLIENTS + 1:  # one is nobody
        by_client = result.by_client
        if len(by_client) > 1:
            parts.append(_part_table("client", by_client))
    by_priority = result.by_priority
    if len(by_priority) > 1:
        parts.append(_part_table("priority", {str(k): v for k, v in by_priority.items()}))
    by_class = {name or "(none)": values for name, values in result.by_slo_class.items()}
    if by_class:
        parts.append(_part_table("SLO class", by_class))
    parts += [Text.assemble(("warning: ", "yellow"), text) for text in summary.warnings]
    if folder is not None:
        parts.append(Text.assemble(("saved in ", "dim"), str(folder)))
    return parts


def _latency_table(summary: Summary) -> Table:
    from rich import box
    from rich.table import Table

    value = summary.values()
    marked = summary.verdict.value == "overloaded"
    heads = [*QUANTILES, "mean"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("latency")
    for head in heads:
        table.add_column(f"{head} *" if marked else head, justify="right", min_width=9)
    limits = worded_limits(summary.slo)
    if limits:
        table.add_column("objective", justify="right")
        table.add_column("kept by", justify="right")
    for key, name in LATENCIES.items():
        cells = [duration(value[f"{key}_{head}_s"]) for head in heads]
        if limits:
            limit = limits.get(f"{key}_s")
            cells.append(limit or "")
            cells.append("" if limit is None else share(value[f"slo_{key}_attained_frac"]))
        table.add_row(name, *cells)
    if marked:
        table.caption = "* depends on run length: the fleet was overloaded"
    return table


def _part_table(head: str, parts: Mapping[str, Mapping[str, float]]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(head)
    for head in ("requests", "TTFT p50", "TTFT p90", "TPOT p50", "TPOT p90", "kept all"):
        table.add_column(head, justify="right")
    keys = ("ttft_p50_s", "ttft_p90_s", "tpot_p50_s", "tpot_p90_s")
    for name, value in parts.items():
        cells = [duration(value[key]) for key in keys]
        kept = value["slo_attained_frac"]
        last = "" if math.isnan(kept) else share(kept)
        table.add_row(name, f"{value['requests']:,.0f}", *cells, last)
    return table


def _fact_table(result: Result) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, told in fact_rows(result.evaluate(), result.facts):
        colour = _COLOURS.get(told.split(": ")[0], "")
        head, _, rest = told.partition(": ")
        text = Text.assemble((head, colour), f": {rest}") if colour and rest else Text(told)
        table.add_row(name, text)
    return table


def _busy(value: Mapping[str, float], replicas: int) -> str:
    told = f"{share(value['busy_mean_frac'])} of the time"
    if replicas < 2:
        return told
    least, most = (share(value[f"busy_{end}_frac"]) for end in ("min", "max"))
    return f"{told}; {least} to {most} by replica"


def fact_rows(summary: Summary, facts: RunFacts) -> list[tuple[str, str]]:
    """Return what is said besides latencies, as (name, text), for a terminal and for a page."""
    value = summary.values()
    per_million = (
        f"{usd(value['usd_per_million_output_tokens'])} per million output tokens, "
        f"{usd(value['usd_per_million_tokens'])} per million tokens"
    )
    cost = f"{usd(value['usd_per_hour'])}/h; {per_million}"
    programs = [("programs", _programs(value))] if "programs" in value else []
    return [
        ("requests", _requests(summary)),
        *programs,
        (
            "throughput",
            f"{number(value['throughput_rps'])} requests/s, "
            f"{number(value['output_tokens_per_s'])} output tokens/s, "
            f"{number(value['total_tokens_per_s'])} tokens/s in all",
        ),
        ("goodput", _goodput(summary)),
        ("SLO", f"{summary.claim.value}: {summary.claim.reason}"),
        ("saturation", f"{summary.verdict.value}: {summary.verdict.reason}"),
        (
            "KV use",
            f"{share(value['kv_used_mean_frac'])} mean, {share(value['kv_used_peak_frac'])} peak",
        ),
        ("prefix hits", f"{share(value['prefix_hit_frac'])} of the prompt tokens looked up"),
        *stores.told(facts),
        (
            "preemptions",
            f"{number(value['preemptions'])}; {number(value['recomputed_tokens'])} tokens "
            "computed again",
        ),
        *_refusals(value),
        ("busy", _busy(value, len(facts.replicas))),
        (
            "power",
            NONE
            if math.isnan(value["power_mean_w"])
            else f"{number(value['power_mean_w'])} W mean, "
            f"{number(value['joules_per_output_token'])} J per output token",
        ),
        ("cost", NONE if math.isnan(value["usd_per_hour"]) else cost),
    ]


def _refusals(value: Mapping[str, float]) -> list[tuple[str, str]]:
    if not value.get("refusals") and not value.get("holds"):
        return []
    told = f"{number(value['refusals'])}; {number(value['holds'])} times a request was held"
    return [("refusals", told)]


def _requests(summary: Summary) -> str:
    value = summary.values()
    parts = [
        f"{number(amount)} {name.removeprefix('requests_').replace('_', ' ')}"
        for name, amount in value.items()
        if name.startswith("requests_") and amount
    ]
    return f"{number(value['requests'])} arrived: {', '.join(parts) or 'none'}"


def _programs(value: Mapping[str, float]) -> str:
    told = (
        f"{number(value['programs'])} began, {number(value['programs_finished'])} finished; "
        f"JCT {duration(value['jct_p50_s'])} p50, {duration(value['jct_p99_s'])} p99, "
        f"{duration(value['jct_mean_s'])} mean"
    )
    kept = value["slo_jct_attained_frac"]
    return told if math.isnan(kept) else f"{told}; objective kept by {share(kept)}"


def _goodput(summary: Summary) -> str:
    if not summary.slo.is_set:
        return "no objective is set"
    told = number(summary.values()["goodput_rps"])
    return f"{told} requests/s within {objectives(summary.slo)}"
