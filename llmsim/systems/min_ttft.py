"""Least time to first token: what waits on a replica, and what of the prompt is not cached there.

Of all replicas the one takes a request on which its first token would come first: behind what the
replica has to compute of prompts already, less what it has cached of this one. Nothing keeps equal
beginnings together; where a replica that knows a prompt is busy, another one learns it, too.

References
----------
Qin et al., "Mooncake: Trading More Storage for Less Computation", FAST 2025, algorithm 1; among the
baselines of DualMap, arXiv 2602.06502.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Final

import numpy as np

from llmsim.policies.routing import ROUTING, LineView
from llmsim.policies.views import RequestView

_REMEMBERED: Final = 200_000
"""Requests whose uncached tokens are remembered; far more than ever wait."""


@ROUTING.register("min-ttft")
@dataclass
class MinTtft:
    """The replica on which the first token would come first, as caches and lines are now.

    All replicas are believed to be equally fast.
    """

    reads_caches: ClassVar[bool] = True

    _fleet: LineView = field(init=False, repr=False)
    _fresh: dict[int, int] = field(default_factory=dict, init=False, repr=False)

    def start(self, fleet: LineView, rng: np.random.Generator) -> None:
        """Keep the view."""
        self._fleet = fleet

    def choose(self, request: RequestView) -> int:
        """Return the replica with least to compute before the first token; of equals, the idler."""
        fleet = self._fleet
        best, least, fresh_there = 0, -1, 0
        for replica in range(fleet.replicas):
            fresh = request.prompt_tokens - fleet.cached_tokens(replica, request)
            ahead = fresh + fleet.begun_tokens(replica)
            if -1 < least < ahead:
                continue  # before its line is looked at
            ahead += sum(map(self._fresh_of, fleet.waiting(replica)))
            if least < 0 or (ahead, fleet.outstanding(replica)) < (least, fleet.outstanding(best)):
                best, least, fresh_there = replica, ahead, fresh
        self._fresh[request.index] = fresh_there
        if len(self._fresh) > _REMEMBERED:
            del self._fresh[next(iter(self._fresh))]
        return best

    def _fresh_of(self, waiting: RequestView) -> int:
        """Return what a prompt in line has to compute, as was seen when it came [tokens]."""
        return self._fresh.get(waiting.index, waiting.prompt_tokens)
