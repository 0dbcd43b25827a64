"""FlowPrefill (2026): prompts by slack and deadline, stopped between operators.

Set `fleet.pools.*.stop` to ``{at: operator, precedence: {kind: s-edf, ...}}`` on a prefill pool,
with ``engine.chunked_prefill: false``, so that a prompt is one step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Le

from llmsim.policies.precedence import PRECEDENCE, Deadlines, PrefillProfile, Rank
from llmsim.policies.views import RequestView

_SAMPLES = 48
"""Prompt lengths of the profile that the polynomial is fitted to, evenly in their logarithm."""


@PRECEDENCE.register("s-edf")
@dataclass
class SlackDeadline(Deadlines):
    """Earliest deadline first among prompts that can still keep theirs; those that cannot, last.

    ``slack = deadline - now - max(time of the prompt - time spent on it, 0)``, and the greatest
    ``sign(slack) / deadline`` goes first: of those too late, the latest deadline. While there is
    slack, short prompts go along in one step.

    References
    ----------
    FlowPrefill, arXiv 2602.16603; its code, github.com/HSIEHCHIACHI/FlowPrefill,
    ``vllm/v1/request.py`` (``update_priority``) and ``vllm/v1/engine/utils.py``.
    """

    batch_tokens: Annotated[int, Ge(0)] = 2048
    """[tokens] Most tokens of prompts that go along in one step; a longer one goes alone. Assumed:
    the code takes it from its deployment."""
    slack_frac: Annotated[float, Ge(0), Le(1)] = 0.1
    """[fraction] Of what was promised, the time that must be left for others to go along, and of
    that time, the share that must be left when all of them are computed."""
    estimate: Literal["cubic", "oracle"] = "cubic"
    """Where the time of a prompt comes from: `cubic`, a polynomial in its tokens fitted to the
    engine's profile, as in the paper; `oracle`, the true one."""

    _coefficients: tuple[float, ...] = field(init=False, repr=False)
    _profile: PrefillProfile = field(init=False, repr=False)

    def start(self, profile: PrefillProfile) -> None:
        """Fit the polynomial, errors relative to the time."""
        self._profile = profile
        self._coefficients = ()
        if self.estimate == "oracle":
            return
        drawn = np.geomspace(1, max(profile.longest_tokens, 2), _SAMPLES)
        tokens = np.unique(np.rint(drawn)).astype(np.int64)
        times = np.array([profile.prefill_ns(size) for size in tokens.tolist()], dtype=np.float64)
        degree = min(3, len(tokens) - 1)
        scale = float(profile.longest_tokens)
        fitted = np.polynomial.polynomial.polyfit(tokens / scale, times, degree, w=1.0 / times)
        self._coefficients = tuple((fitted / scale ** np.arange(degree + 1)).tolist())

    def declared(self) -> tuple[str, ...]:
        """Return that it knows the true times, if it does."""
        return ("s-edf knows the true time of every prompt (oracle)",) * (self.estimate == "oracle")

    def prefill_ns(self, tokens: int) -> int:
        """Return how long a prompt is believed to take [ns]."""
        if not self._coefficients:
            return self._profile.prefill_ns(tokens)
        total = 0.0
        for coefficient in reversed(self._coefficients):
            total = total * tokens + coefficient
        return max(0, round(total))

    def rank(self, request: RequestView, tokens: int, executed_ns: int, now_ns: int) -> Rank:
        """Rank by sign of the slack, then by deadline."""
        deadline = self.deadline_ns(request)
        left = max(self.prefill_ns(tokens) - executed_ns, 0)
        if deadline - now_ns - left > 0:
            return (0, deadline, request.index)
        return (1, -deadline, request.index)

    def turns_ns(self, request: RequestView) -> int:
        """Return when it is too late to begin with a request [ns]."""
        return self.deadline_ns(request) - self.prefill_ns(request.prompt_tokens)

    def joins(self, head: RequestView, tokens: int, more: RequestView, now_ns: int) -> bool:
        """Whether there is time enough for another prompt in the same step."""
        together = tokens + more.prompt_tokens
        if together > self.batch_tokens:
            return False
        deadline = self.deadline_ns(head)
        left = deadline - now_ns
        if left < self.slack_frac * (deadline - head.arrival_ns):
            return False
        return left - self.prefill_ns(together) >= self.slack_frac * left
