"""What policies of other packages answer, held to what their seam promises: one clear error.

Those that ship with llmsim are held to it by `tests/laws` and by their types, and asked directly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import islice
from math import inf, isfinite
from operator import index, le
from typing import Any, Final, get_args

import numpy as np

from llmsim.core.errors import PolicyError
from llmsim.policies.control import Action, Add, Migrate, SetRole
from llmsim.policies.estimation import TRUE_TIMES, TRUTH
from llmsim.policies.retention import GivesWay
from llmsim.policies.routing import Reroute
from llmsim.policies.verbs import HeldLine, HeldStep


class WrongAnswerError(Exception):
    """An answer that cannot be; says what is needed."""


Check = Callable[[Any, tuple[Any, ...], "Held"], Any]
"""Returns the answer to a question, as its seam has it; raises `WrongAnswerError`."""


class Held:
    """A policy whose answers are checked where they come in.

    Parameters
    ----------
    seam, kind : str
        What it goes by in a scenario.
    policy : object
        A fresh instance.

    Attributes
    ----------
    places : int
        Replicas that a router chooses from; known once it was started.
    """

    def __init__(self, seam: str, kind: str, policy: Any) -> None:
        self._held, self._seam, self._kind = policy, seam, kind
        self.places = 0
        asked = QUESTIONS[seam]
        for name, check in CONSTANTS[seam].items():
            if hasattr(policy, name):
                self._settled(name, getattr(policy, name), (), check, "is")
            elif name in NEEDED[seam]:
                raise PolicyError(f"{self._told()} has no {name}")
        for name in NEEDED[seam]:
            if not hasattr(policy, name):
                raise PolicyError(f"{self._told()} has no {name}")
        for name, check in asked.items():
            if hasattr(policy, name):
                setattr(self, name, self._asking(name, check))
        for name in ("ended", "publishes_results"):  # looked for, not asked for
            if hasattr(policy, name) and name not in asked:
                setattr(self, name, getattr(policy, name))
        if seam == "batching":
            self.plan = self._planning(policy.plan)

    def _told(self) -> str:
        cls = type(self._held)
        return f"{self._seam} '{self._kind}' ({cls.__module__}.{cls.__qualname__})"

    def _planning(self, plan: Callable[[Any], None]) -> Callable[[Any], None]:
        who = self._told()
        last: Any = None
        step: Any = None

        def planned(draft: Any) -> None:
            nonlocal last, step
            if draft is not last:  # the same one at every call of a replica
                last, step = draft, HeldStep(who, draft)
            plan(step)

        return planned

    def _asking(self, name: str, check: Check) -> Callable[..., Any]:
        method = getattr(self._held, name)

        def ask(*given: Any, **named: Any) -> Any:
            given = (*given, *named.values())
            return self._settled(name, method(*_shown(self, name, given)), given, check, "returned")

        return ask

    def _settled(
        self, name: str, answer: Any, given: tuple[Any, ...], check: Check, verb: str
    ) -> Any:
        try:
            return check(answer, given, self)
        except WrongAnswerError as wrong:
            shown = " ".join(repr(answer).split())  # on one line
            shown = shown if len(shown) <= 200 else f"{shown[:197]}..."
            raise PolicyError(f"{self._told()}: {name} {verb} {shown}, not {wrong}") from None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_held":
            raise AttributeError(name)
        return getattr(self._held, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Held:
        copied = Held(self._seam, self._kind, deepcopy(self._held, memo))
        copied.places = self.places
        return copied


def _shown(held: Held, name: str, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what a policy is asked with: no truth where it does not say that it looks at it."""
    if name == "foresee" and TRUTH not in held.information:
        return (given[0], np.full(len(given[0]), -1, dtype=np.int64), given[2])
    if name == "believe" and TRUE_TIMES not in held.information:
        return (given[0], np.nan, given[2])
    return given


# --- what an answer may be ----------------------------------------------------------------------


def _whole(least: int, what: str) -> Check:
    def check(answer: Any, given: tuple[Any, ...], held: Held) -> int:
        number = _number(answer, what)
        if number < least:
            raise WrongAnswerError(what)
        return number

    return check


def _number(answer: Any, what: str) -> int:
    try:
        return index(answer)
    except TypeError:
        raise WrongAnswerError(what) from None


def _real(least: float, what: str, most: float = inf, above: bool = False) -> Check:
    def check(answer: Any, given: tuple[Any, ...], held: Held) -> float:
        if isinstance(answer, bool) or not isinstance(answer, int | float | np.number):
            raise WrongAnswerError(what)
        if not least <= answer <= most or (above and answer == least):
            raise WrongAnswerError(what)
        return float(answer)

    return check


def _flag(answer: Any, given: tuple[Any, ...], held: Held) -> bool:
    if not isinstance(answer, bool | np.bool_):
        raise WrongAnswerError("True or False")
    return bool(answer)


