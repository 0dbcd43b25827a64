"""The reference engine's scheduler against vLLM's recordings: no torch needed.

The recordings lie outside the repository (``../shared/scheduler_golden``); without them the cases
by hand still hold the rules.
"""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest
from llmsim_kernels.engine.scheduler import EngineSettings, Scheduler, Sequence

from llmsim.core.errors import InputError

ROOT = Path(__file__).resolve().parents[2].parent / "shared" / "scheduler_golden"


def plain(folder: Path) -> bool:
    """Whether a recording uses nothing that the reference engine leaves out."""
    told = json.loads((folder / "config.json").read_text())
    return not (
        told["enable_prefix_caching"]
        or told["async_scheduling"]
        or told["policy"] != "fcfs"
        or told["long_prefill_token_threshold"]
        or told.get("watermark")
        or not told["scheduler_reserve_full_isl"]
        or not told["enable_chunked_prefill"]
    )


FOLDERS = sorted(path.parent for path in ROOT.glob("vllm-*/*/config.json") if plain(path.parent))


def rows(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt") as file:
        return list(csv.DictReader(file))


def scheduler(**limits) -> Scheduler:
    usual = {"max_num_seqs": 8, "max_num_batched_tokens": 32, "block_tokens": 4, "kv_blocks": 100}
    return Scheduler(EngineSettings(**{**usual, **limits}))


def served(line: Scheduler) -> list[list[tuple[int, int, int]]]:
    """Run until nobody is left; return each step's (request, new, past)."""
    steps = []
    while line.busy:
        slices = line.plan()
        assert slices
        steps.append([(part.sequence.index, part.new, part.past) for part in slices])
        line.finish(slices, 0.0)
    return steps


@pytest.mark.skipif(not ROOT.exists(), reason=f"no recordings in {ROOT}")
def test_some_recordings_are_plain_enough():
    assert len(FOLDERS) >= 2


@pytest.mark.parametrize(
    "folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}/{folder.name}"
)
def test_every_decision_that_vllm_recorded(folder):
    told = json.loads((folder / "config.json").read_text())
    line = Scheduler(
        EngineSettings(
            told["max_num_seqs"],
            told["max_num_batched_tokens"],
            told["max_model_len"],
            told["block_size"],
            told["num_gpu_blocks"] - 1,  # vLLM reserves one null block
        )
    )
    asks = sorted(rows(folder / "requests.csv.gz"), key=lambda r: (r["arrival_s"], r["request"]))
    names = [ask["request"] for ask in asks]
    coming = [
        (
            round(float(ask["arrival_s"]) * 1e9),
            index,
            int(ask["prompt_tokens"]),
            int(ask["output_tokens"]),
        )
        for index, ask in enumerate(asks)
    ]
    wanted: dict[str, list[tuple[str, int, int]]] = {}
    for row in rows(folder / "steps.csv.gz"):
        wanted.setdefault(row["step"], []).append(
            (row["request"], int(row["new_tokens"]), int(row["computed_before"]))
        )
    clock, now, at = told["clock"], 0, 0
    for summary in rows(folder / "step_summary.csv.gz"):
        if not line.busy:
            now = max(now, coming[at][0])
        while at < len(coming) and coming[at][0] <= now:
            line.enqueue(Sequence(*coming[at][1:]))
            at += 1
        slices = line.plan()
        got = [(names[part.sequence.index], part.new, part.past) for part in slices]
        assert got == wanted.get(summary["step"], []), f"step {summary['step']}"
        assert [names[s.index] for s in line.preempted] == summary["preempted"].split()
        assert len(line.free) == int(summary["free_blocks"])
        now += (
            clock["base_ns"]
            + clock["per_new_token_ns"] * sum(part.new for part in slices)
            + clock["per_context_token_ns"] * sum(part.past for part in slices)
        )
        done = line.finish(slices, now / 1e9)
        assert [names[s.index] for s in done] == summary["finished"].split()
    assert at == len(coming)
    assert not line.busy


def test_a_budget_cuts_prompts_and_decodes_go_first():
    line = scheduler(max_num_batched_tokens=10)
    line.enqueue(Sequence(0, 6, 3))
    line.enqueue(Sequence(1, 9, 1))
    assert served(line) == [
        [(0, 6, 0), (1, 4, 0)],
        [(0, 1, 6), (1, 5, 4)],
        [(0, 1, 7)],
    ]


def test_the_last_to_come_loses_its_blocks_and_starts_again():
    line = scheduler(kv_blocks=4)
    line.enqueue(Sequence(0, 7, 6))
    line.enqueue(Sequence(1, 7, 3))
    assert served(line) == [
        [(0, 7, 0), (1, 7, 0)],  # two blocks each: all four
        [(0, 1, 7), (1, 1, 7)],
        [(0, 1, 8)],  # a third block: request 1 goes, two tokens generated, and starts again
        [(0, 1, 9)],
        [(0, 1, 10)],
        [(0, 1, 11)],
        [(1, 9, 0)],
    ]
    assert sorted(line.free) == [1, 2, 3, 4]


def test_what_can_never_run_is_refused():
    line = scheduler(kv_blocks=4)
    for prompt, output in ((16, 1), (0, 3), (3, 0)):
        with pytest.raises(InputError, match="from 1 each to 16"):
            line.enqueue(Sequence(0, prompt, output))
