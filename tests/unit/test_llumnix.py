"""Llumnix's mechanism by hand: memory that lies in pieces is put together by one move."""

import csv
from datetime import UTC, datetime, timedelta
from functools import cache

import pytest

import llmsim as ls

BLOCKS = 960  # of 16 tokens: an A10 beside the weights of a 7B model
LONG = (2950, 1050)  # a fifth of a replica's KV, and a thousand tokens more to come
ENGINE = {"lookahead": 0, "max_num_batched_tokens": 16384}
START = datetime(2026, 1, 1, tzinfo=UTC)


def traffic(path, requests):
    with path.open("w", newline="") as handle:
        rows = csv.writer(handle)
        rows.writerow(["TIMESTAMP", "ContextTokens", "GeneratedTokens"])
        for at_s, prompt, output in requests:
            rows.writerow([f"{START + timedelta(seconds=at_s):%F %T}", prompt, output])
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Six long requests on two replicas, three on each, and one that comes 8 s later."""
    folder = tmp_path_factory.mktemp("llumnix")

    @cache
    def go(need_frac: float, moves: bool):
        tokens = round(need_frac * BLOCKS * 16)
        path = traffic(folder / f"{need_frac}.csv", [(0, *LONG)] * 6 + [(8, tokens, 20)])
        scenario = {
            "llmsim": 1,
            "name": "micro",
            "model": "qwen1.5-7b",  # 32 layers, 32 heads of 128: half a megabyte a token
            "traffic": {"trace": {"kind": "azure-2023", "path": path}},
            "engine": {"max_model_len": 13000, "kv_blocks": BLOCKS, "lookahead": 0}
            | {"max_num_batched_tokens": 16384},
            "fleet": {
                "migration": {"link": "ethernet-64g"},
                "control": [{"kind": "llumnix"}] if moves else [],
                "pools": {"main": {"replicas": 2, "gpu": "a10"}},
            },
        }
        return ls.run(ls.Scenario.parse(scenario))

    return go


def test_one_move_makes_room(run):
    """The arrival needs 55%, both replicas have 40%: it waits for an end, or for one move."""
    waits, moved = run(0.55, False).requests.iloc[-1], run(0.55, True)
    arrival = moved.requests.iloc[-1]
    assert waits["queue_s"] > 20 * arrival["queue_s"]
    assert waits["ttft_s"] > 20 * arrival["ttft_s"]  # 1.6 s of either is its own prefill
    start, end = moved.changes.iloc[0], moved.changes.iloc[1]
    assert (start["what"], end["what"], start["time_s"]) == ("migrate", "migrated", 8.0)
    assert end["request"] == start["request"]


def test_the_victim_waits_for_little_by_hand(run):
    """It sits out while a handful of tokens is copied, and joins at the target's next step."""
    moved = run(0.55, True)
    end = moved.changes.iloc[1]
    # six tokens appeared during the first copy of 0.2 s: half a megabyte each over 8 GB/s, one
    # message per layer and K or V, and the handshake
    tokens = (end["length_s"] - 1e-3 - 64e-6) / (2**19 / 8e9)
    assert tokens == pytest.approx(6, abs=0.01)
    victim = moved.requests.iloc[end["request"]]
    step_s = run(0.55, False).requests["itl_max_s"].max()
    # its own next step, and no more than the whole of one that the target is in the middle of
    assert victim["itl_max_s"] < 2 * step_s + end["length_s"]


def test_nothing_moves_where_there_is_room(run):
    """Null: an arrival that needs 35% fits at once."""
    with_it, without = run(0.35, True), run(0.35, False)
    assert with_it.changes[with_it.changes["time_s"] < 8.1].empty
    assert with_it.requests.iloc[-1]["ttft_s"] == without.requests.iloc[-1]["ttft_s"]
