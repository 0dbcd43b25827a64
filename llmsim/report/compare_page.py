"""Two scenarios side by side on a page that needs nothing but a browser."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from llmsim.report.bands import named, signed, spanned
from llmsim.report.figures import COLOURS, INK, inline_svg
from llmsim.report.html import fill
from llmsim.results.wording import NONE, quantity, share
from llmsim.scenario import Scenario
from llmsim.scenario.document import dump_yaml
from llmsim.study.axes import flow
from llmsim.study.comparison import CostComparison
from llmsim.study.draws import HEADLINES, UNITS
from llmsim.study.seeded import SeedComparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CHANGE: Final = 2.0
"""Changes beyond are drawn at the edge: three times as much."""


@dataclass(frozen=True, slots=True)
class Line:
    """One metric of two scenarios.

    Parameters
    ----------
    metric : str
    first, second : float
        In the metric's unit.
    low, high : float
        Ends of the interval of second less first; NaN where there is none.
    first_better_frac : float
    """

    metric: str
    first: float
    second: float
    low: float
    high: float
    first_better_frac: float

    @property
    def difference(self) -> float:
        """Second less first."""
        return self.second - self.first

    @property
    def tied(self) -> bool:
        """Whether neither was ever better: ties count half, and 50% would read as a coin thrown."""
        return self.verdict == "alike" and self.first_better_frac == 0.5

    @property
    def verdict(self) -> str:
        """Who is better: ``A``, ``B``, ``alike``, or ``open`` where the interval holds 0."""
        if self.low == self.high == 0:
            return "alike"
        if not (self.low > 0 or self.high < 0):
            return "open"
        return "B" if (self.low > 0) == (HEADLINES[self.metric] > 0) else "A"


def lines_of(compared: CostComparison | SeedComparison) -> list[Line]:
    """Return a line for each metric that both scenarios have."""
    found = []
    for name in HEADLINES:
        better = compared.first_better_frac(name)
        if not math.isfinite(better):
            continue
        if isinstance(compared, SeedComparison):
            pairs = np.array(compared.values[name])
            known = np.isfinite(pairs).all(axis=0)
            ends = tuple(float(np.mean(side[known])) for side in pairs)
        else:
            ends = compared.first.plain[name], compared.second.plain[name]
        found.append(Line(name, ends[0], ends[1], *compared.interval(name), better))
    return found


def render_comparison(
    compared: CostComparison | SeedComparison, first: Scenario, second: Scenario
) -> str:
    """Return a page with both scenarios, their differences, and how sure these are.

    Parameters
    ----------
    compared : CostComparison or SeedComparison
    first, second : Scenario
        What was compared: the page says what differs between them.
    """
    lines = lines_of(compared)
    seeded = isinstance(compared, SeedComparison)
    return fill(
        "compare.html.j2",
        names=(first.name, second.name),
        headline=headline(lines),
        notes=list(_notes(compared)),
        interval="95% interval" if seeded else "p10 to p90",
        rows=[_cells(line) for line in lines],
        drawing=_forest(lines, "95% interval" if seeded else "p10 to p90"),
        differing=_differing(first.resolved(), second.resolved()),
        yaml=(dump_yaml(first.resolved()), dump_yaml(second.resolved())),
        version=version("llmsim"),
    )


def headline(lines: list[Line]) -> str:
    """Return in sentences which scenario is better in what."""
    told = []
    for letter, other in (("B", "A"), ("A", "B")):
        better = [line for line in lines if line.verdict == letter]
        if better:
            what = ", ".join(_told_change(line, letter) for line in better[:4])
            more = f" and {len(better) - 4} more" if len(better) > 4 else ""
            told.append(f"{letter} is better than {other} in {what}{more}.")
    unsure = [named(line.metric) for line in lines if line.verdict == "open"]
    if unsure:
        told.append(f"It is open which is better in {', '.join(unsure)}.")
    return " ".join(told) or "Nothing differs between A and B."


def _told_change(line: Line, letter: str) -> str:
    old, new = (line.first, line.second) if letter == "B" else (line.second, line.first)
    if not old:
        return named(line.metric)
    change = new / old - 1
    return f"{named(line.metric)} ({share(abs(change))} {'less' if change < 0 else 'more'})"


def _notes(compared: CostComparison | SeedComparison) -> Iterator[str]:
    if isinstance(compared, SeedComparison):
        yield f"{len(compared.seeds)} seeds, each for both: the same requests at the same times."
        over = [sum(pair[at] == "overloaded" for pair in compared.verdicts) for at in (0, 1)]
        whole = len(compared.seeds)
    else:
        yield (
            f"{min(compared.first.draws, compared.second.draws)} draws of the operators' prices; "
            "fleets of the same GPU share them."
        )
        sides = compared.first, compared.second
        over = [sum(v == "overloaded" for v in side.verdicts) for side in sides]
        whole = min(side.draws for side in sides)
    for letter, count in zip("AB", over, strict=True):
        if count:
            yield (
                f"{letter} was overloaded under {count} of {whole}: its latencies depend on run "
                "length."
            )


def _cells(line: Line) -> dict[str, Any]:
    unit = UNITS[line.metric]
    return {
        "name": named(line.metric),
        "first": quantity(line.first, unit),
        "second": quantity(line.second, unit),
        "difference": signed(line.metric, line.difference),
        "relative": f"{line.difference / line.first:+.1%}" if line.first else NONE,
        "interval": spanned(line.metric, line.low, line.high),
        "better": NONE if line.tied else share(line.first_better_frac),
        "verdict": line.verdict,
    }


def _forest(lines: list[Line], interval: str) -> str:
    """Return relative differences with their intervals, a line for each metric, as SVG."""
    drawn = [line for line in lines if line.first and math.isfinite(line.low)]
    alt = f"Change from A to B of {len(drawn)} metrics with its {interval}; better is green"
    colours = {"B": COLOURS[2], "A": COLOURS[1]}

    def draw(axes: Axes) -> None:
        for place, line in enumerate(drawn):
            size = abs(line.first)
            middle, low, high = (
                100 * float(np.clip(value / size, -MOST_CHANGE, MOST_CHANGE))
                for value in (line.difference, line.low, line.high)
            )
            colour = colours.get(line.verdict, COLOURS[0])
            axes.plot([low, high], [place, place], color=colour, linewidth=2)
            axes.plot([middle], [place], "o", color=colour)
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks(range(len(drawn)), [named(line.metric) for line in drawn])
        axes.set_ylim(len(drawn) - 0.5, -0.5)
        axes.set_xlabel("change from A to B [%]")

    return inline_svg(draw, alt, "forest", 1.0 + 0.3 * len(drawn), (0.25, 0.2, 0.7, 0.75))


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return path and both values of every key that is not the same."""
    one, other = dict(_flat(first, "")), dict(_flat(second, ""))
    keys = [*one, *(key for key in other if key not in one)]
    return [
        (key, one.get(key, NONE), other.get(key, NONE))
        for key in keys
        if one.get(key) != other.get(key)
    ]


def _flat(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield from _flat(part, f"{path}.{key}" if path else str(key))
    else:
        yield path, flow(value)
