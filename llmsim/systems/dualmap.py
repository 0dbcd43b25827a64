"""DualMap: two candidates by hashes of a prompt's beginning, then what is cached and what waits.

A prompt's key is its beginning, as long as prompts that begin like that are rare enough. Two hash
functions on two rings map the key to two replicas, so that equal beginnings meet on two replicas
and unequal ones spread. Of the two, the one that has more of the prompt cached takes it, unless the
first token would be late there; where it would be late on both, requests in their lines change
over to their own other candidate.

References
----------
"DualMap: Enabling Both Cache Affinity and Load Balancing for Distributed LLM Serving", ICLR 2026,
arXiv 2602.06502.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Final, NamedTuple

import numpy as np
from annotated_types import Ge, Gt

from llmsim.policies.routing import ROUTING, LineView, Reroute
from llmsim.policies.views import RequestView

_WORD: Final = 2**64 - 1
_POINTS: Final = 64
"""Points of a replica on each ring: shares differ by an eighth then (1 / sqrt(points))."""
_REMEMBERED: Final = 200_000
"""Requests whose candidates are remembered; far more than ever wait."""


class _Sent(NamedTuple):
    """What is remembered of a request: its candidates, and what it has to compute [tokens]."""

    pair: tuple[int, int]
    fresh: int


@ROUTING.register("dualmap")
@dataclass
class DualMap:
    """The better of two replicas that the prompt's beginning maps to; lines are evened out."""

    reads_caches: ClassVar[bool] = True

    ttft_slo_s: Annotated[float, Gt(0)] = 5.0
    """[s] Time to first token beyond which a replica counts as overloaded."""
    prefill_tokens_per_s: Annotated[float, Gt(0)] = 10_000.0
    """[tokens/s] What one replica computes of prompts, as profiled beforehand."""
    key_block_tokens: Annotated[int, Ge(1)] = 512
    """[tokens] By so much a key grows or shrinks."""
    split_above: Annotated[float, Gt(0)] = 2.0
    """[fair shares] A beginning of more requests than that many replicas' share is extended."""
    merge_below: Annotated[float, Ge(0)] = 1.0
    """[fair shares] One of fewer than that many replicas' share is no longer extended."""
    window: Annotated[int, Ge(1)] = 1000
    """[requests] The latest ones, among which shares are counted."""
    rebalances: bool = True
    """Whether requests in line change over where both candidates are overloaded."""

    _fleet: LineView = field(init=False, repr=False)
    _rings: list[list[tuple[int, int]]] = field(default_factory=list, init=False, repr=False)
    _salts: list[int] = field(default_factory=list, init=False, repr=False)
    _extended: set[int] = field(default_factory=set, init=False, repr=False)
    _counts: dict[int, int] = field(default_factory=dict, init=False, repr=False)
    _latest: deque[list[int]] = field(default_factory=deque, init=False, repr=False)
    _sent: dict[int, _Sent] = field(default_factory=dict, init=False, repr=False)
    _late: tuple[int, ...] = field(default=(), init=False, repr=False)

    def start(self, fleet: LineView, rng: np.random.Generator) -> None:
        """Keep the view, and put every replica on both rings."""
        self._fleet = fleet
        self._salts = [int(salt) for salt in rng.integers(1, 2**62, 2)]
        self._rings = [
            sorted(
                (_mixed(_mixed(salt, replica + 1), point), replica)
                for replica in range(fleet.replicas)
                for point in range(_POINTS)
            )
            for salt in self._salts
        ]

    def choose(self, request: RequestView) -> int:
        """Return the candidate with the longer cached prefix, or the less loaded one."""
        fleet = self._fleet
        if fleet.replicas == 1:
            return 0
        pair = self._candidates(self._key(request))
        load = {each: self._queued_tokens(each) for each in pair}
        cached = {each: fleet.cached_tokens(each, request) for each in pair}
        fresh = {each: request.prompt_tokens - cached[each] for each in pair}
        emptier = min(pair, key=lambda each: (load[each], fleet.outstanding(each)))
        chosen = max(pair, key=lambda each: (cached[each], each == emptier))
        late = [each for each in pair if load[each] + fresh[each] > self._most_tokens()]
        if chosen in late:
            chosen = emptier
        self._late = pair if self.rebalances and len(late) == len(pair) else ()
        self._sent[request.index] = _Sent(pair, fresh[chosen])
        if len(self._sent) > _REMEMBERED:
            del self._sent[next(iter(self._sent))]
        return chosen

    # --- where a prompt belongs -------------------------------------------------------------

    def _key(self, request: RequestView) -> int:
        """Return the hash of a prompt's beginning, and count who begins like that."""
        path = []
        for key in _beginnings(request, self.key_block_tokens):
            path.append(key)
            if key not in self._extended:
                break
        self._count(path)
        return path[-1]

    def _count(self, path: list[int]) -> None:
        counts = self._counts
        fair = self.window / self._fleet.replicas
        for key in path:
            counts[key] = counts.get(key, 0) + 1
            if counts[key] > self.split_above * fair:
                self._extended.add(key)
        self._latest.append(path)
        if len(self._latest) <= self.window:
            return
        for key in self._latest.popleft():
            counts[key] -= 1
            if counts[key] < self.merge_below * fair:
                self._extended.discard(key)
            if not counts[key]:
                del counts[key]

    def _candidates(self, key: int) -> tuple[int, int]:
        one = self._on_ring(0, key, -1)
        return one, self._on_ring(1, key, one)

    def _on_ring(self, which: int, key: int, but: int) -> int:
        """Return the replica at a key's place on a ring, or the next that is not `but`."""
        ring = self._rings[which]
        at = bisect_left(ring, (_mixed(self._salts[which], key), -1))
        for step in range(len(ring)):
            replica = ring[(at + step) % len(ring)][1]
            if replica != but:
                return replica
        return but

    # --- how long it would take -------------------------------------------------------------

    def _most_tokens(self) -> float:
        """Return how much may be computed first for a first token to be in time [tokens]."""
        return self.ttft_slo_s * self.prefill_tokens_per_s

    def _queued_tokens(self, replica: int) -> int:
        """Return what a replica has to compute of prompts that it has [tokens]."""
        waiting = self._fleet.waiting(replica)
        return self._fleet.begun_tokens(replica) + sum(map(self._fresh, waiting))

    def _fresh(self, request: RequestView) -> int:
        """Return what a prompt has to compute where it waits [tokens]."""
        sent = self._sent.get(request.index)
        return request.prompt_tokens if sent is None else sent.fresh

    # --- who changes over -------------------------------------------------------------------

    def moves(self) -> Sequence[Reroute]:
        """Return who is to wait at the other candidate, because it would be late at both."""
        late, self._late = self._late, ()
        if not late:
            return ()
        queued = {each: self._queued_tokens(each) for each in range(self._fleet.replicas)}
        wishes = [wish for source in late for wish in self._wishes(source, queued)]
        todo = []
        for _, move, here, fresh in sorted(wishes, key=lambda wish: (-wish[0], wish[1].request)):
            there = queued[move.target] + fresh
            if there >= here or there >= self._most_tokens():
                continue
            todo.append(move)
            sent = self._sent[move.request]
            queued[move.target] += fresh
            queued[move.source] -= sent.fresh
            self._sent[move.request] = _Sent(sent.pair, fresh)
        return todo

    def _wishes(self, source: int, queued: dict[int, int]) -> list[tuple[int, Reroute, int, int]]:
        """Return who in a line would be served sooner elsewhere.

        Returns
        -------
        list of (int, Reroute, int, int)
            By how much [tokens], the move, what is computed before its first token here [tokens],
            and of that its own prompt there [tokens].
        """
        fleet = self._fleet
        most = self._most_tokens()
        here = fleet.begun_tokens(source)
        found = []
        for request in fleet.waiting(source):
            here += self._fresh(request)
            sent = self._sent.get(request.index)
            if sent is None or source not in sent.pair:
                continue
            target = sent.pair[1] if sent.pair[0] == source else sent.pair[0]
            if target == source or queued[target] >= min(most, here):
                continue
            fresh = request.prompt_tokens - fleet.cached_tokens(target, request)
            gain = here - queued[target] - fresh
            if gain > 0 and queued[target] + fresh < most:
                found.append((gain, Reroute(request.index, source, target), here, fresh))
        return found


def _beginnings(request: RequestView, block_tokens: int) -> list[int]:
    """Return hashes of a prompt's beginnings, a block longer each; the last one is all of it."""
    if request.segments is None:
        return [_mixed(1, request.index)]
    found = []
    whole, at, due = 2, 0, block_tokens
    for key, length in request.segments:
        while at + length >= due:
            found.append(_mixed(_mixed(whole, key), due - at))
            due += block_tokens
        whole = _mixed(_mixed(whole, key), length)
        at += length
    return found if found and found[-1] == whole else [*found, whole]


def _mixed(word: int, value: int) -> int:
    """Return a hash of two numbers: splitmix64 (Steele, Lea and Flood, 2014) of their mixture."""
    word = (word * 0x9E3779B97F4A7C15 + value + 0x632BE59BD9B4E019) & _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)
