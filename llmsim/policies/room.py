"""Rules of admission that keep KV memory for tokens that are still to come.

A request is let in only if what it and those who run may still write is expected to fit. Nobody
knows how long an output will be; the rules go by the longest output that clients ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from llmsim.policies.ordering import Running
from llmsim.policies.views import RequestView

Left = Callable[[RequestView, int], int]
"""Returns how many output tokens a request may still get, given those it has had [tokens]."""


class Room(Protocol):
    """A rule of admission, with what it remembers of one replica."""

    def idle(self) -> None:
        """Forget what was learned: nobody is here."""
        ...

    def open(self, running: Sequence[Running], steps: int, completing: bool) -> None:
        """Begin a step in which somebody may be admitted.

        Parameters
        ----------
        running : sequence of Running
        steps : int [steps]
            Steps with decodes since the replica began.
        completing : bool
            Whether the prompts in progress are computed to their ends in this step.
        """
        ...

    def admits(
        self, request: RequestView, generated: int, new_tokens: int, whole: bool, free_tokens: int
    ) -> bool:
        """Whether a request fits; it counts from now on, if so.

        Parameters
        ----------
        request : RequestView
        generated : int [tokens]
            Output that it had before it lost its KV.
        new_tokens : int [tokens]
            What of its text is not cached.
        whole : bool
            Whether this step computes all of that.
        free_tokens : int [tokens]
        """
        ...

    def retracted(self, running: Sequence[Running], steps: int) -> None:
        """Learn that somebody has lost its KV: the rule was too bold."""
        ...


INITIAL_SHARE: Final = 0.7
LEAST_OF_INITIAL: Final = 0.14
DECAY_STEPS: Final = 600
STEPS_AHEAD: Final = 20
"""SGLang 0.5.8, ``srt/environ.py``: SGLANG_INIT_NEW_TOKEN_RATIO, _MIN_NEW_TOKEN_RATIO_FACTOR,
_NEW_TOKEN_RATIO_DECAY_STEPS and _RETRACT_DECODE_STEPS."""


class ShareOfOutput:
    """Keeps a share of what running requests may still write; the share falls while all goes well.

    Parameters
    ----------
    left : callable
        See `Left`.
    block_tokens : int [tokens]
    conservativeness : float
        Multiplies the share that is kept at first.

    Notes
    -----
    Who is admitted is counted with all that it may write until it decodes. The share falls by
    equal steps from its first value to its least one; after a retraction it is what the batch has
    written so far over what it asked for, twenty tokens per request ahead.
    """

    def __init__(self, left: Left, block_tokens: int, conservativeness: float) -> None:
        self._left = left
        self._block = block_tokens
        self._initial = min(1.0, INITIAL_SHARE * conservativeness)
        self._least = self._initial * LEAST_OF_INITIAL
        self._decay = (self._initial - self._least) / DECAY_STEPS
        self._share, self._since = self._initial, 0
        self._kept = 0.0
        self._steps = 0

    def share(self, steps: int) -> float:
        """Return the share that is kept after so many steps with decodes."""
        return max(self._share - self._decay * (steps - self._since), self._least)

    def idle(self) -> None:
        """Begin anew."""
        self._share, self._since = self._initial, self._steps

    def open(self, running: Sequence[Running], steps: int, completing: bool) -> None:
        """Add up what is kept for those who run [tokens]."""
        self._steps = steps
        decoding = whole = 0
        for one in running:
            if not one.prefilling:
                decoding += self._left(one.view, one.generated)
            elif completing:
                whole += self._left(one.view, one.generated) + self._block
        self._kept = decoding * self.share(steps) + whole

    def admits(
        self, request: RequestView, generated: int, new_tokens: int, whole: bool, free_tokens: int
    ) -> bool:
        """Whether prompt, whole output and a block fit beside what is kept."""
        output = self._left(request, generated)
        if new_tokens + output + self._block >= free_tokens - self._kept:
            return False
        self._kept += self._block + (output if whole else 0)
        return True

    def retracted(self, running: Sequence[Running], steps: int) -> None:
        """Raise the share to what the batch lets expect."""
        written = asked = 0
        for one in running:
            written += one.generated
            asked += one.generated + self._left(one.view, one.generated)
        expected = written + STEPS_AHEAD * len(running)
        self._share, self._since = min(1.0, expected / (asked + 1)), steps
        self._steps = steps


class PeakOfAll:
    """Lets in who fits at the fullest moment to come, if everybody writes all that it may.

    Parameters
    ----------
    left : callable
        See `Left`.
    kv_tokens : int [tokens]
        KV memory of the replica.

    Notes
    -----
    With requests by what they may still write, longest first: when the i-th of them ends, those
    before it and itself hold their present tokens and as many more as it had left.
    """

    def __init__(self, left: Left, kv_tokens: int) -> None:
        self._left = left
        self._kv = kv_tokens
        self._held: list[tuple[int, int]] = []

    def idle(self) -> None:
        """Remember nothing."""

    def open(self, running: Sequence[Running], steps: int, completing: bool) -> None:
        """Note what everybody holds and may still write [tokens]."""
        self._held = [
            (self._left(one.view, one.generated), one.view.prompt_tokens + one.generated)
            for one in running
        ]

    def admits(
        self, request: RequestView, generated: int, new_tokens: int, whole: bool, free_tokens: int
    ) -> bool:
        """Whether the peak stays below the memory."""
        left = self._left(request, generated)
        mine = (max(0, left - 1), request.prompt_tokens + generated + 1)
        held = sorted([*self._held, mine], reverse=True)
        present = peak = 0
        for place, (more, now) in enumerate(held, 1):
            present += now
            peak = max(peak, present + more * place)
        if peak >= self._kv:
            return False
        self._held.append(mine)
        return True

    def retracted(self, running: Sequence[Running], steps: int) -> None:
        """Learn nothing: nobody should have lost its KV."""


class Watermark:
    """Lets in who fits now, beside a share of the memory that stays free.

    Parameters
    ----------
    free_tokens : int [tokens]
        What stays free.
    """

    def __init__(self, free_tokens: int) -> None:
        self._free = free_tokens

    def idle(self) -> None:
        """Remember nothing."""

    def open(self, running: Sequence[Running], steps: int, completing: bool) -> None:
        """Do nothing: whatever is held shows in what is free."""

    def admits(
        self, request: RequestView, generated: int, new_tokens: int, whole: bool, free_tokens: int
    ) -> bool:
        """Whether what is known of the request fits."""
        return new_tokens <= free_tokens - self._free

    def retracted(self, running: Sequence[Running], steps: int) -> None:
        """Learn nothing."""
