"""Everything the command line does, as calls: `run`, `draw_costs`, `compare`, `validate`, ..."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from llmsim.api import trace
from llmsim.api.commands import from_command
from llmsim.api.stepping import step
from llmsim.api.sweeping import sweep
from llmsim.api.validating import calibrate, validate
from llmsim.core.errors import RegistryError, nearest
from llmsim.deployment import deploy
from llmsim.planner.planning import plan
from llmsim.report.html import render_html
from llmsim.results.folder import check_free
from llmsim.results.result import Result
from llmsim.scenario import Scenario
from llmsim.scenario.component import registry
from llmsim.specs import GpuCard, LinkCard, ModelSpec, load_gpu, load_link, load_model
from llmsim.study.comparison import CostComparison
from llmsim.study.draws import CostDraws
from llmsim.study.draws import draw_costs as draw_scenario_costs
from llmsim.study.knee import TOLERANCE_FRAC, KneeStudy, Promise, find_knees
from llmsim.study.placement import TENSOR_PARALLEL, Placement, search_placement
from llmsim.study.seeded import SeedComparison
from llmsim.study.seeded import compare_seeds as compare_scenario_seeds
from llmsim.study.single import simulate_scenario

Progress = Callable[[int, int | None], None]
__all__ = [
    "calibrate",
    "card",
    "compare",
    "compare_seeds",
    "deploy",
    "draw_costs",
    "from_command",
    "knee",
    "load",
    "names",
    "placement",
    "plan",
    "run",
    "step",
    "sweep",
    "trace",
    "validate",
]


def run(
    scenario: Scenario | str | Path,
    overrides: Mapping[str, object] | None = None,
    *,
    seed: int | None = None,
    out: str | Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Simulate a scenario.

    Parameters
    ----------
    scenario : Scenario, str or Path
        A scenario, a file, or the name of a shipped one.
    overrides : mapping of str to object, optional
        Values by dotted path, such as ``{"fleet.pools.main.replicas": 8}``.
    seed : int, optional
        Replaces the scenario's seed.
    out : str or Path, optional
        Save the run folder there; an existing one that is not empty is refused.
    force : bool
        Replace the run folder instead.
    progress : callable, optional
        Called with (requests ended, total or None) now and then.

    Returns
    -------
    Result
        Valid up to the point of interruption after Ctrl-C; `Result.facts.interrupted` says so.

    Raises
    ------
    InputError
        If the scenario, a card or the trace is wrong; lists every fault.
    ModelDoesNotFitError
        If the model does not fit its GPUs.
    OutputError
        If `out` is taken; raised before anything is simulated.
    """
    asked = dict(overrides or {})
    if seed is not None:
        asked["seed"] = seed
    wanted = _scenario(scenario, asked)
    if out is not None:
        check_free(Path(out), force)
    result = simulate_scenario(wanted, progress, render_html)
    if out is not None:
        result.save(out, force)
    return result


def draw_costs(
    scenario: Scenario | str | Path,
    overrides: Mapping[str, object] | None = None,
    *,
    draws: int = 20,
    jobs: int = -1,
    progress: Progress | None = None,
) -> CostDraws:
    """Simulate a scenario under many prices of its operators: p10 to p90 of every headline.

    Parameters
    ----------
    scenario : Scenario, str or Path
    overrides : mapping of str to object, optional
    draws : int
        At least 2.
    jobs : int
        Processes; -1 for one per core.
    progress : callable, optional
        Called with (runs done, runs in all).

    Returns
    -------
    CostDraws
        ``.table()`` has a row per metric; after Ctrl-C with the draws that were done.

    Raises
    ------
    InputError
        If the scenario is wrong, `draws` is below 2, or a cost model takes no factors.

    Notes
    -----
    One factor per operator family (GEMM, attention, experts, collectives, elementwise) and draw,
    log-normal around the price; every draw meets the same traffic.
    """
    return draw_scenario_costs(_scenario(scenario, overrides), draws, jobs, progress)


def compare(
    first: Scenario | str | Path,
    second: Scenario | str | Path,
    overrides: Mapping[str, object] | None = None,
    *,
    draws: int = 20,
    jobs: int = -1,
    progress: Progress | None = None,
) -> CostComparison:
    """Simulate two scenarios under common draws of the operators' prices.

    Parameters
    ----------
    first, second : Scenario, str or Path
    overrides : mapping of str to object, optional
        For both.
    draws : int
        At least 2.
    jobs : int
        Processes; -1 for one per core.
    progress : callable, optional
        Called with (runs done, runs in all).

    Returns
    -------
    CostComparison
        ``.table()`` has both with their bands and P(first better) per metric.

    Raises
    ------
    InputError
        As `draw_costs`.
    """
    pair = [_scenario(each, overrides) for each in (first, second)]
    whole = 2 * (draws + 1)

    def told(before: int) -> Progress | None:
        return None if progress is None else lambda done, _: progress(before + done, whole)

    drawn = [
        draw_scenario_costs(each, draws, jobs, told(number * (draws + 1)))
        for number, each in enumerate(pair)
    ]
    return CostComparison(*drawn)


