"""`llmsim sweep` as a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from llmsim.report.sweep_page import DRAWER
from llmsim.scenario import Scenario
from llmsim.study.axes import parse_axes
from llmsim.study.executor import Executor, Kind
from llmsim.study.goal import parse_goal
from llmsim.study.points import PointStore
from llmsim.study.sweep import SweepOrder, run_sweep
from llmsim.study.sweepfile import Asked, read_asked, seeds_of
from llmsim.study.swept import Sweep

Progress = Callable[[int, int | None], None]

SAMPLES: Final = 64
"""Points drawn where an axis is drawn from and nobody says how many."""


def sweep(
    scenario: Scenario | str | Path,
    over: Mapping[str, Any] | Sequence[str] = (),
    overrides: Mapping[str, object] | None = None,
    *,
    samples: int | None = None,
    seeds: int | Sequence[int] | None = None,
    maximise: str | Sequence[str] = (),
    minimise: str | Sequence[str] = (),
    subject_to: str | Sequence[str] = (),
    count_overloaded: bool = False,
    executor: Kind = "local",
    scheduler: str | None = None,
    jobs: int = -1,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Sweep:
    """Simulate a scenario at many points of its fields, and find the best of them.

    Parameters
    ----------
    scenario : Scenario, str or Path
        A scenario or a sweep file, by path or by shipped name.
    over : mapping of str to object, or sequence of str
        What to go over, by dotted path: a list of values, or text such as ``"1..8:5"``,
        ``"1..8:sobol"``, ``"0.5..8:random:log"``; or texts ``path=values``. Comes on top of what a
        sweep file says.
    overrides : mapping of str to object, optional
        Of the scenario, for every point.
    samples : int, optional
        Points drawn where an axis is drawn from; 64 when absent.
    seeds : int or sequence of int, optional
        Simulate each point under so many seeds, from 1 on, or under these; the scenario's own when
        absent.
    maximise, minimise : str or sequence of str
        Metrics of ``docs/metrics.md``; the first decides which point is best.
    subject_to : str or sequence of str
        Conditions such as ``"ttft_p99_s<=0.5"``.
    count_overloaded : bool
        Let points be best whose fleet does not keep up.
    executor : {"local", "dask", "ray"}
    scheduler : str, optional
        Address of a Dask scheduler, or of the head of a Ray cluster.
    jobs : int
        Processes on this machine; -1 for one per core.
    fresh : bool
        Simulate everything again, and keep nothing.
    progress : callable, optional
        Called with (runs done, runs in all).

    Returns
    -------
    Sweep
        ``.frame``, ``.runs``, ``.best``, ``.pareto``, ``.heat_map()``, ``.trade_off()``,
        ``.save(folder)``; after Ctrl-C with what was done.

    Raises
    ------
    InputError
        If the scenario, an axis, a metric or a condition is wrong; lists every fault.
    """
    if isinstance(scenario, Scenario):
        asked = Asked(scenario.override(overrides) if overrides else scenario)
    else:
        asked = read_asked(scenario, overrides)
    goal = parse_goal(
        asked.scenario,
        _words(maximise) or asked.maximise,
        _words(minimise) or asked.minimise,
        _words(subject_to) or asked.subject_to,
        count_overloaded or asked.count_overloaded,
    )
    axes = parse_axes(over) if over else []
    own = {axis.path for axis in axes}
    rest = {path: values for path, values in asked.over.items() if path not in own}
    axes = [*(parse_axes(rest, asked.places) if rest or not axes else []), *axes]
    order = SweepOrder(
        asked.scenario,
        axes,
        goal,
        next(each for each in (samples, asked.samples, SAMPLES) if each is not None),
        seeds_of(seeds) if seeds is not None else asked.seeds,
        Executor(executor, jobs, scheduler),
        PointStore(None) if fresh else PointStore.default("sweep"),
    )
    return run_sweep(order, progress, DRAWER)


def _words(told: str | Sequence[str]) -> tuple[str, ...]:
    return (told,) if isinstance(told, str) else tuple(told)
