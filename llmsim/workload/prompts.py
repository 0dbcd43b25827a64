"""Prompt identity: which prompts share tokens, and so what a prefix cache can save."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Final, Protocol

import numpy as np
import numpy.typing as npt
from annotated_types import Ge

from llmsim.core.registry import Registry
from llmsim.core.rng import stream
from llmsim.workload.chunk import Segments
from llmsim.workload.lengths import LengthSampler, Tokens

PromptSampler = Callable[[Tokens], tuple[Tokens, list[Segments | None] | None]]
"""Takes the drawn prompt lengths of the next n requests; gives final lengths and identities."""


class Prompts(Protocol):
    """A law of prompt identity; a fresh `sampler` starts it anew."""

    def sampler(self, seed: int, pool_lengths: LengthSampler) -> PromptSampler:
        """Return a function that names the prompts of the next n requests.

        Parameters
        ----------
        seed : int
            Draw from ``stream(seed, "prompts", ...)`` only.
        pool_lengths : LengthSampler
            The workload's length law on a stream of its own, for prompts made beforehand.
        """
        ...


_DRAWS: Final = 2**20
"""Numbers drawn at a time, so that large collections need little memory."""

PROMPTS: Registry[Prompts] = Registry("prompts")


def zipf_cdf(members: int, exponent: float) -> npt.NDArray[np.float64]:
    """Return the cumulative weights of a finite Zipf law.

    Parameters
    ----------
    members : int
    exponent : float
        Member k (from 1) has weight k^-exponent; 0 is uniform.

    Returns
    -------
    ndarray of float (members,)
        The last is exactly 1.
    """
    weights = np.arange(1, members + 1, dtype=np.float64) ** -exponent
    cdf: npt.NDArray[np.float64] = np.cumsum(weights)
    cdf /= cdf[-1]
    return cdf


@PROMPTS.register("distinct")
@dataclass(frozen=True)
class Distinct:
    """Every prompt unlike all others: nothing to reuse."""

    def sampler(self, seed: int, pool_lengths: LengthSampler) -> PromptSampler:
        """Return a function that leaves lengths alone and gives no identities."""
        return lambda prompt_tokens: (prompt_tokens, None)


@PROMPTS.register("pool")
@dataclass(frozen=True)
class Pool:
    """A fixed set of prompts that are sent again and again.

    Parameters
    ----------
    prompts : int
        Distinct prompts. Each gets one length, drawn from the length law when the pool is made,
        in place of the request's own draw; output lengths stay the request's own.
    zipf_exponent : float
        Popularity of the k-th prompt goes as k^-exponent; 0 is uniform.
    """

    prompts: Annotated[int, Ge(1)]
    zipf_exponent: Annotated[float, Ge(0)] = 1.0

    def sampler(self, seed: int, pool_lengths: LengthSampler) -> PromptSampler:
        """Return a function that draws each request's prompt from the pool."""
        rng, cdf = stream(seed, "prompts", "pool"), zipf_cdf(self.prompts, self.zipf_exponent)
        pool_tokens, _ = pool_lengths(self.prompts)
        pieces: list[Segments] = [((key, int(n)),) for key, n in enumerate(pool_tokens)]

        def sample(prompt_tokens: Tokens) -> tuple[Tokens, list[Segments | None] | None]:
            member = np.searchsorted(cdf, rng.random(len(prompt_tokens)), side="right")
            return pool_tokens[member], [pieces[index] for index in member]

        return sample


