"""A controller that moves requests, and lets replicas come and go, at random."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmsim.policies.control import Add, Drain, Fail, Migrate, SetRole


class Shuffle:
    """Moves whom it draws."""

    def __init__(
        self, period_s: float, view_age_s: float, lives: bool = False, flips: bool = False
    ) -> None:
        self.period_s, self.view_age_s, self._lives = period_s, view_age_s, int(lives)
        self._flips = flips

    def start(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def act(self, fleet: Any) -> list[Any]:
        count = len(fleet.replicas)
        moves: list[Any] = []
        if self._lives:
            moves.append(Add(0))
        if 0 < self._lives <= 5:
            self._lives += 1
            kind = (Drain, Fail)[int(self._rng.integers(0, 2))]
            moves.append(kind(int(self._rng.integers(0, count))))
        if self._flips:
            role = ("prefill", "decode", "mixed")[int(self._rng.integers(0, 3))]
            moves.append(SetRole(int(self._rng.integers(0, count)), role))
        for _ in range(2):
            source, target = self._rng.integers(0, count, 2).tolist()
            running = fleet.decoding(source)
            if running:
                victim = running[int(self._rng.integers(0, len(running)))]
                moves.append(Migrate(victim.request.index, source, target))
        return moves
