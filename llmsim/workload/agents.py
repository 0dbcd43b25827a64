"""Generated programs: conversations with people who think, agents whose tools take their time.

Every class that is registered here is a `kind` of the seam ``programs``; its fields are its YAML
parameters. How much text each call brings, and how much it generates, is the scenario's law of
lengths; a prompt law names the text that first calls share.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from annotated_types import Ge, Gt, Le, Len

from llmsim.core.registry import Registry
from llmsim.core.rng import stream
from llmsim.core.units import NS_PER_S
from llmsim.workload.chunk import ClosedLoop, RequestChunk, Segments
from llmsim.workload.lengths import Lengths
from llmsim.workload.parameters import check_parameters
from llmsim.workload.programs import OWN_KEYS_FROM, CallEnd, NextCall, Programs, grown
from llmsim.workload.synthetic import SyntheticWorkload

TimeLaw = Literal["lognormal", "exponential", "fixed"]

Pauses = tuple[npt.NDArray[np.int64], npt.NDArray[np.int16]]
"""Time between a call and the next [ns], and the tool that runs meanwhile or -1, (n,) each."""


class ProgramLaw(Protocol):
    """How many calls programs have, and what lies between two of them."""

    opening_tokens: int

    @property
    def tool_names(self) -> tuple[str, ...]:
        """Names that the tools of `pauses` point into."""
        ...

    def turns(self, rng: np.random.Generator, programs: int) -> npt.NDArray[np.int64]:
        """Return how many calls each of the next programs has, at least 1."""
        ...

    def pauses(
        self, which: np.random.Generator, how_long: np.random.Generator, calls: int
    ) -> Pauses:
        """Return what follows each of the next calls that are not the last of their program.

        Twice n calls must be the same as once 2n, so each generator is asked once, row by row.
        """
        ...


PROGRAMS: Registry[ProgramLaw] = Registry("programs")


@dataclass(frozen=True)
class _Turns:
    """How long programs are."""

    turns_mean: Annotated[float, Ge(1)]
    """Mean calls of a program [calls]."""
    turns_law: Literal["geometric", "fixed"] = "geometric"
    """`geometric` from 1 up: every call may be the last with the same chance; or `fixed`."""
    turns_max: Annotated[int, Ge(1), Le(2**20)] = 1000
    """Most calls of a program [calls]."""
    opening_tokens: Annotated[int, Ge(0)] = 0
    """Text of its own that a program's first call brings besides a call's usual [tokens]."""

    def turns(self, rng: np.random.Generator, programs: int) -> npt.NDArray[np.int64]:
        """Return how many calls each of the next programs has."""
        share = rng.random(programs)
        if self.turns_law == "fixed" or self.turns_mean == 1:
            drawn = np.full(programs, round(self.turns_mean), dtype=np.int64)
        else:
            stays = np.log1p(-1.0 / self.turns_mean)
            drawn = 1 + np.floor(np.log1p(-share) / stays).astype(np.int64)
        return np.clip(drawn, 1, self.turns_max)


@PROGRAMS.register("sessions")
@dataclass(frozen=True)
class Sessions(_Turns):
    """Conversations: a person reads the answer, thinks, and writes the next message."""

    think_mean_s: Annotated[float, Ge(0)] = 10.0
    """Mean time from the end of an answer to the next message [s]."""
    think_cv: Annotated[float, Ge(0)] = 1.0
    """Coefficient of variation of that time, which is log-normal; 0: always the mean."""

    @property
    def tool_names(self) -> tuple[str, ...]:
        """No tools."""
        return ()

    def pauses(
        self, which: np.random.Generator, how_long: np.random.Generator, calls: int
    ) -> Pauses:
        """Return times to think."""
        mean = np.full(calls, self.think_mean_s)
        normal = how_long.standard_normal(calls)
        spent = _lognormal(mean, np.full(calls, self.think_cv), normal)
        return _whole_ns(spent), np.full(calls, -1, dtype=np.int16)


@dataclass(frozen=True)
class Tool:
    """A tool that agents call, and how long it takes.

    Parameters
    ----------
    mean_s : float [s]
        Mean time it runs.
    share : float
        How often it is called, relative to the others' shares.
    law : str
        `lognormal` with coefficient of variation `cv`, `exponential`, or `fixed` at the mean.
    cv : float
        Of the log-normal law.
    """

    mean_s: Annotated[float, Ge(0)]
    share: Annotated[float, Gt(0)] = 1.0
    law: TimeLaw = "lognormal"
    cv: Annotated[float, Ge(0)] = 1.0


@PROGRAMS.register("agents")
@dataclass(frozen=True, kw_only=True)
class Agents(_Turns):
    """Agents: every call but the last ends in the call of a tool, whose answer comes next."""

    tools: Annotated[dict[str, Tool], Len(1)]
    """The tools by name, each with `mean_s` [s], and `share`, `law`, `cv`."""

    @property
    def tool_names(self) -> tuple[str, ...]:
        """The tools in the order of the file."""
        return tuple(self.tools)

    def pauses(
        self, which: np.random.Generator, how_long: np.random.Generator, calls: int
    ) -> Pauses:
        """Return tools and how long they run."""
        tools = list(self.tools.values())
        shares = np.cumsum([tool.share for tool in tools])
        draws = which.random((calls, 2))  # row by row, however calls are cut into parts
        chosen = np.searchsorted(shares / shares[-1], draws[:, 0], side="right")
        chosen = np.minimum(chosen, len(tools) - 1)
        mean = np.array([tool.mean_s for tool in tools])[chosen]
        laws = np.array([tool.law for tool in tools])[chosen]
        cv = np.array([tool.cv for tool in tools])[chosen]
        normal = how_long.standard_normal(calls)
        spent = np.where(laws == "lognormal", _lognormal(mean, cv, normal), mean)
        spent = np.where(laws == "exponential", -mean * np.log1p(-draws[:, 1]), spent)
        return _whole_ns(spent), chosen.astype(np.int16)


def _lognormal(
    mean: npt.NDArray[np.float64], cv: npt.NDArray[np.float64], normal: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return log-normal values with the given means from standard normal ones."""
    variance = np.log1p(cv * cv)
    made: npt.NDArray[np.float64] = mean * np.exp(np.sqrt(variance) * normal - variance / 2)
    return made


