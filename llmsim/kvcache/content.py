"""Token identity as a tree, so that equal prefixes are one path.

A prompt is a row of segments ``(key, length)``; token j of a segment is the pair (key, j). An
`Edge` stands for the tokens that follow a branch point under one key, without end: a prompt walks
`length` tokens along it and then branches off. Two prompts share tokens exactly as far as their
walks agree. A KV block belongs to the edge that holds its last token.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from llmsim.kvcache.ledger import Holder
    from llmsim.kvcache.prefix import Extent

ENDLESS: Final = 2**62 - 1


class Edge:
    """Tokens under one key after one branch point.

    Parameters
    ----------
    parent : Edge or None
        None for the root and for the private edge of a prompt that is unlike all others.
    start : int [tokens]
        Position of its first token in the prompt.
    slot : tuple of (int, int) or None
        (start, key) under which the parent knows it.

    Attributes
    ----------
    children : dict of (int, int) to Edge
        By (position, key) of the branch.
    extents : list of Extent
        Cached runs of blocks on this edge, in order of registration.
    users : int
        Live requests whose path goes through here.
    writer : Holder or None
        A decoding request whose output this edge is: its blocks are registered when asked for.
    """

    __slots__ = ("children", "extents", "parent", "slot", "start", "users", "writer")

    def __init__(self, parent: Edge | None, start: int, slot: tuple[int, int] | None) -> None:
        self.parent = parent
        self.start = start
        self.slot = slot
        self.children: dict[tuple[int, int], Edge] = {}
        self.extents: list[Extent] = []
        self.users = 0
        self.writer: Holder | None = None


Path = list[tuple[Edge, int]]
"""Edges walked, each with the position [tokens] where the path leaves it."""


def walk(root: Edge, segments: Iterable[tuple[int, int]]) -> Path:
    """Return the path of a prompt, creating edges where nobody has been.

    Parameters
    ----------
    root : Edge
    segments : iterable of (key, length) [tokens]
        Zero-length segments are passed over.

    Returns
    -------
    list of (Edge, int)
        Every edge's user count is raised by one.
    """
    path: Path = []
    edge = root
    at = 0
    for key, length in segments:
        if length <= 0:
            continue
        slot = (at, key)
        child = edge.children.get(slot)
        if child is None:
            child = Edge(edge, at, slot)
            edge.children[slot] = child
        child.users += 1
        at += length
        path.append((child, at))
        edge = child
    return path


def prune(edge: Edge) -> None:
    """Remove an edge that nobody uses and nothing is cached on, and its bare ancestors."""
    while (
        edge.parent is not None
        and edge.slot is not None
        and not edge.users
        and not edge.children
        and not edge.extents
    ):
        parent = edge.parent
        parent.children.pop(edge.slot, None)
        edge.slot = None
        edge = parent
