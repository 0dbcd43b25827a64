"""Drawings of a run as inline SVG: no browser plug-in, no request, light and dark alike.

matplotlib draws with stand-in colours that `_inline` replaces by CSS: text and axes take the
page's own colour, lines take one of its variables.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from llmsim.results.result import Result
from llmsim.results.wording import duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]

CDF_POINTS: Final = 400
"""Points a cumulative curve is drawn with."""

SERIES_POINTS: Final = 500
"""Points a curve over time is drawn with; bins are averaged, not dropped."""

INK: Final = "#010203"
FAINT: Final = "#010204"
LINES: Final = {"#010211": "--line-1", "#010212": "--line-2", "#010213": "--line-3"}
COLOURS: Final = tuple(LINES)

ABOVE: Final[dict[str, Any]] = {
    "loc": "lower left",
    "bbox_to_anchor": (0, 0.99),
    "ncols": 3,
    "borderaxespad": 0.2,
}
"""Legends stand above the axes, where no curve runs through them."""
_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",  # text stays text: it can be searched and takes the page's font
    "svg.hashsalt": "llmsim",  # ids that do not change from run to run
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "path.simplify": True,
}


def cdf_svg(result: Result) -> str:
    """Return cumulative curves of TTFT, TPOT and E2E over a logarithmic time axis, as SVG."""
    named = {"TTFT": "ttft_s", "TPOT": "tpot_s", "E2E": "e2e_s"}
    late = result.table.numbers("arrival_s") >= result.warmup_s
    curves, told = {}, []
    for name, column in named.items():
        values = result.table.numbers(column)[late]
        values = values[~np.isnan(values) & (values > 0)]
        if len(values):
            curves[name] = cdf(values)
            told.append(f"{name} median {duration(float(np.median(values)))}")
    alt = f"Cumulative share of requests by latency: {', '.join(told) or 'no request to show'}"

    def draw(axes: Axes) -> None:
        for colour, (name, (x, y)) in zip(COLOURS, curves.items(), strict=False):
            axes.plot(x, 100 * y, color=colour, label=name)
        if curves:
            _log_time(axes, curves)
            axes.legend(**ABOVE)
        axes.set_ylim(0, 100)
        axes.set_xlabel("latency")
        axes.set_ylabel("requests [%]")

    return inline_svg(draw, alt, "cdf")


def _log_time(axes: Axes, curves: Mapping[str, tuple[Floats, Floats]]) -> None:
    """Lay a logarithmic axis over what all but the fastest thousandth of requests need."""
    low = min(float(x[np.searchsorted(y, 0.001)]) for x, y in curves.values())
    high = max(float(x[-1]) for x, _ in curves.values())
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks = [10.0**e for e in range(first, max(last, first + 1) + 1)]
    axes.set_xscale("log")
    axes.minorticks_off()
    # own labels: matplotlib would typeset powers of ten, which takes longer than the whole page
    axes.set_xticks(ticks, [duration(tick) for tick in ticks])
    axes.set_xlim(ticks[0], ticks[-1])


def cdf(values: Floats) -> tuple[Floats, Floats]:
    """Return a cumulative curve in at most `CDF_POINTS` points that keeps both tails.

    Parameters
    ----------
    values : ndarray of float64 (n,)

    Returns
    -------
    x, y : ndarray of float64 (m,)
        Values, rising, and the share of all values that are not greater.
    """
    rank = np.arange(1, len(values) + 1) / len(values)
    x = np.sort(values)
    if len(values) <= CDF_POINTS:
        return x, rank
    # even in rank for the body, and on both ends ever finer so that p99.9 stays in sight
    tail = np.geomspace(1, len(values) / 2, CDF_POINTS // 4).astype(np.int64)
    body = np.linspace(0, len(values) - 1, CDF_POINTS // 2).astype(np.int64)
    kept = np.unique(np.concatenate((tail - 1, body, len(values) - tail)))
    return x[kept], rank[kept]


def load_svg(load: Mapping[str, Floats]) -> str:
    """Return requests running and waiting over time, as SVG."""
    peak = float(load["waiting"].max(initial=0.0))
    alt = f"Requests running and waiting over time; at most {peak:.0f} waited in one bin"

    def draw(axes: Axes) -> None:
        _over_time(axes, load, {"running": "running", "waiting": "waiting"}, 1.0)
        axes.set_ylabel("requests")
        axes.legend(**ABOVE)

    return inline_svg(draw, alt, "load")


def kv_svg(load: Mapping[str, Floats]) -> str:
    """Return KV use and busy share over time, as SVG."""
    peak = float(load["kv_used_frac"].max(initial=0.0))
    alt = f"KV memory in use and busy share over time; KV use reached {peak:.0%} in one bin"

    def draw(axes: Axes) -> None:
        _over_time(axes, load, {"kv_used_frac": "KV in use", "busy_frac": "busy"}, 100.0)
        axes.set_ylim(0, 105)
        axes.set_ylabel("share [%]")
        axes.legend(**ABOVE)

    return inline_svg(draw, alt, "kv")


def _over_time(
    axes: Axes, load: Mapping[str, Floats], names: Mapping[str, str], scale: float
) -> None:
    step = -(-len(load["t_s"]) // SERIES_POINTS) or 1
    starts = np.arange(0, len(load["t_s"]), step)
    size = np.diff([*starts, len(load["t_s"])])
    for colour, (name, label) in zip(COLOURS, names.items(), strict=False):
        mean = np.add.reduceat(load[name], starts) / size if len(starts) else load[name]
        axes.plot(load["t_s"][starts], scale * mean, color=colour, label=label)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("time [s]")


def inline_svg(
    draw: Callable[[Axes], None],
    alt: str,
    name: str,
    height_in: float = 3.0,
    box: tuple[float, float, float, float] = (0.11, 0.17, 0.86, 0.71),
) -> str:
    """Return a drawing as an SVG element of a page.

    Parameters
    ----------
    draw : callable
        Draws on the axes it is given, in the colours of this module.
    alt : str
        What is to be seen, for those who do not see it.
    name : str
        Goes in front of the element's ids; once per page.
    height_in : float [in]
        Of 7.2 in width.
    box : tuple of float
        Left, bottom, width and height of the axes, as shares of the drawing.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure: Figure = Figure(figsize=(7.2, height_in))
        FigureCanvasSVG(figure)
        # fixed margins: an automatic layout draws everything twice
        draw(figure.add_axes(box))
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _inline(buffer.getvalue(), alt, name)


def _inline(svg: str, alt: str, name: str) -> str:
    """Return matplotlib's SVG file as an element of a page."""
    from html import escape

    body = svg[svg.index("<svg") :]
    body = re.sub(r'\s(xmlns(:\w+)?|version)="[^"]*"', "", body)
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.S)
    body = re.sub(r"font-family: [^;\"]*", "font-family: inherit", body)
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", body)
    body = re.sub(r"\s*\n\s*", "\n", body)
    body = re.sub(r'\s(width|height)="[\d.]+pt"', "", body, count=2)
    # several drawings share a page, so their ids must differ
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'href="#', f'href="#{name}-', body)
    body = re.sub(r"url\(#", f"url(#{name}-", body)
    for colour, variable in LINES.items():
        body = body.replace(colour, f"var({variable})")
    body = body.replace(INK, "currentColor").replace(FAINT, "var(--grid)")
    return body.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1).strip()
