"""A validation as text: tables for a terminal, CSV for a spreadsheet, Markdown for the docs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from llmsim.core.files import csv_lines, write_whole
from llmsim.fidelity.ablation import Ablated
from llmsim.fidelity.kvmemory import KvRow
from llmsim.fidelity.scores import Capacity, Errors, Group, errors_of, reasons
from llmsim.fidelity.twins import Twins, find_twins
from llmsim.fidelity.validation import SIDES, TOLD, Report

METRICS: Final = ("tpot", "ttft", "throughput", "e2e")

TITLES: Final = {
    "source": "source",
    "engine": "engine",
    "gpu": "GPU",
    "model_key": "model",
    "disaggregated": "engine and GPU where prefill and decode are apart",
}

Row = tuple[str, ...]

HEAD: Final[Row] = ("", "cases", "simulated", *METRICS)


NOTHING: Final = "-"
"""Cell of a metric that no case of the group has."""

WIDE: Final = 132
"""Columns of a terminal that takes a metric per column."""


def told(errors: Errors | None) -> str:
    """Return errors in one cell: median, P90, worst, signed bias; all in percent."""
    if errors is None:
        return NOTHING
    return (
        f"{100 * errors.median:.1f} / {100 * errors.p90:.0f} / {100 * errors.worst:.0f}"
        f" ({100 * errors.bias:+.1f})"
    )


def group_rows(groups: Iterable[Group], covered: bool = False) -> list[Row]:
    """Return one row per group, in the order of `HEAD`.

    Parameters
    ----------
    groups : iterable of Group
    covered : bool
        Count what was not scored as 100% error.
    """
    rows = []
    for group in groups:
        errors = group.covered if covered else group.errors
        cells = (told(errors.get(metric)) for metric in METRICS)
        rows.append((group.name, str(group.cases), str(group.simulated), *cells))
    return rows


def tall_rows(head: Row, rows: Iterable[Row]) -> list[Row]:
    """Return a table of groups with a row per metric instead of a column, for narrow terminals.

    Parameters
    ----------
    head : tuple of str
        As `HEAD`.
    rows : iterable of tuple of str
        As `group_rows` returns them.
    """
    found: list[Row] = [(head[0], "cases", "metric", "median", "P90", "worst", "signed")]
    for name, cases, simulated, *cells in rows:
        count = cases if cases == simulated else f"{simulated} of {cases}"
        for metric, cell in zip(METRICS, cells, strict=True):
            if cell != NOTHING:
                numbers = cell.replace("(", "/ ").rstrip(")").split(" / ")
                found.append((name, count, metric, *numbers))
                name = count = ""
        if name:
            found.append((name, count, NOTHING, *("" for _ in range(4))))
    return found


def headline_rows(report: Report) -> list[Row]:
    """Return the headline, what was not scored left out or counted as 100% error, and the seen."""
    rows = []
    for group in report.groups["headline"]:
        (plain,) = group_rows([group])
        (full,) = group_rows([group], covered=True)
        rows += [("headline", *plain[1:]), ("headline with coverage", *full[1:])]
    return [*rows, *group_rows(report.groups["seen"])]


def capacity_rows(ladders: Sequence[Capacity]) -> list[Row]:
    """Return the errors of capacities by source, with all of them first."""
    if not ladders:
        return []
    rows: list[Row] = [
        ("all ladders", str(len(ladders)), told(errors_of([x.error_frac for x in ladders])))
    ]
    for source in sorted({ladder.case.text("source") for ladder in ladders}):
        part = [x.error_frac for x in ladders if x.case.text("source") == source]
        rows.append((source, str(len(part)), told(errors_of(part))))
    return rows


TWINS_HEAD: Final[Row] = ("sources", "configurations", "tpot", "ttft")


def twins_rows(found: Sequence[Twins]) -> list[Row]:
    """Return one row per pair of sources, in the order of `TWINS_HEAD`."""
    return [
        (
            f"{each.first} / {each.second}",
            str(each.configurations),
            *(_times(each.ratios.get(metric)) for metric in ("tpot", "ttft")),
        )
        for each in found
    ]


def _times(ratio: tuple[float, float, float] | None) -> str:
    return "-" if ratio is None else "{:.2f} ({:.2f} to {:.2f})".format(*ratio)


def twins_words(found: Sequence[Twins]) -> str:
    """Return what the table of `twins_rows` says, with every contradiction by name."""
    words = (
        "Measured over measured, median and range over configurations that both sources have: "
        "checkpoint, GPU, engine, tensor-parallel GPUs, input length and concurrency; engine "
        "versions, output lengths and the experts' layout may differ."
    )
    for each in found:
        if each.contradict:
            sides = " and ".join(
                f"{median:.2g} times the {metric.upper()}"
                for metric, (median, _, _) in each.ratios.items()
            )
            words += (
                f" {each.first} has {sides} of {each.second} in {each.configurations} of them: no "
                "simulation of what the records say can be near both. Both stay scored."
            )
    return words


ABLATION_HEAD: Final[Row] = (
    *("changed", "cases", "tpot", "as it is", "ttft", "as it is"),
    *("throughput", "as it is"),
)


def ablation_rows(found: Sequence[Ablated]) -> list[Row]:
    """Return one row per ablation, in the order of `ABLATION_HEAD`."""
    return [
        (
            each.name,
            str(each.changed),
            *(told(side.get(metric)) for metric in METRICS[:3] for side in _sides(each)),
        )
        for each in found
    ]


def _sides(each: Ablated) -> tuple[Mapping[str, Errors], Mapping[str, Errors]]:
    return each.errors, each.before


KV_HEAD: Final[Row] = ("KV memory [GiB per GPU]", "logged", "predicted", "error", "scored", "terms")


def memory_rows(rows: Sequence[KvRow]) -> list[Row]:
    """Return one row per logged KV capacity, in the order of `KV_HEAD`."""
    return [
        (
            row.name,
            _gib(row.measured_gib),
            _gib(row.predicted_gib),
            _gib(row.error_gib, "+"),
            "yes" if row.scored else "no",
            row.note,
        )
        for row in rows
    ]


def _gib(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.2f}"


def markdown(head: Row, rows: Iterable[Row]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join('---' for _ in head)}|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


def report_markdown(report: Report) -> str:
    """Return all tables of a report as Markdown."""
    parts = [
        "Cells: median / P90 / worst absolute error and, in brackets, signed median, in percent.",
        markdown(HEAD, [*headline_rows(report), *group_rows(report.groups["all"])]),
    ]
    for side in filter(report.groups.get, SIDES):
        parts += [f"## By {TITLES[side]}", markdown(HEAD, group_rows(report.groups[side]))]
    capacity = capacity_rows(report.ladders)
    if capacity:
        parts += ["## Capacity", markdown(("", "ladders", "largest throughput"), capacity)]
    if report.memory:
        parts += ["## KV memory", markdown(KV_HEAD, memory_rows(report.memory))]
    twins = find_twins(each.case for each in report.replayed)
    if twins:
        table = markdown(TWINS_HEAD, twins_rows(twins))
        parts += ["## Sources against each other", twins_words(twins), table]
    missing = reasons(report.replayed)
    if missing:
        table = markdown(("reason", "cases"), [(why, str(count)) for why, count in missing])
        parts += ["## Not simulated", table]
    return "\n\n".join(parts) + "\n"


DOCS: Final = """# How wrong is llmsim?

