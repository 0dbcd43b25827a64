"""How the replicas of a world share GPUs."""

from __future__ import annotations

from prices import MadeUpUse, Slower

from llmsim.costmodel.contract import StepCost
from llmsim.policies.sharing import SHARING
from llmsim.serving.lanes import LaneLevel, LanePlan


def lane_plan(shares: tuple[float, float], sharing: str, role: str, cost: StepCost) -> LanePlan:
    """Return the plan of prefill or decode replicas, at their share of the SMs."""
    prefill = role == "prefill"

    def level(share_frac: float) -> LaneLevel:
        return LaneLevel(Slower(cost, share_frac), MadeUpUse(share_frac), None)

    return LanePlan(
        None if prefill else 0,
        level,
        shares[0 if prefill else 1],
        None if prefill else SHARING.get(sharing),
        tpot_slo_s=0.01,
    )
