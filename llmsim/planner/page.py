"""``report.html`` of a plan: what to buy, against what, and what shows that it will do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from llmsim.planner.outlook import Outlook, Tried
from llmsim.planner.outlook_words import breaking, circumstances, power_said, resources_said
from llmsim.planner.plan import Evidence, Plan, Used
from llmsim.report.figures import ABOVE, COLOURS, inline_svg
from llmsim.report.html import fill
from llmsim.results.slo import OBJECTIVES
from llmsim.results.wording import NONE, duration, number, share, usd

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REASONS: Final = {
    "ttft": "computing prompts, and the wait for them",
    "tpot": "the pace of decoding: reading weights and KV for each token",
    "e2e": "the time of a whole answer",
    "kv": "KV memory",
    "max_num_seqs": "the most requests in a step (max_num_seqs)",
    "prefill": "computing prompts",
    "link": "the way of KV from one replica to another",
    "none": "nothing that is limited",
}
"""What keeps a replica from more, in words, by `Used.bound`."""

OUTCOMES: Final = {
    "proven": "met",
    "good enough": "met",
    "simulated": "met",
    "not proven": "missed",
    "not simulated": "unsure",
}
"""Colours of outcomes, as the page's style calls them."""

MEMORY: Final = ("kv", "max_num_seqs")
"""Limits that are no matter of time."""

HELPS: Final = {
    "compute": "More FLOP/s (a faster card, or weights that compute in fewer bits)",
    "bandwidth": "More memory bandwidth (or weights and KV of fewer bytes)",
    "link": "A faster link between its GPUs (or fewer of them to a replica)",
    "host": "A faster host",
    "launches": "Larger kernels (fewer GPUs to a replica) or cheaper launches",
}
"""What would help first where a replica's time goes into a resource, in the order of tables."""

PARTS: Final = {"mixed": "", "prefill": "prompts alone", "decode": "outputs alone"}
"""What a replica computes, where it is not everything, by `Used.role`."""

WHY: Final = {
    "current": "what runs today",
    "naive": "what the integer program says, as if requests came evenly",
    "pooled": "with room for bursts by formula",
    "search": "what the program says without the fleets that failed",
    "trim": "one replica less of a fleet that passed",
    "rival": "one card alone",
    "bound": "what the program holds possible for less, filled up to just below the best cost",
    "confirm": "the answer under seeds that had no part in finding it",
    "recorded": "the answer on the trace as recorded",
}
"""Why a fleet was simulated, by `Evidence.stage`."""

MOST_LOSERS: Final = 200
"""Configurations that are listed; all of them are in ``columns.csv``."""

_BOX: Final = (0.30, 0.17, 0.66, 0.75)
"""Axes with long labels at their left."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A fleet and its cost.

    Parameters
    ----------
    name, fleet : str
    usd_per_hour : float [USD/h]
    kind : str
        ``way`` to the plan, the ``plan`` itself, a ``rival``, or what runs ``today``.
    """

    name: str
    fleet: str
    usd_per_hour: float
    kind: str


