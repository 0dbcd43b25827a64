"""Routing where a fleet has several models: each has a router, which sees its own replicas."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmsim.policies.routing import FleetView, RoutingPolicy
from llmsim.policies.views import RequestView


class PartOfFleet:
    """The replicas of one model; implements `llmsim.policies.routing.FleetView`.

    Parameters
    ----------
    fleet : FleetView
        All replicas.
    places : sequence of int
        Index within the fleet of each that is seen.
    """

    def __init__(self, fleet: FleetView, places: Sequence[int]) -> None:
        self._fleet = fleet
        self._places = places
        self.replicas = len(places)

    def outstanding(self, replica: int) -> int:
        """Return how many requests a replica has in line or running, as last reported."""
        return self._fleet.outstanding(self._places[replica])

    def least_outstanding(self) -> int:
        """Return the replica with the fewest requests, as last reported; the lowest of equals."""
        return min(range(self.replicas), key=self.outstanding)


class ByModel:
    """A router for each model.

    Parameters
    ----------
    routers : sequence of RoutingPolicy
        Fresh instances, by model.
    places : sequence of sequence of int
        Index within the fleet of each model's replicas.
    """

    def __init__(self, routers: Sequence[RoutingPolicy], places: Sequence[Sequence[int]]) -> None:
        self._routers = routers
        self._places = places

    def start(self, fleet: FleetView, rng: np.random.Generator) -> None:
        """Show each router the replicas of its model, where it has some behind this door."""
        for router, places in zip(self._routers, self._places, strict=True):
            if places:
                router.start(PartOfFleet(fleet, places), rng)

    def choose(self, request: RequestView) -> int:
        """Return the choice of the router of the request's model."""
        model = request.model
        return self._places[model][self._routers[model].choose(request)]
