"""What a replica's time goes into when it carries all it can: compute, bandwidth, link, host.

The operators of a steady batch, each counted under what bounds it. While a batch of B turns over
once, it makes ``output`` decode steps, and B prompts ride on some of them (`capacity`):

    time = output * T(B) + B * (T(B with a prompt's chunk) - T(B), over its chunks)

The same sum is made for each resource alone. Prompts that ride on a decode step share its reading
of weights, so that a resource may get less by them; never less than nothing in all.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from llmsim.costmodel.contract import Chunk
from llmsim.costmodel.explain import StepBreakdown
from llmsim.costmodel.measured.cost import MeasuredCost
from llmsim.costmodel.pipeline import PipelineCost
from llmsim.costmodel.ranked_pipeline import RankedPipelineCost
from llmsim.costmodel.ranks import RankedCost
from llmsim.costmodel.roofline import RooflineCost
from llmsim.planner.candidates import Candidate
from llmsim.planner.capacity import Shape
from llmsim.planner.demand import Demand
from llmsim.planner.plan import Spending
from llmsim.planner.reading import POOL, Asked
from llmsim.serving.build import build_pools
from llmsim.serving.config import EngineConfig
from llmsim.serving.simulate import PoolPlan

RESOURCES: Final = {
    "compute": "compute",
    "memory": "bandwidth",
    "network": "link",
    "host": "host",
    "latency": "launches",
}
"""Words of a plan by what bounds an operator; launches: a kernel's floor exceeds its work."""


def spending(asked: Asked, candidate: Candidate, demand: Demand) -> Spending | None:
    """Return what the time of a configuration's replica goes into at its capacity.

    None where its cost model does not explain steps, or it serves nothing.

    Parameters
    ----------
    asked : Asked
    candidate : Candidate
    demand : Demand

    Notes
    -----
    Of several attention ranks each computes a prompt when one does.
    """
    plan = build_pools(asked.scenario.override(candidate.choice.overrides(POOL)))[0][0]
    explain = _explaining(plan)
    if explain is None:
        return None
    ranks = candidate.choice.dp
    prompts: defaultdict[str, float] = defaultdict(float)
    outputs: defaultdict[str, float] = defaultdict(float)
    whole = kv = seats = 0.0
    for bucket in demand.buckets:
        found = candidate.capacity[bucket.name]
        if not found.rate_rps:
            continue
        shape = demand.shapes[bucket.name]
        batch = max(found.batch // ranks, 1)
        decoding = 0 if candidate.role == "prefill" else batch
        # replica seconds per second that this bucket takes
        load = bucket.rate_rps / found.rate_rps
        own_prompts, own_outputs = _turn(
            explain, plan.config, shape, decoding, candidate.role != "decode"
        )
        time_s = math.fsum(own_prompts.values()) + math.fsum(own_outputs.values())
        for word, seconds in own_prompts.items():
            prompts[word] += load * seconds / time_s
        for word, seconds in own_outputs.items():
            outputs[word] += load * seconds / time_s
        whole += load
        blocks = math.ceil(
            (shape.prompt_tokens + shape.output_tokens / 2) / plan.config.block_tokens
        )
        kv += load * batch * blocks / plan.config.kv_blocks
        seats += load * batch / plan.config.max_num_seqs
    if not whole:
        return None
    both = {word: prompts[word] + outputs[word] for word in RESOURCES.values()}
    return Spending(_shares(prompts), _shares(outputs), _shares(both), kv / whole, seats / whole)


def _turn(
    explain: Explain, config: EngineConfig, shape: Shape, batch: int, computes_prompts: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Return what prompts and outputs of one turn of a batch take, by resource [s]."""
    contexts = [shape.prompt_tokens + shape.output_tokens // 2 + 1] * batch
    step = _by_resource(explain, [], contexts) if batch else {}
    outputs = {word: shape.output_tokens * seconds for word, seconds in step.items()}
    if not computes_prompts:
        return {}, outputs
    prompts: defaultdict[str, float] = defaultdict(float)
    budget = max(config.max_num_batched_tokens - batch, 1)
    most = min(budget, config.chunk_limit_tokens or budget)
    past = 0
    while past < shape.prompt_tokens:
        new = min(most, shape.prompt_tokens - past)
        for word, seconds in _by_resource(explain, [(new, past)], contexts).items():
            prompts[word] += max(batch, 1) * (seconds - step.get(word, 0.0))
        past += new
    for word in RESOURCES.values():
        if prompts[word] < 0:
            outputs[word] = max(outputs.get(word, 0.0) + prompts[word], 0.0)
            prompts[word] = 0.0
    return dict(prompts), outputs


def _by_resource(
    explain: Explain, chunks: Sequence[Chunk], contexts: Sequence[int]
) -> dict[str, float]:
    """Return the time of a step by resource [s]."""
    found: defaultdict[str, float] = defaultdict(float)
    for row in explain(chunks, contexts).rows:
        found[RESOURCES[row.bound]] += row.seconds
    return dict(found)


Explain = Callable[[Sequence[Chunk], Sequence[int]], StepBreakdown]


def _explaining(plan: PoolPlan) -> Explain | None:
    """Return what splits the price of a step, of all ranks alike where there are several."""
    joint, cost = plan.joint, plan.cost
    if isinstance(joint, RankedCost | RankedPipelineCost):
        return lambda chunks, contexts: joint.explain([(chunks, contexts)] * plan.facts.ranks)
    if isinstance(cost, RooflineCost | MeasuredCost | PipelineCost):
        return cost.explain
    return None


def _shares(seconds: Mapping[str, float]) -> dict[str, float]:
    whole = math.fsum(seconds.values())
    return {word: part / whole for word, part in seconds.items() if part} if whole else {}
