"""What a sweep goes over: values of fields, listed or drawn from a range.

::

    64,128,256            each of these values
    1..8:4                4 values evenly from 1 to 8; 1..8:4:log by equal factors
    1..8:sobol            as many values as there are samples, spread by a Sobol sequence
    0.5..8:random:log     the same at random, uniform in the logarithm
    h100-sxm,l40s:sobol   listed values, drawn as well

Listed values and evenly spaced ones form a grid; every point of it meets the same samples.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, cast

import numpy as np
import numpy.typing as npt

from llmsim.core.errors import Fault, InputError, ScenarioError, nearest
from llmsim.core.rng import stream
from llmsim.scenario import Scenario
from llmsim.scenario.document import parse_value, shown

Draw = Literal["grid", "random", "sobol"]
Change = Mapping[str, Any]
"""Values by dotted path: what makes one point of the scenario that is swept."""

OVER: Final = "--over"
"""Place of an axis that came from the command line or a call."""

MOST_POINTS: Final = 100_000
"""A sweep of more points is a mistake."""

DIGITS: Final = 4
"""Significant digits of a value that is drawn."""

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE: Final = re.compile(rf"^\s*({_NUMBER})\s*\.\.\s*({_NUMBER})\s*((?::[^:]*)*)$")
_DRAWN: Final = re.compile(r"^(.*):\s*(random|sobol)\s*$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Axis:
    """One field and the values it takes.

    Parameters
    ----------
    path : str
        Dotted path of the field.
    values : tuple
        Listed values; empty for a range that is drawn from.
    low, high : float
        Ends of that range; NaN for listed values.
    draw : {"grid", "random", "sobol"}
    log : bool
        Uniform in the logarithm.
    whole : bool
        Only whole numbers are drawn.
    place : str
        Where it was written: ``file:line`` or ``--over``.
    """

    path: str
    values: tuple[Any, ...] = ()
    low: float = math.nan
    high: float = math.nan
    draw: Draw = "grid"
    log: bool = False
    whole: bool = False
    place: str = OVER

    def plain(self) -> list[Any] | str:
        """Return the values as a sweep file has them."""
        if self.values and self.draw == "grid":
            return list(self.values)
        if self.values:
            return f"{', '.join(flow(value) for value in self.values)}:{self.draw}"
        ends = f"{self.low:.15g}..{self.high:.15g}"
        return f"{ends}:{self.draw}{':log' if self.log else ''}"

    def at(self, shares: npt.NDArray[np.float64]) -> list[Any]:
        """Return the values at shares of the axis.

        Parameters
        ----------
        shares : ndarray of float64 (samples,)
            In [0, 1).
        """
        if self.values:
            return [self.values[int(share * len(self.values))] for share in shares]
        # whole numbers: a cell of width 1 each, the last one included
        low, high = self.low, self.high + 1 if self.whole else self.high
        found = low * (high / low) ** shares if self.log else low + (high - low) * shares
        if self.whole:
            return [int(each) for each in np.minimum(np.floor(found), self.high)]
        return [float(f"{each:.{DIGITS}g}") for each in found]


def parse_axes(
    over: Mapping[str, Any] | Sequence[str], places: Mapping[str, str] | None = None
) -> list[Axis]:
    """Return the axes of a sweep.

    Parameters
    ----------
    over : mapping of str to object, or sequence of str
        Values by dotted path, as a list or as text such as ``"1..8:sobol"``; or texts
        ``path=values`` as the command line has them.
    places : mapping of str to str
        Where each path was written.

    Raises
    ------
    InputError
        With everything that is wrong with the texts.
    """
    faults: list[Fault] = []
    given: dict[str, Any] = {}
    if isinstance(over, Mapping):
        given = dict(over)
    else:
        for text in over:
            path, sign, values = text.partition("=")
            path = path.strip()
            if not sign or not path or not values.strip():
                hint = "Write it like engine.max_num_seqs=64,128,256."
                faults.append(Fault(OVER, "", f"'{text}' has no values.", hint))
            elif path in given:
                faults.append(Fault(OVER, path, "is swept twice."))
            else:
                given[path] = values
    axes = []
    for path, values in given.items():
        place = (places or {}).get(path, OVER)
        made = _axis(path, values, place)
        if isinstance(made, Fault):
            faults.append(made)
        else:
            axes.append(made)
    if not given and not faults:
        faults.append(
            Fault("", "over", "names no field.", "Such as --over engine.max_num_seqs=64,128.")
        )
    faults += _nested(axes)
    if faults:
        raise InputError("sweep", faults)
    return axes


def _nested(axes: Sequence[Axis]) -> list[Fault]:
    return [
        Fault(inner.place, inner.path, f"lies inside {outer.path}, which is swept as well.")
        for outer in axes
        for inner in axes
        if inner.path.startswith(f"{outer.path}.")
    ]


def _axis(path: str, given: Any, place: str) -> Axis | Fault:
    if not isinstance(given, str):
        values = list(given) if isinstance(given, list | tuple | range | np.ndarray) else [given]
        return _listed(path, values, "grid", place)
    found = _RANGE.match(given)
    if found is not None:
        return _range(path, found, given, place)
    drawn = _DRAWN.match(given)
    text, draw = (drawn[1], cast(Draw, drawn[2])) if drawn else (given, "grid")
    try:
        values = parse_value(f"[{text}]")
    except ScenarioError as error:
        return Fault(place, path, f"cannot be read as values: {error.faults[0].message}")
    return _listed(path, values, draw, place)


def _listed(path: str, values: Sequence[Any], draw: Draw, place: str) -> Axis | Fault:
    if not values:
        return Fault(place, path, "has no values.")
    kept: list[Any] = []
    for value in values:
        # True == 1 in Python, but not in a scenario
        if any(type(value) is type(each) and value == each for each in kept):
            return Fault(place, path, f"has {shown(value)} twice.")
        kept.append(value.item() if isinstance(value, np.generic) else value)
    return Axis(path, tuple(kept), draw=draw, place=place)


def _range(path: str, found: re.Match[str], text: str, place: str) -> Axis | Fault:
    """Return the axis of ``low..high:word:word``."""
    low, high = float(found[1]), float(found[2])
    words = [word.strip() for word in found[3].split(":")[1:]]
    how = [word for word in words if word.isdigit() or word in ("random", "sobol")]
    odd = [word for word in words if word not in how and word not in ("log", "linear")]
    if odd:
        known = ("random", "sobol", "log", "linear", "a number of values")
        return Fault(place, path, f"unknown word '{odd[0]}' in {text}.", nearest(odd[0], known))
    if len(how) != 1:
        hint = f"Such as {found[1]}..{found[2]}:5, or :sobol or :random."
        return Fault(place, path, f"{text} does not say how many values it has.", hint)
    if not low < high:
        return Fault(place, path, f"{text} must go from a smaller to a larger number.")
    log = "log" in words
    if log and low <= 0:
        return Fault(place, path, f"{text} cannot be logarithmic from {low:g}.")
    whole = all(re.fullmatch(r"[-+]?\d+", part) for part in found.group(1, 2))
    if how[0].isdigit():
        return _spaced(path, (low, high), int(how[0]), log, whole, place)
    return Axis(
        path, low=low, high=high, draw=cast(Draw, how[0]), log=log, whole=whole, place=place
    )


def _spaced(
    path: str, ends: tuple[float, float], count: int, log: bool, whole: bool, place: str
) -> Axis | Fault:
    if not 2 <= count <= MOST_POINTS:
        return Fault(place, path, f"{count} values, must be at least 2.")
    made = np.geomspace(*ends, count) if log else np.linspace(*ends, count)
    exact = whole and not log and np.array_equal(made, np.round(made))
    values = [int(each) if exact else float(f"{each:.{DIGITS}g}") for each in made]
    return Axis(path, tuple(values), place=place)


def flow(value: Any) -> str:
    """Return a value as YAML on one line."""
    import yaml

    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("...\n").strip()


def settle_whole(axes: Sequence[Axis], base: Scenario) -> list[Axis]:
    """Return the axes, drawn in whole numbers where the scenario takes no others.

    Notes
    -----
    A range with whole ends may be one of requests or one of rates; the scenario itself says which,
    by what it refuses.
    """
    return [
        replace(axis, whole=not _takes(base, axis.path, axis.low + 0.5))
        if axis.whole and not axis.values
        else axis
        for axis in axes
    ]


def _takes(base: Scenario, path: str, value: float) -> bool:
    try:
        base.override({path: value})
    except ScenarioError:
        return False
    return True


def all_points(axes: Sequence[Axis], samples: int, seed: int) -> list[dict[str, Any]]:
    """Return every point of a sweep: the grid, its first axis slowest, times the samples.

    Parameters
    ----------
    axes : sequence of Axis
    samples : int
        Points drawn, where an axis is drawn from; at least 1.
    seed : int
        Of the draws: the same seed gives the same points.

    Raises
    ------
    InputError
        If there are too many points, or too few samples.

    Notes
    -----
    Sobol points are scrambled (Owen) by `scipy.stats.qmc.Sobol`; a number of samples that is a
    power of two spreads them most evenly. Points that fall together are kept once.
    """
    grid = [axis for axis in axes if axis.draw == "grid"]
    drawn = [axis for axis in axes if axis.draw != "grid"]
    if drawn and samples < 1:
        fault = Fault("", "samples", f"{samples}, must be at least 1.", "Such as --samples 64.")
        raise InputError("sweep", [fault])
    count = math.prod(len(axis.values) for axis in grid) * (samples if drawn else 1)
    if count > MOST_POINTS:
        fault = Fault("", "over", f"makes {count:,} points; at most {MOST_POINTS:,} are simulated.")
        raise InputError("sweep", [fault])
    columns = _draw(drawn, samples if drawn else 1, seed)
    found: list[dict[str, Any]] = []
    met: set[str] = set()
    for cell in itertools.product(*(axis.values for axis in grid)):
        fixed = dict(zip((axis.path for axis in grid), cell, strict=True))
        for sample in range(samples if drawn else 1):
            at = fixed | {path: values[sample] for path, values in columns.items()}
            point = {axis.path: at[axis.path] for axis in axes}
            if repr(point) not in met:
                met.add(repr(point))
                found.append(point)
    return found


def _draw(axes: Sequence[Axis], samples: int, seed: int) -> dict[str, list[Any]]:
    """Return the values of each drawn axis, by path."""
    sobol = [axis for axis in axes if axis.draw == "sobol"]
    found: dict[str, list[Any]] = {}
    if sobol:
        from scipy.stats.qmc import Sobol

        # 2^m points: fewer are the first of them, and scipy warns of any other number
        m = max(0, math.ceil(math.log2(samples)))
        shares = Sobol(len(sobol), seed=stream(seed, "sweep", "sobol")).random_base2(m)[:samples]
        found |= {axis.path: axis.at(shares[:, i]) for i, axis in enumerate(sobol)}
    for axis in axes:
        if axis.draw == "random":
            found[axis.path] = axis.at(stream(seed, "sweep", axis.path).random(samples))
    return found
