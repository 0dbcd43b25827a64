"""From what a scenario promises to what policies see of it."""

from __future__ import annotations

from llmsim.core.units import seconds_to_ns
from llmsim.policies.views import NO_DEADLINE, NOTHING_PROMISED, Promise
from llmsim.results.slo import Slo
from llmsim.scenario import Scenario
from llmsim.serving.labels import ClientRules


def promises(scenario: Scenario, timeout_ns: int) -> ClientRules:
    """Return when clients give up [ns], and what the scenario promises to whom."""
    objectives = scenario.slo.objectives()
    nobody = not any((objectives.ttft_s, objectives.tpot_s, objectives.e2e_s))
    return ClientRules(
        timeout_ns,
        NOTHING_PROMISED if nobody else _promise(objectives, -1),
        tuple(_promise(each.slo, number) for number, each in enumerate(objectives.classes)),
    )


def _promise(slo: Slo, number: int) -> Promise:
    limits = [
        NO_DEADLINE if limit is None else seconds_to_ns(limit)
        for limit in (slo.ttft_s, slo.tpot_s, slo.e2e_s)
    ]
    return Promise(number, limits[0], slo.ttft_per_prompt_token_s * 1e9, limits[1], limits[2])
