"""What policies may see: read-only facts, never a true output length, never the future."""

from __future__ import annotations

Segments = tuple[tuple[int, int], ...]


class ProgramView:
    """What is known of the program that a request is a call of.

    Attributes
    ----------
    arrival_ns : int [ns]
        When its first call arrived.
    turn : int
        Which of its calls this is, from 0; how many will follow, nobody knows.
    kept : bool
        Whether the KV of the call before is pinned where this one waits.
    """

    __slots__ = ("arrival_ns", "kept", "turn")

    def __init__(self, arrival_ns: int, turn: int) -> None:
        self.arrival_ns = arrival_ns
        self.turn = turn
        self.kept = False


class RequestView:
    """A request as its client and the front door know it.

    Attributes
    ----------
    index : int
        Number of the request in the workload.
    arrival_ns : int [ns]
    prompt_tokens : int [tokens]
    session : int
        Session id, or -1; a program's calls are a session.
    client : int
        Client index, or -1.
    priority : int
        Smaller is more urgent.
    segments : tuple of (key, length), or None
        Prompt identity; None when the prompt is unlike all others.
    program : ProgramView or None
        Of a call of a program.
    model : int
        Which of the fleet's models it is for, from 0.
    believed_tokens : int [tokens]
        What the scenario's estimator believes of the output's length; -1 where there is none.
    """

    __slots__ = (
        "arrival_ns",
        "believed_tokens",
        "client",
        "index",
        "model",
        "priority",
        "program",
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
        program: ProgramView | None = None,
        model: int = 0,
    ) -> None:
        self.index = index
        self.arrival_ns = arrival_ns
        self.prompt_tokens = prompt_tokens
        self.session = session
        self.client = client
        self.priority = priority
        self.segments = segments
        self.program = program
        self.model = model
        self.believed_tokens = -1

    def __deepcopy__(self, memo: object) -> RequestView:
        return self  # facts: copies of what policies keep may share them
