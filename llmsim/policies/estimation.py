"""What is believed of an output's length, or of a tool's time, before it is known.

There is no other way for a policy to get at either.

An estimator that draws (`foresee`) does so for every request beforehand, from a stream of its own,
so that every policy is told the same; one that learns (`guess`, `learn`) knows what has ended. Each
says what it is made from: whoever looks at true lengths declares it, and the run says so.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
from annotated_types import Ge, Gt, Le

from llmsim.core.registry import Registry
from llmsim.policies.views import RequestView

Tokens = npt.NDArray[np.int64]

TRUTH = "true output lengths"
"""What an estimator is made from that nobody could have in reality."""


class LengthEstimator(Protocol):
    """Believes something of the length of an output.

    Attributes
    ----------
    information : str
        What it is made from, in words; `TRUTH` is in it where it looks at true lengths.
    draws : bool
        Whether beliefs are drawn beforehand, all at once; else they are asked for one by one.
    """

    information: ClassVar[str]
    draws: ClassVar[bool]

    def foresee(self, prompt: Tokens, output: Tokens, rng: np.random.Generator) -> Tokens:
        """Return what is believed of requests, if it `draws`.

        Parameters
        ----------
        prompt, output : ndarray of int64 (n,) [tokens]
            True lengths; the second are for estimators that say so.
        rng : numpy.random.Generator
            The estimator's own stream.

        Returns
        -------
        ndarray of int64 (n,) [tokens]
        """
        ...

    def guess(self, request: RequestView) -> int:
        """Return what is believed of one request, if it does not draw [tokens]."""
        ...

    def learn(self, request: RequestView, output_tokens: int) -> None:
        """Take in how long an output was that has ended; only who does not draw is told."""
        ...


OUTPUT_LENGTH: Registry[LengthEstimator] = Registry("output_length")


class _Drawn:
    """What estimators have in common that draw."""

    draws: ClassVar[bool] = True

    def guess(self, request: RequestView) -> int:
        """Return what was drawn."""
        return request.believed_tokens

    def learn(self, request: RequestView, output_tokens: int) -> None:
        """Learn nothing."""


class _Asked:
    """What estimators have in common that learn."""

    draws: ClassVar[bool] = False

    def foresee(self, prompt: Tokens, output: Tokens, rng: np.random.Generator) -> Tokens:
        """Foresee nothing: every request is asked for when it comes."""
        return np.full(len(prompt), -1, dtype=np.int64)


@OUTPUT_LENGTH.register("oracle")
@dataclass
class OracleLength(_Drawn):
    """The true length, which nobody has in reality: an upper bound of what estimates are worth."""

    information: ClassVar[str] = TRUTH

    def foresee(self, prompt: Tokens, output: Tokens, rng: np.random.Generator) -> Tokens:
        """Return the truth."""
        return output


@OUTPUT_LENGTH.register("noisy")
@dataclass
class NoisyLength(_Drawn):
    """The true length times a log-normal factor with median 1."""

    information: ClassVar[str] = f"{TRUTH}, with noise"

    sigma: Annotated[float, Ge(0), Le(5)] = 0.5
    """Standard deviation of the factor's logarithm."""

    def foresee(self, prompt: Tokens, output: Tokens, rng: np.random.Generator) -> Tokens:
        """Return the truth times what is drawn."""
        noisy = output * np.exp(self.sigma * rng.standard_normal(len(output)))
        return np.maximum(1, np.rint(noisy)).astype(np.int64)


