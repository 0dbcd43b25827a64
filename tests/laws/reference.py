"""What a run did, token by token: the slow way, from the calls alone.

`TokenLog` listens to the scheduler calls of a run without fast-forward and writes down when every
single token came out. Nothing of the engine's own bookkeeping of tokens is used.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from calls import works
from worlds import Ran

from llmsim.results.histogram import bin_of
from llmsim.serving.record import CallRecord
from llmsim.serving.replica import Replica


@dataclass
class Account:
    """What one request got.

    Attributes
    ----------
    tokens : list of int [ns]
        When each of its output tokens came out.
    computed : int [tokens]
        Tokens computed for it, anew or again.
    hits : int [tokens]
        Tokens found in the prefix cache, at every admission.
    lost : int [tokens]
        Tokens it had computed or found when it was preempted.
    """

    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    hits: int = 0
    lost: int = 0
    held: int = 0
    admissions: list[int] = field(default_factory=list)


class TokenLog:
    """A recorder for `worlds.run`; only right with fast-forward off."""

    def __init__(self) -> None:
        self.accounts: dict[int, Account] = defaultdict(Account)
        self._admitted: set[int] = set()

    def __call__(self, replica: Replica, call: CallRecord) -> None:
        for victim in call.preempted:
            account = self.accounts[victim.view.index]
            account.lost += account.held
            account.held = 0
            self._admitted.discard(victim.view.index)
        for work in works(replica, call):
            index = work.request.view.index
            account = self.accounts[index]
            if index not in self._admitted:
                self._admitted.add(index)
                account.admissions.append(call.now_ns)
                account.hits += work.past
                account.held = work.past
            assert account.held == work.past, "a step starts where the one before ended"
            account.held += work.new
            account.computed += work.new
            known = work.request.prompt + len(account.tokens)
            assert account.held <= known, "nothing is computed before it is known"
            if account.held == known:
                account.tokens.append(call.end_ns)


def bins_apart(ran: Ran, gaps: list[int]) -> int:
    """Return by how many bins the run's ITL histogram differs from a list of gaps, at most.

    Both are sorted and compared rank by rank; the totals must agree.
    """
    have = sorted(ran.facts.itl.counts.items())
    ranked = [index for index, weight in have for _ in range(weight)]
    want = sorted(bin_of(gap) for gap in gaps)
    assert len(ranked) == len(want), "one count per gap"
    return max((abs(a - b) for a, b in zip(ranked, want, strict=True)), default=0)
