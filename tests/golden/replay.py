"""Feed requests through one replica and write down every scheduler call, as vLLM's log would."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from llmsim.costmodel.contract import PriceLine
from llmsim.policies.batching import VllmBatching
from llmsim.policies.rules import ENGINE_RULES
from llmsim.policies.views import RequestView
from llmsim.serving.clock import ARRIVAL_PRIORITY, Clock
from llmsim.serving.config import EngineConfig
from llmsim.serving.record import CallRecord
from llmsim.serving.replica import Replica
from llmsim.serving.request import DECODE, WAITING, Request
from llmsim.serving.wake import Wake

RULES = {"0.33.0": ENGINE_RULES["vllm-0.33"], "0.20.1": ENGINE_RULES["vllm-0.20"]}


class RecordedClock:
    """The recordings' clock: base + per new token + per context token, in integer ns."""

    context_tile = 1
    window_tokens = 0

    def __init__(self, base_ns: int, per_new_ns: int, per_context_ns: int) -> None:
        self.base = base_ns
        self.new = per_new_ns
        self.context = per_context_ns

    def decode_line(self, batch: int, padded: int) -> PriceLine:
        # the padded sum counts this step's token, the recordings' context does not
        return PriceLine(float(self.base + (self.new - self.context) * batch), float(self.context))

    def step_ns(self, chunks, decode, padded, windowed, logits) -> int:
        new = decode + sum(n for n, _ in chunks)
        context = padded - decode + sum(past for _, past in chunks)
        return self.base + self.new * new + self.context * context


@dataclass
class WatchedBatching(VllmBatching):
    """vLLM's policy, which notes how many KV blocks were free before each call."""

    free_before: list[int] = field(default_factory=list)
    count_free: Callable[[], int] = int

    def plan(self, step) -> None:
        self.free_before.append(self.count_free())
        super().plan(step)


@dataclass
class Ask:
    """A request: name, lengths, when, how urgent, and what its prompt consists of.

    Segments are (key, length); the key ``out.NAME`` is the text that request NAME generated.
    """

    name: str
    arrival_ns: int
    prompt: int
    output: int
    priority: int = 0
    segments: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Call:
    """A scheduler call as the recordings tell it."""

    start_ns: int
    rows: list[tuple[str, int, int]]
    running: int
    waiting: int
    free: int
    preempted: list[str]


@dataclass(frozen=True)
class Outcome:
    """What became of a request."""

    first_scheduled_ns: int
    first_token_ns: int
    finish_ns: int
    preemptions: int
    cached_tokens: int


class Bench:
    """One replica, its requests, and what it does with them.

    Attributes
    ----------
    calls : list of Call
        Only exact with fast-forward off: a merged stretch is one call.
    outcomes : dict of str to Outcome
        In order of finish.
    """

    def __init__(
        self,
        asks: Iterable[Ask],
        config: EngineConfig,
        clock: RecordedClock,
        policy: VllmBatching,
    ) -> None:
        self.clock = Clock()
        self.policy = policy
        self.replica = Replica(self.clock, 0, 0, clock, config, policy, 2**62, self._ended)
        self.replica.recorder = self._called
        if isinstance(policy, WatchedBatching):
            policy.count_free = lambda: self.replica.ledger.free
        self.calls: list[Call] = []
        self.outcomes: dict[str, Outcome] = {}
        line = sorted(asks, key=lambda ask: (ask.arrival_ns, ask.name))
        self.names = [ask.name for ask in line]
        self.keys = {f"out.{name}": -1 - i for i, name in enumerate(self.names)}
        for index, ask in enumerate(line):
            self._announce(index, ask)

    def _announce(self, index: int, ask: Ask) -> None:
        segments = tuple(
            (self.keys.setdefault(key, len(self.keys)), length) for key, length in ask.segments
        )
        view = RequestView(
            index, ask.arrival_ns, ask.prompt, -1, -1, ask.priority, segments or None
        )
        request = Request(view, ask.output)
        event = Wake(lambda _: self.replica.enqueue(request))
        self.clock.at(event, ARRIVAL_PRIORITY, ask.arrival_ns)

    def run(self) -> None:
        self.clock.run()

    def _ended(self, request: Request, outcome: str, time: int) -> None:
        assert outcome == "finished"
        self.outcomes[self.names[request.view.index]] = Outcome(
            request.scheduled_ns,
            request.first_token_ns,
            time,
            request.preemptions,
            request.cached_tokens,
        )

    def _called(self, call: CallRecord) -> None:
        chunked = {request: (n, past) for request, n, past in call.chunks}
        lines = []
        tick = self.replica.cohort.tick
        for request in call.running:
            if request in chunked:
                n, past = chunked[request]
                lines.append((self.names[request.view.index], n, past))
            elif request.state == DECODE and call.decoding:
                lines.append((self.names[request.view.index], 1, request.base + tick))
        # vLLM keeps in line who lost its KV while its last token is on the way
        zombies = sum(request.state != WAITING for request in call.preempted)
        self.calls.append(
            Call(
                call.now_ns,
                lines,
                len(call.running),
                call.waiting + zombies,
                call.free_blocks,
                [self.names[request.view.index] for request in call.preempted],
            )
        )


