"""Block: a router that asks every candidate what would become of the request there.

Each replica has a predictor beside it that runs a copy of it ahead, to the end of the new request,
with predicted lengths in place of true ones; the request goes where it would end first.

References
----------
Da and Kalyvianaki, "Block: Balancing Load in LLM Serving with Context, Knowledge and Predictive
Scheduling", arXiv 2508.03611, 2025.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Ge

from llmsim.policies.routing import NEVER, ROUTING, ForecastView
from llmsim.policies.views import RequestView

_DRAWS = 1024  # at a time: single draws cost more than the routing


@ROUTING.register("block")
@dataclass
class Block:
    """The replica on which a request would end first, as copies of the replicas say."""

    forecasts: ClassVar[bool] = True

    objective: Literal["last-token", "first-token"] = "last-token"
    """What is compared: when the request would end, or when it would have its first token."""
    candidates: Annotated[int, Ge(0)] = 0
    """[replicas] How many are drawn and asked, such as 2; 0 for all."""
    decision_s: Annotated[float, Ge(0)] = 0.0
    """[s] What a prediction takes, all candidates at the same time: the request is under way."""

    _fleet: ForecastView = field(init=False, repr=False)
    _rng: np.random.Generator = field(init=False, repr=False)
    _drawn: list[list[int]] = field(default_factory=list, init=False, repr=False)

    def start(self, fleet: ForecastView, rng: np.random.Generator) -> None:
        """Keep the view and the stream."""
        self._fleet = fleet
        self._rng = rng

    def choose(self, request: RequestView) -> int:
        """Return the candidate with the earliest prediction; of equals the less loaded one."""
        fleet = self._fleet
        ask = fleet.last_token_ns if self.objective == "last-token" else fleet.first_token_ns
        best, best_ns = -1, NEVER
        for replica in sorted(self._candidates(), key=fleet.outstanding):
            # who cannot be earlier than the best so far need not be followed to the end
            predicted = ask(replica, request, best_ns)
            if predicted < best_ns:
                best, best_ns = replica, predicted
        return best if best >= 0 else fleet.least_outstanding()

    def _candidates(self) -> list[int]:
        replicas = self._fleet.replicas
        if not 0 < self.candidates < replicas:
            return list(range(replicas))
        if not self._drawn:
            keys = self._rng.random((_DRAWS, replicas))
            self._drawn = np.argsort(keys, axis=1)[:, : self.candidates].tolist()
        return self._drawn.pop()
