"""Arrivals, clients and outcomes, on a fleet whose every step lasts 10 ms."""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace

import numpy as np
import pytest

from llmsim.costmodel.contract import PriceLine
from llmsim.policies import BATCHING, ENGINE_RULES, ROUTING
from llmsim.results.columns import OUTCOMES, RAW_COLUMNS
from llmsim.results.facts import PoolFacts
from llmsim.results.store import RequestSink
from llmsim.serving.config import EngineConfig
from llmsim.serving.labels import ClientRules
from llmsim.serving.simulate import PoolPlan, simulate
from llmsim.workload.chunk import ClosedLoop, RequestChunk
from llmsim.workload.programs import Programs

MS = 1_000_000

CONFIG = EngineConfig(
    max_num_seqs=8,
    max_num_batched_tokens=1000,
    max_model_len=100,
    block_tokens=10,
    kv_blocks=20,
    prefix_caching=False,
    chunked_prefill=True,
    chunk_limit_tokens=0,
    watermark_blocks=0,
    reserve_prompt=True,
    lookahead=0,
    fast_forward=True,
    rules=ENGINE_RULES["vllm-0.33"],
)


class TenMs:
    """Every step lasts 10 ms."""

    context_tile = 1
    window_tokens = 0

    def decode_line(self, batch, padded_tokens):
        return PriceLine(10.0 * MS, 0.0)

    def step_ns(self, chunks, decode, padded_tokens, windowed_tokens, logits):
        return 10 * MS


@dataclass
class Ask:
    """A request; times in ms."""

    at: int = 0
    prompt: int = 10
    output: int = 3
    abort: int = -1
    failed: bool = False
    session: int = -1


@dataclass
class Asks:
    """Requests in chunks of two rows, with an empty chunk among them."""

    asks: list[Ask]
    closed_loop: ClosedLoop | None = None
    programs: Programs | None = None
    clients: tuple[str, ...] = ()
    skipped_rows: int = 0

    @property
    def total(self):
        return len(self.asks)

    def chunks(self):
        for at in range(0, len(self.asks), 2):
            yield self.chunk(self.asks[at : at + 2])
            yield self.chunk([])

    def chunk(self, part):
        n = len(part)
        return RequestChunk(
            np.array([a.at * MS for a in part], np.int64),
            np.array([a.prompt for a in part], np.int32),
            np.array([a.output for a in part], np.int32),
            np.array([a.session for a in part], np.int64),
            np.full(n, -1, np.int32),
            np.zeros(n, np.int32),
            np.array([a.failed for a in part], np.bool_),
            np.array([a.abort * MS if a.abort >= 0 else -1 for a in part], np.int64),
        )


class Row:
    """A recorded request; times in ms."""

    def __init__(self, values):
        self.__dict__.update(zip(RAW_COLUMNS, values, strict=True))
        self.how = OUTCOMES[self.outcome]
        for name in ("arrival", "scheduled", "first_token", "end"):
            setattr(self, name, getattr(self, f"{name}_ns") / MS)


def serve(asks, config=CONFIG, timeout=0, replicas=1, routing="round-robin", age=0, **given):
    facts = PoolFacts("main", replicas, "any", 1, config.kv_blocks, 10, 1.0, "-")
    sink = RequestSink(("main",), ())
    told = simulate(
        [PoolPlan(facts, TenMs(), config, BATCHING.get("vllm"))],
        asks if isinstance(asks, Asks) else Asks(asks),
        ROUTING.get(routing)(),
        sink,
        view_age_ns=age * MS,
        clients=ClientRules(timeout_ns=timeout * MS),
        **given,
    )
    return [Row(values) for values in sorted(sink.raw().tolist())], told


@pytest.fixture(params=[True, False], ids=["merged", "stepped"])
def config(request):
    return replace(CONFIG, fast_forward=request.param)


def test_one_request(config):
    (row,), told = serve([Ask(at=5, output=4)], config)
    assert (row.how, row.arrival, row.scheduled, row.first_token, row.end) == (
        "finished", 5, 5, 15, 45,
    )  # fmt: skip
    assert (row.prompt_tokens, row.output_tokens, row.itl_max_ns) == (10, 4, 10 * MS)
    assert (told.requests, told.end_ns, told.replicas[0].steps) == (1, 45 * MS, 4)
    assert (row.replica, row.pool, row.preemptions, row.cached_tokens) == (0, 0, 0, 0)


