"""How much of what could be tried is tried: all in `make test`, a part in `make quick`."""

from __future__ import annotations

import math
import os
from binascii import crc32
from collections.abc import Iterable

SHARE = float(os.environ.get("LLMSIM_TESTS_SHARE", "1"))
"""Part of the examples of every law that is drawn; `make quick` wants some of them."""

FEWEST = 3
"""Examples that a law draws at least."""

QUICK = SHARE < 1


def examples(count: int) -> int:
    """Return how many examples to draw where all would be so many."""
    return max(min(FEWEST, count), round(count * SHARE))


def some_variants(names: Iterable[str]) -> set[str]:
    """Return the root of n of every law's n variants, the same ones every time.

    A law that holds for every policy, price and router is a product of hundreds. Which of them are
    taken goes by the checksum of their names, so that a new policy hardly changes what is tried.

    Parameters
    ----------
    names : iterable of str
        Node ids: ``file::law[variant]``.
    """
    variants: dict[str, list[str]] = {}
    for name in names:
        variants.setdefault(name.partition("[")[0], []).append(name)
    kept: set[str] = set()
    for each in variants.values():
        each.sort(key=lambda name: crc32(name.encode()))
        kept |= {*each[: math.isqrt(len(each) - 1) + 1]}
    return kept
