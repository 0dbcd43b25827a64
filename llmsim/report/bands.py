"""What the cost model's error does to a run, for a terminal, 80 columns wide."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from llmsim.results.wording import NONE, quantity, share
from llmsim.study.comparison import CostComparison
from llmsim.study.draws import HEADLINES, UNITS, CostDraws
from llmsim.study.seeded import SeedComparison

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Changed = tuple[str, str]
"""What was changed in one scenario alone, and in the other."""

_NAMES = {
    "output_tokens_per_s": "output tokens/s",
    "goodput_rps": "goodput, req/s",
    "slo_attained_frac": "SLO attained",
    "usd_per_million_output_tokens": "USD/M tokens out",
    "preemptions": "preemptions",
    "recomputed_tokens": "recomputed tokens",
}


def print_draws(drawn: CostDraws, console: Console | None = None) -> None:
    """Print the band of every headline, and how often the SLO holds.

    Parameters
    ----------
    drawn : CostDraws
    console : rich.console.Console, optional
        Standard output when absent, at most 80 columns wide.
    """
    out = _console(console)
    table = _table("if operators cost other than priced", "as priced", "p10", "p50", "p90")
    for name in HEADLINES:
        cells = [drawn.plain[name], *drawn.band(name)]
        if any(math.isfinite(cell) for cell in cells):
            table.add_row(named(name), *(_told(name, cell) for cell in cells))
    out.print(table)
    out.print(f"{drawn.draws} draws, one factor per operator family each, same traffic.")
    if math.isfinite(drawn.slo_met_frac):
        out.print(
            f"SLO shown to be met in {share(drawn.slo_met_frac)} of them; "
            f"overloaded in {share(drawn.overloaded_frac)}."
        )


def print_comparison(
    compared: CostComparison, changed: Changed = ("", ""), console: Console | None = None
) -> None:
    """Print two scenarios side by side, and how sure it is that the first is better.

    Parameters
    ----------
    compared : CostComparison
    changed : tuple of str
        What was changed in the first and in the second alone.
    console : rich.console.Console, optional
        Standard output when absent, at most 80 columns wide.
    """
    out = _console(console)
    table = _table("", "A", "B", "B - A", "p10 to p90", "A better")
    for name in HEADLINES:
        better = compared.first_better_frac(name)
        if not math.isfinite(better):
            continue
        both = compared.first.plain[name], compared.second.plain[name]
        low, high = compared.interval(name)
        ends = spanned(name, low, high)
        cells = [*(_told(name, each) for each in both), signed(name, both[1] - both[0])]
        table.add_row(named(name), *cells, ends, sureness(compared, name))
    _print_sides(out, (compared.first.name, compared.second.name), changed)
    out.print(table)
    _print_alike(out, compared)
    out.print(
        f"{min(compared.first.draws, compared.second.draws)} draws of the operators' prices; "
        "fleets of the same GPU share them."
    )


def print_seeds(
    compared: SeedComparison, changed: Changed = ("", ""), console: Console | None = None
) -> None:
    """Print two scenarios under the same seeds: means, difference, and how sure it is.

    Parameters
    ----------
    compared : SeedComparison
    changed : tuple of str
        What was changed in the first and in the second alone.
    console : rich.console.Console, optional
        Standard output when absent, at most 100 columns wide.
    """
    out = _console(console)
    table = _table("", "A", "B", "B - A", "95% interval", "A better")
    for name in HEADLINES:
        better = compared.first_better_frac(name)
        if not math.isfinite(better):
            continue
        means = [_told(name, float(np.nanmean(side))) for side in compared.values[name]]
        middle = float(np.mean(compared.differences(name)))
        low, high = compared.interval(name)
        ends = spanned(name, low, high)
        table.add_row(named(name), *means, signed(name, middle), ends, sureness(compared, name))
    _print_sides(out, compared.names, changed)
    out.print(table)
    _print_alike(out, compared)
    out.print(f"{len(compared.seeds)} seeds, each for both: the same requests at the same times.")
    for at, letter in enumerate("AB"):
        over = sum(pair[at] == "overloaded" for pair in compared.verdicts)
        if over:
            out.print(
                f"{letter} was overloaded under {over} of them: its latencies depend on run length."
            )


def _print_sides(out: Console, names: tuple[str, str], changed: Changed) -> None:
    for letter, name, change in zip("AB", names, changed, strict=True):
        out.print(
            f"{letter}  {name}{f'  {change}' if change else ''}", highlight=False, markup=False
        )


def _print_alike(out: Console, compared: CostComparison | SeedComparison) -> None:
    if not any(compared.differences(name).any() for name in HEADLINES):
        out.print("No difference: A and B did the same every time.")


def sureness(compared: CostComparison | SeedComparison, metric: str) -> str:
    """Return how often the first was better in a metric: a share, or that they never differed."""
    if not compared.differences(metric).any():
        return "alike"  # ties count half, and 50% would read as a coin thrown
    return share(compared.first_better_frac(metric))


def signed(metric: str, value: float) -> str:
    """Return a difference of a metric with its sign."""
    told = _told(metric, abs(value))
    return told if value == 0 else f"{'-' if value < 0 else '+'}{told}"


def spanned(metric: str, low: float, high: float) -> str:
    """Return an interval of differences, its unit once where both ends have the same."""
    if not math.isfinite(low):
        return NONE
    first, last = signed(metric, low), signed(metric, high)
    number, _, unit = first.partition(" ")
    return f"{number if unit and last.endswith(f' {unit}') else first} to {last}"


def _console(console: Console | None) -> Console:
    from rich.console import Console as RichConsole

    if console is None:
        console = RichConsole(highlight=False)
        console.width = min(console.width, 100)
    return console


def _table(first: str, *heads: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def named(metric: str) -> str:
    """Return what a metric is called in a table."""
    if metric in _NAMES:
        return _NAMES[metric]
    what, stat, _ = metric.split("_")
    return f"{what.upper()} {stat}"


def _told(metric: str, value: float) -> str:
    return quantity(value, UNITS[metric])
