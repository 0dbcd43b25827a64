"""Drawings of a sweep: a metric over one or two axes, and what one objective costs in another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from llmsim.core.errors import Fault, InputError, nearest
from llmsim.core.files import write_whole
from llmsim.report.figures import ABOVE, COLOURS, FAINT, INK, inline_svg
from llmsim.report.sweeps import head
from llmsim.results.wording import number, quantity
from llmsim.study.axes import Axis, flow
from llmsim.study.goal import UNITS, Objective
from llmsim.study.swept import GOOD, Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]

MOST_CELLS: Final = 14
"""Values of an axis above which it is drawn as a scale, not as cells."""

SHADES: Final = 32
"""Steps of the colour bar."""

_WIDE: Final = (0.13, 0.14, 0.85, 0.75)
_PALETTE: Final = {
    "--line-1": "#0b63b5",
    "--line-2": "#c2500a",
    "--line-3": "#1f7a3d",
    "--grid": "#d8dde2",
}
"""Colours outside of a page, which brings its own."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawing, for a page, a notebook or a file.

    Parameters
    ----------
    svg : str
        An SVG element whose colours are variables of the page.
    """

    svg: str

    def _repr_html_(self) -> str:
        colours = "; ".join(f"{name}: {value}" for name, value in _PALETTE.items())
        return f'<div style="max-width: 48rem; {colours}">{self.svg}</div>'

    def save(self, path: str | Path) -> Path:
        """Write it as an SVG file with colours of its own."""
        text = self.svg.replace("currentColor", "#1c2126")
        for name, value in _PALETTE.items():
            text = text.replace(f"var({name})", value)
        space = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        text = text.replace("<svg", f'<svg {space} style="background: white"', 1)
        text = text.replace("font-family: inherit", "font-family: sans-serif")
        write_whole(Path(path), f"{text}\n")
        return Path(path)


def heat_map(
    sweep: Sweep, x: str | None = None, y: str | None = None, metric: str | None = None
) -> Picture:
    """Return a metric over two axes of a sweep: cells, or dots where an axis is a scale.

    Parameters
    ----------
    sweep : Sweep
    x, y : str, optional
        Paths; the first two axes when absent. A sweep over one field is drawn as a line.
    metric : str, optional
        The first objective when absent.

    Raises
    ------
    InputError
        If there is no such axis or metric.
    """
    paths = [axis.path for axis in sweep.axes]
    faults = [
        Fault("", "heat_map", f"no axis '{path}'.", nearest(path, paths))
        for path in (x, y)
        if path is not None and path not in paths
    ]
    if metric is not None and metric not in sweep.metrics:
        hint = nearest(metric, sweep.metrics)
        faults.append(Fault("", "heat_map", f"no run has a metric '{metric}'.", hint))
    if faults:
        raise InputError("sweep", faults)
    objective = sweep.goal.objectives[0]
    if metric is not None and metric != objective.metric:
        chosen = [each for each in sweep.goal.objectives if each.metric == metric]
        objective = chosen[0] if chosen else Objective(metric, larger=True)
    if x is None:
        x = next(path for path in paths if path != y)
    if y is None:
        y = next((path for path in paths if path != x), None)
    if y is None:
        return Picture(_line(sweep, x, objective))
    scales = _Scale(sweep, x), _Scale(sweep, y)
    if all(scale.cells for scale in scales):
        return Picture(_cells(sweep, *scales, objective))
    return Picture(_dots(sweep, *scales, objective))


class _Scale:
    """One axis of a sweep as an axis of a drawing."""

    def __init__(self, sweep: Sweep, path: str) -> None:
        axis: Axis = next(each for each in sweep.axes if each.path == path)
        self.path, self.label, self.log = path, sweep.labels[path], axis.log
        values = [row.change[path] for row in sweep.rows]
        self.names = list(dict.fromkeys(map(flow, axis.values or values)))
        self.numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        self.cells = bool(axis.values) and len(self.names) <= MOST_CELLS
        listed = {name: place for place, name in enumerate(self.names)}
        self.cell = np.array([listed[flow(value)] for value in values])
        self.at: Floats = np.array(values if self.numeric else self.cell, dtype=np.float64)

    def lay(self, axes: Axes, which: str) -> None:
        """Name the axis; lay values of its own where it is no scale of numbers."""
        getattr(axes, f"set_{which}label")(self.label)
        if not self.numeric:
            getattr(axes, f"set_{which}ticks")(range(len(self.names)), self.names)
            return
        if self.log:
            getattr(axes, f"set_{which}scale")("log")
            _plain_ticks(axes, which, self.at)
        if self.cells:
            axes.minorticks_off()
            getattr(axes, f"set_{which}ticks")(np.unique(self.at), map(number, np.unique(self.at)))


def _plain_ticks(axes: Axes, which: str, values: Floats) -> None:
    """Lay plain numbers along a logarithmic axis; matplotlib would typeset powers of ten."""
    low, high = float(values.min()), float(values.max())
    steps = [base * 10.0**e for e in range(-9, 13) for base in (1, 2, 5)]
    ticks = [step for step in steps if low <= step <= high] or [low, high]
    axes.minorticks_off()
    getattr(axes, f"set_{which}ticks")(ticks, [number(tick) for tick in ticks])


def _line(sweep: Sweep, path: str, objective: Objective) -> str:
    """Draw a metric over the only axis, with intervals where there are several seeds."""
    scale, values = _Scale(sweep, path), _means(sweep, objective.metric)
    good = _good(sweep) & np.isfinite(values)
    bad = ~_good(sweep) & np.isfinite(values)

    def draw(axes: Axes) -> None:
        places = np.argsort(scale.at, kind="stable")
        line = [at for at in places if np.isfinite(values[at])]
        axes.plot(scale.at[line], values[line], color=FAINT, zorder=1)
        for at in line:
            low, high = sweep.rows[at].interval(objective.metric)
            if math.isfinite(low):
                axes.plot([scale.at[at]] * 2, [low, high], color=COLOURS[0], linewidth=1.5)
        axes.plot(scale.at[good], values[good], "o", color=COLOURS[0], label="feasible")
        axes.plot(scale.at[bad], values[bad], "x", color=INK, alpha=0.6, label="not feasible")
        _star(axes, scale.at, values, sweep.best_number)
        scale.lay(axes, "x")
        axes.set_ylabel(head(objective.metric))
        axes.legend(**ABOVE)

    alt = f"{objective.metric} over {path}: {_best_words(sweep)}"
    return inline_svg(draw, alt, f"line-{scale.label}")


def _cells(sweep: Sweep, x: _Scale, y: _Scale, objective: Objective) -> str:
    """Draw a cell per pair of values: the best over all other axes."""
    values, good = _means(sweep, objective.metric), _good(sweep)
    table = np.full((len(y.names), len(x.names)), math.nan)
    any_value = table.copy()
    for number_ in range(len(values)):
        place = y.cell[number_], x.cell[number_]
        for target, counts in ((table, good[number_]), (any_value, True)):
            gain = objective.sign * values[number_]
            if counts and not gain <= objective.sign * target[place] and math.isfinite(gain):
                target[place] = values[number_]

    def draw(axes: Axes) -> None:
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        edges = np.arange(len(x.names) + 1) - 0.5, np.arange(len(y.names) + 1) - 0.5
        grey = np.ma.masked_array(np.zeros_like(table), np.isfinite(table))
        axes.pcolormesh(*edges, grey, cmap=_one_colour(FAINT), alpha=0.5)
        mesh = axes.pcolormesh(
            *edges, np.ma.masked_invalid(table), cmap=_shades(objective), edgecolors=FAINT
        )
        size = max(6.0, min(10.0, 75.0 / len(x.names)))
        for row, column in np.ndindex(table.shape):
            value = float(table[row, column])
            shown = value if math.isfinite(value) else float(any_value[row, column])
            told = quantity(shown, UNITS[objective.metric]) if math.isfinite(shown) else "×"
            colour = _readable(mesh, value) if math.isfinite(value) else INK
            axes.text(column, row, told, ha="center", va="center", color=colour, fontsize=size)
        if sweep.best_number is not None:
            at = x.cell[sweep.best_number], y.cell[sweep.best_number]
            _frame(axes, at)
        axes.set_xticks(range(len(x.names)), x.names)
        axes.set_yticks(range(len(y.names)), y.names)
        axes.tick_params(length=0)
        axes.set_xlabel(x.label)
        axes.set_ylabel(y.label)

    height = max(1.8, 0.42 * len(y.names) + 0.9)
    box = (0.13, 0.6 / height, 0.85, 1 - 0.7 / height)
    alt = f"{objective.metric} by {x.path} and {y.path}: {_best_words(sweep)}"
    return inline_svg(draw, alt, f"map-{x.label}-{y.label}", height, box)


def _dots(sweep: Sweep, x: _Scale, y: _Scale, objective: Objective) -> str:
    """Draw a coloured dot per point."""
    values = _means(sweep, objective.metric)
    bad = ~_good(sweep)
    good = np.flatnonzero(_good(sweep) & np.isfinite(values))
    good = good[np.argsort(objective.sign * values[good])]  # the best is drawn last, on top

    def draw(axes: Axes) -> None:
        axes.plot(x.at[bad], y.at[bad], "x", color=INK, alpha=0.6, label="not feasible")
        dots = axes.scatter(
            x.at[good], y.at[good], c=values[good], s=42, cmap=_shades(objective), zorder=3
        )
        if sweep.best_number is not None:
            at = sweep.best_number
            axes.plot(
                x.at[at], y.at[at], "o", ms=12, mfc="none", mec=COLOURS[1], mew=2, label="best"
            )
        x.lay(axes, "x")
        y.lay(axes, "y")
        axes.legend(**ABOVE)
        if len(good):
            bar = axes.figure.colorbar(dots, ax=axes, pad=0.02)
            bar.set_label(head(objective.metric))
            bar.outline.set_visible(False)

    alt = f"{objective.metric} by {x.path} and {y.path}: {_best_words(sweep)}"
    return inline_svg(draw, alt, f"map-{x.label}-{y.label}", 3.6, _WIDE)


def trade_off(sweep: Sweep) -> Picture:
    """Return the points by two objectives, and the front of those that nobody beats in both."""
    across, up = sweep.goal.trade_offs()[1], sweep.goal.trade_offs()[0]
    x, y = _means(sweep, across.metric), _means(sweep, up.metric)
    known = np.isfinite(x) & np.isfinite(y)
    good, bad = _good(sweep) & known, ~_good(sweep) & known

    def draw(axes: Axes) -> None:
        axes.plot(x[bad], y[bad], "x", color=INK, alpha=0.5, label="not feasible")
        axes.plot(x[good], y[good], "o", color=COLOURS[0], alpha=0.7, label="feasible")
        front = sorted(sweep.front, key=lambda at: x[at])
        if front:
            # what lies between two points of the front is not known to be there: steps, no slope
            where = "post" if across.larger != up.larger else "pre"
            axes.plot(x[front], y[front], color=COLOURS[2], drawstyle=f"steps-{where}")
            axes.plot(x[front], y[front], "D", color=COLOURS[2], ms=5, label="nobody beats it")
        _star(axes, x, y, sweep.best_number)
        for each in sweep.goal.conditions:
            if each.metric in (across.metric, up.metric):
                line = axes.axvline if each.metric == across.metric else axes.axhline
                line(each.limit, color=COLOURS[1], linestyle="--", linewidth=1.2)
        if good.any():
            _hold(axes, x[known], y[known], x[good], y[good])
        axes.set_xlabel(f"{head(across.metric)} ({'more' if across.larger else 'less'} is better)")
        axes.set_ylabel(head(up.metric))
        axes.legend(**(ABOVE | {"ncols": 4}))

    many = len(sweep.front)
    alt = f"{up.metric} against {across.metric}; {many} points that nobody beats in both"
    return Picture(inline_svg(draw, alt, "trade-off", 3.6, _WIDE))


def _hold(axes: Axes, x: Floats, y: Floats, good_x: Floats, good_y: Floats) -> None:
    """Keep far-off points that are not feasible from squeezing those that are."""
    for values, good, which in ((x, good_x, "x"), (y, good_y, "y")):
        span = float(np.ptp(good)) or abs(float(good[0])) or 1.0
        low, high = float(good.min()) - 1.5 * span, float(good.max()) + 1.5 * span
        inside = values[(values >= low) & (values <= high)]
        edge = 0.06 * (float(np.ptp(inside)) or span)
        getattr(axes, f"set_{which}lim")(float(inside.min()) - edge, float(inside.max()) + edge)


def _means(sweep: Sweep, metric: str) -> Floats:
    return np.array([row.mean(metric) for row in sweep.rows])


def _good(sweep: Sweep) -> npt.NDArray[np.bool_]:
    return np.array([status in GOOD for status, _ in sweep.standings])


def _star(axes: Axes, x: Floats, y: Floats, at: int | None) -> None:
    if at is not None:
        axes.plot(x[at], y[at], "*", color=COLOURS[1], ms=13, zorder=4, label="best")


def _best_words(sweep: Sweep) -> str:
    return f"best at {sweep.best}" if sweep.best is not None else "no point is feasible"


def _shades(objective: Objective) -> Any:
    """Return a map of colours, dark for bad, light for good, in few steps."""
    import matplotlib as mpl

    name = "viridis" if objective.larger else "viridis_r"
    return mpl.colormaps[name].resampled(SHADES)


def _one_colour(colour: str) -> Any:
    from matplotlib.colors import ListedColormap

    return ListedColormap([colour])


def _readable(mesh: Any, value: float) -> str:
    """Return black or white, whichever is read better on a value's colour (ITU-R BT.709 luma)."""
    red, green, blue, _ = mesh.to_rgba(value)
    return "#000000" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.45 else "#ffffff"


def _frame(axes: Axes, at: tuple[int, int]) -> None:
    from matplotlib.patches import Rectangle

    corner = at[0] - 0.47, at[1] - 0.47
    axes.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, ec=COLOURS[1], lw=2.5, zorder=5))