@OUTPUT_LENGTH.register("bucket")
@dataclass
class BucketLength(_Drawn):
    """A classifier into buckets of equal width: the upper end of the true bucket, or a wrong one.

    Its errors are made up, not learnt: a request is taken for one of a neighbouring bucket.
    """

    information: ClassVar[str] = f"{TRUTH}, in buckets"

    bucket_tokens: Annotated[int, Gt(0)] = 256
    """[tokens] Width of a bucket."""
    accuracy_frac: Annotated[float, Ge(0), Le(1)] = 1.0
    """[fraction] Requests whose bucket is right; the rest are one too high or one too low."""

    def foresee(self, prompt: Tokens, output: Tokens, rng: np.random.Generator) -> Tokens:
        """Return the upper ends of the buckets taken for the true ones."""
        bucket = -(-output // self.bucket_tokens)
        drawn = rng.random((len(output), 2))
        step = np.where(drawn[:, 1] < 0.5, -1, 1)
        bucket = bucket + np.where(drawn[:, 0] < self.accuracy_frac, 0, step)
        return np.maximum(1, bucket).astype(np.int64) * self.bucket_tokens


@OUTPUT_LENGTH.register("constant")
@dataclass
class ConstantLength(_Asked):
    """The same for every request."""

    information: ClassVar[str] = "a constant"

    tokens: Annotated[int, Gt(0)] = 256
    """[tokens] What is believed."""

    def guess(self, request: RequestView) -> int:
        """Return the constant."""
        return self.tokens

    def learn(self, request: RequestView, output_tokens: int) -> None:
        """Learn nothing."""


@OUTPUT_LENGTH.register("mean")
@dataclass
class MeanLength(_Asked):
    """The mean of the outputs that have ended, most recent ones only."""

    information: ClassVar[str] = "outputs that have ended"

    first_tokens: Annotated[int, Gt(0)] = 256
    """[tokens] What is believed before anything has ended."""
    window: Annotated[int, Gt(0)] = 1000
    """[requests] How many of the latest count."""

    _latest: deque[int] = field(default_factory=deque, init=False, repr=False)
    _sum: int = field(default=0, init=False, repr=False)

    def guess(self, request: RequestView) -> int:
        """Return the mean, rounded."""
        if not self._latest:
            return self.first_tokens
        return max(1, round(self._sum / len(self._latest)))

    def learn(self, request: RequestView, output_tokens: int) -> None:
        """Put an output in place of the oldest one."""
        self._latest.append(output_tokens)
        self._sum += output_tokens
        if len(self._latest) > self.window:
            self._sum -= self._latest.popleft()


@OUTPUT_LENGTH.register("by-prompt")
@dataclass
class ByPromptLength(_Asked):
    """The mean of the outputs that have ended of prompts about as long: within a factor of two."""

    information: ClassVar[str] = "prompt length, and outputs that have ended"

    first_tokens: Annotated[int, Gt(0)] = 256
    """[tokens] What is believed before anything has ended."""
    window: Annotated[int, Gt(0)] = 1000
    """[requests] How many of the latest count, of each class of prompts."""

    _classes: dict[int, MeanLength] = field(default_factory=dict, init=False, repr=False)
    _all: MeanLength = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._all = MeanLength(self.first_tokens, self.window)

    def guess(self, request: RequestView) -> int:
        """Return the mean of the prompt's class; that of all where none has ended in it."""
        return self._classes.get(request.prompt_tokens.bit_length(), self._all).guess(request)

    def learn(self, request: RequestView, output_tokens: int) -> None:
        """Count an output in its prompt's class."""
        self._all.learn(request, output_tokens)
        size = request.prompt_tokens.bit_length()
        if size not in self._classes:
            self._classes[size] = MeanLength(self.first_tokens, self.window)
        self._classes[size].learn(request, output_tokens)


class ToolTimeEstimator(Protocol):
    """Believes something of how long a tool will take, now that an answer has asked for it.

    Attributes
    ----------
    information : str
        What it is made from, in words; `TRUE_TIMES` is in it where it looks at true times.
    """

    information: ClassVar[str]

    def believe(self, tool: str, true_s: float, rng: np.random.Generator) -> Sequence[float]:
        """Return times that are equally likely, in ascending order; none where nothing is known.

        Parameters
        ----------
        tool : str
            Its name, which the answer tells.
        true_s : float [s]
            For estimators that say so.
        rng : numpy.random.Generator
            Of this call alone.

        Returns
        -------
        sequence of float [s]
        """
        ...

    def learn(self, tool: str, time_s: float) -> None:
        """Take in how long a tool has taken whose program has come back [s]."""
        ...


TRUE_TIMES = "true tool times"
"""What an estimator is made from that nobody could have in reality."""

TOOL_TIME: Registry[ToolTimeEstimator] = Registry("tool_time")


class _Unlearning:
    """What estimators have in common that learn nothing."""

    def learn(self, tool: str, time_s: float) -> None:
        """Learn nothing."""


@TOOL_TIME.register("oracle")
@dataclass
class OracleToolTime(_Unlearning):
    """The true time, which nobody has in reality: an upper bound of what estimates are worth."""

    information: ClassVar[str] = TRUE_TIMES

    def believe(self, tool: str, true_s: float, rng: np.random.Generator) -> Sequence[float]:
        """Return the truth."""
        return (true_s,)


@TOOL_TIME.register("noisy")
@dataclass
class NoisyToolTime(_Unlearning):
    """The true time times a log-normal factor with median 1."""

    information: ClassVar[str] = f"{TRUE_TIMES}, with noise"

    sigma: Annotated[float, Ge(0), Le(5)] = 0.5
    """Standard deviation of the factor's logarithm."""

    def believe(self, tool: str, true_s: float, rng: np.random.Generator) -> Sequence[float]:
        """Return the truth times what is drawn."""
        return (true_s * float(np.exp(self.sigma * rng.standard_normal())),)


@TOOL_TIME.register("constant")
@dataclass
class ConstantToolTime(_Unlearning):
    """The same for every tool."""

    information: ClassVar[str] = "a constant"

    seconds: Annotated[float, Ge(0)] = 1.0
    """[s] What is believed."""

    def believe(self, tool: str, true_s: float, rng: np.random.Generator) -> Sequence[float]:
        """Return the constant."""
        return (self.seconds,)


@TOOL_TIME.register("history")
@dataclass
class ToolHistory:
    """The latest times that a tool took; those of all tools where too few of its own are known."""

    information: ClassVar[str] = "tools that have ended"

    samples: Annotated[int, Ge(0)] = 100
    """More times than this must be known of a tool, else those of all tools together count, and
    nothing is believed while these are as few."""
    remembered: Annotated[int, Ge(1)] = 1000
    """Latest times that are kept of each tool, and of all together."""

    _tools: dict[str, LatestValues] = field(default_factory=dict, init=False, repr=False)
    _all: LatestValues = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Begin with nothing learned."""
        self._all = LatestValues(self.remembered)

    def believe(self, tool: str, true_s: float, rng: np.random.Generator) -> Sequence[float]:
        """Return the times of the tool, or of all."""
        return self.known(tool)

    def known(self, tool: str) -> Sequence[float]:
        """Return the times of the tool, or of all [s]; none while they are too few."""
        for times in (self._tools.get(tool), self._all):
            if times is not None and len(times.sorted) > self.samples:
                return times.sorted
        return ()

    def learn(self, tool: str, time_s: float) -> None:
        """Remember how long a tool took."""
        if tool not in self._tools:
            self._tools[tool] = LatestValues(self.remembered)
        self._tools[tool].add(time_s)
        self._all.add(time_s)


class LatestValues:
    """The latest of some values, in order of size.

    Parameters
    ----------
    most : int
        How many are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._line: deque[float] = deque()
        self.sorted: list[float] = []

    def add(self, value: float) -> None:
        """Add one, forgetting the oldest beyond the limit."""
        self._line.append(value)
        insort(self.sorted, value)
        if len(self._line) > self._most:
            del self.sorted[bisect_left(self.sorted, self._line.popleft())]
