"""SLO classes: who belongs to which, and what each is promised."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from llmsim.core.errors import Fault, InputError, nearest
from llmsim.core.rng import stream
from llmsim.workload import RequestChunk, Workload, WrappedWorkload

if TYPE_CHECKING:
    from llmsim.scenario.model import Scenario

_WAYS = ("traffic.slo_classes", "traffic.slo_class_by_client", "traffic.trace.slo_class_column")
"""Ways to say which request is of which class; a scenario with classes takes one."""


def wrong_classes(scenario: Scenario) -> dict[str, str]:
    """Return what is wrong with the SLO classes of a scenario, by key."""
    traffic, known = scenario.traffic, tuple(scenario.slo.classes or ())
    column = traffic.trace.params.get("slo_class_column") if traffic.trace is not None else None
    given = dict(
        zip(_WAYS, (traffic.slo_classes, traffic.slo_class_by_client, column), strict=True)
    )
    ways = [way for way, value in given.items() if value]
    if not known:
        return dict.fromkeys(ways, "needs slo.classes, which say what each class is promised")
    if not ways:
        return {"slo.classes": f"are nobody's: {', '.join(_WAYS[:-1])} or {_WAYS[-1]} says whose"}
    wrong = dict.fromkeys(ways[1:], f"excludes {ways[0]}")
    named = {
        "traffic.slo_classes": list(traffic.slo_classes or ()),
        "traffic.slo_class_by_client": list((traffic.slo_class_by_client or {}).values()),
    }
    for key, names in named.items():
        for name in names:
            if name not in known:
                wrong[key] = f"no class '{name}' in slo.classes. {nearest(name, known)}"
    if traffic.slo_classes is not None and traffic.samples > 1:
        wrong["traffic.slo_classes"] = "do not go with samples: a prompt's answers are one class"
    return wrong


class Classed(WrappedWorkload):
    """A workload whose requests have SLO classes, by index into those of the scenario.

    Parameters
    ----------
    inner : Workload
    scenario : Scenario
        With classes.
    """

    def __init__(self, inner: Workload, scenario: Scenario) -> None:
        self._known = tuple(scenario.slo.classes or ())
        super().__init__(inner)
        self._seed = scenario.seed
        self._shares = scenario.traffic.slo_classes
        self._by_client = scenario.traffic.slo_class_by_client

    def _read_through(self) -> None:
        super()._read_through()
        self.slo_classes = self._known

    def chunks(self) -> Iterator[RequestChunk]:
        """Yield the requests in arrival order; every call starts anew and gives the same rows.

        Raises
        ------
        InputError
            If a client that has a class never turned up, or the trace names a class that the
            scenario does not know.
        """
        draw = stream(self._seed, "slo_classes")
        for chunk in self._inner.chunks():
            self._read_through()
            if self._shares is not None:
                slo_class = self._drawn(draw, len(chunk))
            elif self._by_client is not None:
                slo_class = self._of_clients(chunk)
            else:
                slo_class = self._as_recorded(chunk)
            yield replace(chunk, slo_class=slo_class)
        self._read_through()
        strange = [name for name in self._by_client or () if name not in self.clients]
        if strange:
            where = _WAYS[1]
            told = [
                (name, f"no client '{name}'. {nearest(name, self.clients)}") for name in strange
            ]
            raise InputError("traffic", [Fault("", where, text) for _, text in told])

    def _drawn(self, draw: np.random.Generator, rows: int) -> npt.NDArray[np.int16]:
        shares = self._shares or {}
        names = list(shares)
        part = np.array(list(shares.values()))
        edges = np.cumsum(part) / part.sum()
        place = np.searchsorted(edges[:-1], draw.random(rows), side="right")
        index = np.array([self._known.index(name) for name in names], dtype=np.int16)
        return index[place]

    def _of_clients(self, chunk: RequestChunk) -> npt.NDArray[np.int16]:
        # the last entry is that of requests without a client, whose index is -1
        index = np.full(len(self.clients) + 1, -1, dtype=np.int16)
        for number, name in enumerate(self.clients):
            if name in (self._by_client or {}):
                index[number] = self._known.index((self._by_client or {})[name])
        return index[chunk.client]

    def _as_recorded(self, chunk: RequestChunk) -> npt.NDArray[np.int16]:
        named = self._inner.slo_classes
        strange = [name for name in named if name not in self._known]
        if strange:
            faults = [
                Fault("", _WAYS[2], f"names class '{name}'. {nearest(name, self._known)}")
                for name in strange
            ]
            raise InputError("traffic", faults)
        index = np.array([*map(self._known.index, named), -1], dtype=np.int16)
        if chunk.slo_class is None:
            return np.full(len(chunk), -1, dtype=np.int16)
        return index[chunk.slo_class]
