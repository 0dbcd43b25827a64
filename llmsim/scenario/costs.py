"""How a pool's steps are priced: the seam ``cost``, which binds a cost model to a pool.

The cost models themselves live in `llmsim.costmodel`; here stand the parameters that a scenario
may set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, Protocol

from annotated_types import Ge, Gt, Le

from llmsim.core.errors import Fault, InputError, nearest
from llmsim.core.registry import Registry
from llmsim.costmodel import RooflineCost, StepCost
from llmsim.costmodel.measured import (
    FAMILIES,
    Context,
    MeasuredCost,
    Profile,
    find_profile,
    load_profile,
)
from llmsim.specs import (
    UNSCALED,
    EngineLimits,
    GpuCard,
    HostTerms,
    LinkCard,
    ModelSpec,
    OperatorScales,
    ParallelPlan,
    by_marlin,
    by_triton,
    load_calibration,
    load_gpu,
    skewed,
)


@dataclass(frozen=True)
class Placement:
    """What a pool runs where: all that a cost model is bound to.

    Parameters
    ----------
    model : ModelSpec
    gpu : GpuCard
    plan : ParallelPlan
    limits : EngineLimits
    kv_dtype : str or None
        None for what the checkpoint asks for.
    lookahead : int
        1 for asynchronous scheduling.
    link : LinkCard or None
        Between the GPUs of a node; None for a single one.
    scale_out : LinkCard or None
        Between nodes; None for a single one.
    host : HostTerms
        Of the engine's version; a kind's own parameters go before them.
    fused_norm : bool
        Whether all-reduces do the residual and norm behind them.
    stage_link : LinkCard or None
        Between the stages of a pipeline; None for whatever joins the GPUs they lie on.
    """

    model: ModelSpec
    gpu: GpuCard
    plan: ParallelPlan
    limits: EngineLimits
    kv_dtype: str | None = None
    lookahead: int = 1
    link: LinkCard | None = None
    scale_out: LinkCard | None = None
    host: HostTerms = field(default_factory=HostTerms)
    fused_norm: bool = False
    stage_link: LinkCard | None = None


class CostKind(Protocol):
    """One way to price steps; its fields are its YAML parameters."""

    def bind(self, place: Placement) -> StepCost:
        """Return the cost model of one pool.

        Raises
        ------
        InputError
            If the model cannot be laid out like this.
        """
        ...


COST: Registry[CostKind] = Registry("cost")


@dataclass(frozen=True)
class KernelPrices:
    """Terms that every price made of kernels has.

    Parameters
    ----------
    host_base_s : float [s]
        Scheduling, input preparation and output handling of any step; absent: as the engine's
        version does, as for the other terms of the host.
    host_per_request_s : float [s]
        The same per request in the step.
    eager_layer_s : float [s]
        Launching one layer's kernels one by one, where no captured graph fits the step.
    prefill_layer_s : float [s]
        Launching what the graph of a step with prefill leaves out of one layer.
    host_scale : float
        Factor on all terms of the host.
    host_gap_s : float [s]
        What the GPU waits between two steps even when the next one has been planned.
    host_gap_per_chunk_s : float [s]
        The same, more, for each prompt (or chunk of one) in the step.
    gemm_scale, attention_prefill_scale, attention_decode_scale, moe_scale : float
    communication_scale, elementwise_scale : float
        Factors on the time of an operator family.
    calibration : str
        Calibration card whose factors multiply these, such as ``vllm_h100-sxm``; empty for none.
    fused_norm : bool
        All-reduces do the residual and norm behind them; absent: as the engine's version does.
    expert_kernel : str
        Whose kernel multiplies experts: ``marlin`` those of 4-bit weights by 16-bit activations
        (vLLM's ``--moe-backend marlin``), ``triton`` those in 8-bit blocks where the GPU's card has
        its terms (B200); absent: the format's own.
    expert_skew : float
        Power by which the popularity of experts falls with their rank, 0 when all are alike. More
        tokens share the popular ones, so that fewer are read; with expert parallelism all ranks
        wait for the busiest, unless the pool has ``expert_balancing``. 0.69 was measured for
        OLMoE-1B-7B on GSM8K, and makes 32 ranks as uneven as DeepSeek-R1's were.
    """

    host_base_s: Annotated[float, Ge(0)] | None = None
    host_per_request_s: Annotated[float, Ge(0)] | None = None
    eager_layer_s: Annotated[float, Ge(0)] | None = None
    prefill_layer_s: Annotated[float, Ge(0)] | None = None
    host_gap_s: Annotated[float, Ge(0)] | None = None
    host_gap_per_chunk_s: Annotated[float, Ge(0)] | None = None
    gemm_scale: Annotated[float, Gt(0)] = 1.0
    attention_prefill_scale: Annotated[float, Gt(0)] = 1.0
    attention_decode_scale: Annotated[float, Gt(0)] = 1.0
    moe_scale: Annotated[float, Gt(0)] = 1.0
    communication_scale: Annotated[float, Gt(0)] = 1.0
    elementwise_scale: Annotated[float, Gt(0)] = 1.0
    host_scale: Annotated[float, Gt(0)] = 1.0
    calibration: str = ""
    fused_norm: bool | None = None
    expert_kernel: Literal["marlin", "triton"] | None = None
    expert_skew: Annotated[float, Ge(0), Le(2)] = 0.0

    def placed(self, place: Placement) -> Placement:
        """Return where the pool runs, with the kernels that these prices are to be of."""
        if self.fused_norm is not None:
            place = replace(place, fused_norm=self.fused_norm)
        place = replace(place, model=self.held(place.model))
        if self.expert_skew:
            place = replace(place, model=skewed(place.model, self.expert_skew))
        return place

    def held(self, model: ModelSpec) -> ModelSpec:
        """Return a model as these kernels hold it in memory."""
        if self.expert_kernel == "triton":
            return by_triton(model)
        return by_marlin(model) if self.expert_kernel == "marlin" else model

    def scales(self) -> OperatorScales:
        """Return the factors on operator families, those of a calibration included."""
        fitted = self._fitted()
        return OperatorScales(
            **{
                family: getattr(self, f"{family}_scale") * fitted.get(f"{family}_scale", 1.0)
                for family in UNSCALED.by_family()
            }
        )

    def _fitted(self) -> Mapping[str, float]:
        return load_calibration(self.calibration).terms if self.calibration else {}

    def host(self, version: HostTerms) -> HostTerms:
        """Return what the host adds.

        Parameters
        ----------
        version : HostTerms
            Of the engine's version.
        """
        own = {
            "base_s": self.host_base_s,
            "per_request_s": self.host_per_request_s,
            "eager_layer_s": self.eager_layer_s,
            "prefill_layer_s": self.prefill_layer_s,
            "gap_s": self.host_gap_s,
            "gap_per_chunk_s": self.host_gap_per_chunk_s,
        }
        terms = replace(
            version, **{name: value for name, value in own.items() if value is not None}
        )
        return terms.times(self.host_scale * self._fitted().get("host_scale", 1.0))


def held_model(kind: CostKind, model: ModelSpec) -> ModelSpec:
    """Return a model as the kernels of a cost hold it in memory.

    Parameters
    ----------
    kind : CostKind
    model : ModelSpec
        As the engine loads it.
    """
    return kind.held(model) if isinstance(kind, KernelPrices) else model


@COST.register("roofline")
@dataclass(frozen=True)
class Roofline(KernelPrices):
    """Smooth roofline over the operators of a step, from the GPU's card alone."""

    def bind(self, place: Placement) -> RooflineCost:
        """Return the roofline of one pool; see `CostKind.bind`."""
        return _roofline(self.placed(place), self.host(place.host), self.scales())


@COST.register("measured")
@dataclass(frozen=True)
class Measured(KernelPrices):
    """Kernels as measured; what a profile does not hold is priced by the roofline.

    Parameters
    ----------
    profile : str
        Profile folder (relative to this file with ./ or ../), or ``<device>/<id>`` of a known one.
    strict : bool
        Refuse to price anything from other libraries, kernels or formats, or by the roofline.
    libs : str
        Library versions whose rows are used, such as ``vllm 0.24.0``; empty for the largest set.
    kernel_id : str
        The one kernel to use; empty for the one measured nearest to each shape.
    kernels : mapping of str to str
        The same for single operators, such as ``attention_prefill: triton.varlen_attention.v1``.
        With a ``*`` only kernels that match price the operator, in its own formats, and else the
        roofline does: ``moe: "*triton*"``.
    profiles : mapping of str to str
        Profiles of single operators, such as ``moe: b200/vllm-0.19.0``: tables of one release
        rarely hold everything. Attention is the first profile's.
    mixed : str
        Attention of a step with prefill and decode: ``card`` (what the GPU card says), ``split``
        (two launches), ``fused_varlen`` (one) or ``streams`` (two at a time).
    """

    profile: str = field(kw_only=True)
    strict: bool = field(default=False, kw_only=True)
    libs: str = field(default="", kw_only=True)
    kernel_id: str = field(default="", kw_only=True)
    kernels: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    profiles: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    mixed: Literal["card", "split", "fused_varlen", "streams"] = field(default="card", kw_only=True)

    def bind(self, place: Placement) -> MeasuredCost:
        """Return the measured price of one pool; see `CostKind.bind`."""
        base = _roofline(self.placed(place), self.host(place.host))
        faults = [
            Fault("", key, f"'{op}' is no operator.", nearest(op, FAMILIES))
            for key, chosen in (("kernels", self.kernels), ("profiles", self.profiles))
            for op in chosen
            if op not in FAMILIES
        ]
        faults += [
            Fault("", "profiles", f"'{op}': attention is priced by the first profile.")
            for op in self.profiles
            if op.startswith(("attention", "mla"))
        ]
        if faults:
            raise InputError("cost", faults)
        own = tuple(sorted(self.kernels.items()))
        context = Context(kernel_id=self.kernel_id, libs=self.libs, strict=self.strict, kernels=own)
        profile = _profile(find_profile(self.profile), place.gpu).fresh()
        others = {
            op: _profile(find_profile(name), place.gpu).fresh()
            for op, name in self.profiles.items()
        }
        return MeasuredCost(base, profile, context, self.mixed, self.scales(), others)


def _roofline(place: Placement, host: HostTerms, scales: OperatorScales = UNSCALED) -> RooflineCost:
    return RooflineCost(
        place.model,
        place.gpu,
        place.link,
        place.plan,
        place.limits,
        place.kv_dtype,
        place.lookahead,
        host,
        scales,
        place.scale_out,
        place.fused_norm,
    )


def _profile(folder: Path, gpu: GpuCard) -> Profile:
    stamp = max(path.stat().st_mtime_ns for path in folder.iterdir())
    return _loaded(folder, stamp, gpu.name)


@lru_cache(maxsize=8)
def _loaded(folder: Path, stamp: int, gpu: str) -> Profile:
    """Read a profile once per process and GPU card; `stamp` tells a changed one."""
    return load_profile(folder, load_gpu(gpu))
