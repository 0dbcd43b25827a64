"""Every recorded decision of vLLM's scheduler, reproduced; and wrong rules, found out.

The recordings lie outside the repository (``../shared/scheduler_golden``); where they are absent,
`test_by_hand` still holds the rules.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from replay import Bench, Recording, WatchedBatching

ROOT = Path(__file__).resolve().parents[2].parent / "shared" / "scheduler_golden"
FOLDERS = sorted(path.parent for path in ROOT.glob("vllm-*/*/config.json"))

pytestmark = pytest.mark.skipif(not FOLDERS, reason=f"no recordings in {ROOT}")


@cache
def recording(name: str) -> Recording:
    return Recording(ROOT / name)


@cache
def played(name: str, fast_forward: bool) -> Bench:
    told = recording(name)
    return told.play(told.config(fast_forward))


scenarios = pytest.mark.parametrize(
    "name", [f"{folder.parent.name}/{folder.name}" for folder in FOLDERS]
)


def test_all_recordings_are_here():
    versions = {folder.parent.name for folder in FOLDERS}
    assert versions == {"vllm-0.33.0", "vllm-0.20.1"}
    assert len(FOLDERS) >= 35


@scenarios
def test_every_call(name):
    want, have = recording(name).calls(), played(name, False).calls
    for number, (expected, got) in enumerate(zip(want, have, strict=False)):
        assert got == expected, f"call {number}"
    assert len(have) == len(want)


@scenarios
def test_every_step_gives_back_the_blocks_that_vllm_gives_back(name):
    told, bench = recording(name), played(name, False)
    if told.sync:  # with two batches in flight there is no state between two calls
        free = [int(row["free_blocks_end"]) for row in told.summary()]
        assert [*bench.policy.free_before[1:], bench.replica.ledger.free] == free
    bench.replica.ledger.check()
    assert bench.replica.ledger.free == bench.replica.config.kv_blocks
    finished = [request for row in told.summary() for request in row["finished"].split()]
    assert list(bench.outcomes) == finished


@scenarios
def test_every_request(name):
    want = recording(name).outcomes()
    assert played(name, False).outcomes == want
    assert played(name, True).outcomes == want


@scenarios
def test_merged_steps_decide_the_same(name):
    stepped, merged = played(name, False).replica, played(name, True).replica
    assert merged.decisions == stepped.decisions
    assert merged.events < 0.8 * stepped.events
    assert merged.ledger.free == stepped.ledger.free
    assert merged.ledger.evicted == stepped.ledger.evicted
    told = recording(name).settings["stats"]
    assert merged.draft.preemptions == told["preemptions"]


def test_merging_saves_most_calls():
    events = [[played(f"{f.parent.name}/{f.name}", ff).replica.events for f in FOLDERS]
              for ff in (True, False)]  # fmt: skip
    assert sum(events[0]) < 0.3 * sum(events[1])


class AdmitsAfterPreemption(WatchedBatching):
    """Lets the queue in although somebody has just lost its KV."""

    def plan(self, step):
        step.advance_running()
        step.admit_waiting()


class QueueFirst(WatchedBatching):
    """Lets the queue in before those who run get their tokens."""

    def plan(self, step):
        step.admit_waiting()
        step.advance_running()


def flipped(config, rule):
    return replace(config, rules=replace(config.rules, **{rule: not getattr(config.rules, rule)}))


WRONG = {
    "a lone request is chunked": (
        "long_prefill_threshold_s2", lambda c: flipped(c, "lone_request_unchunked"), None,
    ),
    "unfilled blocks at the tail": (
        "kv_starved_s1", lambda c: flipped(c, "unfilled_blocks_first"), None,
    ),
    "self-preemption ends the scan": (
        "priority_preempt_s1", lambda c: flipped(c, "scan_ends_on_self_preemption"), None,
    ),
    "no lookahead": ("async_saturation_s1", lambda c: replace(c, lookahead=0), None),
    "lookahead": ("saturation_s1", lambda c: replace(c, lookahead=1), None),
    "no reservation of the prompt": (
        "long_prompts_s1", lambda c: replace(c, reserve_prompt=False), None,
    ),
    "reservation of the prompt": (
        "no_reserve_s1", lambda c: replace(c, reserve_prompt=True), None,
    ),
    "no watermark": ("watermark_s1", lambda c: replace(c, watermark_blocks=0), None),
    "watermark rounded up": (
        "watermark_s1", lambda c: replace(c, watermark_blocks=c.watermark_blocks + 1), None,
    ),
    "the head is cut": ("no_chunked_s1", lambda c: replace(c, chunked_prefill=True), None),
    "no prefix cache": ("prefix_pair_s1_on", lambda c: replace(c, prefix_caching=False), None),
    "prefix cache": ("prefix_pair_s1_off", lambda c: replace(c, prefix_caching=True), None),
    "the null block is usable": ("light_s1", lambda c: replace(c, kv_blocks=c.kv_blocks + 1), None),
    "one more seat": ("seq_limit_s1", lambda c: replace(c, max_num_seqs=c.max_num_seqs + 1), None),
    "one more token": (
        "saturation_s1",
        lambda c: replace(c, max_num_batched_tokens=c.max_num_batched_tokens + 1),
        None,
    ),
    "chunks without limit": (
        "long_prefill_threshold_s1", lambda c: replace(c, chunk_limit_tokens=0), None,
    ),
    "smaller blocks": ("block32_s1", lambda c: replace(c, block_tokens=16), None),
    "admission after a preemption": ("no_reserve_s1", lambda c: c, AdmitsAfterPreemption),
    "queue before running": ("saturation_s1", lambda c: c, QueueFirst),
    "first come first served": ("priority_preempt_s1", lambda c: c, WatchedBatching),
}  # fmt: skip


@pytest.mark.parametrize("rule", WRONG)
@pytest.mark.many
def test_a_wrong_rule_is_found_out(rule):
    """The replay is no rubber stamp: one altered rule and a recording differs."""
    name, change, policy = WRONG[rule]
    told = recording(f"vllm-0.33.0/{name}")
    kind = policy or WatchedBatching
    order = "fcfs" if rule == "first come first served" else told.settings["policy"]
    bench = told.play(change(told.config(False)), kind(order=order))
    assert bench.calls != told.calls()


def test_the_rules_of_one_version_do_not_pass_for_another():
    old = recording("vllm-0.20.1/mixed_s1")
    new = recording("vllm-0.33.0/mixed_s1")
    config = replace(old.config(False), rules=new.config(False).rules)
    assert old.play(config).calls != old.calls()
