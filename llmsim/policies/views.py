"""What policies may see: read-only facts, never a true output length, never the future."""

from __future__ import annotations

from typing import Final

NO_DEADLINE: Final = 2**62 - 1
"""When something is due that nobody has promised [ns]."""

Segments = tuple[tuple[int, int], ...]


class Promise:
    """What a request is promised: by its SLO class, or by the scenario where it has none.

    Attributes
    ----------
    number : int
        Which of the scenario's classes, from 0; -1 for none.
    ttft_ns : int [ns]
        Longest time to first token; `NO_DEADLINE` if none is promised.
    ttft_per_prompt_token_ns : float [ns/token]
        Added to it for every token of the prompt.
    tpot_ns : int [ns]
        Longest mean time per output token after the first; `NO_DEADLINE` if none is promised.
    e2e_ns : int [ns]
        Longest time to the last token; `NO_DEADLINE` if none is promised.
    """

    __slots__ = ("e2e_ns", "number", "tpot_ns", "ttft_ns", "ttft_per_prompt_token_ns")

    def __init__(
        self,
        number: int = -1,
        ttft_ns: int = NO_DEADLINE,
        ttft_per_prompt_token_ns: float = 0.0,
        tpot_ns: int = NO_DEADLINE,
        e2e_ns: int = NO_DEADLINE,
    ) -> None:
        self.number = number
        self.ttft_ns = ttft_ns
        self.ttft_per_prompt_token_ns = ttft_per_prompt_token_ns
        self.tpot_ns = tpot_ns
        self.e2e_ns = e2e_ns

    def first_due_ns(self, arrival_ns: int, prompt_tokens: int) -> int:
        """Return when a first token is due [ns]; `NO_DEADLINE` if that is not promised."""
        if self.ttft_ns == NO_DEADLINE:
            return NO_DEADLINE
        return arrival_ns + self.ttft_ns + round(prompt_tokens * self.ttft_per_prompt_token_ns)

    def last_due_ns(self, arrival_ns: int) -> int:
        """Return when a last token is due [ns]; `NO_DEADLINE` if that is not promised."""
        return NO_DEADLINE if self.e2e_ns == NO_DEADLINE else arrival_ns + self.e2e_ns

    def due_ns(self, arrival_ns: int, prompt_tokens: int) -> int:
        """Return when the first thing is due that is promised [ns]: first or last token."""
        return min(self.first_due_ns(arrival_ns, prompt_tokens), self.last_due_ns(arrival_ns))


NOTHING_PROMISED: Final = Promise()


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
    promise : Promise
        What its first call was promised, and so are all.
    """

    __slots__ = ("arrival_ns", "kept", "promise", "turn")

    def __init__(self, arrival_ns: int, turn: int, promise: Promise = NOTHING_PROMISED) -> None:
        self.arrival_ns = arrival_ns
        self.promise = promise
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
    promise : Promise
        What it is promised; its SLO class is in it.
    images : int [images]
        In front of the prompt's text; their tokens count in `prompt_tokens`.
    """

    __slots__ = (
        "arrival_ns",
        "believed_tokens",
        "client",
        "images",
        "index",
        "model",
        "priority",
        "program",
        "promise",
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
        self.promise = NOTHING_PROMISED
        self.images = 0

    def __deepcopy__(self, memo: object) -> RequestView:
        return self  # facts: copies of what policies keep may share them
