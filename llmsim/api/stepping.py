"""`llmsim show step` as a call: the price of one step, operator by operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmsim.core.errors import Fault, InputError
from llmsim.core.units import NS_PER_S
from llmsim.costmodel import Chunk, RooflineCost, StepBreakdown, check_layout, padded_sums
from llmsim.costmodel.contract import RankLoad
from llmsim.costmodel.pipeline import PipelineCost, stage_host, stage_links
from llmsim.costmodel.ranked_pipeline import RankedPipelineCost
from llmsim.costmodel.ranks import RankedCost
from llmsim.scenario import Scenario
from llmsim.serving.build import placement, staged_cost
from llmsim.specs import (
    EngineLimits,
    GpuCard,
    HostTerms,
    LinkCard,
    ModelSpec,
    ParallelPlan,
    load_gpu,
    load_link,
    load_model,
    stage_of,
)

if TYPE_CHECKING:
    import pandas as pd


_Asked = tuple[str, str, ParallelPlan, int, int, tuple[Chunk, ...]]


@dataclass(frozen=True, slots=True)
class StepPrice:
    """What one step costs.

    Parameters
    ----------
    model, gpu : str
        Names of the cards.
    plan : ParallelPlan
    batch : int [requests]
        Decoding requests, of each attention rank.
    context : int [tokens]
        Of each of them, this step's token included.
    prefill : tuple of (int, int) [tokens]
        New and past tokens of each prompt slice, on one rank.
    breakdown : StepBreakdown
        Operator by operator, longest first.
    stations_s : tuple of (str, float) [s]
        What a micro-batch passes one after the other; empty where the plan has one stage.
    warnings : tuple of str
    """

    model: str
    gpu: str
    plan: ParallelPlan
    batch: int
    context: int
    prefill: tuple[Chunk, ...]
    breakdown: StepBreakdown
    stations_s: tuple[tuple[str, float], ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """The step, host included [s]."""
        return self.breakdown.seconds

    @property
    def output_tokens_per_s(self) -> float:
        """Output at this batch and context, step after step, over all attention ranks."""
        return self.batch * self.plan.dp / self.seconds

    def table(self) -> pd.DataFrame:
        """Return a row per operator: calls, FLOPs, bytes, seconds, what bounds it, its share."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.breakdown.rows])


def step(
    model: str | Path = "",
    gpu: str = "",
    *,
    scenario: Scenario | str | Path | None = None,
    pool: str = "",
    batch: int = 0,
    context: int = 1024,
    prefill: Sequence[Chunk] = (),
    tp: int = 1,
    dp: int = 1,
    ep: int = 1,
    pp: int = 1,
) -> StepPrice:
    """Price one step, operator by operator.

    Parameters
    ----------
    model : str or Path
        Model card, or a path to a ``config.json``.
    gpu : str
        GPU card.
    scenario : Scenario, str or Path, optional
        Instead of a model, a GPU and a layout: a scenario, a file, or the name of a shipped one,
        with its engine, number formats and cost component.
    pool : str
        Of the scenario; needed where it has several.
    batch : int [requests]
        Decoding requests, of each attention rank.
    context : int [tokens]
        Of each of them, this step's token included.
    prefill : sequence of (int, int) [tokens]
        New and past tokens of each prompt slice, on one attention rank.
    tp, dp, ep, pp : int
        Tensor-parallel GPUs, attention ranks, groups that share out the experts, stages.

    Returns
    -------
    StepPrice

    Raises
    ------
    InputError
        If a card is wrong, the step is empty, or the model does not split over the GPUs; if the
        scenario has no such pool, or a cost component that knows no operators.
    """
    chunks = _checked(batch, context, prefill)
    _check_origin(model, gpu, scenario, pool, ParallelPlan(tp=tp, dp=dp, ep=ep, pp=pp))
    if scenario is not None:
        wanted = scenario if isinstance(scenario, Scenario) else Scenario.load(scenario)
        return _step_of_pool(wanted, pool, batch, context, chunks)
    plan = ParallelPlan(tp=tp, dp=dp, ep=ep, pp=pp)
    spec, card = load_model(str(model)), load_gpu(gpu)
    limits = _limits(batch, context, chunks)
    link = load_link(card.link) if plan.gpus > 1 else None
    nodes = card.scale_out if plan.gpus > card.node_gpus else ""
    scale_out = load_link(nodes) if nodes else None
    asked = (spec.name, card.name, plan, batch, context, tuple(chunks))
    if plan.pp > 1:
        cost = _pipeline(spec, card, plan, limits, (link, scale_out))
        return _through_stages(cost, asked)
    return _on_ranks(RooflineCost(spec, card, link, plan, limits, scale_out=scale_out), asked)


def _check_origin(
    model: str | Path, gpu: str, scenario: object | None, pool: str, plan: ParallelPlan
) -> None:
    """Refuse a step whose model and GPU are said twice, or not at all."""
    if scenario is None:
        missing = [name for name, told in (("model", model), ("gpu", gpu)) if not told]
        faults = [
            Fault("", name, "missing.", "Give a model and a GPU, or a scenario.")
            for name in missing
        ]
        if pool:
            faults.append(Fault("", "pool", "there is no scenario that has one.", "Give it, too."))
    else:
        layout = plan != ParallelPlan()
        twice = [n for n, told in (("model", model), ("gpu", gpu), ("layout", layout)) if told]
        faults = [
            Fault("", name, "the scenario says it already.", "Leave it out, or use --set.")
            for name in twice
        ]
    if faults:
        raise InputError("step", faults)


