"""Traffic for the reference engine: lengths and burstiness of two public traces, at any rate.

Drawn, not recorded, so that a measured run can be published whole and made again by its seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from llmsim.core.errors import Fault, InputError, nearest
from llmsim.core.rng import stream
from llmsim.workload.burstgpt_fit import QUANTILE_Z
from llmsim.workload.burstgpt_like import like_days
from llmsim_kernels.engine.replay import TraceRequest

CONVERSATION_PROMPT_TOKENS = (10, 29, 181, 207, 396, 1020, 1189, 2734, 4083, 4142, 5652)
CONVERSATION_OUTPUT_TOKENS = (12, 16, 41, 54, 85, 129, 395, 424, 451, 601, 917)
"""Quantiles at `QUANTILE_Z` of the 19,366 requests of AzureLLMInferenceTrace_conv.csv
(Azure/AzurePublicDataset, 2023, CC-BY 4.0); prompt and output are drawn independently, their rank
correlation there being 0.07 [tokens]."""

CONVERSATION_GAP_CV = 1.09
"""Of the time between arrivals, in the same file."""

BURSTGPT_GAP_CV = 1.36
"""Of the time between arrivals within 20-minute windows of BurstGPT_1.csv."""

KINDS = ("burstgpt-like", "conversation-like")


@dataclass(frozen=True, slots=True)
class Lengths:
    """Requests without arrivals.

    Parameters
    ----------
    prompt, output : tuple of int (requests,) [tokens]
    gap_cv : float
        Coefficient of variation of the time between arrivals.
    """

    prompt: tuple[int, ...]
    output: tuple[int, ...]
    gap_cv: float


def lengths_of(
    kind: str, count: int, seed: int, most_tokens: int, most_output_tokens: int
) -> Lengths:
    """Draw the lengths of requests.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    count : int [requests]
    seed : int
    most_tokens : int [tokens]
        Prompt and output of one request; longer prompts are cut.
    most_output_tokens : int [tokens]
        Longer outputs are cut.

    Raises
    ------
    InputError
        If there is no such kind.
    """
    if kind == "burstgpt-like":
        prompt, output, gap_cv = *_burstgpt(count, seed), BURSTGPT_GAP_CV
    elif kind == "conversation-like":
        prompt, output = (
            _by_quantiles(count, seed, part, table)
            for part, table in (
                ("prompt", CONVERSATION_PROMPT_TOKENS),
                ("output", CONVERSATION_OUTPUT_TOKENS),
            )
        )
        gap_cv = CONVERSATION_GAP_CV
    else:
        fault = Fault("", "traffic", f"no kind '{kind}'.", nearest(kind, KINDS))
        raise InputError("reference engine", [fault])
    output = [min(tokens, most_output_tokens, most_tokens // 2) for tokens in output]
    fitting = [min(p, most_tokens - o) for p, o in zip(prompt, output, strict=True)]
    return Lengths(tuple(fitting), tuple(output), gap_cv)


def arriving(lengths: Lengths, rate_rps: float, seed: int) -> list[TraceRequest]:
    """Return the requests with Gamma-distributed times between their arrivals.

    Parameters
    ----------
    lengths : Lengths
    rate_rps : float [requests/s]
    seed : int
    """
    shape = lengths.gap_cv**-2
    gaps = stream(seed, "arrivals").gamma(shape, 1.0 / (shape * rate_rps), len(lengths.prompt))
    rows = zip(np.cumsum(gaps).tolist(), lengths.prompt, lengths.output, strict=True)
    return [TraceRequest(*row) for row in rows]


def at_once(requests: Sequence[TraceRequest]) -> list[TraceRequest]:
    """Return the same requests, all of them at time 0."""
    return [replace(request, arrival_s=0.0) for request in requests]


def _burstgpt(count: int, seed: int) -> tuple[list[int], list[int]]:
    prompt: list[int] = []
    output: list[int] = []
    for rows in like_days(1.0, seed):
        answered = ~rows.failed
        prompt += rows.prompt_tokens[answered].tolist()
        output += rows.output_tokens[answered].tolist()
        if len(prompt) >= count:
            break
    return prompt[:count], output[:count]


def _by_quantiles(count: int, seed: int, part: str, table: tuple[int, ...]) -> list[int]:
    """Draw lengths whose logarithms lie on straight lines between the quantiles."""
    z = stream(seed, "lengths", part).standard_normal(count)
    found = np.exp(np.interp(z, QUANTILE_Z, np.log(table)))
    return [max(1, round(tokens)) for tokens in found.tolist()]
