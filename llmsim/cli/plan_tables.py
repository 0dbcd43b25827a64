"""What `llmsim plan` prints."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from llmsim.planner.outlook import Outlook
from llmsim.planner.outlook_words import breaking, circumstances, power_said
from llmsim.planner.plan import Evidence, Plan, Used
from llmsim.planner.several import Plans
from llmsim.results.wording import number, share


def print_plan(plan: Plan, folder: Path) -> None:
    """Print what to buy, what it costs, and against what.

    Parameters
    ----------
    plan : Plan
    folder : Path
        Where it was saved.
    """
    console = Console(highlight=False)
    limits = ", ".join(f"{key} {value:g}" for key, value in plan.slo.items())
    console.print(f"[bold]{plan.name}[/bold]  {plan.model}, {number(plan.rate_rps)} requests/s")
    console.print(f"promise: {limits}")
    console.print(_fleet(plan))
    gap = f"{share(plan.bound.gap_frac)} above the bound {plan.bound.usd_per_hour:,.2f}"
    console.print(f"[bold]{plan.usd_per_hour:,.2f} USD/h[/bold], {gap} ({plan.bound.assumption})")
    console.print(f"{plan.outcome}: {plan.reason}")
    if len(plan.ranges) > 1:
        console.print(_split(plan))
    console.print(_against(plan))
    if plan.corrected:
        console.print(_corrected(plan))
    if plan.evidence:
        console.print(_evidence(plan))
    for note in plan.notes:
        console.print(f"note: {note}")
    lost = len(plan.losers)
    if lost:
        were = "configuration was" if lost == 1 else "configurations were"
        console.print(f"{lost} {were} not bought: --explain says why")
    console.print(f"saved in {folder}; llmsim run {folder / 'fleet.yaml'}")


def print_outlook(outlook: Outlook, plan: Plan, model: str = "") -> None:
    """Print what a planned fleet stands beyond what it was planned for.

    Parameters
    ----------
    outlook : Outlook
    plan : Plan
    model : str
        Of which of several models, where there are several.
    """
    console = Console(highlight=False)
    if model:
        console.print(f"[bold]{model}[/bold]")
    for text in filter(None, (breaking(outlook, plan), power_said(outlook))):
        console.print(text)
    table = _table("if", "attained", "at least", "", right=(1, 2))
    for each in circumstances(outlook):
        row = (f"{each.what} x {each.factor:g}", share(each.attained_frac), share(each.low_frac))
        table.add_row(*row, each.word)
    if outlook.met_frac is not None:
        told = f"shown to be kept in {share(outlook.met_frac)} of {outlook.draws} draws"
        table.add_row("operators cost other than believed", "", "", told)
    if table.row_count:
        console.print(table)
    for text in outlook.left_out:
        console.print(f"not tried: {text}")


def print_plans(plans: Plans, folder: Path) -> None:
    """Print what to buy for each of several models, and what is left.

    Parameters
    ----------
    plans : Plans
    folder : Path
        Where they were saved.
    """
    from llmsim.planner.several_folder import headline, stock

    console = Console(highlight=False)
    console.print(f"[bold]{plans.name}[/bold]  {', '.join(plans.plans)}")
    table = _table("plan", "model", "requests/s", "buy", "USD/h", "outcome", right=(2, 4))
    for model, each in plans.plans.items():
        cost = f"{each.usd_per_hour:,.2f}"
        rate = number(each.rate_rps)
        told = f"{each.outcome}: {each.reason}"
        table.add_row(model, each.model, rate, _words(each.replicas), cost, told)
    console.print(table)
    table = _table("of", "there is", "taken", "left", right=(1, 2, 3))
    for row in stock(plans):
        table.add_row(*row)
    console.print(table)
    console.print(f"[bold]{headline(plans)}[/bold]")
    if plans.divisions > 1:
        console.print(
            f"what there is was divided {plans.divisions} times, since simulation found a part "
            "too small"
        )
    for model, each in plans.plans.items():
        for note in each.notes:
            console.print(f"note on {model}: {note}")
    console.print(f"saved in {folder}; each plan has its own folder there")


def print_losers(plan: Plan) -> None:
    """Print every configuration that was not bought, and why.

    Parameters
    ----------
    plan : Plan
    """
    if not plan.losers:
        Console(highlight=False).print("every configuration that was tried is bought")
        return
    table = _table("configuration", "USD/h", "not bought because")
    for each in plan.losers:
        price = "" if each.usd_per_hour is None else f"{each.usd_per_hour:,.2f}"
        table.add_row(each.name, price, each.reason)
    Console(highlight=False).print(table)


def _table(*heads: str, right: tuple[int, ...] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place in right else "left", overflow="fold")
    return table


def _fleet(plan: Plan) -> Table:
    heads = ("buy", "replicas", "GPUs", "USD/h", "used", "bound by", "its time goes into")
    table = _table(*heads, right=(1, 2, 3, 4))
    for each in plan.used:
        spare = f" ({each.spare_replicas} spare)" if each.spare_replicas else ""
        table.add_row(
            each.name,
            f"{each.replicas}{spare}",
            f"{each.replicas * each.gpus}",
            f"{each.replicas * each.usd_per_hour:,.2f}",
            share(each.utilisation_frac),
            each.bound,
            _spent(each),
        )
    return table


def _spent(used: Used) -> str:
    """Return the two resources that most of a replica's time goes into."""
    if used.spending is None:
        return ""
    parts = sorted(used.spending.whole.items(), key=lambda each: -each[1])[:2]
    return ", ".join(f"{word} {part:.0%}" for word, part in parts)


