"""What policies may see: read-only facts, never a true output length, never the future."""

from __future__ import annotations

Segments = tuple[tuple[int, int], ...]


class RequestView:
    """A request as its client and the front door know it.

    Attributes
    ----------
    index : int
        Number of the request in the workload.
    arrival_ns : int [ns]
    prompt_tokens : int [tokens]
    session : int
        Session id, or -1.
    client : int
        Client index, or -1.
    priority : int
        Smaller is more urgent.
    segments : tuple of (key, length), or None
        Prompt identity; None when the prompt is unlike all others.
    """

    __slots__ = (
        "arrival_ns",
        "client",
        "index",
        "priority",
        "prompt_tokens",
        "segments",
        "session",
    )

    def __init__(
        self,
        index: int,
        arrival_ns: int,
        prompt_tokens: int,
        session: int,
        client: int,
        priority: int,
        segments: Segments | None,
    ) -> None:
        self.index = index
        self.arrival_ns = arrival_ns
        self.prompt_tokens = prompt_tokens
        self.session = session
        self.client = client
        self.priority = priority
        self.segments = segments
