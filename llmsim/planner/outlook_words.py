"""What a planned fleet stands, in words: until where, what gives way, at which power."""

from __future__ import annotations

import math
from typing import Final

from llmsim.planner.outlook import OTHER, Outlook, Tried
from llmsim.planner.plan import Plan, Used
from llmsim.results.wording import number, share

LEAST_SHOWN: Final = 0.005
"""Share of time of a resource that is worth a word."""

HOURS_OF_A_YEAR: Final = 8766.0
"""365.25 days [h]."""


def circumstances(outlook: Outlook) -> list[Tried]:
    """Return what was tried one at a time, the rate too: all that much more than planned."""
    rate = [each for each in outlook.headroom if each.factor == OTHER]
    return [*rate, *outlook.sensitivity]


def breaking(outlook: Outlook, plan: Plan | None = None) -> str:
    """Return up to which load the promise holds, and what gives way beyond it.

    Parameters
    ----------
    outlook : Outlook
    plan : Plan, optional
        Says what the time of its replicas goes into.
    """
    if not outlook.headroom:
        return ""
    broken = [n for n, each in enumerate(outlook.headroom) if not each.kept]
    *held, last = outlook.headroom[: broken[0] + 1] if broken else outlook.headroom
    if last.kept:
        return f"The promise holds up to {last.factor:g} times the planned rate, the most tried."
    upto = f"The promise holds up to {held[-1].factor:g} times the planned rate" if held else ""
    if not last.sure:
        at = f"at {last.factor:g} times it" if held else "at the planned rate"
        doubt = f"{last.seeds} further seeds do not decide {at}"
        bounds = f"{share(last.attained_frac)} attained, at least {share(last.low_frac)}"
        return " ".join(filter(None, [upto and f"{upto}.", f"{doubt}: {bounds}.", _why(last)]))
    said = f"{upto or 'The promise does not hold at the planned rate'}"
    said += f", and breaks at {last.factor:g} times." if held else "."
    first = min(last.by_limit, key=lambda name: last.by_limit[name], default="")
    if first:
        said += f" What breaks is {first}: {share(last.by_limit[first])} of the requests keep it."
    return " ".join(filter(None, [said, _why(last), "" if plan is None else _behind(plan, first)]))


def _behind(plan: Plan, limit: str) -> str:
    """Return the resource behind a limit that broke, of the fullest pool that has part in it."""
    other = {"ttft": "decode", "tpot": "prefill", "itl": "prefill"}.get(limit)
    pools = [each for each in plan.used if each.role != other and each.spending is not None]
    if not pools:
        return ""
    fullest = max(pools, key=lambda each: each.utilisation_frac)
    return resources_said(fullest, limit)


def resources_said(used: Used, limit: str) -> str:
    """Return what the time of a replica goes into that a limit is about, most first.

    Parameters
    ----------
    used : Used
    limit : str
        ``ttft`` counts what prompts add; all others whole steps.
    """
    spent = used.spending
    if spent is None:
        return ""
    prompts = limit == "ttft" and spent.prompts
    parts = sorted((spent.prompts if prompts else spent.whole).items(), key=lambda each: -each[1])
    told = ", ".join(f"{word} {share(part)}" for word, part in parts if part >= LEAST_SHOWN)
    of = "computing prompts" if prompts else "the steps"
    return f"At capacity, the time of {of} of {used.name} goes into {told}."


def power_said(outlook: Outlook) -> str:
    """Return power and energy at the planned load; empty where it was not simulated."""
    if not outlook.headroom or math.isnan(outlook.headroom[0].power_w):
        return ""
    planned = outlook.headroom[0]
    year_kwh = planned.power_w * HOURS_OF_A_YEAR / 1000
    return (
        f"At the planned load the GPUs take {number(planned.power_w)} W "
        f"({number(year_kwh)} kWh a year, without cooling and hosts), "
        f"{number(planned.joules_per_output_token)} J for each output token."
    )


def _why(last: Tried) -> str:
    """Return what the replicas ran out of, by what was full."""
    full = f"the busiest replica is busy {share(last.busiest_frac)} of the time"
    kv = f"KV memory is used up to {share(last.kv_peak_frac)}"
    if last.preemptions >= 1:
        return f"KV memory is short: {number(last.preemptions)} preemptions a run; {full}."
    if last.overloaded:
        return f"Replicas do not keep up: {full}, and {kv}."
    return f"Steps become longer than the limits allow: {full}, and {kv}."
