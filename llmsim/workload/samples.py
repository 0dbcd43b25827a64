"""Several answers to one prompt: every request as so many that arrive together.

The engine computes a prompt's full blocks once and lets all answers hold them; each writes its own
blocks from there on. vLLM treats a request with n > 1 the same way, as n requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from llmsim.workload.chunk import ClosedLoop, RequestChunk, Segments
from llmsim.workload.lengths import Lengths
from llmsim.workload.programs import Programs
from llmsim.workload.synthetic import SyntheticWorkload

OWN_KEYS_FROM = 2**50
"""Keys of prompts unlike all others start here, beyond those of prompt laws and programs."""


class SampledWorkload:
    """Requests of which each prompt is sent several times at once, as one session.

    Parameters
    ----------
    inner : SyntheticWorkload
        An open one; its rows are the first answers.
    samples : int
        Answers per prompt.
    lengths : Lengths
        The outputs of the other answers are drawn from it too.
    seed : int
    near : Path, optional
        Folder that relative file names of a length law start from.
    """

    def __init__(
        self,
        inner: SyntheticWorkload,
        samples: int,
        lengths: Lengths,
        seed: int,
        near: Path | None = None,
    ) -> None:
        self._inner = inner
        self._samples = samples
        self._lengths = lengths
        self._seed = seed
        self._near = near
        self.total: int | None = None if inner.total is None else inner.total * samples
        self.clients: tuple[str, ...] = inner.clients
        self.slo_classes: tuple[str, ...] = inner.slo_classes
        self.closed_loop: ClosedLoop | None = inner.closed_loop
        self.programs: Programs | None = inner.programs
        self.skipped_rows = 0

    def chunks(self) -> Iterator[RequestChunk]:
        """Yield the requests in arrival order; every call starts anew and gives the same rows."""
        measure = self._lengths.sampler(self._seed, self._near, "samples")
        each = self._samples
        begun = 0
        for chunk in self._inner.chunks():
            rows = len(chunk)
            output = np.repeat(chunk.output_tokens, each)
            others = np.arange(rows * each) % each > 0
            output[others] = measure(rows * (each - 1))[1]
            named: list[Segments | None] = []
            for at, tokens in enumerate(chunk.prompt_tokens.tolist()):
                known = None if chunk.segments is None else chunk.segments[at]
                named += [known or ((OWN_KEYS_FROM + begun + at, tokens),)] * each
            yield replace(
                chunk,
                arrival_ns=np.repeat(chunk.arrival_ns, each),
                prompt_tokens=np.repeat(chunk.prompt_tokens, each),
                output_tokens=output,
                session=np.repeat(np.arange(begun, begun + rows, dtype=np.int64), each),
                client=np.repeat(chunk.client, each),
                priority=np.repeat(chunk.priority, each),
                failed=np.repeat(chunk.failed, each),
                abort_ns=np.repeat(chunk.abort_ns, each),
                segments=named,
            )
            begun += rows