def _split(plan: Plan) -> Table:
    heads = [each.name for each in plan.used]
    table = _table("prompt tokens", "requests/s", *heads, right=tuple(range(1, len(heads) + 2)))
    lows = [part.low_tokens for part in plan.ranges]
    for place, part in enumerate(plan.ranges):
        upto = f"to {lows[place + 1] - 1:,}" if place + 1 < len(lows) else "and more"
        cells = [_part(each, part.name) for each in plan.used]
        late = f" ({share(part.late_frac)} late on anything)" if part.late_frac else ""
        table.add_row(f"{part.low_tokens:,} {upto}{late}", number(part.rate_rps), *cells)
    return table


def _part(used: Used, name: str) -> str:
    part = used.share.get(name, 0.0)
    return share(part) if part else ""


def _against(plan: Plan) -> Table:
    table = _table("fleet", "USD/h", "against the plan", right=(1, 2))

    def row(name: str, usd: float) -> None:
        table.add_row(name, f"{usd:,.2f}", f"{usd / plan.usd_per_hour - 1:+.1%}")

    for step in plan.waterfall:
        row(f"{step.name}: {_words(step.replicas)}", step.usd_per_hour)
    for rival in plan.rivals:
        if rival.usd_per_hour is None:
            table.add_row(f"{rival.gpu} alone: {rival.reason}", "", "")
        else:
            row(f"{rival.gpu} alone: {_words(rival.replicas)}", rival.usd_per_hour)
    if plan.current is not None:
        used = plan.current.utilisation_frac
        told = plan.current.reason if used is None else f"{share(used)} used"
        row(f"today: {_words(plan.current.replicas)} ({told})", plan.current.usd_per_hour)
    return table


def _corrected(plan: Plan) -> Table:
    heads = ("one replica of", "by closed form", "simulated", "factor")
    table = _table(*heads, right=(1, 2, 3))
    for each in plan.corrected:
        rates = (number(each.closed_rps), number(each.simulated_rps))
        table.add_row(each.column, *(f"{rate}/s" for rate in rates), f"{each.factor:.2f}")
    return table


def _evidence(plan: Plan) -> Table:
    heads = ("simulated", "fleet", "USD/h", "seeds", "attained", "at least", "")
    table = _table(*heads, right=(2, 3, 4, 5))
    for each in plan.evidence:
        lost = f", {each.lost} lost" if each.lost else ""
        table.add_row(
            f"{each.stage}{lost}",
            _words(each.replicas),
            f"{each.usd_per_hour:,.2f}",
            f"{len(each.seeds)}",
            share(sum(each.attained_frac) / len(each.attained_frac)) if each.attained_frac else "",
            share(each.low_frac),
            _said(each),
        )
    return table


def _said(evidence: Evidence) -> str:
    if evidence.passed:
        return "passes"
    if evidence.overloaded:
        return "overloaded"
    return "not sure" if "sure" in evidence.reason else "fails"


def _words(replicas: dict[str, int]) -> str:
    return " + ".join(f"{count} x {name}" for name, count in replicas.items())
