"""What policies can do that not every world has room for."""

from __future__ import annotations

import importlib

from llmsim.policies import BATCHING, ROUTING

importlib.import_module("llmsim.systems")  # registers them


def together(batching: str) -> bool:
    """Whether a policy lets results leave only when everybody who runs has ended."""
    return getattr(BATCHING.get(batching), "releases_together", False)


def movable() -> list[str]:
    """Return the batching policies whose requests may be moved, handed over and pinned."""
    return [name for name in BATCHING.names() if not together(name)]


def keeps_line(batching: str) -> bool:
    """Whether a policy keeps the waiting line itself."""
    return hasattr(BATCHING.get(batching), "waiting_order")


def keeps_memory(batching: str) -> bool:
    """Whether a policy has a rule of its own for how much memory stays free."""
    return hasattr(BATCHING.get(batching), "admits")


def asks_lengths(batching: str) -> bool:
    """Whether a policy goes by what is believed of output lengths."""
    return bool(getattr(BATCHING.get(batching), "asks_lengths", False))


KEEPS = ("waiting_order", "victim", "admits", "ended")
"""What batching policies have that keep more than the next step."""


def foresees(routing: str) -> bool:
    """Whether a router asks what would become of a request."""
    return getattr(ROUTING.get(routing), "forecasts", False)
