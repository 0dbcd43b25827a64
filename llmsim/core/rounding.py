"""Rounding on the hot path."""

from __future__ import annotations


def rounded(x: float) -> int:
    """Return the nearest integer, of two equally near ones the even: what ``round(x)`` gives.

    Compiled, this stays in machine registers, where `round` goes through Python objects. Every
    step is exact: a float less its whole part is a float.

    Parameters
    ----------
    x : float
        Finite.
    """
    whole = int(x)
    rest = x - whole
    if rest >= 0.5:
        return whole + 1 if rest > 0.5 or whole & 1 else whole
    if rest <= -0.5:
        return whole - 1 if rest < -0.5 or whole & 1 else whole
    return whole
