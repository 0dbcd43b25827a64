"""The block ledger without a prefix cache: every free block is like any other."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol


class Match(NamedTuple):
    """What a prefix lookup found.

    Parameters
    ----------
    blocks : int [blocks]
        Leading blocks of the request that are cached.
    unreferenced : int [blocks]
        How many of them nobody holds: taking them uses up free blocks.
    pieces : tuple of (extent, lo, hi)
        Where they lie; the ledger's own bookkeeping.
    """

    blocks: int
    unreferenced: int
    pieces: tuple[tuple[Any, int, int], ...]


NO_MATCH = Match(0, 0, ())


class Holder(Protocol):
    """What a ledger keeps on a request.

    Attributes
    ----------
    path : object
        The prefix ledger's way through the content tree; None before the first lookup.
    held : object
        The cached extents it holds a reference to; None when there are none.
    held_blocks : int [blocks]
        Leading blocks covered by `held`.
    """

    path: Any
    held: Any
    held_blocks: int


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

    def check(self) -> None:
        """Prove that no block is lost or counted twice; raises InvariantError."""
        from llmsim.core.errors import InvariantError

        if not 0 <= self.free <= self.capacity:
            raise InvariantError(f"{self.free} free of {self.capacity} KV blocks")