def render_plan(plan: Plan, outlook: Outlook | None = None) -> str:
    """Return the text of ``report.html``.

    Parameters
    ----------
    plan : Plan
    outlook : Outlook, optional
        What the fleet stands beyond what it was planned for.

    Returns
    -------
    str
        Self-contained HTML: styles and drawings are inside, nothing is fetched.
    """
    bars = cost_bars(plan)
    tests = [_test(each) for each in plan.evidence]
    return fill(
        "plan.html.j2",
        plan=plan,
        kind=OUTCOMES[plan.outcome],
        headline=headline(plan),
        savings=savings(plan),
        bought=[_bought(each) for each in plan.used],
        promise=[_promised(name, value) for name, value in plan.slo.items()],
        ranges=_ranges(plan),
        bars=[_worded_bar(bar, plan) for bar in bars],
        no_rivals=_no_rival(plan),
        costs=costs_svg(bars),
        shown=attained_svg(plan) if plan.evidence else "",
        tests=tests,
        stages=[(e, WHY[e]) for e in dict.fromkeys(t.stage for t in plan.evidence) if e in WHY],
        first=first_to_give_way(plan),
        room=room_svg(plan),
        spent=[_spent(each) for each in plan.used if each.spending is not None],
        outlook=outlook,
        headroom="" if outlook is None or not outlook.headroom else headroom_svg(plan, outlook),
        breaks="" if outlook is None else breaking(outlook, plan),
        power="" if outlook is None else power_said(outlook),
        tried=[] if outlook is None else [_tried(e) for e in circumstances(outlook)],
        prices=price_room(plan),
        corrected=plan.corrected,
        losers=[(e.name, e.gpu, _usd(e.usd_per_hour), e.reason) for e in plan.losers[:MOST_LOSERS]],
        more=max(0, len(plan.losers) - MOST_LOSERS),
        number=number,
        share=share,
        usd=_usd,
    )


def headline(plan: Plan) -> str:
    """Return what to buy, in one sentence."""
    if not plan.used:
        return "No fleet was found."
    parts = [f"{each.replicas} x {each.name}" for each in plan.used]
    gpus = sum(each.replicas * each.gpus for each in plan.used)
    rate = f"{number(plan.rate_rps)} requests/s of {plan.model}"
    count = "1 GPU" if gpus == 1 else f"{gpus} GPUs"
    return f"Buy {' + '.join(parts)} ({count}, {_usd(plan.usd_per_hour)}/h) for {rate}."


def savings(plan: Plan) -> list[str]:
    """Return what the plan costs against the best fleet of one card, and against today."""
    said = []
    rivals = [each for each in plan.rivals if each.usd_per_hour is not None]
    if rivals:
        best = min(rivals, key=lambda each: each.usd_per_hour or 0.0)
        assert best.usd_per_hour is not None
        kinds = {each.gpu for each in plan.used}
        if kinds == {best.gpu} and abs(best.usd_per_hour - plan.usd_per_hour) < 1e-6:
            said.append(f"{best.gpu} is the cheapest card alone, and the plan is a fleet of it.")
        else:
            against = _against(plan.usd_per_hour, best.usd_per_hour)
            alone = f"{best.gpu}, {_usd(best.usd_per_hour)}/h"
            said.append(f"{against} than the best fleet of one card ({alone}).")
    if plan.current is not None:
        now = plan.current.usd_per_hour
        said.append(f"{_against(plan.usd_per_hour, now)} than what runs today ({_usd(now)}/h).")
    return said


def cost_bars(plan: Plan) -> list[Bar]:
    """Return the fleets that a reader compares: the way to the plan, rivals, and today's."""
    found = [
        Bar(each.name, fleet_words(each.replicas), each.usd_per_hour, "way")
        for each in plan.waterfall
    ]
    # the last stage is the plan, unless what was proven is none of them
    if found and found[-1].fleet == fleet_words(plan.replicas):
        found[-1] = replace(found[-1], name=f"{found[-1].name}: the plan", kind="plan")
    else:
        found.append(Bar("the plan", fleet_words(plan.replicas), plan.usd_per_hour, "plan"))
    found += [
        Bar(f"{each.gpu} alone", fleet_words(each.replicas), each.usd_per_hour, "rival")
        for each in plan.rivals
        if each.usd_per_hour is not None
    ]
    if plan.current is not None:
        today = plan.current
        found.append(Bar("today", fleet_words(today.replicas), today.usd_per_hour, "today"))
    return found


