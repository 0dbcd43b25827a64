"""Feed a recorded workload through one replica and write down every scheduler call."""

from __future__ import annotations

import csv
import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import simpy

from llmsim.costmodel.contract import PriceLine
from llmsim.policies.batching import VllmBatching
from llmsim.policies.rules import ENGINE_RULES
from llmsim.policies.views import RequestView
from llmsim.serving.clock import ARRIVAL_PRIORITY, Wake
from llmsim.serving.draft import EngineConfig
from llmsim.serving.replica import CallRecord, Replica
from llmsim.serving.request import DECODE, Request

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
class Call:
    """A scheduler call as the recordings tell it."""

    start_ns: int
    rows: list[tuple[str, int, int]]
    running: int
    waiting: int
    free: int
    preempted: list[str]


def rows(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt") as handle:
        return list(csv.DictReader(handle))


def to_ns(seconds: str) -> int:
    whole, _, fraction = seconds.partition(".")
    return int(whole) * 1_000_000_000 + int(fraction.ljust(9, "0"))


class Player:
    """One recorded scenario on one replica."""

    def __init__(self, folder: Path, fast_forward: bool) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        c = self.config
        usable = c["num_gpu_blocks"] - 1
        config = EngineConfig(
            max_num_seqs=c["max_num_seqs"],
            max_num_batched_tokens=c["max_num_batched_tokens"],
            max_model_len=c["max_model_len"],
            block_tokens=c["block_size"],
            kv_blocks=usable,
            prefix_caching=c["enable_prefix_caching"],
            chunked_prefill=c["enable_chunked_prefill"],
            chunk_limit_tokens=c["long_prefill_token_threshold"],
            watermark_blocks=int(c.get("watermark", 0.0) * c["num_gpu_blocks"]),
            reserve_prompt=c["scheduler_reserve_full_isl"],
            lookahead=int(c["async_scheduling"]),
            fast_forward=fast_forward,
            rules=RULES[c["vllm_version"]],
        )
        clock = c["clock"]
        self.env = simpy.Environment(0)
        self.replica = Replica(
            self.env,
            0,
            0,
            RecordedClock(
                clock["base_ns"], clock["per_new_token_ns"], clock["per_context_token_ns"]
            ),
            config,
            VllmBatching(order=c["policy"]),
            2**62,
            self._ended,
        )
        self.calls: list[Call] = []
        self.results: dict[str, tuple[int, int, int, int, int]] = {}
        self.replica.recorder = self._called
        raw = rows(folder / "requests.csv.gz")
        raw.sort(key=lambda r: (to_ns(r["arrival_s"]), r["request"]))
        names = [r["request"] for r in raw]
        self.names = names
        keys: dict[str, int] = {f"out.{name}": -1 - i for i, name in enumerate(names)}
        for i, r in enumerate(raw):
            segments = []
            for part in r["segments"].split("|"):
                key, length = part.rsplit(":", 1)
                segments.append((keys.setdefault(key, len(keys)), int(length)))
            view = RequestView(
                i,
                to_ns(r["arrival_s"]),
                int(r["prompt_tokens"]),
                -1,
                -1,
                int(r["priority"]),
                tuple(segments),
            )
            request = Request(view, int(r["output_tokens"]))
            event = Wake(lambda _, q=request: self.replica.enqueue(q))
            self.env.schedule(event, ARRIVAL_PRIORITY, view.arrival_ns)

    def run(self) -> None:
        self.env.run()

    def _ended(self, request: Request, outcome: str, time: int) -> None:
        assert outcome == "finished"
        self.results[self.names[request.view.index]] = (
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
        zombies = sum(1 for r in call.preempted if r.state not in (0,))
        self.calls.append(
            Call(
                call.now_ns,
                lines,
                len(call.running),
                call.waiting + zombies,
                call.free_blocks,
                [self.names[r.view.index] for r in call.preempted],
            )
        )
