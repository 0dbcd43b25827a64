"""Where the time of a run's typical steps goes, operator by operator, and what bounds each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from llmsim.core.errors import LlmsimError
from llmsim.costmodel import Chunk, StepBreakdown
from llmsim.costmodel.ranked_pipeline import RankedPipelineCost
from llmsim.costmodel.ranks import RankedCost
from llmsim.results.facts import ReplicaFacts
from llmsim.results.result import Result
from llmsim.scenario import Scenario
from llmsim.scenario.document import parse_document
from llmsim.scenario.fleet import Pool
from llmsim.serving.build import placement, staged_cost
from llmsim.specs import load_model

Floats = npt.NDArray[np.float64]

MOST_ROWS: Final = 8
"""Operators shown of a step; the rest is one row."""


@dataclass(frozen=True, slots=True)
class TypicalStep:
    """A step as a pool's replicas computed it on average.

    Parameters
    ----------
    pool : str
    what : str
        What is in it, in words.
    breakdown : StepBreakdown
    """

    pool: str
    what: str
    breakdown: StepBreakdown


def typical_steps(result: Result) -> tuple[tuple[TypicalStep, ...], str]:
    """Return the typical decode step and prompt of every pool, priced anew by its cost model.

    Parameters
    ----------
    result : Result
        Its resolved scenario says which cards and prices.

    Returns
    -------
    tuple of TypicalStep
    str
        Why there are none, or none of some pool; empty where nothing is missing.

    Notes
    -----
    A decode step has as many requests as ran on average while a replica was busy, each with the
    context that an output token met on average. A prompt is the mean prompt less what was cached,
    cut to what one step may compute.
    """
    if not len(result.table):
        return (), "No request arrived."
    try:
        data = parse_document(result.info.scenario_yaml).data
        scenario = Scenario.parse(data)
        found, missing = [], []
        for name, pool in scenario.fleet.pools.items():
            if pool.role == "encode":
                continue
            steps = _steps_of(result, scenario, name, pool)
            found += steps
            if not steps:
                missing.append(name)
    except LlmsimError as error:
        last = str(error).strip().splitlines()[-1].strip()
        return (), f"The scenario's cards cannot be read any more: {last}"
    if not missing:
        return tuple(found), ""
    return tuple(
        found
    ), f"Nothing ran, or steps have a price but no operators: {', '.join(missing)}."


def _steps_of(result: Result, scenario: Scenario, name: str, pool: Pool) -> list[TypicalStep]:
    replicas = [each for each in result.facts.replicas if each.pool == name]
    lengths = _lengths(result, name)
    place = placement(pool, load_model(scenario.model_of(pool)), None)
    cost: Any = staged_cost(pool, place) if pool.pp > 1 else pool.cost.build().bind(place)
    if pool.dp > 1:
        cost = RankedPipelineCost(cost) if pool.pp > 1 else RankedCost(cost)
    if not hasattr(cost, "explain"):
        return []
    found = []
    batch = _batch(replicas)
    tokens = sum(float(each.timeline.totals["output_tokens"].sum()) for each in replicas)
    if batch and tokens and pool.role != "prefill":
        context = lengths.context_tokens()
        told = f"{batch:,} decoding requests{_each(pool)}, each at {context:,} tokens of context"
        found.append(TypicalStep(name, told, _explained(cost, pool, [], [context] * batch)))
    prompts = sum(float(each.timeline.totals["prefill_tokens"].sum()) for each in replicas)
    if prompts and pool.role != "decode":
        new, past = lengths.prompt_tokens(place.limits.max_num_batched_tokens)
        behind = f" behind {past:,} cached ones" if past else ""
        told = f"a prompt of {new:,} tokens{behind}, nobody else in the step"
        found.append(TypicalStep(name, told, _explained(cost, pool, [(new, past)], [])))
    return found


def _each(pool: Pool) -> str:
    return " on each attention rank" if pool.dp > 1 else ""


def _explained(
    cost: Any, pool: Pool, chunks: Sequence[Chunk], contexts: Sequence[int]
) -> StepBreakdown:
    if pool.dp == 1:
        made: StepBreakdown = cost.explain(chunks, contexts)
        return made
    others: list[tuple[Sequence[Chunk], Sequence[int]]] = [([], contexts)] * (pool.dp - 1)
    joint: StepBreakdown = cost.explain([(chunks, contexts), *others])
    return joint


def _batch(replicas: Sequence[ReplicaFacts]) -> int:
    """Return how many requests ran on a replica while it was busy, on average."""
    running = sum(float(each.timeline.levels["running"].sum()) for each in replicas)
    busy = sum(float(each.timeline.totals["busy_ns"].sum()) for each in replicas)
    return max(1, round(running / busy)) if busy else 0


@dataclass(frozen=True, slots=True)
class _Lengths:
    """Prompt, output and cached tokens of some requests, each (n,) [tokens]."""

    prompt: Floats
    output: Floats
    cached: Floats

    def context_tokens(self) -> int:
        """Return the context that an output token met on average [tokens]."""
        met = (self.prompt + self.output / 2) * self.output
        return max(1, round(float(met.sum() / max(float(self.output.sum()), 1.0))))

    def prompt_tokens(self, most: int) -> tuple[int, int]:
        """Return new and cached tokens of the mean prompt, the new ones cut to `most`."""
        past = round(float(self.cached.mean()))
        return min(most, max(1, round(float(self.prompt.mean())) - past)), past


def _lengths(result: Result, pool: str) -> _Lengths:
    """Return the lengths of the requests that ended in a pool; of all where none did."""
    table = result.table
    mine = table.codes("pool", (pool,)) == 0
    if not mine.any():
        mine = np.ones(len(table), dtype=np.bool_)
    names = ("prompt_tokens", "output_tokens", "cached_tokens")
    return _Lengths(*(table.numbers(name)[mine].astype(np.float64) for name in names))
