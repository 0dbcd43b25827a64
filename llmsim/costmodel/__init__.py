"""What a step costs, and what fits: operator list, smooth roofline, memory.

Start with `contract` (what the engine asks), then `roofline` (how the default answers). It stands
on `operators` (what depends on token counts), `attention` (what depends on contexts) and
`communication`; `explain` splits a price by operator. `memory` says how many KV blocks an engine
would find, `layout` whether a model splits over a plan.
"""

from llmsim.costmodel.contract import Chunk, PriceLine, StepCost
from llmsim.costmodel.explain import OperatorRow, StepBreakdown, overhang_of, padded_sums
from llmsim.costmodel.layout import check_layout
from llmsim.costmodel.memory import MemoryPlan, plan_memory
from llmsim.costmodel.roofline import RooflineCost

__all__ = [
    "Chunk",
    "MemoryPlan",
    "OperatorRow",
    "PriceLine",
    "RooflineCost",
    "StepBreakdown",
    "StepCost",
    "check_layout",
    "overhang_of",
    "padded_sums",
    "plan_memory",
]