def _words(answer: Any, given: tuple[Any, ...], held: Held) -> Any:
    if not isinstance(answer, tuple | list) or not all(isinstance(each, str) for each in answer):
        raise WrongAnswerError("a tuple of texts")
    return answer


def _text(answer: Any, given: tuple[Any, ...], held: Held) -> str:
    if not isinstance(answer, str):
        raise WrongAnswerError("a text")
    return answer


def _started(answer: Any, given: tuple[Any, ...], held: Held) -> None:
    held.places = given[0].replicas


def _place(answer: Any, given: tuple[Any, ...], held: Held) -> int:
    what = f"the index of a replica, 0 to {held.places - 1}"
    place = _number(answer, what)
    if not 0 <= place < held.places:
        raise WrongAnswerError(what)
    return place


def _reroutes(answer: Any, given: tuple[Any, ...], held: Held) -> Any:
    what = "a list of Reroute"
    for move in _list(answer, what):
        if not isinstance(move, Reroute):
            raise WrongAnswerError(what)
        _number(move.request, what + " with the index of a request")
        for replica in (move.source, move.target):
            _place(replica, given, held)
    return answer


def _list(answer: Any, what: str) -> Iterator[Any]:
    if isinstance(answer, str) or not isinstance(answer, Sequence):
        raise WrongAnswerError(what)
    return iter(answer)


def _rank(answer: Any, request: Any) -> tuple[int, ...]:
    what = "a tuple of whole numbers that ends in the request's index"
    if not isinstance(answer, tuple) or not answer:
        raise WrongAnswerError(what)
    rank = tuple([_number(each, what) for each in answer])
    if rank[-1] != request.index:
        raise WrongAnswerError(what)
    return rank


def _urgency(answer: Any, given: tuple[Any, ...], held: Held) -> tuple[int, ...] | None:
    ranks = vars(held).setdefault("_ranks", answer is not None)
    if ranks != (answer is not None):
        raise WrongAnswerError(
            "a rank as for requests before" if ranks else "None as for requests before"
        )
    return None if answer is None else _rank(answer, given[0])


def _precedence(answer: Any, given: tuple[Any, ...], held: Held) -> tuple[int, ...]:
    return _rank(answer, given[0])


def _victim(answer: Any, given: tuple[Any, ...], held: Held) -> int:
    what = f"a place among who is running, 0 to {len(given[0]) - 1}"
    place = _number(answer, what)
    if not 0 <= place < len(given[0]):
        raise WrongAnswerError(what)
    return place


def _line(answer: Any, given: tuple[Any, ...], held: Held) -> Any:
    if not all(callable(getattr(answer, each, None)) for each in ("add", "head", "remove")):
        raise WrongAnswerError("a line with the methods add, head and remove")
    return HeldLine(told(held), answer)


def _lengths(answer: Any, given: tuple[Any, ...], held: Held) -> Any:
    what = f"an array of {len(given[0])} whole numbers, each at least 1"
    whole = isinstance(answer, np.ndarray) and answer.dtype.kind in "iu"
    if held.draws and not (whole and answer.shape == given[0].shape and (answer >= 1).all()):
        raise WrongAnswerError(what)
    return answer


def _times(answer: Any, given: tuple[Any, ...], held: Held) -> Any:
    what = "times in ascending order, none below 0 and none infinite [s]"
    times = [_real(0.0, what)(each, given, held) for each in _list(answer, what)]
    if not all(map(isfinite, times)) or not all(map(le, times, islice(times, 1, None))):
        raise WrongAnswerError(what)
    return answer


def _shares(answer: Any, given: tuple[Any, ...], held: Held) -> tuple[float, float]:
    what = "the shares of prefill and decode, each above 0 and at most 1"
    share = _real(0.0, what, 1.0, above=True)
    shares = [share(each, given, held) for each in _list(answer, what)]
    if len(shares) != 2:
        raise WrongAnswerError(what)
    return shares[0], shares[1]


def _actions(answer: Any, given: tuple[Any, ...], held: Held) -> Any:
    replicas = given[0].replicas
    pools = 1 + max(report.pool for report in replicas)
    for action in _list(answer, "a list of actions"):
        if not isinstance(action, get_args(Action)):
            raise WrongAnswerError("a list of Migrate, Add, Drain, Fail and SetRole")
        if isinstance(action, Add):
            _among(action.pool, pools, "pool")
        elif isinstance(action, Migrate):
            _number(action.request, "a list of actions with the index of a request")
            _among(action.source, len(replicas), "replica")
            _among(action.target, len(replicas), "replica")
        else:
            _among(action.replica, len(replicas), "replica")
        if isinstance(action, SetRole) and action.role not in ("mixed", "prefill", "decode"):
            raise WrongAnswerError("a list of actions with role mixed, prefill or decode")
    return answer