def costs_svg(bars: Sequence[Bar]) -> str:
    """Return the costs of all fleets as bars."""
    colour = {"way": COLOURS[0], "plan": COLOURS[2], "rival": COLOURS[1], "today": COLOURS[1]}
    alt = "Cost of each fleet: " + ", ".join(f"{b.name} {_usd(b.usd_per_hour)}/h" for b in bars)

    def draw(axes: Axes) -> None:
        places = range(len(bars))
        values = [bar.usd_per_hour for bar in bars]
        axes.barh(places, values, color=[colour[bar.kind] for bar in bars], height=0.6)
        axes.set_axisbelow(True)
        axes.set_yticks(list(places), [bar.name for bar in bars])
        axes.invert_yaxis()
        axes.set_xlabel("cost [USD/h]")
        axes.grid(visible=False, axis="y")

    return inline_svg(draw, alt, "costs", 0.9 + 0.32 * len(bars), _tall_box(len(bars)))


def attained_svg(plan: Plan) -> str:
    """Return what each simulated fleet attained, with its confidence bounds, against the target."""
    target = 100 * plan.slo.get("attained_frac", 1.0)
    tests = plan.evidence
    alt = "Share of requests that kept every limit: " + ", ".join(
        f"{each.stage} {share(_mean(each))}" for each in tests
    )

    def draw(axes: Axes) -> None:
        places = list(range(len(tests)))
        for place, each in zip(places, tests, strict=True):
            colour = COLOURS[2] if each.passed else COLOURS[1]
            axes.plot(
                [100 * each.low_frac, 100 * each.high_frac], [place, place], color=colour, lw=2
            )
            axes.plot([100 * _mean(each)], [place], "o", color=colour)
        axes.axvline(target, color=COLOURS[0], linestyle="--", label=f"target {target:g}%")
        axes.set_yticks(places, [f"{each.stage}, {_usd(each.usd_per_hour)}/h" for each in tests])
        axes.set_ylim(len(tests) - 0.5, -0.5)
        axes.set_xlim(right=103)
        axes.set_xlabel("requests that kept every limit [%]")
        axes.legend(**ABOVE)

    return inline_svg(draw, alt, "shown", 1.2 + 0.3 * len(tests), _tall_box(len(tests)))


