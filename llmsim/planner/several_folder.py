"""Plans of several models as a folder: one page for all, and each model's own plan inside."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from llmsim.core.errors import Fault, InputError
from llmsim.core.files import parse_json
from llmsim.planner.folder import ASKED, load_plan, save_plan
from llmsim.planner.page import OUTCOMES, Bar, costs_svg, fleet_words
from llmsim.planner.plan import Plan
from llmsim.planner.several import Plans
from llmsim.report.html import fill
from llmsim.results.folder import META, REPORT, new_folder
from llmsim.results.wording import NONE, number, usd

PLANS: Final = "plans.json"
"""The models in order, and what they share; each has a folder of its name beside it."""

SCHEMA: Final = 1
"""Version of the layout."""

SHARED: Final = (
    "name",
    "available_gpus",
    "budget_usd_per_hour",
    "plan_yaml",
    "seconds",
    "divisions",
)


def save_plans(plans: Plans, folder: Path, force: bool = False) -> None:
    """Write the folder of plans of several models.

    Parameters
    ----------
    plans : Plans
    folder : Path
    force : bool
        Replace a folder that an earlier plan or run wrote.

    Raises
    ------
    OutputError
        If the folder is taken or cannot be written.
    """
    told = version("llmsim")
    meta = {"schema": SCHEMA, "kind": "plans", "name": plans.name, "llmsim": told}
    shared = {key: getattr(plans, key) for key in SHARED} | {"models": list(plans.plans)}
    with new_folder(folder, force) as made:
        (made / META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
        (made / PLANS).write_text(json.dumps(shared, indent=1) + "\n", encoding="utf-8")
        (made / ASKED).write_text(plans.plan_yaml, encoding="utf-8")
        (made / REPORT).write_text(render_plans(plans), encoding="utf-8")
        for model, plan in plans.plans.items():
            save_plan(plan, made / model)


def load_plans(folder: str | Path) -> Plans | None:
    """Read what `save_plans` wrote; None where the folder is of something else.

    Parameters
    ----------
    folder : str or Path

    Raises
    ------
    InputError
        If a model's plan is not there, or the file is no such file.
    """
    path = Path(folder) / PLANS
    if not path.is_file():
        return None
    try:
        told = parse_json(path.read_bytes())
        models, shared = told["models"], {key: told[key] for key in SHARED}
    except (ValueError, KeyError, TypeError) as error:
        fault = Fault(str(path), "", f"is not what llmsim plan wrote: {error}")
        raise InputError(str(folder), [fault]) from None
    return Plans(plans={model: load_plan(Path(folder) / model) for model in models}, **shared)


def render_plans(plans: Plans) -> str:
    """Return the text of the page of all models.

    Parameters
    ----------
    plans : Plans

    Returns
    -------
    str
        Self-contained HTML, with links to the models' own pages beside it.
    """
    return fill(
        "plans.html.j2",
        plans=plans,
        headline=headline(plans),
        budget=plans.budget_usd_per_hour is not None,
        rows=[_row(model, plan) for model, plan in plans.plans.items()],
        stock=stock(plans),
        drawn=costs_svg(
            [
                Bar(model, fleet_words(plan.replicas), plan.usd_per_hour, "plan")
                for model, plan in plans.plans.items()
            ]
        ),
    )


def headline(plans: Plans) -> str:
    """Return what to buy for all models, in one sentence.

    Parameters
    ----------
    plans : Plans
    """
    gpus = " + ".join(f"{count} x {gpu}" for gpu, count in plans.gpus.items())
    rate = number(sum(plan.rate_rps for plan in plans.plans.values()))
    return f"Buy {gpus} ({usd(plans.usd_per_hour)}/h) for {rate} requests/s of all models."


def stock(plans: Plans) -> list[tuple[str, str, str, str]]:
    """Return what there is of each card and of money, what is taken, and what is left.

    Parameters
    ----------
    plans : Plans
    """
    rows = []
    for gpu in dict.fromkeys([*plans.available_gpus, *plans.gpus]):
        taken, there = plans.gpus.get(gpu, 0), plans.available_gpus.get(gpu)
        left = NONE if there is None else str(there - taken)
        rows.append((gpu, "no limit" if there is None else str(there), str(taken), left))
    money, spent = plans.budget_usd_per_hour, plans.usd_per_hour
    left = NONE if money is None else usd(money - spent)
    rows.append(("USD/h", "no limit" if money is None else usd(money), usd(spent), left))
    return rows


def _row(model: str, plan: Plan) -> dict[str, Any]:
    return {
        "name": model,
        "model": plan.model,
        "fleet": fleet_words(plan.replicas),
        "gpus": sum(each.gpus * each.replicas for each in plan.used),
        "cost": usd(plan.usd_per_hour),
        "outcome": plan.outcome,
        "kind": OUTCOMES[plan.outcome],
        "reason": plan.reason,
    }