def _step_of_pool(
    scenario: Scenario, name: str, batch: int, context: int, chunks: Sequence[Chunk]
) -> StepPrice:
    """Price a step as a pool of a scenario would be charged for it."""
    pools = scenario.fleet.pools
    if name not in pools and (name or len(pools) > 1):
        told = f"no pool '{name}'." if name else "the scenario has several pools."
        raise InputError("step", [Fault("", "pool", told, f"It has {', '.join(pools)}.")])
    name = name or next(iter(pools))
    pool = pools[name]
    place = placement(pool, load_model(scenario.model_of(pool), scenario.folder), scenario.folder)
    plan = place.plan
    asked = (place.model.name, place.gpu.name, plan, batch, context, tuple(chunks))
    if plan.pp > 1:
        return _through_stages(staged_cost(pool, place), asked)
    cost: Any = pool.cost.build().bind(place)
    if not hasattr(cost, "explain"):
        told = f"'{pool.cost.kind}' has a price for a step, but no operators."
        raise InputError("step", [Fault("", f"fleet.pools.{name}.cost", told)])
    return _on_ranks(cost, asked)


def _on_ranks(cost: Any, asked: _Asked) -> StepPrice:
    """Price a step whose prompt slices are on the first rank, and whose decodes on each."""
    _, _, plan, batch, context, chunks = asked
    contexts = [context] * batch
    if plan.dp > 1:
        found = RankedCost(cost).explain(_ranks(plan, chunks, contexts))
    else:
        found = cost.explain(chunks, contexts)
    return StepPrice(*asked, found, warnings=tuple(cost.warnings()))


def _ranks(
    plan: ParallelPlan, chunks: Sequence[Chunk], contexts: Sequence[int]
) -> list[tuple[Sequence[Chunk], Sequence[int]]]:
    """Return what each rank computes: prompt slices on the first one, decodes on all."""
    return [(chunks, contexts), *[((), contexts)] * (plan.dp - 1)]


def _through_stages(cost: PipelineCost, asked: _Asked) -> StepPrice:
    """Price a micro-batch of a pipeline, station by station."""
    _, _, plan, batch, context, chunks = asked
    contexts = [context] * batch
    padded, windowed = padded_sums(contexts, cost.context_tile, cost.window_tokens)
    if plan.dp > 1:
        joint = RankedPipelineCost(cost)
        first = RankLoad(list(chunks), batch, padded, windowed, batch + len(chunks))
        others = [RankLoad([], batch, padded, windowed, batch)] * (plan.dp - 1)
        times = joint.station_ns([first, *others])
        found = joint.explain(_ranks(plan, chunks, contexts))
    else:
        times = cost.station_ns(chunks, batch, padded, windowed, batch + len(chunks))
        found = cost.explain(chunks, contexts)
    stations = zip(cost.names, (time / NS_PER_S for time in times), strict=True)
    return StepPrice(*asked, found, tuple(stations), tuple(cost.warnings()))


def _checked(batch: int, context: int, prefill: Sequence[Chunk]) -> list[Chunk]:
    """Return the prompt slices, once the whole step makes sense."""
    faults: list[Fault] = []
    chunks = [(int(new), int(past)) for new, past in prefill]
    if not chunks and not batch:
        faults.append(Fault("", "", "the step is empty.", "Give a batch, prompt slices, or both."))
    if batch < 0 or context < 1:
        told = f"a batch of {batch} with {context} tokens of context cannot be."
        faults.append(Fault("", "batch", told, "Neither is negative, and a context is not empty."))
    faults += [
        Fault("", "prefill", f"({new}, {past}) is no slice of a prompt.", "Write (512, 0).")
        for new, past in chunks
        if new < 1 or past < 0
    ]
    if faults:
        raise InputError("step", faults)
    return chunks


def _limits(batch: int, context: int, chunks: Sequence[Chunk]) -> EngineLimits:
    """Return limits of an engine that would run such a step."""
    usual = EngineLimits()
    tokens = batch + sum(new for new, _ in chunks)
    return EngineLimits(
        max_num_seqs=max(usual.max_num_seqs, batch + len(chunks)),
        max_num_batched_tokens=max(usual.max_num_batched_tokens, tokens),
        max_model_len=max(context, *(sum(chunk) for chunk in chunks), 1),
    )


def _pipeline(
    model: ModelSpec,
    gpu: GpuCard,
    plan: ParallelPlan,
    limits: EngineLimits,
    links: tuple[LinkCard | None, LinkCard | None],
) -> PipelineCost:
    link, scale_out = links
    check_layout(model, gpu, plan)
    parts = [
        RooflineCost(
            stage_of(model, stage, plan.pp),
            gpu,
            link,
            replace(plan, pp=1),
            limits,
            lookahead=0,
            host=stage_host(HostTerms()),
            scale_out=scale_out,
        )
        for stage in range(plan.pp)
    ]
    return PipelineCost(parts, HostTerms(), stage_links(plan, gpu, link, scale_out))
