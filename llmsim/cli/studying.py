"""`llmsim run --draws` and `llmsim compare`: runs under many prices of the operators."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmsim.cli.answering import print_json
from llmsim.cli.running import progress_bar
from llmsim.core.files import check_target
from llmsim.scenario import Scenario, parse_assignments

if TYPE_CHECKING:
    from llmsim.study.comparison import CostComparison
    from llmsim.study.seeded import SeedComparison


@dataclass(frozen=True, slots=True)
class CompareOrder:
    """What `llmsim compare` was told.

    Parameters
    ----------
    first, second : str
        Files or shipped names.
    assignments, first_assignments, second_assignments : tuple of str
        Texts of ``--set``, ``--set-a`` and ``--set-b``.
    draws, jobs : int
    seeds : int
        Seeds for both; 0 for draws of prices instead.
    as_json : bool
    html : Path or None
        A page to write as well.
    """

    first: str
    second: str
    assignments: tuple[str, ...]
    first_assignments: tuple[str, ...]
    second_assignments: tuple[str, ...]
    draws: int
    jobs: int
    seeds: int
    as_json: bool
    html: Path | None = None

    @property
    def changed(self) -> tuple[str, str]:
        """What was changed in A alone, and in B alone, as text."""
        return ", ".join(self.first_assignments), ", ".join(self.second_assignments)


def draw_and_print(scenario: Scenario, draws: int, folder: Path, quiet: bool) -> None:
    """Simulate a scenario under drawn prices, save the draws in its run folder, print the bands.

    Raises
    ------
    InputError
        If the number of draws is too small or a cost model takes no factors.
    """
    from llmsim import api

    with progress_bar("draws", quiet=quiet, unit="runs") as progress:
        drawn = api.draw_costs(scenario, draws=draws, progress=progress)
    drawn.save(folder)
    if not quiet:
        from llmsim.report.bands import print_draws

        print_draws(drawn)


def compare_scenarios(order: CompareOrder) -> None:
    """Simulate two scenarios under common draws and print them side by side.

    Raises
    ------
    ScenarioError
        With everything that is wrong with a scenario.
    """
    both = parse_assignments(order.assignments)
    first = Scenario.load(order.first, both | parse_assignments(order.first_assignments))
    second = Scenario.load(order.second, both | parse_assignments(order.second_assignments))
    if order.html is not None:
        check_target(order.html)
    from llmsim import api

    if order.seeds:
        _compare_seeds(order, first, second)
        return
    with progress_bar("draws", quiet=order.as_json, unit="runs") as progress:
        compared = api.compare(first, second, draws=order.draws, jobs=order.jobs, progress=progress)
    _write_page(order, compared, first, second)
    if order.as_json:
        rows = json.loads(compared.table().to_json(orient="records"))
        print_json({"a": first.name, "b": second.name, "metrics": rows})
        return
    from llmsim.report.bands import print_comparison

    print_comparison(compared, order.changed)


def _write_page(
    order: CompareOrder,
    compared: CostComparison | SeedComparison,
    first: Scenario,
    second: Scenario,
) -> None:
    if order.html is None:
        return
    from llmsim.core.files import write_whole
    from llmsim.report.compare_page import render_comparison

    write_whole(order.html, render_comparison(compared, first, second))


def _compare_seeds(order: CompareOrder, first: Scenario, second: Scenario) -> None:
    from llmsim import api

    seeds = range(1, order.seeds + 1)
    with progress_bar("seeds", quiet=order.as_json, unit="runs") as progress:
        compared = api.compare_seeds(first, second, seeds=seeds, jobs=order.jobs, progress=progress)
    _write_page(order, compared, first, second)
    if order.as_json:
        rows = json.loads(compared.table().to_json(orient="records"))
        told = {"a": first.name, "b": second.name, "seeds": order.seeds, "metrics": rows}
        print_json(told)
        return
    from llmsim.report.bands import print_seeds

    print_seeds(compared, order.changed)