# --- recordings -------------------------------------------------------------------------------


def rows(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt") as handle:
        return list(csv.DictReader(handle))


def to_ns(seconds: str) -> int:
    whole, _, fraction = seconds.partition(".")
    return int(whole) * 1_000_000_000 + int(fraction.ljust(9, "0"))


class Recording:
    """A recorded scenario: its settings, its requests, and what vLLM did."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = json.loads((folder / "config.json").read_text())
        self.sync = not self.settings["async_scheduling"]

    def config(self, fast_forward: bool) -> EngineConfig:
        c = self.settings
        return EngineConfig(
            max_num_seqs=c["max_num_seqs"],
            max_num_batched_tokens=c["max_num_batched_tokens"],
            max_model_len=c["max_model_len"],
            block_tokens=c["block_size"],
            kv_blocks=c["num_gpu_blocks"] - 1,  # vLLM reserves one null block
            prefix_caching=c["enable_prefix_caching"],
            chunked_prefill=c["enable_chunked_prefill"],
            chunk_limit_tokens=c["long_prefill_token_threshold"],
            watermark_blocks=int(c.get("watermark", 0.0) * c["num_gpu_blocks"]),
            reserve_prompt=c["scheduler_reserve_full_isl"],
            lookahead=int(c["async_scheduling"]),
            fast_forward=fast_forward,
            rules=RULES[c["vllm_version"]],
        )

    def asks(self) -> list[Ask]:
        return [
            Ask(
                row["request"],
                to_ns(row["arrival_s"]),
                int(row["prompt_tokens"]),
                int(row["output_tokens"]),
                int(row["priority"]),
                tuple(
                    (key, int(length))
                    for key, length in (p.rsplit(":", 1) for p in row["segments"].split("|"))
                ),
            )
            for row in rows(self.folder / "requests.csv.gz")
        ]

    def play(self, config: EngineConfig, policy: VllmBatching | None = None) -> Bench:
        """Run the requests through our replica."""
        clock = self.settings["clock"]
        bench = Bench(
            self.asks(),
            config,
            RecordedClock(
                clock["base_ns"], clock["per_new_token_ns"], clock["per_context_token_ns"]
            ),
            policy or WatchedBatching(order=self.settings["policy"]),
        )
        bench.run()
        return bench

    def summary(self) -> list[dict[str, str]]:
        return rows(self.folder / "step_summary.csv.gz")

    def calls(self) -> list[Call]:
        """Return vLLM's calls."""
        lines: dict[str, list[tuple[str, int, int]]] = {}
        for row in rows(self.folder / "steps.csv.gz"):
            lines.setdefault(row["step"], []).append(
                (row["request"], int(row["new_tokens"]), int(row["computed_before"]))
            )
        return [
            Call(
                to_ns(row["t_start_s"]),
                lines.get(row["step"], []),
                int(row["running"]),
                int(row["waiting"]),
                int(row["free_blocks"]),
                row["preempted"].split(),
            )
            for row in self.summary()
        ]

    def outcomes(self) -> dict[str, Outcome]:
        """Return vLLM's results, by request."""
        return {
            row["request"]: Outcome(
                to_ns(row["first_scheduled_s"]),
                to_ns(row["first_token_s"]),
                to_ns(row["finish_s"]),
                int(row["preemptions"]),
                int(row["cached_tokens_first"]),
            )
            for row in rows(self.folder / "results.csv.gz")
        }
