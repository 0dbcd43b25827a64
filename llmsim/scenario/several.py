"""Several models in one fleet: which request is for which, and what that does not go with."""

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


def wrong_models(scenario: Scenario) -> dict[str, str]:
    """Return what is wrong with the models that pools serve and requests ask for, by key."""
    fleet, traffic = scenario.fleet, scenario.traffic
    models, asked = scenario.models, traffic.models
    wrong: dict[str, str] = {}
    for key, named in {
        "models": list(asked or ()),
        "model_by_client": list((traffic.model_by_client or {}).values()),
    }.items():
        for name in named:
            if name not in models:
                wrong[f"traffic.{key}"] = f"no pool serves '{name}'. {nearest(name, models)}"
    if asked is not None and traffic.model_by_client is not None:
        wrong["traffic.model_by_client"] = "excludes traffic.models"
    if len(models) == 1:
        return wrong
    if asked is None and traffic.model_by_client is None:
        wrong["traffic.models"] = f"is missing: pools serve {', '.join(models)}"
    elif asked is not None:
        idle = [name for name in models if name not in asked]
        if idle:
            wrong["traffic.models"] = f"has no share for {', '.join(idle)}, which a pool serves"
    other = {
        "traffic.programs": traffic.programs is not None,
        "fleet.gateway": fleet.gateway is not None,
        "fleet.boot": fleet.boot is not None,
        "fleet.flip": fleet.flip is not None,
        "fleet.migration": fleet.migration is not None,
        "fleet.control": bool(fleet.control),
    }
    clashes = [what for what, there in other.items() if there]
    if clashes:
        wrong["fleet.pools"] = f"several models do not go together with {', '.join(clashes)} yet"
    for model in models:
        roles = {p.role for p in fleet.pools.values() if scenario.model_of(p) == model}
        if ("prefill" in roles) != ("decode" in roles):
            has, lacks = ("prefill", "decode") if "prefill" in roles else ("decode", "prefill")
            wrong["fleet.pools"] = f"a pool of {model} has role {has}, none has role {lacks}"
    return wrong


class ForModels(WrappedWorkload):
    """A workload whose requests are for several models.

    Parameters
    ----------
    inner : Workload
    scenario : Scenario
        Says which model gets which share, or whose clients.
    """

    def __init__(self, inner: Workload, scenario: Scenario) -> None:
        super().__init__(inner)
        self._models = scenario.models
        self._seed = scenario.seed
        self._shares = scenario.traffic.models
        self._by_client = scenario.traffic.model_by_client or {}
        self._default = scenario.model

    def chunks(self) -> Iterator[RequestChunk]:
        """Yield the requests in arrival order; every call starts anew and gives the same rows.

        Raises
        ------
        InputError
            If a client that has a model never turned up, or one without a model did.
        """
        draw = stream(self._seed, "models")
        for chunk in self._inner.chunks():
            self._read_through()
            model = self._named(chunk) if self._shares is None else self._drawn(draw, len(chunk))
            yield replace(chunk, model=model)
        self._read_through()
        unknown = [name for name in self._by_client if name not in self.clients]
        if unknown:
            faults = [
                Fault(
                    "",
                    "traffic.model_by_client",
                    f"no client '{name}'. {nearest(name, self.clients)}",
                )
                for name in unknown
            ]
            raise InputError("traffic", faults)

    def _drawn(self, draw: np.random.Generator, rows: int) -> npt.NDArray[np.int16]:
        shares = np.array([(self._shares or {})[name] for name in self._models])
        edges = np.cumsum(shares) / shares.sum()
        return np.searchsorted(edges[:-1], draw.random(rows), side="right").astype(np.int16)

    def _named(self, chunk: RequestChunk) -> npt.NDArray[np.int16]:
        """Return the model of each request by its client."""
        if self._default not in self._models and set(self.clients) - set(self._by_client):
            lacking = sorted(set(self.clients) - set(self._by_client))
            message = f"says nothing of {', '.join(lacking)}, and no pool serves {self._default}"
            raise InputError("traffic", [Fault("", "traffic.model_by_client", message)])
        default = self._models.index(self._default) if self._default in self._models else 0
        # the last entry is that of requests without a client, whose index is -1
        of_client = np.full(len(self.clients) + 1, default, dtype=np.int16)
        for number, name in enumerate(self.clients):
            if name in self._by_client:
                of_client[number] = self._models.index(self._by_client[name])
        return of_client[chunk.client]
