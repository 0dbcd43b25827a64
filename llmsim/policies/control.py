"""What is done about a fleet while it runs: controllers over reports that may be old.

A controller is called at a period of its own, sees a `FleetReport`, and returns actions. Each
takes the time and costs the money that it would; what has become impossible by then is refused,
and the event log says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from llmsim.core.registry import Registry
from llmsim.policies.reports import FleetReport


@dataclass(frozen=True, slots=True)
class Migrate:
    """Move a decoding request, with its KV, to another replica.

    Parameters
    ----------
    request : int
        Its index.
    source, target : int
        Replicas.
    """

    request: int
    source: int
    target: int


Action = Migrate


class ControlPolicy(Protocol):
    """Looks at the fleet now and then, and acts.

    A class whose actions move running requests has ``migrates = True``.

    Attributes
    ----------
    period_s : float [s]
        Between two calls.
    view_age_s : float [s]
        How old the reports are that it is called with.
    """

    period_s: float
    view_age_s: float

    def start(self, rng: np.random.Generator) -> None:
        """Get the policy's own random stream; called once per run."""
        ...

    def act(self, fleet: FleetReport) -> Sequence[Action]:
        """Return what is to be done, in order."""
        ...


CONTROL: Registry[ControlPolicy] = Registry("control")
