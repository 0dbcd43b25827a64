"""What a sweep looks for: metrics to make large or small, and conditions on others."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from llmsim.core.errors import Fault, InputError, nearest
from llmsim.results.metrics import EVERY_METRIC
from llmsim.scenario import Scenario

UNITS: Final = {each.name: each.unit for each in EVERY_METRIC}
"""Unit of every metric that some run has."""

_CONDITION: Final = re.compile(r"^\s*([A-Za-z_]\w*)\s*(<=|>=|<|>|==|=)\s*(\S+)\s*$")


@dataclass(frozen=True, slots=True)
class Objective:
    """A metric to make as large, or as small, as can be.

    Parameters
    ----------
    metric : str
    larger : bool
    """

    metric: str
    larger: bool

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return 1 if self.larger else -1

    def __str__(self) -> str:
        return f"{'most' if self.larger else 'least'} {self.metric}"


@dataclass(frozen=True, slots=True)
class Condition:
    """A limit on a metric.

    Parameters
    ----------
    metric : str
    below : bool
        The metric must not be above the limit; else not below it.
    limit : float
        In the metric's unit.
    strict : bool
        The limit itself is too much.
    """

    metric: str
    below: bool
    limit: float
    strict: bool = False

    def kept(self, value: float) -> bool:
        """Say whether a value keeps it; NaN never does."""
        if value == self.limit:
            return not self.strict
        return value < self.limit if self.below else value > self.limit

    def __str__(self) -> str:
        sign = ("<" if self.below else ">") + ("" if self.strict else "=")
        return f"{self.metric} {sign} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Goal:
    """What makes a point good.

    Parameters
    ----------
    objectives : tuple of Objective
        The first decides which point is best, all of them which points nobody beats in everything.
    conditions : tuple of Condition
    overloaded_counts : bool
        Points whose fleet does not keep up may be best all the same.
    """

    objectives: tuple[Objective, ...]
    conditions: tuple[Condition, ...] = ()
    overloaded_counts: bool = False

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics that it looks at, each once."""
        named = [each.metric for each in self.objectives]
        named += [each.metric for each in self.conditions]
        return tuple(dict.fromkeys(named))

    def trade_offs(self) -> tuple[Objective, ...]:
        """Return the objectives of the Pareto front, always two or more.

        Notes
        -----
        One objective alone has no trade-off: it is set against the first condition's metric, or
        else against what the fleet costs.
        """
        if len(self.objectives) > 1:
            return self.objectives
        first = self.objectives[0]
        for each in self.conditions:
            if each.metric != first.metric:
                return first, Objective(each.metric, not each.below)
        other = "usd_per_hour" if first.metric != "usd_per_hour" else "output_tokens_per_s"
        return first, Objective(other, other != "usd_per_hour")


def parse_goal(
    scenario: Scenario,
    maximise: Sequence[str] = (),
    minimise: Sequence[str] = (),
    subject_to: Sequence[str] = (),
    overloaded_counts: bool = False,
) -> Goal:
    """Return what a sweep of a scenario looks for.

    Parameters
    ----------
    scenario : Scenario
    maximise, minimise : sequence of str
        Metrics; without any, the goodput is maximised where the scenario has objectives, the
        output tokens per second where it has none.
    subject_to : sequence of str
        Conditions such as ``"ttft_p99_s<=0.5"``.
    overloaded_counts : bool

    Raises
    ------
    InputError
        With every metric that does not exist and every condition that is none.
    """
    faults = [
        Fault("", option, f"unknown metric '{name}'.", nearest(name, UNITS))
        for option, names in (("maximise", maximise), ("minimise", minimise))
        for name in names
        if name not in UNITS
    ]
    both = set(maximise) & set(minimise)
    faults += [Fault("", "minimise", f"{name} is maximised as well.") for name in sorted(both)]
    conditions = []
    for text in subject_to:
        made = _condition(text)
        if isinstance(made, Fault):
            faults.append(made)
        else:
            conditions.append(made)
    if faults:
        raise InputError("sweep", faults)
    objectives = [Objective(name, True) for name in maximise]
    objectives += [Objective(name, False) for name in minimise]
    if not objectives:
        promised = scenario.slo.objectives().is_set
        objectives = [Objective("goodput_rps" if promised else "output_tokens_per_s", True)]
    return Goal(tuple(dict.fromkeys(objectives)), tuple(conditions), overloaded_counts)


def _condition(text: str) -> Condition | Fault:
    found = _CONDITION.match(text)
    if found is None:
        hint = "Write it like ttft_p99_s<=0.5."
        return Fault("", "subject_to", f"'{text}' is no condition.", hint)
    metric, sign, told = found.groups()
    if metric not in UNITS:
        return Fault("", "subject_to", f"unknown metric '{metric}'.", nearest(metric, UNITS))
    if "<" not in sign and ">" not in sign:
        hint = f"Write {metric}<={told} or {metric}>={told}."
        return Fault("", "subject_to", f"'{text}' asks for equality.", hint)
    try:
        limit = float(told)
    except ValueError:
        limit = math.nan
    if math.isnan(limit):
        hint = f"{metric} is in {UNITS[metric]}." if UNITS[metric] != "-" else ""
        return Fault("", "subject_to", f"'{told}' in '{text}' is no number.", hint)
    return Condition(metric, "<" in sign, limit, "=" not in sign)
