"""KV that is reused wherever it stands in a prompt, not only in front; a share is computed anew.

Reused away from its place, the KV of a segment lacks what stands before it now. Systems such as
CacheBlend, EPIC and KVShare copy it, turn its keys to their new positions, and compute a share of
its tokens anew, through all layers and against the whole prompt. Here a prompt whose reusable
segments have h tokens is spared ``floor((1 - r) h)`` of them: so many tokens need no computation,
all others are computed after them. Which tokens are computed anew, and what that does to answers,
is not simulated.

References
----------
Yao et al., "CacheBlend: Fast Large Language Model Serving for RAG with Cached Knowledge Fusion",
EuroSys 2025, arXiv 2405.16444.
Hu et al., "EPIC: Efficient Position-Independent Caching for Serving Large Language Models",
ICML 2025, arXiv 2410.15332.
"""

from __future__ import annotations

from typing import Final

from llmsim.core.errors import InvariantError
from llmsim.kvcache.content import Edge, Path
from llmsim.kvcache.ledger import Holder, Match
from llmsim.kvcache.prefix import Extent, PrefixLedger

_SWEPT: Final = 4_096
"""Edges noted between two sweeps, at least."""

Pieces = list[tuple[Extent, int, int]]


class SegmentIndex:
    """Which branches of the content tree hold the tokens of a key.

    Edges that have been pruned are swept out once as many have been noted as there were.
    """

    __slots__ = ("_due", "_edges", "_noted")

    def __init__(self) -> None:
        self._edges: dict[int, dict[Edge, None]] = {}
        self._noted = 0
        self._due = _SWEPT

    def note(self, path: Path) -> None:
        """Note the edges of a prompt's path."""
        for edge, _ in path:
            if edge.slot is None:
                continue
            beside = self._edges.setdefault(edge.slot[1], {})
            if edge not in beside:
                beside[edge] = None
                self._noted += 1
        if self._noted >= self._due:
            self._sweep()

    def _sweep(self) -> None:
        left = 0
        kept: dict[int, dict[Edge, None]] = {}
        for key, edges in self._edges.items():
            alive = {edge: None for edge in edges if edge.slot is not None}
            if alive:
                kept[key] = alive
                left += len(alive)
        self._edges = kept
        self._noted = left
        self._due = max(_SWEPT, 2 * left)

    def longest(self, own: Edge, tokens: int, block_tokens: int) -> tuple[int, Pieces]:
        """Return how much of a segment is cached in another place, from its first token on.

        Parameters
        ----------
        own : Edge
            Its place in the prompt that asks: what is cached there is a prefix, or nothing.
        tokens : int [tokens]
            Its length.
        block_tokens : int [tokens]

        Returns
        -------
        int [tokens], list of (Extent, int, int)
            The longest such run, and the blocks it lies in.
        """
        best, found = 0, None
        if own.slot is None:
            return 0, []
        for edge in self._edges.get(own.slot[1], ()):
            if edge.slot is None or edge is own:
                continue
            covered = _covered_tokens(edge, tokens, block_tokens)
            if covered > best:
                best, found = covered, edge
                if best == tokens:
                    break
        return best, [] if found is None else _pieces(found, best, block_tokens)


def _covered_tokens(edge: Edge, tokens: int, block_tokens: int) -> int:
    """Return how many of an edge's first tokens lie in cached blocks [tokens], `tokens` at most."""
    at = edge.start // block_tokens
    stop = (edge.start + tokens) // block_tokens
    while at < stop:
        reach = at
        for extent in edge.extents:
            if extent.lo <= at < extent.hi and extent.hi > reach:
                reach = extent.hi
        if reach == at:
            break
        at = reach
    return max(0, min(at * block_tokens, edge.start + tokens) - edge.start)


def _pieces(edge: Edge, tokens: int, block_tokens: int) -> Pieces:
    """Return the cached blocks that an edge's first tokens lie in; there are some."""
    at = edge.start // block_tokens
    stop = -(-(edge.start + tokens) // block_tokens)
    pieces: Pieces = []
    while at < stop:
        best: Extent | None = None
        for extent in edge.extents:
            if extent.lo <= at < extent.hi and (best is None or extent.hi > best.hi):
                best = extent
        if best is None:
            raise InvariantError("cached blocks are gone while they are looked at")
        upto = min(best.hi, stop)
        pieces.append((best, at, upto))
        at = upto
    return pieces


class SegmentReuse:
    """What prompts are spared by segments that are cached elsewhere than in front.

    Parameters
    ----------
    ledger : PrefixLedger
        Its content is what is found.
    recompute_frac : float
        Share of the reused tokens that is computed anew.

    Attributes
    ----------
    reused_tokens : int [tokens]
        That were found so far, of requests that were admitted.
    spared_tokens : int [tokens]
        Of these, how many were not computed anew.
    """

    __slots__ = (
        "_found",
        "_index",
        "_ledger",
        "_sources",
        "_spared",
        "recompute_frac",
        "reused_tokens",
        "spared_tokens",
    )

    def __init__(self, ledger: PrefixLedger, recompute_frac: float) -> None:
        self._ledger = ledger
        self._index = SegmentIndex()
        self._sources: Match = Match(0, 0, [])
        self._found = 0
        self._spared = 0
        self.recompute_frac = recompute_frac
        self.reused_tokens = 0
        self.spared_tokens = 0
        ledger.index = self._index

    def offer(self, request: Holder, match: Match, known_tokens: int) -> int:
        """Return how many tokens behind a request's cached prefix need no computation [tokens].

        Parameters
        ----------
        request : Holder
            That has been looked up.
        match : Match
            Its cached prefix.
        known_tokens : int [tokens]
            Of the request; at least one is always computed.

        Notes
        -----
        What is copied must not have to give way to its own copy: where there is no room for both,
        nothing is reused.
        """
        size = self._ledger.block_tokens
        past = match.blocks * size
        found = 0
        pieces: Pieces = []
        for edge, end in request.path or ():
            if end > known_tokens:
                break  # the output to be
            if end <= past:
                continue
            covered, where = self._index.longest(edge, end - edge.start, size)
            fresh = covered - max(0, past - edge.start)
            if fresh > 0:
                found += fresh
                pieces += where
        spared = int((1.0 - self.recompute_frac) * found)
        spared = min(spared, known_tokens - past - 1)
        self._found = self._spared = 0
        if spared <= 0:
            return 0
        idle = _unheld_blocks(pieces)
        need = -(-known_tokens // size) - match.blocks + match.unreferenced + idle
        if need > self._ledger.free:
            return 0
        self._found, self._spared = found, spared
        self._sources = Match(0, idle, pieces)
        return spared

    def hold(self) -> Holder:
        """Keep what was offered from being overwritten, and count it; for `release`."""
        source = Holder()
        self._ledger.hold(source, self._sources)
        self.reused_tokens += self._found
        self.spared_tokens += self._spared
        return source

    def release(self, source: Holder) -> None:
        """Let what was kept be overwritten again: its copy has blocks of its own."""
        self._ledger.release(source, 0, 0)


def _unheld_blocks(pieces: Pieces) -> int:
    """Return how many blocks would leave the free queue if all pieces were held [blocks]."""
    spans: dict[Extent, list[tuple[int, int]]] = {}
    for extent, lo, hi in pieces:
        if not extent.refs:
            spans.setdefault(extent, []).append((lo, hi))
    total = 0
    for each in spans.values():
        upto = -1
        for lo, hi in sorted(each):
            total += max(0, hi - max(lo, upto))
            upto = max(upto, hi)
    return total
