"""Everything the command line does, as calls: `run`, `draw_costs`, `compare`, `load`, ..."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from llmsim.core.errors import RegistryError, nearest
from llmsim.report.html import render_html
from llmsim.results.folder import check_free
from llmsim.results.result import Result
from llmsim.scenario import Scenario
from llmsim.scenario.component import registry
from llmsim.specs import GpuCard, LinkCard, ModelSpec, load_gpu, load_link, load_model
from llmsim.study.comparison import CostComparison
from llmsim.study.draws import CostDraws
from llmsim.study.draws import draw_costs as draw_scenario_costs
from llmsim.study.single import simulate_scenario

Progress = Callable[[int, int | None], None]


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
