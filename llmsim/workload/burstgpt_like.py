"""A generator of BurstGPT-like traffic: arrivals, lengths, sessions and failures of any size.

The numbers and what they were fitted on stand in `burstgpt_fit`. Three kinds are registered under
the name ``burstgpt-like``: an arrival process, a length law, and a whole trace, in which the two
streams of requests (conversations and API calls) keep their own arrivals, lengths and sessions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from annotated_types import Ge, Gt

from llmsim.core.errors import Fault, InputError
from llmsim.core.rng import stream
from llmsim.core.units import NS_PER_S
from llmsim.workload import burstgpt_fit as fit
from llmsim.workload.arrivals import ARRIVALS, ArrivalSampler
from llmsim.workload.burstgpt import CLIENTS
from llmsim.workload.chunk import ClosedLoop, RequestChunk, Workload
from llmsim.workload.lengths import LENGTHS, LengthSampler, Tokens, to_tokens
from llmsim.workload.modulated import DAY_S, Burst, buffered
from llmsim.workload.parameters import check_parameters
from llmsim.workload.programs import Programs
from llmsim.workload.readers import TRACES
from llmsim.workload.replay import rechunked, to_chunk
from llmsim.workload.rows import Rows

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_CHATGPT_CHAT, _CHATGPT_API, _GPT4_CHAT, _GPT4_API = range(4)
"""Indices into `CLIENTS`."""

SESSION_MEMORY_S = 86_400.0
"""How far back a conversation may be taken up again [s]; longer gaps start a new session."""


def streams_of(rate_rps: float) -> tuple[Burst, Burst]:
    """Return the arrival processes of conversations and of API calls.

    Parameters
    ----------
    rate_rps : float [requests/s]
        Their mean rates add up to this.
    """
    conversations = Burst(
        rate_rps * fit.CONVERSATION_FRAC,
        cv=fit.CONVERSATION_GAP_CV,
        by_hour=fit.CONVERSATION_BY_HOUR,
        day_sigma=fit.CONVERSATION_DAY_SIGMA,
    )
    return conversations, Burst(rate_rps * (1.0 - fit.CONVERSATION_FRAC))


def _merged_days(rate_rps: float, seed: int) -> Iterator[tuple[Ints, npt.NDArray[np.bool_]]]:
    """Yield, day by day, the arrival times [ns] of both streams and which are API calls."""
    conversations, calls = streams_of(rate_rps)
    for chat_ns, api_ns in zip(
        conversations.days(seed, "conversations"), calls.days(seed, "calls"), strict=False
    ):
        times = np.concatenate((chat_ns, api_ns))
        order = np.argsort(times, kind="stable")
        yield times[order], order >= len(chat_ns)


@ARRIVALS.register("burstgpt-like")
@dataclass(frozen=True)
class BurstGPTLikeArrivals:
    """Arrivals as in BurstGPT: quiet conversations and bursty API calls together.

    Parameters
    ----------
    rate_rps : float [requests/s]
        Mean rate; that of the published collection unless given. Single days differ from it by
        several times.
    """

    rate_rps: Annotated[float, Gt(0)] = fit.PUBLISHED_RATE_RPS

    @property
    def closed_loop(self) -> ClosedLoop | None:
        """None: an open process."""
        return None

    def sampler(self, seed: int) -> ArrivalSampler:
        """Return a function that gives the next n arrival times."""
        return buffered(times for times, _ in _merged_days(self.rate_rps, seed))


class _ClientLengths:
    """Draws lengths given the client, on streams of their own."""

    def __init__(self, seed: int, part: str) -> None:
        self._prompt = stream(seed, "lengths", part, "prompt")
        self._output = stream(seed, "lengths", part, "output")
        rho = 2.0 * math.sin(math.pi * fit.RANK_CORRELATION / 6.0)
        self._rho, self._own = rho, math.sqrt(1.0 - rho * rho)

    def draw(self, client: npt.NDArray[np.int32]) -> tuple[Tokens, Tokens]:
        """Return prompt and output tokens (n,) of requests of these clients."""
        prompt_z = self._prompt.standard_normal(len(client))
        output_z = self._own * self._output.standard_normal(len(client)) + self._rho * prompt_z
        api = (client == _CHATGPT_API) | (client == _GPT4_API)
        prompt = _api_law(prompt_z, fit.API_TOKENS * (1.0 - fit.API_OUTPUT_FRAC))
        output = _api_law(output_z, fit.API_TOKENS * fit.API_OUTPUT_FRAC)
        for index, prompt_table, output_table in (
            (_CHATGPT_CHAT, fit.CHATGPT_PROMPT_TOKENS, fit.CHATGPT_OUTPUT_TOKENS),
            (_GPT4_CHAT, fit.GPT4_PROMPT_TOKENS, fit.GPT4_OUTPUT_TOKENS),
        ):
            mine = ~api & (client == index)
            prompt[mine] = _by_quantiles(prompt_z[mine], prompt_table)
            output[mine] = _by_quantiles(output_z[mine], output_table)
        return to_tokens(prompt, fit.MOST_PROMPT_TOKENS), to_tokens(output, fit.MOST_OUTPUT_TOKENS)


def _api_law(z: Floats, mean: float) -> Floats:
    variance = math.log1p(fit.API_LENGTH_CV**2)
    law: Floats = np.exp(math.log(mean) - variance / 2.0 + math.sqrt(variance) * z)
    return law


def _by_quantiles(z: Floats, table: tuple[int, ...]) -> Floats:
    """Map normal draws onto a quantile table, log length linear in z between the knots."""
    return np.exp(np.interp(z, fit.QUANTILE_Z, np.log(table)))


def _clients(api: npt.NDArray[np.bool_], draw: Floats) -> npt.NDArray[np.int32]:
    """Return the client of each request: API or not, and a uniform draw for the model."""
    chatgpt = draw < np.where(api, fit.API_CHATGPT_FRAC, fit.CONVERSATION_CHATGPT_FRAC)
    gpt4 = np.where(api, _GPT4_API, _GPT4_CHAT)
    return np.where(chatgpt, np.where(api, _CHATGPT_API, _CHATGPT_CHAT), gpt4).astype(np.int32)


@LENGTHS.register("burstgpt-like")
@dataclass(frozen=True)
class BurstGPTLikeLengths:
    """Lengths as in BurstGPT: conversations by measured quantiles, API calls lognormal.

    Parameters
    ----------
    conversation_frac : float
        Share of conversations; that of BurstGPT_1 unless given.
    """

    conversation_frac: Annotated[float, Ge(0)] = fit.CONVERSATION_FRAC

    def sampler(self, seed: int, near: Path | None, part: str) -> LengthSampler:
        """Return a function that draws lengths."""
        lengths = _ClientLengths(seed, part)
        kind, model = stream(seed, "lengths", part, "kind"), stream(seed, "lengths", part, "model")

        def sample(rows: int) -> tuple[Tokens, Tokens]:
            api = kind.random(rows) >= self.conversation_frac
            return lengths.draw(_clients(api, model.random(rows)))

        return sample


class _Sessions:
    """Puts conversation requests into sessions.

    A request continues a session with probability 1 - 1/turns: it draws the gap since the turn
    before it and joins the session of the last conversation at least that long ago.
    """

    def __init__(self, seed: int) -> None:
        self._fresh = stream(seed, "sessions", "fresh")
        self._gap = stream(seed, "sessions", "gap")
        self._past_ns: Ints = np.empty(0, dtype=np.int64)
        self._past_session: Ints = np.empty(0, dtype=np.int64)
        self._begun = 0

    def assign(self, times_ns: Ints) -> Ints:
        """Return the session ids of the next conversation requests (n,), in time order."""
        rows, past = len(times_ns), len(self._past_ns)
        known_ns = np.concatenate((self._past_ns, times_ns))
        gap_s = np.exp(
            fit.TURN_GAP_LOG_MEAN + fit.TURN_GAP_LOG_SIGMA * self._gap.standard_normal(rows)
        )
        before = np.maximum(np.rint(gap_s * NS_PER_S), 1.0).astype(np.int64)
        parent = np.searchsorted(known_ns, times_ns - before, side="right") - 1
        fresh = self._fresh.random(rows) < 1.0 / fit.TURNS_PER_SESSION
        fresh |= (parent < 0) | (gap_s > SESSION_MEMORY_S)
        own = np.arange(rows) + past
        root = np.concatenate((np.arange(past), np.where(fresh, own, parent)))
        # A parent always comes before its child, so jumping to the parent's parent ends.
        while not np.array_equal(root, further := root[root]):
            root = further
        session = np.concatenate((self._past_session, np.full(rows, -1, dtype=np.int64)))
        session[own[fresh]] = self._begun + np.arange(np.count_nonzero(fresh))
        self._begun += int(np.count_nonzero(fresh))
        session = np.asarray(session[root], dtype=np.int64)
        if rows:
            recent = known_ns > known_ns[-1] - round(SESSION_MEMORY_S * NS_PER_S)
            self._past_ns, self._past_session = known_ns[recent], session[recent]
        fresh_ids: Ints = session[past:]
        return fresh_ids


class _Failures:
    """Marks failed rows: they start at random, and may bring down the next row too."""

    def __init__(self, seed: int) -> None:
        self._start = stream(seed, "failures", "start")
        self._spread = stream(seed, "failures", "spread")
        self._pulls_next = False

    def draw(self, rows: int) -> npt.NDArray[np.bool_]:
        """Return which of the next rows fail (n,)."""
        start = self._start.random(rows) < fit.FAILED_FRAC / (1.0 + fit.FAILURE_FOLLOWS_FRAC)
        pulls = start & (self._spread.random(rows) < fit.FAILURE_FOLLOWS_FRAC)
        pulled = np.concatenate(([self._pulls_next], pulls))
        self._pulls_next = bool(pulled[-1])
        return start | pulled[:-1]


def like_days(rate_rps: float, seed: int) -> Iterator[Rows]:
    """Yield BurstGPT-like rows day by day, without end.

    Parameters
    ----------
    rate_rps : float [requests/s]
    seed : int

    Yields
    ------
    Rows
        Times since the first midnight; lengths are set for failed rows too, as if they had been
        answered.
    """
    lengths, sessions = _ClientLengths(seed, "requests"), _Sessions(seed)
    failures, model = _Failures(seed), stream(seed, "lengths", "requests", "model")
    made = 0
    for times_ns, api in _merged_days(rate_rps, seed):
        rows = len(times_ns)
        client = _clients(api, model.random(rows))
        prompt_tokens, output_tokens = lengths.draw(client)
        session = np.full(rows, -1, dtype=np.int64)
        session[~api] = sessions.assign(times_ns[~api])
        yield Rows(
            time_ns=times_ns,
            prompt_tokens=prompt_tokens.astype(np.int64),
            output_tokens=output_tokens.astype(np.int64),
            line=np.arange(made + 2, made + 2 + rows, dtype=np.int64),
            session=session,
            client=client,
            failed=failures.draw(rows),
        )
        made += rows


@TRACES.register("burstgpt-like")
@dataclass(frozen=True, kw_only=True)
class BurstGPTLike:
    """Generated BurstGPT-like traffic of any size; reads no file.

    Parameters
    ----------
    days : float, optional [days]
        Generate this many days from midnight.
    requests : int, optional
        Generate this many requests. Exactly one of `days` and `requests` must be given.
    rate_rps : float [requests/s]
        Mean rate; that of the published collection (10.31 M in 213 days) unless given.
    failed : {"drop", "as_demand", "inject"}
        What becomes of the 1.8% of rows that failed: left out, ordinary requests, or failures
        that load nothing.
    chunk_rows : int
        Rows in a chunk; the requests do not depend on it.
    """

    days: Annotated[float, Gt(0)] | None = None
    requests: Annotated[int, Ge(1)] | None = None
    rate_rps: Annotated[float, Gt(0)] = fit.PUBLISHED_RATE_RPS
    failed: Literal["drop", "as_demand", "inject"] = "drop"
    chunk_rows: Annotated[int, Ge(1)] = 65_536

    def open(self, seed: int, near: Path | None) -> Workload:
        """Return the generated workload.

        Raises
        ------
        InputError
            If a parameter is out of its limits, or not exactly one of `days` and `requests` is
            given.
        """
        label = "trace 'burstgpt-like'"
        check_parameters(self, label)
        if (self.days is None) == (self.requests is None):
            got = "neither" if self.days is None else "both"
            message = f"give either days or requests, got {got}"
            raise InputError(label, [Fault("", "days", message)])
        return _LikeWorkload(self, seed)


class _LikeWorkload:
    """The workload behind `BurstGPTLike`."""

    def __init__(self, options: BurstGPTLike, seed: int) -> None:
        self._options, self._seed = options, seed
        self.total: int | None = options.requests
        self.clients: tuple[str, ...] = CLIENTS
        self.slo_classes: tuple[str, ...] = ()
        self.closed_loop: ClosedLoop | None = None
        self.programs: Programs | None = None
        self.skipped_rows = 0

    def chunks(self) -> Iterator[RequestChunk]:
        """Yield the requests in arrival order; every call starts anew and gives the same rows."""
        for part in rechunked(self._rows(), self._options.chunk_rows):
            yield to_chunk(part)

    def _rows(self) -> Iterator[Rows]:
        options, left = self._options, self._options.requests
        end_ns = None if options.days is None else round(options.days * DAY_S * NS_PER_S)
        for day, part in enumerate(like_days(options.rate_rps, self._seed), start=1):
            rows, over = _by_choice(part, options.failed), False
            if end_ns is not None:
                rows = rows.take(slice(0, np.searchsorted(rows.time_ns, end_ns)))
                over = end_ns <= day * DAY_S * NS_PER_S
            if left is not None:
                rows = rows.take(slice(0, left))
                left -= len(rows)
                over = left == 0
            if len(rows):
                yield rows
            if over:
                return


def _by_choice(rows: Rows, failed: str) -> Rows:
    if failed == "drop":
        return rows.take(~rows.failed)
    return rows if failed == "inject" else rows.all_answered()
