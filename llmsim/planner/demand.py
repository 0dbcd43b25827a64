"""Traffic as buckets of requests that are alike."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from llmsim.core.errors import Fault, InputError
from llmsim.planner.capacity import Shape
from llmsim.planner.problem import Bucket

PROMPT_EDGES = (1, 128, 512, 1024, 2048, 4096, 8192, 16384, 32768)
"""Lower edges of prompt lengths [tokens]: about two to a factor of four, as Mélange's figures."""

OUTPUT_EDGES = (1, 32, 128, 256, 512, 1024, 2048, 4096)
"""Lower edges of output lengths [tokens]."""


@dataclass(frozen=True, slots=True)
class Demand:
    """Buckets with their rates and lengths.

    Parameters
    ----------
    buckets : tuple of Bucket
    shapes : mapping of str to Shape
        Mean lengths of a bucket's own requests.
    """

    buckets: tuple[Bucket, ...]
    shapes: dict[str, Shape]

    @property
    def rate_rps(self) -> float:
        """All requests per second."""
        return float(sum(bucket.rate_rps for bucket in self.buckets))


def demand_of(
    prompt_tokens: npt.ArrayLike,
    output_tokens: npt.ArrayLike,
    duration_s: float,
    prompt_edges: Sequence[int] = PROMPT_EDGES,
    output_edges: Sequence[int] = OUTPUT_EDGES,
) -> Demand:
    """Count requests into buckets by prompt and output length.

    Parameters
    ----------
    prompt_tokens, output_tokens : array_like of int (n,) [tokens]
    duration_s : float [s]
        In which they arrived.
    prompt_edges, output_edges : sequence of int [tokens]
        Lower edges, increasing; what is below the first belongs to the first bucket.

    Raises
    ------
    InputError
        If there are no requests, or no time.
    """
    prompts = np.asarray(prompt_tokens, dtype=np.int64)
    outputs = np.asarray(output_tokens, dtype=np.int64)
    if not len(prompts):
        raise InputError("plan", [Fault("", "traffic", "there are no requests to plan for")])
    if not duration_s > 0:
        raise InputError("plan", [Fault("", "traffic", f"{duration_s:g} s is no time")])
    row = np.clip(np.searchsorted(prompt_edges, prompts, side="right") - 1, 0, None)
    column = np.clip(np.searchsorted(output_edges, outputs, side="right") - 1, 0, None)
    cell = row * len(output_edges) + column
    buckets: list[Bucket] = []
    shapes: dict[str, Shape] = {}
    for index in np.unique(cell):
        inside = cell == index
        low = prompt_edges[index // len(output_edges)], output_edges[index % len(output_edges)]
        name = f"in{low[0]}.out{low[1]}"
        buckets.append(Bucket(name, float(inside.sum()) / duration_s))
        mean = (max(1, round(float(values[inside].mean()))) for values in (prompts, outputs))
        shapes[name] = Shape(*mean)
    return Demand(tuple(buckets), shapes)


_NAMED: Final = re.compile(r"in(\d+)(?:\.out(\d+))?")


def in_words(name: str) -> str:
    """Return what the requests of a bucket or a prompt range have in common, for sentences.

    Parameters
    ----------
    name : str
        As `demand_of` and `ranges_of` make them; any other is returned as it is.
    """
    found = _NAMED.fullmatch(name)
    if found is None:
        return name
    prompt, output = found.groups()
    said = "the shortest prompts" if prompt == "1" else f"prompts from {int(prompt):,} tokens on"
    if output is None:
        return said
    least = "the shortest outputs" if output == "1" else f"outputs from {int(output):,} tokens on"
    return f"{said} with {least}"
