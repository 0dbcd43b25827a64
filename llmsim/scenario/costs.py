"""How a pool's steps are priced: the seam ``cost``, which binds a cost model to a pool.

The cost models themselves live in `llmsim.costmodel`; here stand the parameters that a scenario
may set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol

from annotated_types import Ge, Gt

from llmsim.core.registry import Registry
from llmsim.costmodel import RooflineCost, StepCost
from llmsim.specs import (
    EngineLimits,
    GpuCard,
    HostTerms,
    LinkCard,
    ModelSpec,
    OperatorScales,
    ParallelPlan,
)

_HOST = HostTerms()


class CostKind(Protocol):
    """One way to price steps; its fields are its YAML parameters."""

    def bind(
        self,
        model: ModelSpec,
        gpu: GpuCard,
        link: LinkCard | None,
        plan: ParallelPlan,
        limits: EngineLimits,
        kv_dtype: str | None,
        lookahead: int,
    ) -> StepCost:
        """Return the cost model of one pool.

        Parameters
        ----------
        model : ModelSpec
        gpu : GpuCard
        link : LinkCard or None
            Between the GPUs of the plan; None for a single one.
        plan : ParallelPlan
        limits : EngineLimits
        kv_dtype : str or None
            None for what the checkpoint asks for.
        lookahead : int
            1 for asynchronous scheduling.

        Raises
        ------
        InputError
            If the model cannot be laid out like this.
        """
        ...


COST: Registry[CostKind] = Registry("cost")


@COST.register("roofline")
@dataclass(frozen=True)
class Roofline:
    """Smooth roofline over the operators of a step, from the GPU's card alone.

    Parameters
    ----------
    host_base_s : float [s]
        Scheduling, input preparation and output handling of any step.
    host_per_request_s : float [s]
        The same per request in the step.
    eager_layer_s : float [s]
        Launching one layer's kernels one by one, where no captured graph fits the step.
    gemm_scale, attention_prefill_scale, attention_decode_scale, moe_scale : float
    communication_scale, elementwise_scale : float
        Factors on the time of an operator family, such as a calibration gives.
    """

    host_base_s: Annotated[float, Ge(0)] = _HOST.base_s
    host_per_request_s: Annotated[float, Ge(0)] = _HOST.per_request_s
    eager_layer_s: Annotated[float, Ge(0)] = _HOST.eager_layer_s
    gemm_scale: Annotated[float, Gt(0)] = 1.0
    attention_prefill_scale: Annotated[float, Gt(0)] = 1.0
    attention_decode_scale: Annotated[float, Gt(0)] = 1.0
    moe_scale: Annotated[float, Gt(0)] = 1.0
    communication_scale: Annotated[float, Gt(0)] = 1.0
    elementwise_scale: Annotated[float, Gt(0)] = 1.0

    def scales(self) -> OperatorScales:
        """Return the factors on operator families."""
        return OperatorScales(
            self.gemm_scale,
            self.attention_prefill_scale,
            self.attention_decode_scale,
            self.moe_scale,
            self.communication_scale,
            self.elementwise_scale,
        )

    def bind(
        self,
        model: ModelSpec,
        gpu: GpuCard,
        link: LinkCard | None,
        plan: ParallelPlan,
        limits: EngineLimits,
        kv_dtype: str | None,
        lookahead: int,
    ) -> RooflineCost:
        """Return the roofline of one pool; see `CostKind.bind`."""
        host = HostTerms(self.host_base_s, self.host_per_request_s, self.eager_layer_s)
        return RooflineCost(
            model, gpu, link, plan, limits, kv_dtype, lookahead, host, self.scales()
        )
