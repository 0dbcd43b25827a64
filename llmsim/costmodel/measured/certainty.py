"""How uncertain the operator families of a model are under one profile."""

from __future__ import annotations

from collections.abc import Mapping


class Widths:
    """Log standard deviations by family, weighted by time as operators are priced.

    Notes
    -----
    The rows that answer for one family share their bias (one device, one library, one way of
    timing), so within a family deviations add up, not their squares.
    """

    def __init__(self) -> None:
        self._parts: dict[str, list[tuple[float, float | None]]] = {}

    def add(self, family: str, seconds: float, sigma: float | None) -> None:
        """Note an operator.

        Parameters
        ----------
        family : str
        seconds : float [s]
            Of the operator in a step, which is its weight.
        sigma : float or None
            Log standard deviation; None where the roofline priced it.
        """
        self._parts.setdefault(family, []).append((seconds, sigma))

    def by_family(self, prior: Mapping[str, float]) -> dict[str, float]:
        """Return the width of each family.

        Parameters
        ----------
        prior : mapping of str to float
            Of families, and of operators, that the roofline priced.
        """
        found = dict(prior)
        for family, parts in self._parts.items():
            total = sum(seconds for seconds, _ in parts)
            if total > 0:
                wide = sum(
                    seconds * (prior[family] if sigma is None else sigma)
                    for seconds, sigma in parts
                )
                found[family] = wide / total
        return found
