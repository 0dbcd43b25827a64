"""What the engine asks of a cost model: the price of a step, and of a stretch of steps.

A step computes prefill chunks and decodes together. Decode attention reads the KV of every
decoding request; kernels read it in tiles, so the price depends on the *padded context sum*:
the sum over decoding requests of their context, each rounded up to a multiple of
`StepCost.context_tile`. For a fixed decode batch the price is a straight line in that sum
(piecewise, where a backend has knots), which is what lets the engine price many steps at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

Chunk = tuple[int, int]
"""One prefill slice: (new tokens computed now, tokens of context before them) [tokens]."""

FOREVER: Final = 2**62 - 1
"""A sum that is never reached; the largest integer that compiled code keeps in a register."""


class PriceLine:
    """The price of a decode-only step for one batch size, on one straight piece.

    ``step = base_ns + per_token_ns * padded + per_windowed_ns * windowed``, valid while the padded
    context sum is at most `until_tokens`.

    Parameters
    ----------
    base_ns : float [ns]
        What does not depend on context: GEMMs, norms, launch, host.
    per_token_ns : float [ns/token]
        Per token of the padded context sum.
    per_windowed_ns : float [ns/token]
        Per token of the padded context sum clipped at the attention window; 0 without a window.
    until_tokens : int [tokens]
        Largest padded context sum this piece is valid for.

    Notes
    -----
    Never changed once made. One is made whenever somebody joins or leaves an uneven batch, so it is
    no dataclass: compiled, that takes ten times as long.
    """

    __slots__ = ("base_ns", "per_token_ns", "per_windowed_ns", "until_tokens")

    def __init__(
        self,
        base_ns: float,
        per_token_ns: float,
        per_windowed_ns: float = 0.0,
        until_tokens: int = FOREVER,
    ) -> None:
        self.base_ns: Final = base_ns
        self.per_token_ns: Final = per_token_ns
        self.per_windowed_ns: Final = per_windowed_ns
        self.until_tokens: Final = until_tokens

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PriceLine) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"PriceLine{self._key()}"

    def _key(self) -> tuple[float, float, float, int]:
        return self.base_ns, self.per_token_ns, self.per_windowed_ns, self.until_tokens

    def at_ns(self, padded_tokens: int, windowed_tokens: int) -> float:
        """Return the price at these context sums [ns]."""
        return (
            self.base_ns
            + self.per_token_ns * padded_tokens
            + self.per_windowed_ns * windowed_tokens
        )

    def slower(self, share_frac: float) -> PriceLine:
        """Return the price of steps that take `share_frac` longer."""
        times = 1 + share_frac
        return PriceLine(
            self.base_ns * times,
            self.per_token_ns * times,
            self.per_windowed_ns * times,
            self.until_tokens,
        )


class StepCost(Protocol):
    """A cost model bound to one model, one GPU type and one parallel plan.

    Attributes
    ----------
    context_tile : int [tokens]
        Contexts are rounded up to multiples of this in padded sums; 1 for no padding.
    window_tokens : int [tokens]
        Sliding window of the windowed layers; 0 when the model has none. In the windowed sum
        each context counts ``min(pad(context), pad(window))``.
    """

    context_tile: int
    window_tokens: int

    def decode_line(self, batch: int, padded_tokens: int) -> PriceLine:
        """Price a decode-only step.

        Parameters
        ----------
        batch : int [requests]
            Decoding requests, at least 1.
        padded_tokens : int [tokens]
            Padded context sum: selects the straight piece.
        """
        ...

    def step_ns(
        self,
        chunks: Sequence[Chunk],
        decode: int,
        padded_tokens: int,
        windowed_tokens: int,
        logits: int,
    ) -> int:
        """Price one step of any composition.

        Parameters
        ----------
        chunks : sequence of (new, past) [tokens]
            Prefill slices; may be empty.
        decode : int [requests]
            Decoding requests, one new token each; may be 0.
        padded_tokens, windowed_tokens : int [tokens]
            Padded (and clipped) context sums of the decoding requests, this step's token included.
        logits : int [rows]
            Rows that go through the LM head: decodes plus prefills that finish in this step.

        Returns
        -------
        int [ns]
            At least 1. With no chunks it equals `decode_line` at these sums, rounded.
        """
        ...


class UnevenCost(StepCost, Protocol):
    """A price that depends on how much longer the longest context is than the others.

    That overhang, the longest context less the mean of the others, stays while the requests stay:
    all contexts grow alike. So the price remains a line in the padded sum.

    Attributes
    ----------
    uneven : bool
        False where it does not depend on it after all.
    """

    @property
    def uneven(self) -> bool:
        """Whether overhangs count."""
        ...

    def decode_line(self, batch: int, padded_tokens: int, overhang_tokens: int = 0) -> PriceLine:
        """Price a decode-only step; see `StepCost.decode_line`."""
        ...

    def step_ns(
        self,
        chunks: Sequence[Chunk],
        decode: int,
        padded_tokens: int,
        windowed_tokens: int,
        logits: int,
        overhang_tokens: int = 0,
    ) -> int:
        """Price one step of any composition; see `StepCost.step_ns`."""
        ...


class StagedCost(StepCost, Protocol):
    """The price of a step that goes through stages one after another: a micro-batch.

    A *station* is whatever serves one micro-batch at a time, in order: the scheduler's host, a
    stage's GPUs, the link to the next stage. Of a whole micro-batch alone, `step_ns` is the sum.

    Attributes
    ----------
    stages : int
    names : tuple of str (stations,)
        In the order in which a micro-batch passes them.
    """

    stages: int
    names: tuple[str, ...]

    def station_ns(
        self,
        chunks: Sequence[Chunk],
        decode: int,
        padded_tokens: int,
        windowed_tokens: int,
        logits: int,
    ) -> list[int]:
        """Price a micro-batch at each station; parameters as for `step_ns`.

        Returns
        -------
        list of int (stations,) [ns]
            At least 0, the stages at least 1.
        """
        ...

    def station_lines(self, batch: int, padded_tokens: int) -> list[PriceLine]:
        """Price decodes alone at each station; parameters as for `decode_line`.

        Returns
        -------
        list of PriceLine (stations,)
            Rounded, they give what `station_ns` does.
        """
        ...


class RankLoad:
    """What one attention rank computes in a joint step.

    Parameters
    ----------
    chunks : list of (new, past) [tokens]
    decode : int [requests]
    padded, windowed : int [tokens]
        Context sums of the decodes, as `StepCost.step_ns` takes them.
    rows : int [rows]
        Through the LM head.

    Attributes
    ----------
    new : int [tokens]
        All chunks' new tokens.
    """

    __slots__ = ("chunks", "decode", "new", "padded", "rows", "windowed")

    def __init__(
        self, chunks: list[Chunk], decode: int, padded: int, windowed: int, rows: int
    ) -> None:
        self.chunks = chunks
        self.decode = decode
        self.padded = padded
        self.windowed = windowed
        self.rows = rows
        self.new = 0
        for new, _ in chunks:
            self.new += new


class JointCost(Protocol):
    """The price of steps that several attention ranks take together.

    Attributes
    ----------
    context_tile, window_tokens : int [tokens]
        As in `StepCost`.
    """

    context_tile: int
    window_tokens: int

    def attention_line(self, batch: int, padded_tokens: int) -> PriceLine:
        """Return decode attention of one rank: which rank is the slowest depends on it.

        Parameters
        ----------
        batch : int [requests]
            At least 1.
        padded_tokens : int [tokens]
            Selects the straight piece.
        """
        ...

    def decode_line(self, batches: Sequence[int], lead: int, padded_tokens: int) -> PriceLine:
        """Price a joint step of decodes as a line in the sums of the slowest rank.

        Parameters
        ----------
        batches : sequence of int (ranks,) [requests]
            Decodes of each rank.
        lead : int
            The rank whose attention is the slowest.
        padded_tokens : int [tokens]
            Its padded context sum: selects the straight piece.
        """
        ...

    def step_ns(self, loads: Sequence[RankLoad]) -> int:
        """Price a joint step of any composition; at least 1 [ns].

        Parameters
        ----------
        loads : sequence of RankLoad (ranks,)
        """
        ...


class StagedJointCost(JointCost, Protocol):
    """The price of micro-batches in which several attention ranks have a share each.

    A station serves the shares of all ranks at once; see `StagedCost`. Of a micro-batch alone,
    `step_ns` is the sum.

    Attributes
    ----------
    stages : int
    names : tuple of str (stations,)
    """

    stages: int
    names: tuple[str, ...]

    def station_ns(self, loads: Sequence[RankLoad]) -> list[int]:
        """Price a micro-batch of any composition at each station.

        Parameters
        ----------
        loads : sequence of RankLoad (ranks,)

        Returns
        -------
        list of int (stations,) [ns]
            At least 0, the stages at least 1.
        """
        ...