def test_no_request_at_all(config):
    rows, told = serve([], config)
    assert (rows, told.requests, told.end_ns, told.itl.total) == ([], 0, 0, 0)


def test_arrivals_at_one_instant_share_a_step(config):
    rows, told = serve([Ask(), Ask(), Ask()], config)
    assert {(row.scheduled, row.first_token, row.end) for row in rows} == {(0, 10, 30)}
    assert told.replicas[0].steps == 3


def test_a_client_gives_up_in_the_line(config):
    """One seat: the second request is still in line at 25 ms, and leaves at once."""
    one_seat = replace(config, max_num_seqs=1)
    rows, _ = serve([Ask(output=10), Ask(abort=25), Ask(at=1, output=2)], one_seat)
    assert [row.how for row in rows] == ["finished", "aborted", "finished"]
    assert (rows[1].end, rows[1].scheduled_ns, rows[1].first_token_ns) == (25, -1, -1)
    assert (rows[1].output_tokens, rows[2].scheduled) == (0, 100)


def test_a_client_gives_up_while_it_is_served(config):
    """At 25 ms a step is under way: it runs to 30 ms, gives a third token, and that is the end."""
    rows, _ = serve([Ask(output=50), Ask(output=9, abort=25)], config)
    assert (rows[1].how, rows[1].end, rows[1].output_tokens) == ("aborted", 30, 3)
    assert (rows[0].how, rows[0].end) == ("finished", 500)


def test_a_client_that_leaves_after_its_end_changes_nothing(config):
    """The second one leaves at 20 ms sharp, when its last token comes: it has them all."""
    rows, _ = serve([Ask(output=2, abort=500), Ask(output=2, abort=20)], config)
    assert [(row.how, row.end) for row in rows] == [("finished", 20), ("finished", 20)]


def test_all_clients_time_out_alike(config):
    """Timeout 35 ms, one seat: 0 is done at 30 ms; 1 is half served, 2 never; 3 comes later."""
    one_seat = replace(config, max_num_seqs=1)
    asks = [Ask(output=3), Ask(at=1, output=3), Ask(at=2, output=3), Ask(at=60, output=3)]
    rows, _ = serve(asks, one_seat, timeout=35)
    assert [row.how for row in rows] == ["finished", "timed_out", "timed_out", "finished"]
    assert [row.end for row in rows] == [30, 40, 37, 90]
    assert [row.output_tokens for row in rows] == [3, 1, 0, 3]


def test_an_abort_before_the_timeout_is_an_abort(config):
    one_seat = replace(config, max_num_seqs=1)
    rows, _ = serve([Ask(output=9), Ask(abort=15), Ask(abort=50)], one_seat, timeout=30)
    assert [row.how for row in rows] == ["timed_out", "aborted", "timed_out"]
    assert [row.end for row in rows] == [30, 15, 30]


def test_what_the_engine_cannot_take(config):
    """max_model_len 100 and 20 blocks of 10: 99 tokens of prompt leave room for one of output."""
    rows, told = serve([Ask(prompt=100), Ask(prompt=99, output=5), Ask(prompt=150)], config)
    assert [row.how for row in rows] == ["rejected", "finished", "rejected"]
    assert (rows[1].output_tokens, rows[0].end, rows[0].replica) == (1, 0, 0)
    (warning,) = told.warnings
    assert warning.startswith("1 output")
    assert "max_model_len" in warning


def test_what_the_memory_can_never_hold(config):
    """Five blocks hold 50 tokens; the last output token needs no KV."""
    small = replace(config, kv_blocks=5)
    asks = [Ask(prompt=40, output=11), Ask(prompt=40, output=12), Ask(prompt=60, output=1)]
    rows, told = serve(asks, small)
    assert [row.how for row in rows] == ["finished", "unservable", "unservable"]
    assert (rows[0].end, rows[1].end, rows[1].output_tokens) == (110, 0, 0)
    assert told.replicas[0].peak_kv_blocks == 5


def test_recorded_failures_are_arrivals_without_load(config):
    rows, told = serve([Ask(failed=True), Ask(), Ask(at=5, failed=True)], config)
    assert [row.how for row in rows] == ["provider_failed", "finished", "provider_failed"]
    assert (rows[2].replica, rows[2].pool, rows[2].end) == (-1, -1, 5)
    assert (told.requests, rows[1].end) == (3, 30)


