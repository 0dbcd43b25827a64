"""Prices of worlds: straight lines in the context sums, and what is made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from llmsim.costmodel.contract import Chunk, PriceLine, RankLoad, StepCost
from llmsim.costmodel.lanes import Use

MS = 1_000_000
BEYOND = 2**62


@dataclass(frozen=True)
class Cost:
    """A price that is a straight line (or two) in the context sums, as `StepCost` asks for.

    ``gpu = base + per_request * decodes + per_token * padded + per_windowed * windowed``, plus
    per_new and per_pair for prefill; a step lasts ``max(gpu, host_ns)``.
    """

    base_ns: float = 5.0 * MS
    per_request_ns: float = 20_000.0
    per_token_ns: float = 20.0
    per_new_ns: float = 20_000.0
    per_pair_ns: float = 0.0
    per_windowed_ns: float = 0.0
    host_ns: float = 0.0
    context_tile: int = 1
    window_tokens: int = 0

    def decode_line(self, batch: int, padded_tokens: int) -> PriceLine:
        flat = self.base_ns + self.per_request_ns * batch
        gpu = PriceLine(flat, self.per_token_ns, self.per_windowed_ns)
        if not self.host_ns:
            return gpu
        assert not self.per_windowed_ns  # a knot in two sums is no knot in one of them
        slack = self.host_ns - flat
        if slack < 0:
            return gpu
        until = math.floor(slack / self.per_token_ns) if self.per_token_ns else BEYOND
        if padded_tokens > until:
            return gpu
        return PriceLine(self.host_ns, 0.0, 0.0, until)

    def step_ns(
        self, chunks: Sequence[Chunk], decode: int, padded_tokens: int, windowed_tokens: int,
        logits: int,
    ) -> int:  # fmt: skip
        if not chunks and decode:
            line = self.decode_line(decode, padded_tokens)
            time = line.base_ns + line.per_token_ns * padded_tokens
            return max(1, round(time + line.per_windowed_ns * windowed_tokens))
        gpu = self.base_ns + self.per_request_ns * decode + self.per_token_ns * padded_tokens
        gpu += self.per_windowed_ns * windowed_tokens
        for new, past in chunks:
            gpu += self.per_new_ns * new + self.per_pair_ns * new * (past + 0.5 * (new + 1))
        return max(1, round(max(gpu, self.host_ns)))


@dataclass(frozen=True)
class Uneven(Cost):
    """A price by how much longer the longest context is than the others, with knots."""

    per_overhang_ns: float = 333.3
    uneven: ClassVar[bool] = True

    def decode_line(self, batch: int, padded_tokens: int, overhang_tokens: int = 0) -> PriceLine:
        line = super().decode_line(batch, padded_tokens)
        # dearer from piece to piece, as where contexts are cut into more parts
        piece = (padded_tokens - overhang_tokens) // 500
        parts = 1 + max(0, piece) % 3
        tail = self.per_overhang_ns * overhang_tokens / parts
        until = 500 * (piece + 1) + overhang_tokens - 1
        return PriceLine(line.base_ns + tail, line.per_token_ns, line.per_windowed_ns, until)

    def step_ns(
        self, chunks: Sequence[Chunk], decode: int, padded_tokens: int, windowed_tokens: int,
        logits: int, overhang_tokens: int = 0,
    ) -> int:  # fmt: skip
        if not chunks and decode:
            line = self.decode_line(decode, padded_tokens, overhang_tokens)
            return max(1, round(line.base_ns + line.per_token_ns * padded_tokens))
        plain = super().step_ns(chunks, decode, padded_tokens, windowed_tokens, logits)
        return plain + round(self.per_overhang_ns * overhang_tokens)


class Like:
    """What a price made of another takes over from it."""

    cost: StepCost

    @property
    def context_tile(self) -> int:
        return self.cost.context_tile

    @property
    def window_tokens(self) -> int:
        return self.cost.window_tokens


@dataclass(frozen=True)
class Joint(Like):
    """Ranks that step together, on the terms of a `Cost`: what several have is in the largest.

    ``gpu = base + per_request * most + per_expert * sum of max(1, tokens) + slowest attention``.
    """

    cost: Cost
    per_expert_ns: float = 3_000.3

    def _rest_ns(self, most: int, total: int) -> float:
        return self.cost.base_ns + self.cost.per_request_ns * most + self.per_expert_ns * total

    def attention_line(self, batch: int, padded_tokens: int) -> PriceLine:
        # a second piece, so that lines have an end
        until = 300 * batch
        if padded_tokens <= until:
            return PriceLine(7.0 * batch, self.cost.per_token_ns, self.cost.per_windowed_ns, until)
        steeper = 1.5 * self.cost.per_token_ns
        return PriceLine(8.0 * batch, steeper, self.cost.per_windowed_ns)

    def decode_line(self, batches: Sequence[int], lead: int, padded_tokens: int) -> PriceLine:
        own = self.attention_line(batches[lead], padded_tokens)
        flat = own.base_ns + self._rest_ns(max(batches), sum(max(1, batch) for batch in batches))
        if not self.cost.host_ns:
            return PriceLine(flat, own.per_token_ns, own.per_windowed_ns, own.until_tokens)
        slack = self.cost.host_ns - flat
        until = math.floor(slack / own.per_token_ns) if slack > 0 and own.per_token_ns else -1
        if padded_tokens > until:
            return PriceLine(flat, own.per_token_ns, own.per_windowed_ns, own.until_tokens)
        return PriceLine(self.cost.host_ns, 0.0, 0.0, min(until, own.until_tokens))

    def step_ns(self, loads: Sequence[RankLoad]) -> int:
        slowest = most = total = 0.0
        for load in loads:
            own = 0.0
            if load.decode:
                line = self.attention_line(load.decode, load.padded)
                own = line.base_ns + line.per_token_ns * load.padded
                own += line.per_windowed_ns * load.windowed
            for new, past in load.chunks:
                own += self.cost.per_new_ns * new
                own += self.cost.per_pair_ns * new * (past + 0.5 * (new + 1))
            slowest = max(slowest, own)
            most = max(most, load.new + load.decode)
            total += max(1, load.new + load.decode)
        return max(1, round(max(slowest + self._rest_ns(most, total), self.cost.host_ns)))


class Staged(Like):
    """A pipeline on the terms of a `Cost`: of a step, each stage takes its share of the time.

    Between stages something is sent, and before the first the host works, as long as told.
    """

    def __init__(
        self, cost: Cost, shares: Sequence[float], hop_ns: float = 0.0, host_ns: int = 0
    ) -> None:
        self.cost = cost
        self.stages = len(shares)
        self._shares, self._hop_ns, self._host_ns = tuple(shares), hop_ns, host_ns
        pairs = [(f"stage {number}", f"link {number}") for number in range(len(shares))]
        self.names = ("host", *(name for pair in pairs for name in pair))

    def decode_line(self, batch: int, padded_tokens: int) -> PriceLine:
        return self.cost.decode_line(batch, padded_tokens)

    def step_ns(
        self, chunks: Sequence[Chunk], decode: int, padded_tokens: int, windowed_tokens: int,
        logits: int,
    ) -> int:  # fmt: skip
        return sum(self.station_ns(chunks, decode, padded_tokens, windowed_tokens, logits))

    def station_ns(
        self, chunks: Sequence[Chunk], decode: int, padded_tokens: int, windowed_tokens: int,
        logits: int,
    ) -> list[int]:  # fmt: skip
        whole = self.cost.step_ns(chunks, decode, padded_tokens, windowed_tokens, logits)
        tokens = decode + sum(new for new, _ in chunks)
        times = [self._host_ns]
        for share in self._shares:
            times += [max(1, round(whole * share)), round(self._hop_ns * tokens)]
        return times

    def station_lines(self, batch: int, padded_tokens: int) -> list[PriceLine]:
        whole = self.cost.decode_line(batch, padded_tokens)
        lines = [PriceLine(float(self._host_ns), 0.0)]
        for share in self._shares:
            part = [share * p for p in (whole.base_ns, whole.per_token_ns, whole.per_windowed_ns)]
            lines.append(PriceLine(*part, whole.until_tokens))
            lines.append(PriceLine(float(round(self._hop_ns * batch)), 0.0))
        return lines


class StagedJoint(Like):
    """Ranks of a pipeline: of a joint step, each stage takes its share of the time.

    What is sent between stages is as much as the largest rank has.
    """

    def __init__(
        self, joint: Joint, shares: Sequence[float], hop_ns: float = 0.0, host_ns: int = 0
    ) -> None:
        self.cost = joint.cost
        self._joint = joint
        self.stages = len(shares)
        self._shares, self._hop_ns, self._host_ns = tuple(shares), hop_ns, host_ns
        pairs = [(f"stage {number}", f"link {number}") for number in range(len(shares))]
        self.names = ("host", *(name for pair in pairs for name in pair))

    def attention_line(self, batch: int, padded_tokens: int) -> PriceLine:
        return self._joint.attention_line(batch, padded_tokens)

    def decode_line(self, batches: Sequence[int], lead: int, padded_tokens: int) -> PriceLine:
        return self._joint.decode_line(batches, lead, padded_tokens)

    def step_ns(self, loads: Sequence[RankLoad]) -> int:
        return sum(self.station_ns(loads))

    def station_ns(self, loads: Sequence[RankLoad]) -> list[int]:
        whole = self._joint.step_ns(loads)
        most = max(load.new + load.decode for load in loads)
        times = [self._host_ns]
        for share in self._shares:
            times += [max(1, round(whole * share)), round(self._hop_ns * most)]
        return times


COSTS: dict[str, Cost] = {
    "round": Cost(),
    "flat": Cost(per_request_ns=0.0, per_token_ns=0.0, per_new_ns=0.0, per_pair_ns=0.0),
    "fractions": Cost(1_234_567.89, 777.77, 3.3333, 45_678.9, 1.7),
    "steep": Cost(10.0 * MS, 0.0, 100_000.0, 1_000.0),
    "tiled": Cost(1.5 * MS, 12_000.5, 46.03, 26_666.7, 0.13, context_tile=128),
    "tile 16": Cost(2.0 * MS, 0.0, 4_000.0, 26_666.0, context_tile=16),
    "knee": Cost(1.0 * MS, 100_000.0, 30_000.0, 20_000.0, host_ns=4.0 * MS),
    "tiled knee": Cost(0.5 * MS, 50_000.3, 1_700.7, 9_000.1, host_ns=2.0 * MS, context_tile=128),
    "uneven": Uneven(1.0 * MS, 5_000.5, 17.3, 9_000.1, context_tile=16),
    "window": Cost(1.0 * MS, 100.0, 1_000.0, 9_000.0, 0.0, 5_000.0, window_tokens=24),
    "tiled window": Cost(
        1.0 * MS, 100.1, 10.01, 9_000.7, 0.0, 50.03, context_tile=16, window_tokens=40
    ),
    "all windowed": Cost(
        1.0 * MS, 0.0, 0.0, 9_000.0, 0.0, 333.3, context_tile=128, window_tokens=100
    ),
}
"""Prices by name; every one keeps the contract of `StepCost` exactly."""

APART: dict[str, Cost] = {"a millisecond a token": Cost(0.0, 0.0, 0.0, 1.0 * MS)}
"""Prices that no random world draws."""

PRICES = COSTS | APART


@dataclass(frozen=True)
class Slower(Like):
    """Another price, at a share of the GPU."""

    cost: StepCost
    share_frac: float

    def decode_line(self, batch: int, padded_tokens: int) -> PriceLine:
        line = self.cost.decode_line(batch, padded_tokens)
        prices = (line.base_ns, line.per_token_ns, line.per_windowed_ns)
        return PriceLine(*(price / self.share_frac for price in prices), line.until_tokens)

    def step_ns(
        self, chunks: Sequence[Chunk], decode: int, padded_tokens: int, windowed_tokens: int,
        logits: int,
    ) -> int:  # fmt: skip
        if not chunks and decode:
            line = self.decode_line(decode, padded_tokens)
            time = line.base_ns + line.per_token_ns * padded_tokens
            return max(1, round(time + line.per_windowed_ns * windowed_tokens))
        whole = self.cost.step_ns(chunks, decode, padded_tokens, windowed_tokens, logits)
        return max(1, round(whole / self.share_frac))


@dataclass(frozen=True)
class ByLayers(Like):
    """Steps whose prompts go through some of eight layers: the decodes, and a share of the rest."""

    cost: StepCost
    layers: int = 8

    def step_ns(
        self, chunks: Sequence[Chunk], first: int, end: int, decode: int, padded_tokens: int,
        windowed_tokens: int, logits: int,
    ) -> int:  # fmt: skip
        sums = (decode, padded_tokens, windowed_tokens)
        whole = self.cost.step_ns(chunks, *sums, logits)
        alone = self.cost.step_ns([], *sums, decode)
        return max(1, round(alone + (whole - alone) * (end - first) / self.layers))


@dataclass(frozen=True)
class MadeUpUse:
    """What steps take of a GPU that lanes share: prefill many SMs, decode much bandwidth."""

    share_frac: float

    def of(
        self, chunks: Sequence[Chunk], decode: int, padded_tokens: int, logits: int,
        alone_ns: float,
    ) -> Use:  # fmt: skip
        if chunks:
            new = sum(new for new, _ in chunks)
            return Use(self.share_frac * new / (new + 20), 0.3)
        return Use(0.4 * self.share_frac, padded_tokens / (padded_tokens + 100))
