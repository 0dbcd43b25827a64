"""How many requests of one kind a replica sustains, in closed form.

A replica that runs at a steady batch turns its batch over once per output: while a request gets
its `output` tokens, as many prompts are computed as there are requests beside it. With decode steps
of ``T(B)`` and a prompt that takes ``P`` on top of the step it rides on, a request that runs in a
batch of B has (Little's law, mean values):

    TPOT = T(B) + B/output * P
    rate = B / (output * TPOT + P)

Of a pipeline this is a bound from below: ``T`` and ``P`` are whole passages through all stages, as
if one micro-batch held everybody. The micro-batches of vLLM's scheduler are unequal, and whoever is
in the largest waits for all of it; prompts alone do follow one another, one every P/stages.

The attention ranks of one replica step together. A rank computes ``B/output`` prompts a step, a
Poisson number of them; a step lasts as long as the rank with the most, for as many times as a
prompt adds to a rank, while the experts compute the prompts of all ranks.

Prompts queue for one another: the wait is that of M/D/1 (Pollaczek-Khinchine), plus half a step
until the scheduler looks. These are means: what a percentile asks for beyond them is left to
simulation, which corrects them by one factor per role.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from llmsim.costmodel import StepCost
from llmsim.costmodel.contract import JointCost, RankLoad
from llmsim.planner.problem import Role
from llmsim.serving.config import EngineConfig

Bound = Literal["tpot", "ttft", "e2e", "kv", "max_num_seqs", "prefill", "link", "none"]

NS = 1e-9

BUSY_FRAC = 0.98
"""Largest share of its time that a prefill replica may be busy without any limit on TTFT; the wait
has no bound as it nears 1."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Mean lengths of requests that are counted together.

    Parameters
    ----------
    prompt_tokens, output_tokens : int [tokens]
        At least 1 each.
    """

    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request is promised; infinite where nothing is.

    Parameters
    ----------
    ttft_s, tpot_s, e2e_s : float [s]
        The last from arrival to the last token.
    first_frac : float
        Share of `e2e_s` that prompts may take where replicas are apart and nothing else divides it.
    """

    ttft_s: float = math.inf
    tpot_s: float = math.inf
    e2e_s: float = math.inf
    first_frac: float = 0.5


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one replica sustains, and what keeps it from more.

    Parameters
    ----------
    rate_rps : float [requests/s]
        0 where the promise cannot be kept at any rate.
    batch : int [requests]
        Requests that run at a time then, on all attention ranks.
    ttft_s, tpot_s : float [s]
        Means at that rate; at the lowest one where it is 0.
    bound : str
        What would give way next.
    """

    rate_rps: float
    batch: int
    ttft_s: float
    tpot_s: float
    bound: Bound


def capacity(
    cost: StepCost,
    config: EngineConfig,
    shape: Shape,
    limits: Limits,
    role: Role = "mixed",
    joint: JointCost | None = None,
    ranks: int = 1,
) -> Capacity:
    """Return what one replica sustains of requests of one shape.

    Parameters
    ----------
    cost : StepCost
    config : EngineConfig
    shape : Shape
    limits : Limits
    role : {"mixed", "prefill", "decode"}
    joint : JointCost, optional
        Prices joint steps of a replica with several attention ranks.
    ranks : int
        How many those are.
    """
    if joint is None:
        replica = _Replica(cost, config, shape)
    else:
        replica = _Ranked(cost, config, shape, joint, ranks)
    if role == "prefill":
        return _prefill(replica, limits)
    return _decoding(replica, limits, mixed=role == "mixed")


class _Replica:
    """Times of one replica for one shape [s]."""

    ranks = 1

    def __init__(self, cost: StepCost, config: EngineConfig, shape: Shape) -> None:
        self.cost, self.config, self.shape = cost, config, shape
        self.stages: int = getattr(cost, "stages", 1)
        tile = cost.context_tile
        context = shape.prompt_tokens + shape.output_tokens // 2 + 1
        self._padded = -(-context // tile) * tile
        window = cost.window_tokens
        self._windowed = min(self._padded, -(-window // tile) * tile) if window else 0

    def step_s(self, batch: int) -> float:
        """Return the mean decode step of a batch: contexts half-way through their outputs."""
        line = self.cost.decode_line(batch, batch * self._padded)
        windowed = line.per_windowed_ns * batch * self._windowed
        return (line.base_ns + line.per_token_ns * batch * self._padded + windowed) * NS

    def prompt_s(self, batch: int) -> float:
        """Return what a prompt adds to the steps of a batch that it rides on."""
        alone = self.step_s(batch) if batch else 0.0
        budget = max(self.config.max_num_batched_tokens - batch, 1)
        limit = self.config.chunk_limit_tokens or budget
        most = min(budget, limit)
        past, total = 0, 0.0
        decode = (batch * self._padded, batch * self._windowed)
        while past < self.shape.prompt_tokens:
            new = min(most, self.shape.prompt_tokens - past)
            ends = past + new == self.shape.prompt_tokens
            step = self.cost.step_ns([(new, past)], batch, *decode, batch + ends)
            total += step * NS - alone
            past += new
        return total

    def prompts_s(self, batch: int, prompt_s: float) -> float:
        """Return what prompts that take so long each add to a mean step of a steady batch."""
        return batch / self.shape.output_tokens * prompt_s

    def most_batch(self) -> tuple[int, Bound]:
        """Return the largest batch and its bound: KV in blocks, its mean over an output's life."""
        block = self.config.block_tokens
        mean = self.shape.prompt_tokens + self.shape.output_tokens / 2
        fits = int(self.config.kv_blocks // math.ceil(mean / block))
        most = min(self.config.max_num_seqs, fits)
        return most, "kv" if fits < self.config.max_num_seqs else "max_num_seqs"


class _Ranked(_Replica):
    """The same of a replica with attention ranks; a batch is that of one rank."""

    def __init__(
        self,
        cost: StepCost,
        config: EngineConfig,
        shape: Shape,
        joint: JointCost,
        ranks: int,
    ) -> None:
        super().__init__(cost, config, shape)
        self.joint = joint
        self.ranks = ranks

    def step_s(self, batch: int) -> float:
        """Return the mean decode step with the same batch on every rank."""
        line = self.joint.decode_line([batch] * self.ranks, 0, batch * self._padded)
        windowed = line.per_windowed_ns * batch * self._windowed
        return (line.base_ns + line.per_token_ns * batch * self._padded + windowed) * NS

    def prompt_s(self, batch: int) -> float:
        """Return what a prompt on one rank adds; on every one where none decodes."""
        return self._added_s(batch, 1 if batch else self.ranks)

    def prompts_s(self, batch: int, prompt_s: float) -> float:
        """Return what the prompts of all ranks add to a mean step."""
        one = prompt_s
        further = (self._added_s(batch, self.ranks) - one) / max(self.ranks - 1, 1)
        each = batch / self.shape.output_tokens
        return most_of(self.ranks, each) * (one - further) + self.ranks * each * further

    def _added_s(self, batch: int, ranks: int) -> float:
        """Return what a prompt on each of some ranks adds to the steps of all."""
        alone = self.step_s(batch) if batch else 0.0
        budget = max(self.config.max_num_batched_tokens - batch, 1)
        most = min(budget, self.config.chunk_limit_tokens or budget)
        padded, windowed = batch * self._padded, batch * self._windowed
        idle = RankLoad([], batch, padded, windowed, batch)
        past, total = 0, 0.0
        while past < self.shape.prompt_tokens:
            new = min(most, self.shape.prompt_tokens - past)
            ends = past + new == self.shape.prompt_tokens
            busy = RankLoad([(new, past)], batch, padded, windowed, batch + ends)
            step = self.joint.step_ns([busy] * ranks + [idle] * (self.ranks - ranks))
            total += step * NS - alone
            past += new
        return total


def most_of(ranks: int, mean: float) -> float:
    """Return the mean of the largest of some Poisson numbers: the sum of 1 - P(all <= k).

    Parameters
    ----------
    ranks : int
        How many numbers.
    mean : float
        Of each.
    """
    term = below = math.exp(-mean)
    total, number = 0.0, 0
    while number <= mean or term > 1e-15:
        total += 1 - below**ranks
        number += 1
        term *= mean / number
        below = min(below + term, 1.0)
    return total


def _wait_s(busy_frac: float, service_s: float) -> float:
    """Return the mean wait in M/D/1."""
    return math.inf if busy_frac >= 1 else busy_frac * service_s / (2 * (1 - busy_frac))


def _prefill(replica: _Replica, limits: Limits) -> Capacity:
    """Price a replica that computes prompts alone: as busy as the wait allows."""
    prompt = replica.prompt_s(0)
    if prompt > limits.ttft_s:
        return Capacity(0.0, 0, prompt, 0.0, "ttft")
    room, each = limits.ttft_s - prompt, prompt / replica.stages
    # the wait of M/D/1 solved for the busy share
    busy = 1.0 if room == math.inf else 2 * room / (each + 2 * room)
    bound: Bound = "ttft" if busy < BUSY_FRAC else "prefill"
    busy = min(busy, BUSY_FRAC)
    rate = replica.ranks * busy / each
    return Capacity(rate, replica.ranks, prompt + _wait_s(busy, each), 0.0, bound)


def _decoding(replica: _Replica, limits: Limits, mixed: bool) -> Capacity:
    """Find the largest batch within the limits by bisection: every mean grows with the batch."""
    most, bound = replica.most_batch()

    def at(batch: int) -> Capacity:
        step = replica.step_s(batch)
        prompt = replica.prompt_s(batch) if mixed else 0.0
        output = replica.shape.output_tokens
        added = replica.prompts_s(batch, prompt) if mixed else 0.0
        tpot = step + added
        rate = batch / (output * tpot + prompt)
        busy = rate * output / batch * added
        first = prompt + 1.5 * step + _wait_s(busy, prompt) if mixed else 0.0
        return Capacity(rate * replica.ranks, batch * replica.ranks, first, tpot, "none")

    def kept(found: Capacity) -> Bound | None:
        if found.tpot_s > limits.tpot_s:
            return "tpot"
        if found.ttft_s > limits.ttft_s:
            return "ttft"
        whole_s = found.ttft_s + (replica.shape.output_tokens - 1) * found.tpot_s
        return "e2e" if whole_s > limits.e2e_s else None

    if most < 1:
        return Capacity(0.0, 0, math.nan, math.nan, "kv")
    low, high = 0, most + 1
    found, broken = at(1), None
    while high - low > 1:
        middle = (low + high) // 2
        tried = at(middle)
        reason = kept(tried)
        if reason is None:
            low, found = middle, tried
        else:
            high, broken = middle, reason
    if low == 0:
        return Capacity(0.0, 0, found.ttft_s, found.tpot_s, broken or bound)
    return Capacity(found.rate_rps, found.batch, found.ttft_s, found.tpot_s, broken or bound)
