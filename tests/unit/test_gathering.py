"""Prompts that wait for one another: TensorRT-LLM's batch waiting."""

from __future__ import annotations

import pytest

import llmsim as ls

LOOP = {
    "traffic.requests": None,
    "traffic.arrivals": {"kind": "closed-loop", "in_flight": 8, "requests_per_slot": 6},
    "traffic.lengths": {
        "kind": "uniform",
        "prompt_min_tokens": 800,
        "prompt_max_tokens": 1000,
        "output_min_tokens": 200,
        "output_max_tokens": 300,
    },
    "slo": None,
}


def run(**batching):
    changes = LOOP | {"fleet.pools.main.batching": {"kind": "gathering", **batching}}
    return ls.run("quickstart", changes)


def test_without_a_wait_it_is_vllms_own_plan():
    assert run().digest == ls.run("quickstart", LOOP).digest
    assert run(wait_steps=20, fill_frac=0.0).digest == run().digest


def test_first_tokens_wait_as_many_decodes_as_are_told():
    at_once, waiting = run(), run(wait_steps=20, fill_frac=1.0)
    # One prompt in 31 steps or so at 8 slots: nearly every one waits its 20 steps alone.
    added_s = waiting.metrics["ttft_mean_s"] - at_once.metrics["ttft_mean_s"]
    step_s = waiting.metrics["tpot_mean_s"]
    assert 10 * step_s < added_s < 20 * step_s


def test_enough_prompts_do_not_wait():
    """Two prompts fill 1,600 tokens: at 0.2 of 8,192 the second one opens the door."""
    patient, soon = run(wait_steps=400, fill_frac=1.0), run(wait_steps=400, fill_frac=0.2)
    assert soon.metrics["ttft_mean_s"] < 0.6 * patient.metrics["ttft_mean_s"]


def test_single_steps_are_the_same_run():
    changes = LOOP | {
        "fleet.pools.main.batching": {"kind": "gathering", "wait_steps": 9, "fill_frac": 0.5},
        "engine.fast_forward": False,
    }
    assert ls.run("quickstart", changes).digest == run(wait_steps=9, fill_frac=0.5).digest


def test_a_share_above_one_is_refused():
    with pytest.raises(ls.LlmsimError, match="fill_frac"):
        run(wait_steps=1, fill_frac=1.5)
