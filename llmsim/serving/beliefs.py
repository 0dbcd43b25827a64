"""What is believed of the outputs of a run's requests, told to their views when they arrive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmsim.core.rng import stream
from llmsim.policies.estimation import LengthEstimator, ToolTimeEstimator
from llmsim.policies.views import RequestView
from llmsim.workload.chunk import RequestChunk
from llmsim.workload.programs import NextCall, Programs


@dataclass(frozen=True, slots=True)
class BeliefPlan:
    """Who believes what in a run.

    Parameters
    ----------
    length : LengthEstimator
        A fresh instance: what policies are told of output lengths.
    beyond_tokens : int [tokens]
        Who has had all the tokens that it was believed to get is believed to get so many more.
    """

    length: LengthEstimator
    beyond_tokens: int = 10


class Beliefs:
    """An estimator of output lengths at work.

    What it draws, it draws in the order of the workload and, for calls of programs, from streams
    of their own: no policy can change what another request is believed to be.

    Parameters
    ----------
    estimator : LengthEstimator
        A fresh instance.
    seed : int
        The scenario's.
    """

    __slots__ = ("_drawn", "_draws", "_estimator", "_rng", "_seed")

    def __init__(self, estimator: LengthEstimator, seed: int) -> None:
        self._estimator = estimator
        self._draws = estimator.draws
        self._seed = seed
        self._rng = stream(seed, "output_length")
        self._drawn: list[int] = []

    def read(self, chunk: RequestChunk) -> None:
        """Draw for the next chunk of the workload."""
        if self._draws:
            prompt = chunk.prompt_tokens.astype(np.int64)
            output = chunk.output_tokens.astype(np.int64)
            self._drawn = self._estimator.foresee(prompt, output, self._rng).tolist()

    def tell(self, view: RequestView, row: int) -> None:
        """Tell the view of a request what is believed of it.

        Parameters
        ----------
        view : RequestView
        row : int
            Its place in the chunk.
        """
        view.believed_tokens = self._drawn[row] if self._draws else self._estimator.guess(view)

    def tell_call(self, view: RequestView, call: NextCall) -> None:
        """Tell the view of a call that another call has brought about."""
        if not self._draws:
            view.believed_tokens = self._estimator.guess(view)
            return
        rng = stream(self._seed, "output_length", call.program, call.turn)
        prompt = np.array([call.prompt_tokens], dtype=np.int64)
        output = np.array([call.output_tokens], dtype=np.int64)
        view.believed_tokens = int(self._estimator.foresee(prompt, output, rng)[0])

    def ended(self, view: RequestView, output_tokens: int) -> None:
        """Let the estimator know of an output that is complete."""
        if not self._draws:
            self._estimator.learn(view, output_tokens)


class ToolBeliefs:
    """An estimator of tool times at work on one replica.

    Parameters
    ----------
    estimator : ToolTimeEstimator
        A fresh instance.
    programs : Programs
    seed : int
        The scenario's.
    """

    __slots__ = ("_estimator", "_programs", "_seed")

    def __init__(self, estimator: ToolTimeEstimator, programs: Programs, seed: int) -> None:
        self._estimator = estimator
        self._programs = programs
        self._seed = seed

    def pauses_s(self, tool: str, program: int, turn: int) -> Sequence[float]:
        """Return what is believed of the tool that a call's answer asks for; see `believe` [s]."""
        rng = stream(self._seed, "tool_time", program, turn)
        return self._estimator.believe(tool, self._programs.pause_s(program, turn), rng)

    def learn(self, tool: str, time_s: float) -> None:
        """Let the estimator know how long a tool has taken [s]."""
        self._estimator.learn(tool, time_s)
