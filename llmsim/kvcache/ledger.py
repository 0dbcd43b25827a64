"""The block ledger without a prefix cache: every free block is like any other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from llmsim.kvcache.content import Path
    from llmsim.kvcache.prefix import Extent


class Match:
    """What a prefix lookup found.

    Parameters
    ----------
    blocks : int [blocks]
        Leading blocks of the request that are cached.
    unreferenced : int [blocks]
        How many of them nobody holds: taking them uses up free blocks.
    pieces : list of (extent, lo, hi)
        Where they lie; the ledger's own bookkeeping.
    """

    __slots__ = ("blocks", "pieces", "unreferenced")

    def __init__(
        self, blocks: int, unreferenced: int, pieces: list[tuple[Extent, int, int]]
    ) -> None:
        self.blocks = blocks
        self.unreferenced = unreferenced
        self.pieces = pieces


NO_MATCH: Final = Match(0, 0, [])


class Holder:
    """What a ledger keeps on a request.

    Attributes
    ----------
    path : list of (Edge, int), or None
        The prefix ledger's way through the content tree; None before the first lookup.
    held : list of (Extent, int, int), or None
        The cached extents it holds a reference to, and which of their blocks.
    held_blocks : int [blocks]
        Leading blocks covered by `held`.
    """

    __slots__ = ("held", "held_blocks", "path")

    def __init__(self) -> None:
        self.path: Path | None = None
        self.held: list[tuple[Extent, int, int]] | None = None
        self.held_blocks = 0


class CountLedger:
    """Blocks as a count; used when prefix caching is off.

    Parameters
    ----------
    blocks : int [blocks]
        Usable blocks.
    block_tokens : int [tokens]

    Attributes
    ----------
    free : int [blocks]
        Blocks that can be taken now.
    evicted : int [blocks]
        Always 0: nothing is cached.
    """

    __slots__ = ("block_tokens", "capacity", "evicted", "free")
    caches = False

    def __init__(self, blocks: int, block_tokens: int) -> None:
        self.capacity = blocks
        self.free = blocks
        self.block_tokens = block_tokens
        self.evicted = 0

    def match(self, request: Holder, known_tokens: int) -> Match:
        """Find nothing."""
        return NO_MATCH

    def take(self, blocks: int) -> None:
        """Take free blocks; the caller has asked whether there are enough."""
        self.free -= blocks

    def hold(self, request: Holder, match: Match) -> None:
        """Hold no cached block."""

    def register(self, request: Holder, tokens: int) -> None:
        """Remember nothing."""

    def release(self, request: Holder, allocated: int, tokens: int) -> None:
        """Give back a request's blocks.

        Parameters
        ----------
        request : Holder
        allocated : int [blocks]
            All blocks it holds.
        tokens : int [tokens]
            How far its tokens may be cached; ignored here.
        """
        self.free += allocated

    def forget(self, request: Holder) -> None:
        """Drop what is kept about a request that has ended."""

    def retire(self, request: Holder, allocated: int, tokens: int) -> None:
        """Give back the blocks of a request that has ended, and forget it."""
        self.free += allocated

    def check(self) -> None:
        """Prove that no block is lost or counted twice; raises InvariantError."""
        from llmsim.core.errors import InvariantError

        if not 0 <= self.free <= self.capacity:
            raise InvariantError(f"{self.free} free of {self.capacity} KV blocks")