def test_a_closed_loop_keeps_its_number_in_flight(config):
    """Two slots, five requests of 30 ms: 0 and 1 at 0 ms, 2 and 3 at 30 ms, 4 at 60 ms."""
    loop = Asks([Ask(at=999) for _ in range(5)], ClosedLoop(2, 3))
    rows, told = serve(loop, config)
    assert [row.arrival for row in rows] == [0, 0, 30, 30, 60]
    assert {row.how for row in rows} == {"finished"}
    assert told.end_ns == 90 * MS


def test_a_closed_loop_thinks(config):
    loop = Asks([Ask() for _ in range(3)], ClosedLoop(1, 3, think_ns=7 * MS))
    rows, _ = serve(loop, config)
    assert [row.arrival for row in rows] == [0, 37, 74]


def test_a_slot_goes_on_after_a_request_that_nobody_took(config):
    """What is refused or failed ends at once; its slot sends the next one instead."""
    asks = [Ask(), Ask(prompt=500), Ask(failed=True), Ask(), Ask(prompt=500), Ask()]
    rows, _ = serve(Asks(asks, ClosedLoop(1, 6)), config)
    assert [row.how for row in rows] == [
        "finished", "rejected", "provider_failed", "finished", "rejected", "finished",
    ]  # fmt: skip
    assert [row.arrival for row in rows] == [0, 30, 30, 30, 60, 60]


def test_a_closed_loop_of_refusals_only_ends(config):
    rows, told = serve(Asks([Ask(prompt=500)] * 4, ClosedLoop(3, 2)), config)
    assert [row.how for row in rows] == ["rejected"] * 4
    assert told.requests == 4


def test_a_slot_whose_client_gave_up_sends_the_next(config):
    loop = Asks([Ask(output=50, abort=15), Ask(output=1)], ClosedLoop(1, 2))
    rows, _ = serve(loop, config)
    assert [(row.how, row.arrival, row.end) for row in rows] == [
        ("aborted", 0, 20),
        ("finished", 20, 30),
    ]


def test_an_old_view_sends_a_burst_to_one_replica(config):
    """With loads 50 ms old, everybody who comes in the first 50 ms sees two empty replicas."""
    asks = [Ask(at=at, output=30) for at in (0, 10, 20, 49, 50, 51, 59, 60)]
    fresh, _ = serve(asks, config, replicas=2, routing="least-loaded")
    assert [row.replica for row in fresh] == [0, 1] * 4
    old, _ = serve(asks, config, replicas=2, routing="least-loaded", age=50)
    # from 50 ms on the first one is seen on replica 0; at 60 ms the second one is, too
    assert [row.replica for row in old] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_refused_requests_are_no_load(config):
    asks = [Ask(prompt=500), Ask(output=9), Ask(output=9)]
    rows, _ = serve(asks, config, replicas=2, routing="least-loaded")
    assert [row.replica for row in rows] == [0, 0, 1]


def test_sessions_reach_the_router(config):
    asks = [Ask(at=i, session=i % 2, output=5 + 20 * (i == 0)) for i in range(6)]
    rows, _ = serve(asks, config, replicas=3, routing="session-sticky")
    assert [row.replica for row in rows] == [0, 1, 0, 1, 0, 1]


def test_an_interrupted_run_says_who_was_where():
    """One seat, Ctrl-C in the middle: some are done, one runs, one waits, one has not come yet."""
    one_seat = replace(CONFIG, max_num_seqs=1, fast_forward=False)
    calls = []

    class Stopping(TenMs):
        def decode_line(self, batch, padded_tokens):
            calls.append(padded_tokens)
            if len(calls) == 2:  # one line per composition: the second request decodes
                signal.raise_signal(signal.SIGINT)
            return super().decode_line(batch, padded_tokens)

    facts = PoolFacts("main", 1, "any", 1, 20, 10, 1.0, "-")
    sink = RequestSink(("main",), ())
    told = simulate(
        [PoolPlan(facts, Stopping(), one_seat, BATCHING.get("vllm"))],
        Asks([Ask(), Ask(), Ask(), Ask(at=900)]),
        ROUTING.get("round-robin")(),
        sink,
    )
    rows = [Row(values) for values in sorted(sink.raw().tolist())]
    assert told.interrupted
    assert [row.how for row in rows] == ["finished", "running_at_end", "queued_at_end"]
    assert told.requests == 3


def test_progress_is_told_now_and_then():
    heard = []
    asks = [Ask(at=i // 4, output=1) for i in range(9_000)]
    serve(asks, progress=lambda done, total: heard.append((done, total)))
    assert heard == [(8_192, 9_000)]
