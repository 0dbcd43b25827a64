"""Prefixes that are being computed, kept out of the cache until their results have come in."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from llmsim.serving.request import Request

if TYPE_CHECKING:
    from llmsim.serving.draft import Draft


class Shelf:
    """What the steps under way compute of prompts, in the order of the steps.

    Parameters
    ----------
    lookahead : int [steps]
        How many steps are planned before the result of one is looked at: 1 where a step is planned
        while the one before runs.

    Notes
    -----
    A call may merge steps only while nothing lies here, so that what a waiting request finds does
    not depend on merging.
    """

    __slots__ = ("_call", "_delay", "_kept")

    def __init__(self, lookahead: int) -> None:
        self._delay = 1 + lookahead
        self._call = 0
        self._kept: deque[tuple[int, Request, int, int]] = deque()

    def keep(self, request: Request, tokens: int) -> None:
        """Keep what this call plans to compute: a prompt up to `tokens` [tokens]."""
        self._kept.append((self._call, request, tokens, request.preemptions))

    def publish(self, draft: Draft) -> None:
        """Begin a call: enter the prefixes whose results are in, of those who still run."""
        self._call += 1
        kept = self._kept
        while kept and kept[0][0] + self._delay <= self._call:
            _, request, tokens, preemptions = kept.popleft()
            if request in draft.running_set and request.preemptions == preemptions:
                draft.ledger.register(request, tokens)
        if kept:
            draft.most_ticks = 1

    def settled_tokens(self, request: Request) -> int:
        """Return what a lookup may enter of a text that is being generated: nothing [tokens]."""
        return 0
