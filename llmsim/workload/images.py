"""Requests that bring images: how many each, drawn beforehand like everything else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from llmsim.core.rng import stream
from llmsim.workload.chunk import RequestChunk, Workload
from llmsim.workload.wrapped import WrappedWorkload


class WithImages(WrappedWorkload):
    """A workload some of whose prompts have images in front of their text.

    Parameters
    ----------
    inner : Workload
        Its prompts are the text.
    frac : float [fraction]
        Requests that have any.
    mean : float [images]
        Of those that have any; geometric, from 1 on.
    tokens : int [tokens]
        What an image adds to the prompt.
    seed : int
    """

    def __init__(self, inner: Workload, frac: float, mean: float, tokens: int, seed: int) -> None:
        super().__init__(inner)
        self._frac, self._mean, self._tokens = frac, mean, tokens
        self._seed = seed

    def chunks(self) -> Iterator[RequestChunk]:
        """Yield the requests in arrival order; every call starts anew and gives the same rows."""
        who = stream(self._seed, "images", "who")
        many = stream(self._seed, "images", "how many")
        for chunk in self._inner.chunks():
            has = who.random(len(chunk)) < self._frac
            images = np.where(has, many.geometric(1 / self._mean, len(chunk)), 0).astype(np.int32)
            self._read_through()
            prompt = chunk.prompt_tokens + np.int32(self._tokens) * images
            yield replace(chunk, prompt_tokens=prompt, images=images)
        self._read_through()