Made by `llmsim validate DIR --headline --ablate --docs docs/how-wrong.md`; not edited by hand.
Every case is a measured serving run of a public source, simulated from its record alone: model,
GPU, layout, lengths, load. What a record leaves out comes from
`llmsim/fidelity/assumptions.yaml`, each value with its origin. There is no knob for a single case.

- *Fitted*: cases that the host terms of two engine versions (`profiles/engines/`) and three terms
  of `assumptions.yaml` (launching layers that no graph holds, what a server does with a request
  before its engine has it, and what client and server do for all that come together) were fitted
  to. They stand in rows of their own and in the tables by side, and count neither in the headline
  nor in capacity. Nothing else that ships was fitted to these measurements.
- *Headline*: quality A and B of sources whose layout, lengths and load are known, vLLM and
  TensorRT-LLM, aggregated serving. *With coverage*: what was not simulated counts as 100% wrong.
- *tpot*, *ttft*, *e2e*: the mean where the source has it, else the median. *throughput*: output
  tokens per second; where a closed-loop source gives none, requests in flight over mean time per
  request (Little's law), for measurement and simulation alike.
- *Capacity*: largest throughput over a ladder of at least four loads.
- TensorRT-LLM is simulated with vLLM's batching policy, SGLang with its own.
- Repeats of the same run differ by 1% in TPOT and 4% in TTFT (median); across engine versions by
  2% and 9%.

A small real engine of our own, step by step on a GPU of our own, with pictures:
[measured-on-an-h100.md](measured-on-an-h100.md).

Where the measurements are published: aiconfigurator (ai-dynamo/aiconfigurator,
`silicon_sample.csv`; InferenceX data: attribution to SemiAnalysis InferenceX), inference-sim
(inference-sim/inference-sim and its training data), LLMServingSim (casys-kaist/LLMServingSim,
`bench/examples`), and a reproduction of InferenceX on H200
(heyram74/nebius_sopertors_inferencex_benchmark). The command takes any folder in the same long
format: one row per case, metric and statistic (`llmsim/fidelity/cases.py`).

"""


def docs_page(report: Report, ablated: Sequence[Ablated] = ()) -> str:
    """Return the page ``docs/how-wrong.md``.

    Parameters
    ----------
    report : Report
    ablated : sequence of Ablated
        What assumptions are worth; empty leaves the section out.
    """
    page = DOCS + report_markdown(report)
    if not ablated:
        return page
    cases = max(each.changed for each in ablated)
    words = (
        f"{cases} cases of grade A of the headline, in turn from every source, GPU, model and "
        "engine; each assumption changed alone. *cases*: those whose scenario it changes, and the "
        "errors are theirs, changed and as it is."
    )
    table = markdown(ABLATION_HEAD, ablation_rows(ablated))
    return f"{page}\n## What each assumption is worth\n\n{words}\n\n{table}\n"


def write_csv(report: Report, folder: Path) -> None:
    """Write ``cases.csv`` (every statistic), ``capacity.csv`` and ``not_simulated.csv``.

    Parameters
    ----------
    report : Report
    folder : Path
        Made where it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    head = ("case_id", "quality", *TOLD, "metric", "stat", "measured", "predicted")
    rows: list[tuple[object, ...]] = [(*head, "error_frac")]
    for score in report.scores:
        case = score.case
        known = [case.text(name) for name in TOLD]
        numbers = (f"{score.measured:.6g}", f"{score.predicted:.6g}", f"{score.error_frac:.4f}")
        rows.append((case.case_id, case.quality, *known, score.metric, score.stat, *numbers))
    write_whole(folder / "cases.csv", csv_lines(rows))
    rows = [("ladder", "points", "measured_tokens_per_s", "predicted_tokens_per_s")]
    for each in report.ladders:
        rows.append((each.name, each.points, f"{each.measured:.6g}", f"{each.predicted:.6g}"))
    write_whole(folder / "capacity.csv", csv_lines(rows))
    rows = [("case_id", "source", "reason")]
    for left in report.replayed:
        if left.reason:
            rows.append((left.case.case_id, left.case.text("source"), left.reason))
    write_whole(folder / "not_simulated.csv", csv_lines(rows))
