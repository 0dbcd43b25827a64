"""Routing over pools of unlike replicas: traffic is divided by prompt length, as planned."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from annotated_types import Gt

from llmsim.core.errors import Fault, InputError, nearest
from llmsim.policies.routing import ROUTING, FleetView
from llmsim.policies.views import RequestView

Capacity = Annotated[float, Gt(0)]


@dataclass(slots=True)
class _Pool:
    """Replicas of one pool, as the router counts them."""

    first: int
    replicas: int
    capacity: float


@ROUTING.register("planned-split")
@dataclass
class PlannedSplit:
    """Each range of prompt lengths over the pools in given shares; in a pool the least loaded.

    A pool whose least loaded replica is at its capacity passes a request on to the pool with the
    most room, relative to its capacity, among those that may take its range. Without pools the
    least loaded of all replicas is chosen.
    """

    edges_tokens: tuple[int, ...] = ()
    """Prompt lengths at which the next range begins, increasing [tokens]."""

    shares: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    """By pool, for each range: part of its requests; 0 takes what others pass on, null nothing."""

    capacity: Mapping[str, Capacity] = field(default_factory=dict)
    """By pool: requests that one replica may have before others are asked; 1 if absent."""

    _fleet: FleetView = field(init=False, repr=False)
    _pools: list[_Pool] = field(default_factory=list, init=False, repr=False)
    _able: list[list[int]] = field(default_factory=list, init=False, repr=False)
    _share: list[list[float]] = field(default_factory=list, init=False, repr=False)
    _credit: list[list[float]] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse shares that do not fit the ranges.

        Raises
        ------
        InputError
            With every fault.
        """
        faults = []
        if list(self.edges_tokens) != sorted(set(self.edges_tokens)):
            faults.append(Fault("", "edges_tokens", "must increase"))
        count = len(self.edges_tokens) + 1
        for name, parts in self.shares.items():
            if len(parts) != count:
                message = f"{len(parts)} shares for {count} ranges of prompt lengths"
                faults.append(Fault("", f"shares.{name}", message))
            if any(part is not None and not 0 <= part <= 1 for part in parts):
                faults.append(Fault("", f"shares.{name}", "a share is between 0 and 1"))
        faults += [
            Fault("", f"capacity.{name}", "has no shares.", nearest(name, self.shares))
            for name in self.capacity
            if name not in self.shares
        ]
        if self.shares and not faults:
            for number in range(count):
                if not any(parts[number] for parts in self.shares.values()):
                    faults.append(Fault("", "shares", f"nobody takes range {number} of prompts"))
        if faults:
            raise InputError("planned-split", faults)

    def meet(self, pools: Mapping[str, int]) -> None:
        """Get to know the pools; called before `start`, where there are pools.

        Parameters
        ----------
        pools : mapping of str to int [replicas]
            In the order of the replicas' indices.

        Raises
        ------
        InputError
            If shares name another pool.
        """
        faults = [
            Fault("", f"fleet.routing.shares.{name}", "no such pool.", nearest(name, pools))
            for name in self.shares
            if name not in pools
        ]
        if faults:
            raise InputError("planned-split", faults)
        first, met = 0, {}
        for name, count in pools.items():
            met[name] = _Pool(first, count, self.capacity.get(name, 1.0))
            first += count
        self._pools = [met[name] for name in self.shares]

    def start(self, fleet: FleetView, rng: np.random.Generator) -> None:
        """Keep the view, and prepare the ranges."""
        self._fleet = fleet
        parts = list(self.shares.values())
        if not self._pools:
            self._pools = [_Pool(0, fleet.replicas, 1.0)]
            parts = [(1.0,) * (len(self.edges_tokens) + 1)]
        for number in range(len(self.edges_tokens) + 1):
            here = [
                (pool, share)
                for pool, each in enumerate(parts)
                if (share := each[number]) is not None
            ]
            whole = sum(share for _, share in here)
            self._able.append([pool for pool, _ in here])
            self._share.append([share / whole for _, share in here])
            self._credit.append([0.0] * len(here))

    def choose(self, request: RequestView) -> int:
        """Return the least loaded replica of the pool whose turn it is, or of one with room."""
        number = bisect_right(self.edges_tokens, request.prompt_tokens)
        able, credit = self._able[number], self._credit[number]
        turn = 0
        for place, share in enumerate(self._share[number]):
            credit[place] += share
            if credit[place] > credit[turn]:
                turn = place
        credit[turn] -= 1.0
        load, chosen = self._least(able[turn])
        if load > 1.0:
            for other in able:
                found = self._least(other)
                if found[0] < load:
                    load, chosen = found
        return chosen

    def _least(self, pool: int) -> tuple[float, int]:
        """Return load over capacity, with one more request, of a pool's least loaded replica."""
        here = self._pools[pool]
        outstanding = self._fleet.outstanding
        best, least = here.first, outstanding(here.first)
        for replica in range(here.first + 1, here.first + here.replicas):
            load = outstanding(replica)
            if load < least:
                best, least = replica, load
        return (least + 1) / here.capacity, best
