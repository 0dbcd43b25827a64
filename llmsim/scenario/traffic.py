"""From the section ``traffic`` to a workload."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from llmsim.core.rng import stream
from llmsim.core.units import NS_PER_S
from llmsim.scenario.classes import Classed
from llmsim.scenario.several import ForModels
from llmsim.workload import (
    ProgramWorkload,
    RequestChunk,
    Resampled,
    SampledWorkload,
    SyntheticWorkload,
    WithImages,
    Workload,
    WrappedWorkload,
)

if TYPE_CHECKING:
    from llmsim.scenario.model import Abort, Scenario

_KEYS = 2**40
"""More than the keys that a law of prompts gives out: those of one client lie apart."""


def build_workload(scenario: Scenario) -> Workload:
    """Return the requests of a scenario; every call makes a fresh workload of the same requests.

    Parameters
    ----------
    scenario : Scenario

    Raises
    ------
    InputError
        If a trace cannot be read, or laws contradict each other.
    """
    traffic = scenario.traffic
    workload: Workload
    if traffic.trace is not None:
        workload = traffic.trace.build().open(scenario.seed, scenario.folder)
        if traffic.resample_s is not None:
            workload = Resampled(workload, traffic.resample_s, scenario.seed)
    else:
        # The schema lets no scenario through that has neither a trace nor both of these.
        assert traffic.arrivals is not None
        assert traffic.lengths is not None
        lengths = traffic.lengths.build()
        workload = opening = SyntheticWorkload(
            traffic.arrivals.build(),
            lengths,
            seed=scenario.seed,
            prompts=traffic.prompts.build() if traffic.prompts is not None else None,
            requests=traffic.requests,
            duration_s=traffic.duration_s,
            near=scenario.folder,
        )
        if traffic.programs is not None:
            law = traffic.programs.build()
            workload = ProgramWorkload(opening, law, lengths, scenario.seed, scenario.folder)
        elif traffic.samples > 1:
            each = traffic.samples
            workload = SampledWorkload(opening, each, lengths, scenario.seed, scenario.folder)
    if traffic.images is not None:
        asked = traffic.images
        workload = WithImages(workload, asked.frac, asked.mean, asked.tokens, scenario.seed)
    if traffic.clients is not None:
        workload = Shared(workload, traffic.clients, traffic.own_prompts, scenario.seed)
    if traffic.abort is not None:
        workload = Aborting(workload, traffic.abort, scenario.seed)
    if scenario.slo.classes is not None:
        workload = Classed(workload, scenario)
    return workload if len(scenario.models) == 1 else ForModels(workload, scenario)


class Shared(WrappedWorkload):
    """A workload whose requests several clients send.

    Parameters
    ----------
    inner : Workload
    shares : mapping of str to float
        Part of the requests that each client sends; they need not add up to 1.
    own_prompts : bool
        Whether prompts of different clients share nothing.
    seed : int
    """

    def __init__(
        self, inner: Workload, shares: Mapping[str, float], own_prompts: bool, seed: int
    ) -> None:
        super().__init__(inner)
        self._own_prompts = own_prompts
        self._seed = seed
        part = np.array(list(shares.values()))
        self._upto = np.cumsum(part / part.sum())
        self.clients = tuple(shares)

    def chunks(self) -> Iterator[RequestChunk]:
        """Yield the requests in arrival order; every call starts anew and gives the same rows."""
        who = stream(self._seed, "clients")
        for chunk in self._inner.chunks():
            drawn = np.searchsorted(self._upto, who.random(len(chunk)), side="right")
            client = np.minimum(drawn, len(self.clients) - 1).astype(np.int32)
            segments = chunk.segments
            if self._own_prompts and segments is not None:
                segments = [
                    None
                    if prompt is None
                    else tuple((key + owner * _KEYS, length) for key, length in prompt)
                    for prompt, owner in zip(segments, client.tolist(), strict=True)
                ]
            yield replace(chunk, client=client, segments=segments)


class Aborting(WrappedWorkload):
    """A workload some of whose clients go away before their answer is complete.

    Parameters
    ----------
    inner : Workload
    abort : Abort
    seed : int
    """

    def __init__(self, inner: Workload, abort: Abort, seed: int) -> None:
        super().__init__(inner)
        self._abort = abort
        self._seed = seed

    def chunks(self) -> Iterator[RequestChunk]:
        """Yield the requests in arrival order; every call starts anew and gives the same rows."""
        # Two streams, one number per request each: the draws do not depend on where chunks end.
        who = stream(self._seed, "abort", "who")
        when = stream(self._seed, "abort", "when")
        mean_ns = self._abort.mean_s * NS_PER_S
        for chunk in self._inner.chunks():
            leaves = who.random(len(chunk)) < self._abort.frac
            share = np.ones(len(chunk))
            if self._abort.law == "exponential":
                share = -np.log1p(-when.random(len(chunk)))
            after_ns = np.maximum(np.rint(mean_ns * share), 1).astype(np.int64)
            own = chunk.abort_ns
            first = np.where(own < 0, after_ns, np.minimum(own, after_ns))
            self._read_through()
            yield replace(chunk, abort_ns=np.where(leaves, first, own))
        self._read_through()