def headroom_svg(plan: Plan, outlook: Outlook) -> str:
    """Return attainment by load, with its bounds, against the target."""
    target = 100 * plan.slo.get("attained_frac", 1.0)
    points = outlook.headroom
    alt = "Share of requests that kept every limit by load: " + ", ".join(
        f"{each.factor:g} times {share(each.attained_frac)}" for each in points
    )

    def draw(axes: Axes) -> None:
        loads = [each.factor for each in points]
        low = [100 * each.low_frac for each in points]
        high = [100 * each.high_frac for each in points]
        axes.fill_between(loads, low, high, color=COLOURS[2], alpha=0.25, linewidth=0)
        means = [100 * each.attained_frac for each in points]
        axes.plot(loads, means, "o-", color=COLOURS[2], label="simulated")
        axes.axhline(target, color=COLOURS[0], linestyle="--", label=f"target {target:g}%")
        # a fleet that bends and does not break is seen to do so
        axes.set_ylim(max(0, 10 * (min(*low, target) // 10) - 10), 103)
        axes.set_xlabel("traffic, times as planned")
        axes.set_ylabel("kept every limit [%]")
        axes.legend(**ABOVE)

    return inline_svg(draw, alt, "headroom")


def room_svg(plan: Plan) -> str:
    """Return how much of what each pool could carry is used, as bars."""
    pools = plan.used
    alt = "Load over capacity: " + ", ".join(f"{u.name} {share(u.utilisation_frac)}" for u in pools)

    def draw(axes: Axes) -> None:
        places = list(range(len(pools)))
        values = [100 * each.utilisation_frac for each in pools]
        axes.barh(places, values, color=COLOURS[0], height=0.5)
        axes.set_axisbelow(True)
        axes.axvline(100, color=COLOURS[1], linestyle="--", label="all that it could carry")
        axes.set_yticks(places, [each.name for each in pools])
        axes.invert_yaxis()
        axes.set_xlabel("load over capacity [%]")
        axes.grid(visible=False, axis="y")
        axes.legend(**ABOVE)

    return inline_svg(draw, alt, "room", 1.2 + 0.4 * len(pools), _tall_box(len(pools)))


def first_to_give_way(plan: Plan) -> str:
    """Return which pool is fullest, and what keeps its replicas from more."""
    if not plan.used:
        return ""
    fullest = max(plan.used, key=lambda each: each.utilisation_frac)
    why = REASONS.get(fullest.bound, fullest.bound)
    spare = 1 / fullest.utilisation_frac if fullest.utilisation_frac else float("inf")
    apart = [each for each in plan.used if each.role != "mixed"]
    ports = ""
    if apart:
        busy = max(apart, key=lambda each: each.port_frac)
        ports = (
            f" KV that is handed over keeps the busiest ports, those of {busy.name}, at "
            f"{share(busy.port_frac)} of their bandwidth."
        )
    return (
        f"{fullest.name} gives way first: it is used to {share(fullest.utilisation_frac)}, "
        f"{number(spare)} times its load would fill it if requests came evenly, and what keeps a "
        f"replica from more is {why}.{ports}{_because(fullest)}"
    )


def _because(used: Used) -> str:
    """Return which resource is behind what keeps a replica from more, and what would help."""
    spent = used.spending
    if spent is None:
        return ""
    said = f" {resources_said(used, used.bound)}"
    if used.bound in MEMORY:
        room = (
            f"KV memory {share(spent.kv_frac)} full, {share(spent.seats_frac)} of its seats taken"
        )
        return f"{said} Its mean batch has {room}."
    parts = spent.prompts if used.bound == "ttft" and spent.prompts else spent.whole
    first = max(parts, key=lambda word: parts[word])
    return f"{said} {HELPS[first]} would help first."


def _spent(used: Used) -> tuple[str, ...]:
    """Return the row of a pool among what replicas run out of."""
    spent = used.spending
    assert spent is not None
    port = share(used.port_frac) if used.role != "mixed" else NONE
    parts = [share(spent.whole.get(word, 0.0)) for word in HELPS]
    return used.name, *parts, share(spent.kv_frac), share(spent.seats_frac), port


def price_room(plan: Plan) -> list[tuple[str, str, str]]:
    """Return for each card at which change of its price another fleet is cheaper at the latest.

    Notes
    -----
    With `C` the plan's cost, `C_g` what it spends on a card, and `R` the cheapest fleet of one card
    that has none of it, the price may rise by ``(R - C) / C_g``; a fleet of a card alone that costs
    `R` is cheaper when that card's price falls by ``1 - C / R``. Other prices stay; a mixture of
    cards may be cheaper sooner.
    """
    found = []
    for gpu in dict.fromkeys(each.gpu for each in plan.used):
        spent = sum(u.usd_per_hour * u.replicas for u in plan.used if u.gpu == gpu)
        others = [
            (each.usd_per_hour, each.gpu)
            for each in plan.rivals
            if each.usd_per_hour is not None and each.gpu != gpu
        ]
        if not others:
            found.append((gpu, "any", "no other card alone keeps the promise"))
        elif spent > 0:
            cost, name = min(others)
            rise = (cost - plan.usd_per_hour) / spent
            found.append((gpu, f"{100 * rise:+.0f}%", f"then {name} alone is cheaper"))
    bought = {each.gpu for each in plan.used}
    for each in plan.rivals:
        alone = each.usd_per_hour
        if each.gpu not in bought and alone is not None and plan.usd_per_hour < alone:
            fall = plan.usd_per_hour / alone - 1
            found.append((each.gpu, f"{100 * fall:+.0f}%", f"then {each.gpu} alone is cheaper"))
    return found


def _no_rival(plan: Plan) -> list[tuple[str, str]]:
    return [(each.gpu, each.reason) for each in plan.rivals if each.usd_per_hour is None]


def _tried(each: Tried) -> dict[str, str]:
    return {
        "what": f"{each.what} x {each.factor:g}",
        "attained": share(each.attained_frac),
        "bounds": f"{share(each.low_frac)} to {share(each.high_frac)}",
        "kind": "met" if each.kept else "missed" if each.sure else "unsure",
        "kept": each.word,
    }


def _bought(each: Used) -> dict[str, str]:
    degrees = ("tp", "dp", "pp", "ep")
    plan = [f"{key} {n}" for key in degrees if (n := getattr(each, key)) > 1]
    return {
        "name": each.name,
        "made": ", ".join(filter(None, [*plan, each.quantisation, PARTS[each.role]])) or "one GPU",
        "replicas": str(each.replicas),
        "spare": str(each.spare_replicas),
        "gpus": str(each.replicas * each.gpus),
        "cost": _usd(each.replicas * each.usd_per_hour),
        "price": f"{_usd(each.usd_per_hour)}: {each.price_source}",
        "used": share(each.utilisation_frac),
        "bound": REASONS.get(each.bound, each.bound),
    }


def _ranges(plan: Plan) -> list[dict[str, Any]]:
    ends = [each.low_tokens for each in plan.ranges[1:]]
    names = [
        f"{each.low_tokens:,} to {end - 1:,}" for each, end in zip(plan.ranges, ends, strict=False)
    ]
    names += [f"{each.low_tokens:,} and more" for each in plan.ranges[-1:]]
    return [
        {
            "name": name,
            "rate": number(each.rate_rps),
            "late": share(each.late_frac) if each.late_frac else "",
            "shares": [
                share(used.share.get(each.name, 0.0)) if each.name in used.share else NONE
                for used in plan.used
            ],
        }
        for name, each in zip(names, plan.ranges, strict=True)
    ]


def _worded_bar(bar: Bar, plan: Plan) -> tuple[str, str, str, str]:
    ratio = bar.usd_per_hour / plan.usd_per_hour - 1 if plan.usd_per_hour else 0.0
    told = "" if bar.kind == "plan" else f"{100 * ratio:+.1f}%"
    return bar.name, bar.fleet, _usd(bar.usd_per_hour), told


def _test(each: Evidence) -> dict[str, str]:
    return {
        "stage": each.stage,
        "fleet": fleet_words(each.replicas),
        "lost": each.lost,
        "cost": _usd(each.usd_per_hour),
        "seeds": str(len(each.seeds)),
        "attained": share(_mean(each)) if each.attained_frac else NONE,
        "bounds": f"{share(each.low_frac)} to {share(each.high_frac)}",
        "kind": "met" if each.passed else "missed",
        "passed": "kept" if each.passed else "not kept",
        "reason": each.reason,
    }


def _mean(each: Evidence) -> float:
    return sum(each.attained_frac) / len(each.attained_frac) if each.attained_frac else 0.0


def _promised(name: str, value: float) -> str:
    """Return a part of the promise in words, such as ``TTFT ≤ 1 s``."""
    if name == "attained_frac":
        return f"by {share(value)} of the requests"
    if name in OBJECTIVES:
        return f"{name.removesuffix('_s').upper()} ≤ {duration(value)}"
    return f"{name} {number(value)}"


def fleet_words(replicas: Mapping[str, int]) -> str:
    """Return a fleet in words.

    Parameters
    ----------
    replicas : mapping of str to int
        By column.
    """
    return " + ".join(f"{count} x {name}" for name, count in replicas.items() if count) or "nothing"


def _usd(value: float | None) -> str:
    return NONE if value is None else usd(value)


def _against(ours: float, theirs: float) -> str:
    """Return how much less, or more, ours costs than theirs."""
    if not theirs:
        return "Costs more"
    part = 1 - ours / theirs
    return f"{share(abs(part))} {'less' if part >= 0 else 'more'}"


def _tall_box(rows: int) -> tuple[float, float, float, float]:
    """Return axes that leave room for labels, whatever the height of the drawing."""
    left, _, width, _ = _BOX
    height = 1.2 + 0.32 * rows
    bottom = 0.5 / height
    return left, bottom, width, 1 - bottom - 0.4 / height
