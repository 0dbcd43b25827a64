"""Compared runs of the reference engine as tables, in the terminal and on a page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from llmsim.core.files import write_whole
from llmsim.fidelity.measuredruns import ComparedRun, ComparedRuns, Figures

AGAIN: Final = "-again"
"""What a repetition's name has behind that of the run it repeats."""


def repetitions(runs: Sequence[ComparedRun]) -> list[tuple[ComparedRun, ComparedRun]]:
    """Return each run that was made twice, with its repetition."""
    by_name = {run.name: run for run in runs}
    return [
        (by_name[run.name.split(AGAIN)[0]], run)
        for run in runs
        if AGAIN in run.name and run.name.split(AGAIN)[0] in by_name
    ]


FIGURES: Final[Mapping[str, tuple[str, float]]] = {
    "ttft_p50_s": ("TTFT P50 [ms]", 1e3),
    "ttft_p90_s": ("TTFT P90 [ms]", 1e3),
    "tpot_s": ("TPOT mean [ms]", 1e3),
    "e2e_p50_s": ("E2E P50 [s]", 1.0),
    "output_tokens_per_s": ("output [tokens/s]", 1.0),
    "peak_kv_blocks": ("KV blocks, peak", 1.0),
}
"""What a figure is called, and what a second or a count of it is multiplied with."""


def step_table(found: ComparedRuns) -> list[tuple[str, ...]]:
    """Return the error of single steps by what was in them, the head first."""
    head = ("steps", "count", "measured ms", "predicted ms", "median %", "P90 %", "bias %")
    rows = [
        (
            each.name,
            str(each.errors.count),
            f"{1e3 * each.measured_s:.2f}",
            f"{1e3 * each.predicted_s:.2f}",
            f"{100 * each.errors.median:.1f}",
            f"{100 * each.errors.p90:.1f}",
            f"{100 * each.errors.bias:+.1f}",
        )
        for each in found.regimes
    ]
    return [head, *rows]


def run_table(found: ComparedRuns) -> list[tuple[str, ...]]:
    """Return what clients see of each run, measured and predicted, the head first."""
    head = ("run", "figure", "measured", "predicted", "error %")
    rows = []
    for run in found.runs:
        steps = f"{run.same_decisions} of {run.steps}"
        rows.append((run.name, "decisions alike [steps]", str(run.steps), steps, ""))
        for figure, (name, factor) in FIGURES.items():
            one, two = getattr(run.measured, figure), getattr(run.predicted, figure)
            error = f"{100 * (two / one - 1.0):+.1f}"
            rows.append(("", name, f"{factor * one:.4g}", f"{factor * two:.4g}", error))
    return [head, *rows]


def noise_table(found: ComparedRuns) -> list[tuple[str, ...]]:
    """Return by how much a run differs from its own repetition, the head first."""
    head = ("run made twice", "figure", "first", "again", "difference %")
    rows = []
    for first, again in repetitions(found.runs):
        for at, part in enumerate(fields(Figures)):
            name, factor = FIGURES[part.name]
            one, two = getattr(first.measured, part.name), getattr(again.measured, part.name)
            change = f"{100 * (two / one - 1.0):+.1f}"
            place = "" if at else first.name
            rows.append((place, name, f"{factor * one:.4g}", f"{factor * two:.4g}", change))
    return [head, *rows]


def markdown(found: ComparedRuns) -> str:
    """Return the tables as a part of a page."""
    parts = [f"Priced with `{told_cost(found.cost)}`, on {found.gpu}."]
    for title, table in (
        ("Single steps", step_table(found)),
        ("Runs", run_table(found)),
        ("Noise: the same run twice", noise_table(found)),
    ):
        parts += ["", f"### {title}", "", *_markdown_rows(table)]
    return "\n".join(parts) + "\n"


def _markdown_rows(table: Sequence[tuple[str, ...]]) -> Iterator[str]:
    head, *rows = table
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


BEGIN, END = "<!-- runs: begin -->", "<!-- runs: end -->"
"""Around the part of a page that `write_page` makes anew."""


def write_page(path: Path, found: ComparedRuns) -> None:
    """Write the tables, into their place on a page that has one, and a drawing beside the page.

    Parameters
    ----------
    path : Path
    found : ComparedRuns
    """
    from llmsim.fidelity.rundrawings import runs_svg

    drawing = path.with_suffix(".svg")
    write_whole(drawing, runs_svg(found))
    shown = f"![Errors of single steps and of runs]({drawing.name})"
    part = f"{BEGIN}\n{shown}\n\n{markdown(found)}{END}"
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        if BEGIN in text and END in text:
            before, after = text.split(BEGIN)[0], text.split(END)[1]
            write_whole(path, f"{before}{part}{after}")
            return
    write_whole(path, f"{part}\n")


def told_cost(cost: Mapping[str, Any]) -> str:
    """Return a cost component in one line; the folder of a profile by its last two parts."""
    told = {k: round(v, 9) if isinstance(v, float) else v for k, v in cost.items()}
    if "profile" in told:
        told["profile"] = "/".join(Path(str(told["profile"])).parts[-2:])
    return json.dumps(told)
