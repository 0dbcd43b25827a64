"""The micro-batches of a pipeline as it is made: one draft each, of one line and one KV ledger."""

from __future__ import annotations

from collections.abc import Callable

from llmsim.costmodel.contract import StagedCost
from llmsim.serving.cohort import Cohort
from llmsim.serving.delivery import Delivery
from llmsim.serving.draft import Draft
from llmsim.serving.equipment import equip, told_of_ends
from llmsim.serving.microbatch import PipelineMeter, Slot, SlotCohort
from llmsim.serving.request import Request
from llmsim.serving.step import StagedStep
from llmsim.serving.stretch import Stretch
from llmsim.serving.together import Together


def make_slots(
    like: Draft,
    cost: StagedCost,
    main: PipelineMeter,
    on_end: Callable[[Request, str, int], None],
) -> list[Slot]:
    """Return as many micro-batches as there are stages.

    Parameters
    ----------
    like : Draft
        With the engine, the policy, the ledger and the line that all of them have.
    cost : StagedCost
    main : PipelineMeter
    on_end : callable
        Called with (request, outcome name, time) when a request ends.
    """
    config, policy = like.config, like.policy
    on_end = told_of_ends(policy, on_end)
    cohorts: list[Cohort] = []
    slots: list[Slot] = []
    for number in range(cost.stages):
        meter = main.part(number)
        cohort = SlotCohort(cost.context_tile, config.block_tokens, cost.window_tokens)
        cohorts.append(cohort)
        draft = Draft(config, policy, like.ledger, cohort, like.line, meter, like.decisions)
        equip(draft, policy)
        draft.reuse = like.reuse  # it hears of all that the ledger caches
        stretch = Stretch(cohort, cost.window_tokens > 0)
        ended = on_end
        if getattr(policy, "releases_together", False):
            draft.together = Together(draft, on_end)  # who is in a micro-batch leaves together
            ended = draft.together.ended
        delivery = Delivery(draft, stretch, config.block_tokens, 0, ended)
        if slots:
            first = slots[0]
            delivery.arrived = first.delivery.arrived  # whoever is planned next seats those
            draft.gates = first.draft.gates  # whoever is launched next waits for what is copied
        slots.append(Slot(draft, delivery, StagedStep(draft, cohorts), stretch))
    return slots
