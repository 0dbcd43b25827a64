"""Who computes what in the next step: one token budget, running requests first, then the queue.

The rules of vLLM v1 with chunked prefill, first come first served, without a prefix cache: a
second, plain implementation of what `llmsim.serving` does fast, so that decisions of the
two can be compared one by one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from llmsim.core.errors import Fault, InputError


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Limits of the engine; names and defaults as in vLLM.

    Parameters
    ----------
    max_num_seqs : int [requests]
    max_num_batched_tokens : int [tokens]
    max_model_len : int [tokens]
    block_tokens : int [tokens]
    kv_blocks : int [blocks]
        Usable ones; 0 for as many as fit into the device.
    cuda_graphs : bool
    max_graph_tokens : int [tokens]
        Largest step that runs in a graph.
    seed : int
        Of weights and prompts.
    """

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int = 8192
    block_tokens: int = 16
    kv_blocks: int = 0
    cuda_graphs: bool = True
    max_graph_tokens: int = 2048
    seed: int = 0


@dataclass(eq=False, slots=True)
class Sequence:
    """One request in flight.

    Parameters
    ----------
    index : int
    prompt, output : int [tokens]
        The engine stops after `output` tokens, whatever they are.
    arrival_s : float [s]

    Attributes
    ----------
    computed : int [tokens]
        Whose keys and values are in the cache.
    generated : int [tokens]
    blocks : list of int
        Physical KV blocks, in order.
    tokens : list of int
        Prompt and what was generated.
    row : ndarray or None
        `blocks` as a row of the block table, of which the first `rowed` are written.
    rowed : int [blocks]
    """

    index: int
    prompt: int
    output: int
    arrival_s: float = 0.0
    computed: int = 0
    generated: int = 0
    preemptions: int = 0
    blocks: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    row: Any = None
    rowed: int = 0
    scheduled_s: float = -1.0
    first_token_s: float = -1.0
    last_token_s: float = -1.0

    @property
    def known(self) -> int:
        """Tokens whose values are known [tokens]."""
        return self.prompt + self.generated


@dataclass(frozen=True, slots=True)
class Slice:
    """What one request computes in a step.

    Parameters
    ----------
    sequence : Sequence
    new, past : int [tokens]
        Computed in this step, and before it.
    """

    sequence: Sequence
    new: int
    past: int

    @property
    def samples(self) -> bool:
        """Whether the step reaches the last known token, so that a next one comes out."""
        return self.past + self.new == self.sequence.known

    @property
    def decodes(self) -> bool:
        """Whether this is a decode: one token behind the whole prompt."""
        return self.new == 1 and self.past >= self.sequence.prompt


class Scheduler:
    """Plans steps and keeps the KV blocks.

    Parameters
    ----------
    settings : EngineSettings
        With `kv_blocks` decided.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        # block 0 is never handed out: padded rows of a graph write there
        self.free = deque(range(1, settings.kv_blocks + 1))
        self.preempted: list[Sequence] = []

    def enqueue(self, sequence: Sequence) -> None:
        """Put a request in line.

        Raises
        ------
        InputError
            If it can never run.
        """
        whole = sequence.prompt + sequence.output
        room = min(
            self.settings.max_model_len, self.settings.kv_blocks * self.settings.block_tokens
        )
        if whole > room or sequence.prompt < 1 or sequence.output < 1:
            message = f"{sequence.prompt} + {sequence.output} tokens; from 1 each to {room} in all."
            raise InputError("reference engine", [Fault("", f"request {sequence.index}", message)])
        self.waiting.append(sequence)

    @property
    def busy(self) -> bool:
        """Whether anybody runs or waits."""
        return bool(self.running or self.waiting)

    def plan(self) -> list[Slice]:
        """Return the next step, in the order of decision; blocks are taken."""
        self.preempted = []
        budget = self.settings.max_num_batched_tokens
        slices: list[Slice] = []
        at = 0
        while at < len(self.running) and budget:
            sequence = self.running[at]
            new = min(sequence.known - sequence.computed, budget)
            if not self._take(sequence, new, slices):
                break  # it was preempted itself: everybody behind it has been, too
            slices.append(Slice(sequence, new, sequence.computed))
            budget -= new
            at += 1
        if not self.preempted:
            self._admit(slices, budget)
        return slices

    def _take(self, sequence: Sequence, new: int, slices: list[Slice]) -> bool:
        """Give blocks for `new` tokens, preempting from the end; False if it lost its own."""
        while (need := self._need(sequence, new)) > len(self.free):
            victim = self.running.pop()
            self._preempt(victim)
            if victim is sequence:
                return False
        self._grant(sequence, need)
        return True

    def _need(self, sequence: Sequence, new: int) -> int:
        whole = -(-(sequence.computed + new) // self.settings.block_tokens)
        return whole - len(sequence.blocks)

    def _grant(self, sequence: Sequence, count: int) -> None:
        sequence.blocks.extend(self.free.popleft() for _ in range(count))

    def _preempt(self, victim: Sequence) -> None:
        """Take everything from a request; it computes its text again later."""
        self._release(victim)
        victim.computed = 0
        victim.preemptions += 1
        self.preempted.append(victim)
        self.waiting.appendleft(victim)

    def _release(self, sequence: Sequence) -> None:
        self.free.extend(reversed(sequence.blocks))
        sequence.blocks.clear()
        sequence.row, sequence.rowed = None, 0

    def _admit(self, slices: list[Slice], budget: int) -> None:
        while self.waiting and budget and len(self.running) < self.settings.max_num_seqs:
            sequence = self.waiting[0]
            new = min(sequence.known, budget)
            if self._need(sequence, sequence.known) > len(self.free):
                return  # vLLM's default: room for the whole text, although only a chunk is taken
            need = self._need(sequence, new)
            self._grant(sequence, need)
            self.running.append(self.waiting.popleft())
            slices.append(Slice(sequence, new, 0))
            budget -= new

    def finish(self, slices: list[Slice], now_s: float) -> list[Sequence]:
        """Account for a step that has run; return who is done.

        Parameters
        ----------
        slices : list of Slice
        now_s : float [s]
            When its tokens came out.
        """
        done = []
        for part in slices:
            sequence = part.sequence
            samples = part.samples
            sequence.computed += part.new
            if not samples:
                continue
            sequence.generated += 1
            if sequence.first_token_s < 0:
                sequence.first_token_s = now_s
            if sequence.generated == sequence.output:
                sequence.last_token_s = now_s
                done.append(sequence)
        for sequence in done:
            self._release(sequence)
            self.running.remove(sequence)
        return done
