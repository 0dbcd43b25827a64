"""A plan as a folder, written whole or not at all: the plan, its fleet as a scenario, tables."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from llmsim.core.errors import Fault, InputError
from llmsim.core.files import parse_json, write_whole
from llmsim.planner.outlook import Outlook, Tell, look_ahead
from llmsim.planner.page import render_plan
from llmsim.planner.plan import Plan
from llmsim.results.folder import META, REPORT, new_folder
from llmsim.study.executor import Executor

PLAN, FLEET, ASKED = "plan.json", "fleet.yaml", "plan.yaml"
COLUMNS, EVIDENCE = "columns.csv", "simulations.csv"
SCHEMA: Final = 1
"""Version of the layout."""


def save_plan(plan: Plan, folder: Path, force: bool = False) -> None:
    """Write a plan's folder.

    Parameters
    ----------
    plan : Plan
    folder : Path
    force : bool
        Replace a folder that an earlier plan or run wrote.

    Raises
    ------
    OutputError
        If the folder is taken or cannot be written.
    """
    meta = {"schema": SCHEMA, "kind": "plan", "name": plan.name, "llmsim": plan.llmsim_version}
    with new_folder(folder, force) as made:
        (made / META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
        text = json.dumps(plan.as_json(), indent=1)
        (made / PLAN).write_text(text + "\n", encoding="utf-8")
        (made / FLEET).write_text(plan.scenario_yaml, encoding="utf-8")
        (made / ASKED).write_text(plan.plan_yaml, encoding="utf-8")
        (made / REPORT).write_text(render_plan(plan), encoding="utf-8")
        heads = ["column", "gpu", "usd_per_hour", "replicas", "reason"]
        bought = [(u.name, u.gpu, u.usd_per_hour, u.replicas, "bought") for u in plan.used]
        lost = [(each.name, each.gpu, each.usd_per_hour, 0, each.reason) for each in plan.losers]
        _table(made / COLUMNS, heads, [*bought, *lost])
        heads = ["stage", "fleet", "lost", "usd_per_hour", "seeds", "attained_frac"]
        heads += ["low_frac", "high_frac", "overloaded", "passed", "reason"]
        rows = [
            (
                each.stage,
                " + ".join(f"{count} x {name}" for name, count in each.replicas.items()),
                each.lost,
                each.usd_per_hour,
                len(each.seeds),
                sum(each.attained_frac) / max(len(each.attained_frac), 1),
                each.low_frac,
                each.high_frac,
                each.overloaded,
                each.passed,
                each.reason,
            )
            for each in plan.evidence
        ]
        if rows:
            _table(made / EVIDENCE, heads, rows)


def add_outlook(
    plan: Plan,
    folder: Path,
    seeds: int = 3,
    draws: int = 10,
    executor: Executor | None = None,
    tell: Tell | None = None,
) -> Outlook:
    """Simulate a saved plan under other circumstances, and write that and its page.

    Parameters
    ----------
    plan : Plan
    folder : Path
        That `save_plan` wrote.
    seeds, draws, executor, tell
        As for `look_ahead`.
    """
    outlook = look_ahead(plan, seeds, draws, executor, tell)
    outlook.save(folder)
    write_whole(folder / REPORT, render_plan(plan, outlook))
    return outlook


def load_plan(folder: str | Path) -> Plan:
    """Read a plan's folder back.

    Parameters
    ----------
    folder : str or Path

    Raises
    ------
    InputError
        If there is no plan in it.
    """
    path = Path(folder) / PLAN
    if not path.is_file():
        raise InputError(
            str(folder), [Fault(str(path), "", "no such file: no run and no plan was saved here")]
        )
    try:
        return Plan.from_json(parse_json(path.read_bytes()))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        fault = Fault(str(path), "", f"is not as llmsim writes it: {error!r}"[:300])
        raise InputError(str(folder), [fault]) from error


def _table(path: Path, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(heads)
        writer.writerows(rows)
