"""What of a prompt a prefix cache holds, looked at from outside: nothing is noted or changed."""

from __future__ import annotations

from collections.abc import Sequence

from llmsim.kvcache.content import Edge


def cached_tokens(
    root: Edge, segments: Sequence[tuple[int, int]], prompt_tokens: int, block_tokens: int
) -> int:
    """Return how many leading tokens of a prompt lie in cached blocks [tokens].

    Parameters
    ----------
    root : Edge
        Of the cache's content.
    segments : sequence of (key, length) [tokens]
    prompt_tokens : int [tokens]
        At least one is always computed anew.
    block_tokens : int [tokens]

    Notes
    -----
    As `PrefixLedger.match`, save that blocks which a decoding request has written and nobody has
    asked for yet are not there: an engine tells of them when it enters them into its cache.
    """
    most = (prompt_tokens - 1) // block_tokens
    edge, end, at = root, 0, 0
    for key, length in segments:
        if length <= 0:
            continue
        child = edge.children.get((end, key))
        if child is None:
            break
        edge = child
        end += length
        stop = min(end // block_tokens, most)
        while at < stop:
            reach = at
            for extent in edge.extents:
                if extent.lo <= at < extent.hi and extent.hi > reach:
                    reach = extent.hi
            if reach == at:
                return at * block_tokens
            at = min(reach, stop)
    return at * block_tokens