def _whole_ns(seconds: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    return np.rint(seconds * NS_PER_S).astype(np.int64)


class _Calls(NamedTuple):
    """What is drawn for the programs of one chunk, as plain lists for quick look-up.

    `first` and `turns` are per program; the rest per call that is not its program's first, in
    order of program and turn: its own text, its output, and what comes before it.
    """

    first: list[int]
    turns: list[int]
    own_tokens: list[int]
    output_tokens: list[int]
    after_ns: list[int]
    tool: list[int]


class ProgramWorkload:
    """Programs drawn from laws; every pass over `chunks` draws the same ones.

    Parameters
    ----------
    opening : SyntheticWorkload
        The first calls: when programs begin, and the lengths and prompts of their first calls.
    law : ProgramLaw
    lengths : Lengths
        Of every later call's own text and output.
    seed : int
    near : Path, optional
        Folder that relative file names of a length law start from.

    Raises
    ------
    InputError
        If a parameter is out of its limits.
    """

    def __init__(
        self,
        opening: SyntheticWorkload,
        law: ProgramLaw,
        lengths: Lengths,
        seed: int,
        near: Path | None = None,
    ) -> None:
        check_parameters(law, f"programs '{type(law).__name__}'")
        if isinstance(law, Agents):
            for name, tool in law.tools.items():
                check_parameters(tool, f"tool '{name}'")
        self._opening = opening
        self._law = law
        self._lengths = lengths
        self._seed = seed
        self._near = near
        self._drawn: list[_Calls] = []
        self._from: list[int] = []  # number of the first program of each chunk
        self.total: int | None = None  # calls turn up one by one
        self.clients: tuple[str, ...] = opening.clients
        self.slo_classes: tuple[str, ...] = ()
        self.closed_loop: ClosedLoop | None = opening.closed_loop
        self.skipped_rows = 0
        self.programs: Programs | None = self
        self.tools = law.tool_names

    def chunks(self) -> Iterator[RequestChunk]:
        """Yield the programs' first calls in order; every call starts anew and gives the same."""
        self._drawn = []
        self._from = []
        law, seed = self._law, self._seed
        turns_rng = stream(seed, "programs", "turns")
        which = stream(seed, "programs", "tool")
        how_long = stream(seed, "programs", "pause")
        measure = self._lengths.sampler(seed, self._near, "calls")
        begun = 0
        for chunk in self._opening.chunks():
            n = len(chunk)
            turns = law.turns(turns_rng, n)
            later = turns - 1
            own, output = measure(int(later.sum()))
            after_ns, tool = law.pauses(which, how_long, int(later.sum()))
            first = np.cumsum(later) - later
            self._from.append(begun)
            self._drawn.append(
                _Calls(*(each.tolist() for each in (first, turns, own, output, after_ns, tool)))
            )
            prompt = chunk.prompt_tokens + np.int32(law.opening_tokens)
            yield replace(
                chunk,
                prompt_tokens=prompt,
                session=np.arange(begun, begun + n, dtype=np.int64),
                segments=self._named(chunk, begun),
            )
            begun += n

    def _named(self, chunk: RequestChunk, begun: int) -> list[Segments | None]:
        """Give every first prompt an identity, so that later ones can repeat it."""
        more = self._law.opening_tokens
        named: list[Segments | None] = []
        for at, tokens in enumerate(chunk.prompt_tokens.tolist()):
            shared = chunk.segments[at] if chunk.segments is not None else None
            own = (_own_key(begun + at, 0), more if shared is not None else tokens + more)
            pieces = (*(shared or ()), own)
            named.append(tuple(piece for piece in pieces if piece[1]))
        return named

    def _of(self, program: int) -> tuple[_Calls, int]:
        """Return the draws of a program's chunk, and the program's place in it."""
        chunk = bisect_right(self._from, program) - 1
        return self._drawn[chunk], program - self._from[chunk]

    # --- the closed world -------------------------------------------------------------------

    def next_calls(self, ended: CallEnd) -> Sequence[NextCall]:
        """Return the call after this one, if its program goes on."""
        drawn, place = self._of(ended.program)
        turn = ended.turn + 1
        if not ended.served or turn >= drawn.turns[place]:
            return ()
        at = drawn.first[place] + ended.turn
        own = drawn.own_tokens[at]
        segments = grown(ended, _own_key(ended.program, turn), own)
        return (
            NextCall(
                drawn.after_ns[at],
                ended.program,
                turn,
                ended.prompt_tokens + ended.output_tokens + own,
                drawn.output_tokens[at],
                segments,
                ended.client,
                ended.priority,
            ),
        )

    def tool(self, program: int, turn: int) -> int:
        """Return the tool that a call's output asks for, or -1."""
        drawn, place = self._of(program)
        return -1 if turn + 1 >= drawn.turns[place] else drawn.tool[drawn.first[place] + turn]

    def pause_s(self, program: int, turn: int) -> float:
        """Return how long after a call's end the next one is sent [s]; 0 after the last."""
        drawn, place = self._of(program)
        if turn + 1 >= drawn.turns[place]:
            return 0.0
        return drawn.after_ns[drawn.first[place] + turn] / NS_PER_S

    def is_final(self, program: int, turn: int) -> bool:
        """Whether this is a program's last call."""
        drawn, place = self._of(program)
        return turn + 1 >= drawn.turns[place]


def _own_key(program: int, turn: int) -> int:
    return OWN_KEYS_FROM + (program << 20) + turn
