"""Length laws: how many prompt and output tokens a request has.

Every class here is a registered `kind` of the seam ``lengths``; its fields are its YAML
parameters. `trace` (resampled from a file) lives in `readers`, beside the trace formats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import numpy as np
import numpy.typing as npt
from annotated_types import Ge, Le

from llmsim.core.errors import Fault, InputError
from llmsim.core.registry import Registry
from llmsim.core.rng import stream

Tokens = npt.NDArray[np.int32]
"""Token counts (n,) [tokens]."""

LengthSampler = Callable[[int], tuple[Tokens, Tokens]]
"""Gives prompt and output tokens of the next n requests, all at least 1."""

PROMPT_MAX_TOKENS = 131_072
"""Default longest prompt [tokens]: the context of Llama 3.1 (model card, 128 Ki tokens)."""

OUTPUT_MAX_TOKENS = 32_768
"""Default longest output [tokens]: a usual `max_tokens` ceiling of reasoning models (the longest
reference answer of MLPerf's DeepSeek-R1 set is 32,768 tokens)."""


class Lengths(Protocol):
    """A joint law of prompt and output length; a fresh `sampler` starts it anew."""

    def sampler(self, seed: int, near: Path | None, part: str) -> LengthSampler:
        """Return a function that draws the lengths of the next n requests.

        Parameters
        ----------
        seed : int
        near : Path or None
            Folder that relative file names start from.
        part : str
            Which stream to use: ``"requests"``, or ``"pool"`` for prompts made beforehand. Draw
            from ``stream(seed, "lengths", part, ...)`` only; draws must not depend on how the
            calls are cut.
        """
        ...


LENGTHS: Registry[Lengths] = Registry("lengths")


def to_tokens(values: npt.NDArray[np.float64], most: int) -> Tokens:
    """Round lengths to whole tokens within [1, most].

    Parameters
    ----------
    values : ndarray of float (n,) [tokens]
    most : int [tokens]

    Returns
    -------
    ndarray of int32 (n,) [tokens]
        Rounded to nearest, which keeps the mean, but never less than one token.
    """
    return np.clip(np.rint(values), 1, most).astype(np.int32)


@LENGTHS.register("fixed")
@dataclass(frozen=True)
class Fixed:
    """Every request alike.

    Parameters
    ----------
    prompt_tokens, output_tokens : int [tokens]
    """

    prompt_tokens: Annotated[int, Ge(1), Le(2**31 - 1)]
    output_tokens: Annotated[int, Ge(1), Le(2**31 - 1)]

    def sampler(self, seed: int, near: Path | None, part: str) -> LengthSampler:
        """Return a function that gives constant lengths."""
        return lambda rows: (
            np.full(rows, self.prompt_tokens, dtype=np.int32),
            np.full(rows, self.output_tokens, dtype=np.int32),
        )


@LENGTHS.register("uniform")
@dataclass(frozen=True)
class Uniform:
    """Prompt and output uniform and independent, ends included.

    Parameters
    ----------
    prompt_min_tokens, prompt_max_tokens : int [tokens]
    output_min_tokens, output_max_tokens : int [tokens]
    """

    prompt_min_tokens: Annotated[int, Ge(1)]
    prompt_max_tokens: Annotated[int, Ge(1), Le(2**31 - 1)]
    output_min_tokens: Annotated[int, Ge(1)]
    output_max_tokens: Annotated[int, Ge(1), Le(2**31 - 1)]

    def sampler(self, seed: int, near: Path | None, part: str) -> LengthSampler:
        """Return a function that draws lengths.

        Raises
        ------
        InputError
            If a minimum exceeds its maximum.
        """
        ranges = {
            "prompt": (self.prompt_min_tokens, self.prompt_max_tokens),
            "output": (self.output_min_tokens, self.output_max_tokens),
        }
        faults = [
            Fault("", f"{side}_min_tokens", f"{least} exceeds {side}_max_tokens {most}")
            for side, (least, most) in ranges.items()
            if least > most
        ]
        if faults:
            raise InputError("lengths 'uniform'", faults)
        draw = {side: stream(seed, "lengths", part, side) for side in ranges}

        def one(side: str, rows: int) -> Tokens:
            # A double per row, not `integers`: its rejection sampling draws in pairs of 32 bits,
            # so that the numbers would depend on how the calls are cut.
            least, most = ranges[side]
            width = most - least + 1
            return (least + np.floor(draw[side].random(rows) * width)).astype(np.int32)

        return lambda rows: (one("prompt", rows), one("output", rows))


@LENGTHS.register("lognormal")
@dataclass(frozen=True)
class Lognormal:
    """Lognormal prompt and output lengths, given by mean and coefficient of variation.

    Parameters
    ----------
    prompt_mean_tokens, output_mean_tokens : float [tokens]
    prompt_cv, output_cv : float
        Standard deviation over mean; 0 is constant.
    prompt_max_tokens, output_max_tokens : int [tokens]
        Longer draws are cut to this, which lowers the mean when it cuts often.
    rank_correlation : float
        Spearman's rho between prompt and output; 0 is independent.

    Notes
    -----
    sigma² = ln(1 + cv²), mu = ln(mean) - sigma²/2. The two are tied by a Gaussian copula, whose
    correlation is 2 sin(pi rho / 6) for Spearman's rho (Kruskal, JASA 53, 1958).
    """

    prompt_mean_tokens: Annotated[float, Ge(1)]
    output_mean_tokens: Annotated[float, Ge(1)]
    prompt_cv: Annotated[float, Ge(0)] = 1.0
    output_cv: Annotated[float, Ge(0)] = 1.0
    prompt_max_tokens: Annotated[int, Ge(1), Le(2**31 - 1)] = PROMPT_MAX_TOKENS
    output_max_tokens: Annotated[int, Ge(1), Le(2**31 - 1)] = OUTPUT_MAX_TOKENS
    rank_correlation: Annotated[float, Ge(-1), Le(1)] = 0.0

    def sampler(self, seed: int, near: Path | None, part: str) -> LengthSampler:
        """Return a function that draws lengths."""
        prompt_rng = stream(seed, "lengths", part, "prompt")
        output_rng = stream(seed, "lengths", part, "output")
        rho = 2.0 * math.sin(math.pi * self.rank_correlation / 6.0)
        own = math.sqrt(1.0 - rho * rho)

        def sample(rows: int) -> tuple[Tokens, Tokens]:
            prompt_z = prompt_rng.standard_normal(rows)
            output_z = own * output_rng.standard_normal(rows) + rho * prompt_z
            prompt = _lognormal(prompt_z, self.prompt_mean_tokens, self.prompt_cv)
            output = _lognormal(output_z, self.output_mean_tokens, self.output_cv)
            return (
                to_tokens(prompt, self.prompt_max_tokens),
                to_tokens(output, self.output_max_tokens),
            )

        return sample


@LENGTHS.register("short-and-long")
@dataclass(frozen=True)
class ShortAndLong:
    """Two classes of prompts, each lognormal; outputs lognormal and alike in both.

    Parameters
    ----------
    long_frac : float
        Share of requests whose prompt is a long one.
    short_mean_tokens, long_mean_tokens, output_mean_tokens : float [tokens]
    short_cv, long_cv, output_cv : float
        Standard deviation over mean; 0 is constant.
    prompt_max_tokens, output_max_tokens : int [tokens]
        Longer draws are cut to this.
    """

    long_frac: Annotated[float, Ge(0), Le(1)]
    short_mean_tokens: Annotated[float, Ge(1)]
    long_mean_tokens: Annotated[float, Ge(1)]
    output_mean_tokens: Annotated[float, Ge(1)]
    short_cv: Annotated[float, Ge(0)] = 0.0
    long_cv: Annotated[float, Ge(0)] = 0.0
    output_cv: Annotated[float, Ge(0)] = 0.0
    prompt_max_tokens: Annotated[int, Ge(1), Le(2**31 - 1)] = PROMPT_MAX_TOKENS
    output_max_tokens: Annotated[int, Ge(1), Le(2**31 - 1)] = OUTPUT_MAX_TOKENS

    def sampler(self, seed: int, near: Path | None, part: str) -> LengthSampler:
        """Return a function that draws lengths."""
        class_rng = stream(seed, "lengths", part, "class")
        prompt_rng = stream(seed, "lengths", part, "prompt")
        output_rng = stream(seed, "lengths", part, "output")

        def sample(rows: int) -> tuple[Tokens, Tokens]:
            is_long = class_rng.random(rows) < self.long_frac
            z = prompt_rng.standard_normal(rows)
            short = _lognormal(z, self.short_mean_tokens, self.short_cv)
            long = _lognormal(z, self.long_mean_tokens, self.long_cv)
            spoken = output_rng.standard_normal(rows)
            output = _lognormal(spoken, self.output_mean_tokens, self.output_cv)
            return (
                to_tokens(np.where(is_long, long, short), self.prompt_max_tokens),
                to_tokens(output, self.output_max_tokens),
            )

        return sample


def _lognormal(z: npt.NDArray[np.float64], mean: float, cv: float) -> npt.NDArray[np.float64]:
    variance = math.log1p(cv * cv)
    return np.exp(math.log(mean) - variance / 2.0 + math.sqrt(variance) * z)
