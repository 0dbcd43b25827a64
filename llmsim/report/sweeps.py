"""A sweep for a terminal: its points, best first, and what is best among them."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final

from llmsim.results.wording import NONE, quantity
from llmsim.study.axes import flow
from llmsim.study.goal import UNITS
from llmsim.study.swept import GOOD, Row, Sweep

if TYPE_CHECKING:
    from rich.console import Console

TOP: Final = 20
"""Points shown unless more are asked for."""

BEST, FRONT, TIE = "★", "◆", "≈"
"""Marks: the best point; one that nobody beats; one that cannot be told from the best."""

LONGEST_HEAD: Final = 10
"""Characters of a column's head, beyond which it goes on in a line below."""

MOST_REASONS: Final = 3
"""Reasons, why points cannot be, that a terminal shows."""


def order(sweep: Sweep) -> list[int]:
    """Return the numbers of all points: good ones best first, then the rest by the objective."""
    first = sweep.goal.objectives[0]

    def key(number: int) -> tuple[bool, bool, float, int]:
        gain = first.sign * sweep.rows[number].mean(first.metric)
        good = sweep.standings[number][0] in GOOD
        return (not good, math.isnan(gain), -gain if math.isfinite(gain) else 0.0, number)

    return sorted(range(len(sweep.rows)), key=key)


def shown_metrics(sweep: Sweep) -> list[str]:
    """Return the metrics in a sweep's tables: those of the goal and of its trade-off."""
    named = [*sweep.goal.metrics, *(each.metric for each in sweep.goal.trade_offs())]
    return list(dict.fromkeys(named))


def head(metric: str) -> str:
    """Return a metric's name with its unit, where the cells do not show it."""
    unit = UNITS[metric]
    told = unit in ("s", "fraction", "-") or unit.startswith("USD") or metric.endswith("_rps")
    return metric if told else f"{metric} [{unit}]"


def cell(row: Row, metric: str) -> str:
    """Return the mean of a metric, with half its 95% interval where there are several seeds."""
    unit = UNITS[metric]
    low, high = row.interval(metric)
    told = quantity(row.mean(metric), unit)
    return told if math.isnan(low) else f"{told} ± {quantity((high - low) / 2, unit)}"


def mark(sweep: Sweep, number: int) -> str:
    """Return the marks of a point."""
    best = BEST if number == sweep.best_number else TIE if number in sweep.ties else ""
    return best + (FRONT if number in sweep.front else "")


def words(sweep: Sweep) -> list[str]:
    """Return what a sweep says, in sentences."""
    goal, first = sweep.goal, sweep.goal.objectives[0]
    wanted = ", ".join(map(str, goal.objectives))
    if goal.conditions:
        wanted += f" with {' and '.join(map(str, goal.conditions))}"
    said = [f"Wanted: {wanted}."]
    if sweep.best is None:
        said.append(f"No point is feasible: {_counts(sweep)}.")
    else:
        assert sweep.best_number is not None
        told = f"Best: {sweep.best}; {first.metric} {cell(sweep.best, first.metric)}."
        status, note = sweep.standings[sweep.best_number]
        if status == "unsure":
            told += f" Unsure: {note}; more seeds would tell."
        said.append(told)
        if sweep.ties:
            many = len(sweep.ties)
            told = "1 point cannot" if many == 1 else f"{many} points cannot"
            said.append(f"{told} be told from the best under {len(sweep.seeds)} seeds ({TIE}).")
    short = sum(note.startswith("too short") for _, note in sweep.standings)
    if short:
        said.append(
            f"{short} of {len(sweep.rows)} points have runs too short to tell whether the fleet "
            "keeps up: simulate more requests before you rely on them."
        )
    if len(sweep.seeds) > 1:
        said.append(f"Means of {len(sweep.seeds)} seeds ± half the 95% interval (Student's t).")
    return said


def _counts(sweep: Sweep) -> str:
    found: dict[str, int] = {}
    for number, (status, _) in enumerate(sweep.standings):
        if status in GOOD:
            continue
        if status == "infeasible":
            row = sweep.rows[number]
            for each in sweep.goal.conditions:
                if not each.kept(row.mean(each.metric)):
                    found[f"break {each}"] = found.get(f"break {each}", 0) + 1
        else:
            told = {"overloaded": "are overloaded", "impossible": "cannot be"}.get(status, "")
            told = told or f"are {status}"
            found[told] = found.get(told, 0) + 1
    return ", ".join(f"{many} {what}" for what, many in found.items()) or "there is none"


def print_sweep(sweep: Sweep, top: int = TOP, console: Console | None = None) -> None:
    """Print the points of a sweep, the best marked, those that are not feasible with the reason.

    Parameters
    ----------
    sweep : Sweep
    top : int
        Points to show; 0 for all.
    console : rich.console.Console, optional
        Standard output when absent, at most 120 columns wide.
    """
    from rich import box
    from rich.console import Console as RichConsole
    from rich.table import Table
    from rich.text import Text

    if console is None:
        console = RichConsole(highlight=False)
        console.width = min(console.width, 120)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    metrics = shown_metrics(sweep)
    for text in (*sweep.labels.values(), *map(head, metrics)):
        table.add_column(_folded(text), justify="right", no_wrap=True, vertical="bottom")
    table.add_column("status", no_wrap=True)
    numbers = order(sweep)
    for number in numbers[: top or None]:
        row, status = sweep.rows[number], sweep.standings[number][0]
        broken = {
            each.metric for each in sweep.goal.conditions if not each.kept(row.mean(each.metric))
        }
        cells = [
            Text(cell(row, metric) if row.done else NONE, style="red" if metric in broken else "")
            for metric in metrics
        ]
        best = number == sweep.best_number
        table.add_row(
            mark(sweep, number),
            *(flow(value) for value in row.change.values()),
            *cells,
            Text(status, style="" if status in GOOD else "yellow"),
            style="bold green" if best else "" if status in GOOD else "dim",
        )
    console.print(Text.assemble((sweep.base.name, "bold"), f"  {size(sweep)}"))
    console.print(table)
    if top and len(numbers) > top:
        many = len(numbers) - top
        told = f"{many} more point{'' if many == 1 else 's'}; --top 0 shows all."
        console.print(Text(told, style="dim"))
    for text in words(sweep):
        console.print(Text(text))
    reasons = dict.fromkeys(note for status, note in sweep.standings if status == "impossible")
    for text in list(reasons)[:MOST_REASONS]:
        console.print(Text(f"impossible: {text}", style="dim"))
    if len(reasons) > MOST_REASONS:
        console.print(Text(f"impossible: {len(reasons) - MOST_REASONS} more reasons", style="dim"))
    trade = " against ".join(each.metric for each in sweep.goal.trade_offs())
    console.print(Text(f"{BEST} best  {FRONT} nobody beats it in both: {trade}", style="dim"))


def _folded(text: str) -> str:
    """Return a head in lines that break behind an underscore or a dot."""
    lines = [""]
    for part in re.findall(r"[^_.]+[_.]?", text):
        if lines[-1] and len(lines[-1]) + len(part.rstrip("_.")) > LONGEST_HEAD:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def size(sweep: Sweep) -> str:
    """Return how many points and seeds there are."""
    points = f"{len(sweep.rows):,} point{'' if len(sweep.rows) == 1 else 's'}"
    seeds = (
        f" under {len(sweep.seeds)} seeds" if len(sweep.seeds) > 1 else f", seed {sweep.seeds[0]}"
    )
    return points + seeds
