"""Programs: clients whose next call exists only after the previous one has ended.

A *program* is a conversation, an agent with tools, or any other client that reads an answer before
it asks again. Its first call is a row of a chunk like any other; what follows is asked for, call
by call, when a call has ended, so that nothing can happen before its cause. How long outputs,
pauses and tools take is drawn beforehand all the same: every policy meets the same programs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from llmsim.core.errors import InvariantError
from llmsim.workload.chunk import Segments

OWN_KEYS_FROM = 2**40
"""Keys of text that programs bring along start here, beyond those of prompt laws and traces."""


@dataclass(frozen=True, slots=True)
class CallEnd:
    """What is known when a call of a program has ended.

    Parameters
    ----------
    request : int
        Number of the request, which names its output's tokens.
    program : int
    turn : int
        Which call of its program this was, from 0.
    prompt_tokens, output_tokens : int [tokens]
        As served: an output may have been cut at the engine's longest context.
    segments : Segments or None
        Identity of the prompt.
    client, priority : int
    served : bool
        Whether the answer is complete; nobody goes on after a failure.
    """

    request: int
    program: int
    turn: int
    prompt_tokens: int
    output_tokens: int
    segments: Segments | None
    client: int
    priority: int
    served: bool

    @property
    def output_key(self) -> int:
        """Key of the output's tokens, which no prompt has unless it holds this output."""
        return -1 - self.request


@dataclass(frozen=True, slots=True)
class NextCall:
    """A call that its cause has just brought into the world.

    Parameters
    ----------
    after_ns : int [ns]
        From its cause until it is sent: a person thinks, a tool runs.
    program, turn : int
    prompt_tokens, output_tokens : int [tokens]
    segments : Segments or None
    client, priority : int
    """

    after_ns: int
    program: int
    turn: int
    prompt_tokens: int
    output_tokens: int
    segments: Segments | None
    client: int
    priority: int


class Programs(Protocol):
    """The closed world behind a workload's first calls.

    Attributes
    ----------
    tools : tuple of str
        Names that `tool` points into.
    """

    tools: tuple[str, ...]

    def next_calls(self, ended: CallEnd) -> Sequence[NextCall]:
        """Return the calls that exist now that one has ended; none when its program is over.

        One follows another in a conversation; a graph of calls may give several, or hold one back
        until all that it waits for have ended.
        """
        ...

    def tool(self, program: int, turn: int) -> int:
        """Return the tool that a call's output asks for, or -1; known once the call has ended."""
        ...

    def pause_s(self, program: int, turn: int) -> float:
        """Return how long after a call's end the next is sent [s]; for estimators that say so."""
        ...

    def is_final(self, program: int, turn: int) -> bool:
        """Whether a program is over when this call has been served; for the record alone."""
        ...


def grown(ended: CallEnd, own_key: int, own_tokens: int) -> Segments:
    """Return the identity of a prompt that repeats a call, its output, and adds tokens of its own.

    Parameters
    ----------
    ended : CallEnd
        With segments.
    own_key : int
        Of the new text.
    own_tokens : int [tokens]
    """
    if ended.segments is None:
        raise InvariantError("a prompt without identity cannot be repeated")
    return (*ended.segments, (ended.output_key, ended.output_tokens), (own_key, own_tokens))
