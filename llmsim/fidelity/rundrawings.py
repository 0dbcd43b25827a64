"""Compared runs of the reference engine as a drawing: errors of steps by kind, and of runs."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from llmsim.fidelity.measuredruns import HOST_RUN, ComparedRuns

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEP_BARS: Final = (5.0, 12.0)
"""Errors of single steps that are asked for: median and 90th percentile [%]."""

RUN_BARS: Final = {"tpot_s": 4.0, "ttft_p50_s": 8.0, "output_tokens_per_s": 3.0}
"""Errors of a run that are asked for [%]."""

_NAMES: Final = {"tpot_s": "TPOT", "ttft_p50_s": "TTFT P50", "output_tokens_per_s": "output rate"}
_COLOURS: Final = ("#0b63b5", "#c2500a", "#1f7a3d")
_FAINT: Final = "#d8dde2"
_STYLE: Final[dict[Any, Any]] = {
    "font.size": 9,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "svg.hashsalt": "llmsim",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def runs_svg(found: ComparedRuns) -> str:
    """Return the errors of single steps, by what was in them, above those of runs; an SVG file.

    Parameters
    ----------
    found : ComparedRuns
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    runs = [run for run in found.runs if not run.name.endswith(HOST_RUN)]
    heights = [0.3 * len(found.regimes) + 0.8, 0.3 * len(runs) + 0.8]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8.0, sum(heights)), layout="constrained")
        FigureCanvasSVG(figure)
        above, below = figure.subplots(2, 1, height_ratios=heights)
        _steps(above, found)
        _runs(below, runs)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", facecolor="white", metadata=nothing)
    return buffer.getvalue()


def _steps(axes: Axes, found: ComparedRuns) -> None:
    places = np.arange(len(found.regimes))
    median, p90 = (
        [100.0 * getattr(regime.errors, name) for regime in found.regimes]
        for name in ("median", "p90")
    )
    axes.barh(places, p90, 0.6, color=_FAINT, label="90th percentile")
    axes.barh(places, median, 0.6, color=_COLOURS[0], label="median")
    for bar, style in zip(STEP_BARS, ("-", "--"), strict=True):
        axes.axvline(bar, color="#1c2126", linewidth=0.8, linestyle=style)
    labels = [f"{regime.name} ({regime.errors.count:,})" for regime in found.regimes]
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.set_xlabel("absolute error of a step's time [%]; lines: asked for, median and P90")
    axes.set_title("Single steps", loc="left")
    axes.legend(frameon=False, loc="lower right")


def _runs(axes: Axes, runs: list[Any]) -> None:
    places = np.arange(len(runs))
    for at, (figure, name) in enumerate(_NAMES.items()):
        errors = [
            100.0 * (getattr(run.predicted, figure) / getattr(run.measured, figure) - 1.0)
            for run in runs
        ]
        row = places + 0.22 * (at - 1)
        axes.hlines(
            row, -RUN_BARS[figure], RUN_BARS[figure], color=_COLOURS[at], alpha=0.25, linewidth=5
        )
        axes.plot(errors, row, "o", color=_COLOURS[at], markersize=4, label=name)
    axes.axvline(0.0, color="#1c2126", linewidth=0.8)
    axes.set_yticks(places, [run.name for run in runs])
    axes.invert_yaxis()
    axes.set_xlabel("predicted against measured [%]; bands: asked for")
    axes.set_title("Runs", loc="left")
    axes.legend(frameon=False, loc="upper right")