def _among(place: Any, count: int, what: str) -> None:
    told = f"a list of actions with the index of a {what}, 0 to {count - 1}"
    if not 0 <= _number(place, told) < count:
        raise WrongAnswerError(told)


def _way(answer: Any, given: tuple[Any, ...], held: Held) -> Any:
    if answer not in get_args(GivesWay):
        raise WrongAnswerError(f"one of {', '.join(get_args(GivesWay))}")
    return answer


# --- what each seam promises --------------------------------------------------------------------

_TOKENS = _whole(0, "a whole number of tokens, at least 0")
_RANK = _whole(-(2**62), "a whole number")
_FINITE = 1e12
"""Seconds beyond which a time is taken to be infinite: 30,000 years."""

QUESTIONS: Final[Mapping[str, Mapping[str, Check]]] = {
    "routing": {"start": _started, "choose": _place, "moves": _reroutes},
    "batching": {
        "urgency": _urgency,
        "victim": _victim,
        "admits": _flag,
        "waiting_order": _line,
        "layer_groups": _whole(1, "a whole number of groups, at least 1"),
    },
    "allocation": {
        "claim_tokens": _TOKENS,
        "renewed_tokens": _TOKENS,
        "wait_s": _real(0.0, "a time of at least 0 [s]", _FINITE),
    },
    "control": {"act": _actions},
    "eviction": {"rank": _RANK},
    "loading": {"loads": _flag},
    "retention": {
        "hold_s": _real(0.0, "a time of at least 0, maybe infinite [s]"),
        "rank": _RANK,
    },
    "output_length": {
        "foresee": _lengths,
        "guess": _whole(1, "a whole number of tokens, at least 1"),
    },
    "tool_time": {"believe": _times},
    "sharing": {"shares": _shares},
    "precedence": {
        "rank": _precedence,
        "turns_ns": _whole(0, "a time as a whole number [ns]"),
        "joins": _flag,
        "declared": _words,
    },
}
"""What policies are asked, by seam and method."""

_PERIOD = _real(0.0, "a time above 0 [s]", _FINITE, above=True)
_DELAY = _real(0.0, "a time of at least 0 [s]", _FINITE)

CONSTANTS: Final[Mapping[str, Mapping[str, Check]]] = {
    "routing": {"decision_s": _DELAY},
    "batching": {"every_step": _flag},
    "allocation": {"reserves": _flag, "grows": _flag},
    "control": {"period_s": _PERIOD, "view_age_s": _DELAY},
    "eviction": {},
    "loading": {},
    "retention": {"pins": _flag, "gives_way": _way},
    "output_length": {"information": _text, "draws": _flag},
    "tool_time": {"information": _text},
    "sharing": {"period_s": _DELAY},
    "precedence": {},
}
"""What is looked at once, when a run begins."""

NEEDED: Final[Mapping[str, tuple[str, ...]]] = {
    "routing": ("start", "choose"),
    "batching": ("every_step", "urgency", "plan"),
    "allocation": ("reserves", "grows", "claim_tokens", "renewed_tokens", "wait_s"),
    "control": ("period_s", "view_age_s", "start", "act"),
    "eviction": ("rank",),
    "loading": ("loads",),
    "retention": ("pins", "gives_way", "hold_s", "rank", "returned", "admitted", "ended"),
    "output_length": ("information", "draws", "foresee", "guess", "learn"),
    "tool_time": ("information", "believe", "learn"),
    "sharing": ("period_s", "shares"),
    "precedence": ("start", "declared", "rank", "turns_ns", "joins"),
}
"""What every policy of a seam has."""


def held(seam: str, kind: str, policy: Any) -> Any:
    """Return a policy that is held to what its seam promises.

    Parameters
    ----------
    seam, kind : str
        What it goes by in a scenario.
    policy : object
        A fresh instance; returned itself where it ships with llmsim, or is no policy.

    Raises
    ------
    PolicyError
        If it lacks what every policy of its seam has.
    """
    if seam not in QUESTIONS or type(policy).__module__.partition(".")[0] == "llmsim":
        return policy
    return Held(seam, kind, policy)


def told(policy: Any) -> str:
    """Return what an error calls a policy."""
    if isinstance(policy, Held):
        return policy._told()
    cls = type(policy)
    return f"{cls.__module__}.{cls.__qualname__}"


def nothing_planned(policy: Any, who: str, running: int, waiting: int) -> PolicyError:
    """Return the error of a batching policy that lets everybody wait for nothing.

    Parameters
    ----------
    policy : BatchingPolicy
    who : str
        The replica or rank.
    running, waiting : int [requests]
    """
    return PolicyError(
        f"{told(policy)} planned nothing, though {who} has {running} running and {waiting} "
        "waiting requests"
    )