@PROMPTS.register("shared-prefix")
@dataclass(frozen=True)
class SharedPrefix:
    """Groups of requests that begin with the same system prompt.

    Parameters
    ----------
    prefix_tokens : int [tokens]
        Length of each group's prefix; it comes on top of the length law, which then gives the
        request's own part.
    groups : int
        Distinct prefixes.
    zipf_exponent : float
        Popularity of the k-th group goes as k^-exponent; 0 is uniform.
    own_parts : int
        Distinct own parts within a group, which are sent again and again; 0: every one is new. A
        shorter draw of an own part is the beginning of a longer one.
    """

    prefix_tokens: Annotated[int, Ge(1)]
    groups: Annotated[int, Ge(1)] = 1
    zipf_exponent: Annotated[float, Ge(0)] = 1.0
    own_parts: Annotated[int, Ge(0)] = 0

    def sampler(self, seed: int, pool_lengths: LengthSampler) -> PromptSampler:
        """Return a function that puts a group's prefix before each request's own tokens."""
        rng = stream(seed, "prompts", "shared-prefix")
        cdf = zipf_cdf(self.groups, self.zipf_exponent)
        heads = [(group, self.prefix_tokens) for group in range(self.groups)]
        next_key = self.groups
        parts, which = self.own_parts, stream(seed, "prompts", "own-parts")

        def sample(prompt_tokens: Tokens) -> tuple[Tokens, list[Segments | None] | None]:
            nonlocal next_key
            rows = len(prompt_tokens)
            group = np.searchsorted(cdf, rng.random(rows), side="right")
            keys: Iterable[int] = range(next_key, next_key + rows)
            if parts:
                drawn = which.integers(0, parts, rows)
                keys = (self.groups + group * parts + drawn).tolist()
            else:
                next_key += rows
            own = zip(group.tolist(), keys, prompt_tokens.tolist(), strict=True)
            return (
                prompt_tokens + np.int32(self.prefix_tokens),
                [(heads[member], (key, tokens)) for member, key, tokens in own],
            )

        return sample


@PROMPTS.register("documents")
@dataclass(frozen=True)
class Documents:
    """Prompts that hold some documents of a collection, in any order, before their own tokens.

    Retrieval gives such prompts. Two that hold the same document share its tokens, and no more
    than the first few documents as a prefix.

    Parameters
    ----------
    documents : int
        In the collection.
    document_tokens : int [tokens]
        Length of each; all come on top of the length law, which then gives the request's own part.
    per_prompt : int
        Documents in a prompt, all different, in random order.
    zipf_exponent : float
        Popularity of the k-th document goes as k^-exponent; 0 is uniform.
    prefix_tokens : int [tokens]
        A system prompt before them that is the same in all.
    """

    documents: Annotated[int, Ge(1)]
    document_tokens: Annotated[int, Ge(1)]
    per_prompt: Annotated[int, Ge(1)] = 4
    zipf_exponent: Annotated[float, Ge(0)] = 1.0
    prefix_tokens: Annotated[int, Ge(0)] = 0

    def sampler(self, seed: int, pool_lengths: LengthSampler) -> PromptSampler:
        """Return a function that puts documents before each request's own tokens."""
        rng, shuffle = stream(seed, "prompts", "documents"), stream(seed, "prompts", "order")
        count = min(self.per_prompt, self.documents)
        weights = np.diff(zipf_cdf(self.documents, self.zipf_exponent), prepend=0.0)
        head = ((self.documents, self.prefix_tokens),) if self.prefix_tokens else ()
        tokens, more = self.document_tokens, self.prefix_tokens + count * self.document_tokens
        next_key = self.documents + 1
        at_once = max(1, _DRAWS // self.documents)

        def draw(rows: int) -> npt.NDArray[np.int64]:
            # the smallest of exponential times by weight are a draw without replacement
            # (Efraimidis and Spirakis 2006)
            drawn = np.empty((rows, count), dtype=np.int64)
            for at in range(0, rows, at_once):
                part = drawn[at : at + at_once]
                due = rng.exponential(size=(len(part), self.documents)) / weights
                part[:] = np.argsort(due, axis=1)[:, :count]
            return drawn

        def sample(prompt_tokens: Tokens) -> tuple[Tokens, list[Segments | None] | None]:
            nonlocal next_key
            rows = len(prompt_tokens)
            order = shuffle.permuted(draw(rows), axis=1)
            first = next_key
            next_key += rows
            found: list[Segments | None] = [
                (*head, *((key, tokens) for key in keys), (first + row, own))
                for row, (keys, own) in enumerate(
                    zip(order.tolist(), prompt_tokens.tolist(), strict=True)
                )
            ]
            return prompt_tokens + np.int32(more), found

        return sample
