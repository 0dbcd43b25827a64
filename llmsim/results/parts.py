"""What a run says of some of its requests: those of a model, a client, a priority, an SLO class."""

from __future__ import annotations

import numpy as np

from llmsim.results.classes import Bools, ClassSummary, class_claim, of_class, promised
from llmsim.results.facts import RunFacts
from llmsim.results.reading import Reading
from llmsim.results.slo import Slo
from llmsim.results.store import RequestTable
from llmsim.results.verdict import Verdict


def by_model(
    table: RequestTable, facts: RunFacts, slo: Slo, warmup_s: float = 0.0
) -> dict[str, dict[str, float]]:
    """Return latencies and attainment of each model's requests; empty where there is one model.

    Parameters
    ----------
    table : RequestTable
    facts : RunFacts
        Says which pool serves which model.
    slo : Slo
    warmup_s : float [s]
        Requests that arrived before it count as load only.
    """
    models = list(dict.fromkeys(pool.model for pool in facts.pools if pool.model))
    names = table.categories("pool")
    codes = table.codes("pool", names)
    found = {}
    for model in models:
        pools = [pool.name for pool in facts.pools if pool.model == model]
        mine = np.isin(codes, [names.index(pool) for pool in pools if pool in names])
        found[model] = part(table, facts, slo, warmup_s, mine)
    return found


def by_pool(
    table: RequestTable, facts: RunFacts, slo: Slo, warmup_s: float = 0.0
) -> dict[str, dict[str, float]]:
    """Return the same of the requests that each pool ended; see `by_model`."""
    names = table.categories("pool")
    codes = table.codes("pool", names)
    return {
        pool.name: part(table, facts, slo, warmup_s, codes == names.index(pool.name))
        for pool in facts.pools
        if pool.name in names
    }


def by_prefill_pool(
    table: RequestTable, facts: RunFacts, slo: Slo, warmup_s: float = 0.0
) -> dict[str, dict[str, float]]:
    """Return the same of the requests whose prompts each pool computed for others; see `by_model`.

    Empty where no prompts are handed over.
    """
    if not table.hands_over:
        return {}
    computed = table.numbers("prefill_replica")
    found = {}
    for pool in facts.pools:
        own = [replica.index for replica in facts.replicas if replica.pool == pool.name]
        mine = np.isin(computed, own)
        if mine.any():
            found[pool.name] = part(table, facts, slo, warmup_s, mine)
    return found


def by_client(
    table: RequestTable, facts: RunFacts, slo: Slo, warmup_s: float = 0.0
) -> dict[str, dict[str, float]]:
    """Return latencies, attainment and tokens of each client's requests; see `by_model`."""
    clients = table.categories("client")
    codes = table.codes("client", clients)
    return {
        client: part(table, facts, slo, warmup_s, codes == code)
        for code, client in enumerate(clients)
        if client
    }


def by_priority(
    table: RequestTable, facts: RunFacts, slo: Slo, warmup_s: float = 0.0
) -> dict[int, dict[str, float]]:
    """Return the same of each priority class, the most urgent first; see `by_model`."""
    priority = table.numbers("priority")
    return {
        int(each): part(table, facts, slo, warmup_s, priority == each)
        for each in np.unique(priority)
    }


def part(
    table: RequestTable, facts: RunFacts, slo: Slo, warmup_s: float, mine: Bools
) -> dict[str, float]:
    """Return latencies, attainment and counts of some requests of a run."""
    reading = Reading(table, facts, warmup_s, mine)
    measured = {**reading.latencies(), **reading.attainment(reading.met(slo))}
    values = {name: interval.value for name, interval in measured.items()}
    values["requests"] = float(mine.sum())
    for name in ("prompt_tokens", "output_tokens", "preemptions", "recomputed_tokens"):
        values[name] = float(table.numbers(name)[mine].sum())
    return values


def class_summaries(
    table: RequestTable, facts: RunFacts, slo: Slo, warmup_s: float, verdict: Verdict
) -> tuple[ClassSummary, ...]:
    """Return what a run says per SLO class, those without one first; empty without classes.

    Parameters
    ----------
    table : RequestTable
    facts : RunFacts
    slo : Slo
    warmup_s : float [s]
    verdict : Verdict
        Of the run: what an overloaded fleet does is no claim.
    """
    if not slo.classes:
        return ()
    found = []
    for name, each in promised(slo):
        mine = of_class(table, name)
        if not mine.any():
            continue
        reading = Reading(table, facts, warmup_s, mine)
        met = reading.met(slo)
        attained = reading.attainment(met)["slo_attained_frac"]
        values = part(table, facts, slo, warmup_s, mine)
        values["goodput_rps"] = reading.rates(met.get("slo"))["goodput_rps"].value
        told = class_claim(each, attained, verdict, name)
        found.append(ClassSummary(name, each, values, attained, told))
    return tuple(found)