def compare_seeds(
    first: Scenario | str | Path,
    second: Scenario | str | Path,
    overrides: Mapping[str, object] | None = None,
    *,
    seeds: Sequence[int] = (1, 2, 3, 4, 5),
    jobs: int = -1,
    progress: Progress | None = None,
) -> SeedComparison:
    """Simulate two scenarios under the same seeds: the difference and its interval.

    Parameters
    ----------
    first, second : Scenario, str or Path
    overrides : mapping of str to object, optional
        For both.
    seeds : sequence of int
        At least two.
    jobs : int
        Processes; -1 for one per core.
    progress : callable, optional
        Called with (runs done, runs in all).

    Returns
    -------
    SeedComparison
        ``.table()`` has means, difference, interval and P(first better) per metric.

    Raises
    ------
    InputError
        If a scenario is wrong, or there are fewer than two seeds.
    """
    pair = [_scenario(each, overrides) for each in (first, second)]
    return compare_scenario_seeds(pair[0], pair[1], seeds, jobs, progress)


def knee(
    scenario: Scenario | str | Path,
    overrides: Mapping[str, object] | None = None,
    *,
    limits: Mapping[str, float] | None = None,
    key: str | None = None,
    seeds: Sequence[int] = (1, 2, 3, 4, 5),
    tolerance_frac: float = TOLERANCE_FRAC,
    jobs: int = -1,
    progress: Progress | None = None,
) -> KneeStudy:
    """Search the largest load at which a fleet keeps its promises, under several seeds.

    Parameters
    ----------
    scenario : Scenario, str or Path
    overrides : mapping of str to object, optional
    limits : mapping of str to float, optional
        What a load must keep, as metric and largest value, such as ``{"itl_p99_s": 0.1}``; the
        share of requests that attain the scenario's SLO when absent. An overloaded fleet never
        counts.
    key : str, optional
        Dotted path of the load; the arrival rate, or a trace's ``rate_scale``, when absent.
    seeds : sequence of int
    tolerance_frac : float
        The load found lies at most this share below one that fails.
    jobs : int
        Processes; -1 for one per core.
    progress : callable, optional
        Called with (seeds done, seeds in all).

    Returns
    -------
    KneeStudy
        ``.loads`` per seed, ``.mean``, ``.interval()``, ``.table()``.

    Raises
    ------
    InputError
        If the scenario or a limit is wrong, or the load has no path.
    """
    promise = Promise(dict(limits or {}))
    wanted = _scenario(scenario, overrides)
    return find_knees(wanted, tuple(seeds), promise, key, tolerance_frac, jobs, progress)


def placement(
    scenario: Scenario | str | Path,
    gpus: int,
    overrides: Mapping[str, object] | None = None,
    *,
    tps: Sequence[int] = TENSOR_PARALLEL,
    limits: Mapping[str, float] | None = None,
    tolerance_frac: float = TOLERANCE_FRAC,
    jobs: int = -1,
    progress: Progress | None = None,
) -> Placement:
    """Search how GPUs are best shared out between prefill and decoding.

    Parameters
    ----------
    scenario : Scenario, str or Path
        With one pool of role ``prefill`` and one of role ``decode``; their ``replicas`` and ``tp``
        are what is searched.
    gpus : int
        GPUs of both phases together.
    overrides : mapping of str to object, optional
    tps : sequence of int
        Tensor-parallel degrees to try.
    limits, tolerance_frac, jobs
        As for `knee`.
    progress : callable, optional
        Called with (plans done, plans in all).

    Returns
    -------
    Placement
        ``.best`` is the plan with the largest load per GPU, ``.table()`` has all.

    Raises
    ------
    InputError
        If the scenario has other pools, no plan uses the GPUs, or a limit is wrong.
    """
    promise = Promise(dict(limits or {}))
    wanted = _scenario(scenario, overrides)
    return search_placement(wanted, gpus, tps, promise, tolerance_frac, jobs=jobs, report=progress)


def _scenario(scenario: Scenario | str | Path, overrides: Mapping[str, object] | None) -> Scenario:
    if not isinstance(scenario, Scenario):
        return Scenario.load(scenario, overrides)
    return scenario.override(overrides) if overrides else scenario


def load(folder: str | Path) -> Result:
    """Read a run folder back.

    Raises
    ------
    InputError
        If it is not a run folder or its tables are not what this version writes.
    """
    return Result.load(folder, render=render_html)


def names(seam: str) -> tuple[str, ...]:
    """Return the registered names of a seam, such as ``"routing"``.

    Raises
    ------
    RegistryError
        If there is no such seam.
    """
    return registry(seam).names()


def card(kind: str, name: str) -> GpuCard | LinkCard | ModelSpec:
    """Return a card, each number of it with unit and source in `rows`.

    Parameters
    ----------
    kind : str
        ``"gpu"``, ``"link"`` or ``"model"``.
    name : str
        Its name, or a path to a file.

    Raises
    ------
    CardError
        If there is no such card.
    RegistryError
        If there is no such kind of card.
    """
    readers: dict[str, Callable[[str], GpuCard | LinkCard | ModelSpec]] = {
        "gpu": load_gpu,
        "link": load_link,
        "model": load_model,
    }
    if kind not in readers:
        raise RegistryError(f"unknown kind of card '{kind}'. {nearest(kind, readers)}")
    return readers[kind](name)
