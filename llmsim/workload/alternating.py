"""Generated traffic whose mix changes: phases that take turns, each with its rate and lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Len

from llmsim.core.errors import Fault, InputError
from llmsim.core.rng import stream
from llmsim.core.units import NS_PER_S
from llmsim.workload.chunk import ClosedLoop, RequestChunk, Workload
from llmsim.workload.lengths import Lognormal
from llmsim.workload.parameters import check_parameters
from llmsim.workload.programs import Programs
from llmsim.workload.readers import TRACES
from llmsim.workload.replay import to_chunk
from llmsim.workload.rows import plain_rows


@TRACES.register("alternating")
@dataclass(frozen=True, kw_only=True)
class Alternating:
    """Generated traffic whose phases take turns; reads no file.

    Within a phase arrivals are Poisson, lengths lognormal and independent. The lists hold one
    number per phase.

    Parameters
    ----------
    rate_rps : list of float [requests/s]
    prompt_mean_tokens, output_mean_tokens : list of float [tokens]
    prompt_cv, output_cv : float
        Standard deviation over mean, in every phase.
    phase_s : float [s]
        Length of a phase.
    duration_s : float [s]
        Of the whole; the first phase begins at 0.
    rate_scale : float
        Factor on all rates; the phases keep their length.
    """

    rate_rps: Annotated[list[float], Len(1)]
    prompt_mean_tokens: Annotated[list[float], Len(1)]
    output_mean_tokens: Annotated[list[float], Len(1)]
    prompt_cv: Annotated[float, Ge(0)] = 0.0
    output_cv: Annotated[float, Ge(0)] = 0.0
    phase_s: Annotated[float, Gt(0)] = 60.0
    duration_s: Annotated[float, Gt(0)]
    rate_scale: Annotated[float, Gt(0)] = 1.0

    def open(self, seed: int, near: Path | None) -> Workload:
        """Return the generated workload.

        Raises
        ------
        InputError
            If a parameter is out of its limits, or the lists are of unequal length.
        """
        label = "trace 'alternating'"
        check_parameters(self, label)
        faults = [
            Fault("", name, f"has {len(given)} phases, rate_rps has {len(self.rate_rps)}")
            for name, given in self._means().items()
            if len(given) != len(self.rate_rps)
        ]
        lists = {"rate_rps": self.rate_rps, **self._means()}
        faults += [
            Fault("", name, f"must be greater than 0 in every phase (got {value:g})")
            for name, given in lists.items()
            for value in given
            if not value > 0
        ]
        if faults:
            raise InputError(label, faults)
        return _Phases(self, seed)

    def _means(self) -> dict[str, Sequence[float]]:
        return {
            "prompt_mean_tokens": self.prompt_mean_tokens,
            "output_mean_tokens": self.output_mean_tokens,
        }


class _Phases:
    """The workload behind `Alternating`, a chunk per phase."""

    def __init__(self, options: Alternating, seed: int) -> None:
        self._options, self._seed = options, seed
        self.total: int | None = None
        self.clients: tuple[str, ...] = ()
        self.slo_classes: tuple[str, ...] = ()
        self.closed_loop: ClosedLoop | None = None
        self.programs: Programs | None = None
        self.skipped_rows = 0

    def chunks(self) -> Iterator[RequestChunk]:
        """Yield the requests in arrival order; every call starts anew and gives the same rows."""
        options, begin_s, made = self._options, 0.0, 0
        arrive = stream(self._seed, "arrivals", "alternating")
        laws = [
            Lognormal(
                prompt_mean_tokens=prompt,
                output_mean_tokens=output,
                prompt_cv=options.prompt_cv,
                output_cv=options.output_cv,
            ).sampler(self._seed, None, f"phase-{number}")
            for number, (prompt, output) in enumerate(
                zip(options.prompt_mean_tokens, options.output_mean_tokens, strict=True)
            )
        ]
        turn = 0
        while begin_s < options.duration_s:
            number = turn % len(laws)
            span_s = min(options.phase_s, options.duration_s - begin_s)
            rate_rps = options.rate_rps[number] * options.rate_scale
            rows = int(arrive.poisson(rate_rps * span_s))
            # arrivals of a Poisson process, given their number, are uniform
            times_s = begin_s + np.sort(arrive.random(rows)) * span_s
            prompt, output = laws[number](rows)
            lines = np.arange(made + 1, made + rows + 1, dtype=np.int64)
            time_ns = np.rint(times_s * NS_PER_S).astype(np.int64)
            yield to_chunk(
                plain_rows(time_ns, prompt.astype(np.int64), output.astype(np.int64), lines)
            )
            made += rows
            turn += 1
            begin_s = turn * options.phase_s
