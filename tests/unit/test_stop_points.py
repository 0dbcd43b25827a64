"""Boundaries inside a step: all operators are there, the next one is the first of a full list."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llmsim.costmodel import RooflineCost
from llmsim.costmodel.boundaries import RooflineStopPoints
from llmsim.specs import EngineLimits, ParallelPlan, load_gpu, load_link, load_model

LIMITS = EngineLimits(max_num_seqs=8, max_num_batched_tokens=20_000)
MODELS = {
    "llama-3.1-8b": 1,
    "llama-3.1-70b": 4,
    "mixtral-8x7b": 2,
    "gpt-oss-20b": 1,
    "deepseek-v2-lite": 1,
    "nemotron-3-nano-30b-a3b": 2,
}


def cost_of(name: str, tp: int = 1, lookahead: int = 0) -> RooflineCost:
    gpu = load_gpu("h100-sxm")
    link = load_link(gpu.link) if tp > 1 else None
    plan = ParallelPlan(tp)
    return RooflineCost(load_model(name), gpu, link, plan, LIMITS, lookahead=lookahead)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunks", [[(1, 0)], [(700, 0), (3, 900)], [(16_000, 0)], [(2048, 8192)]])
@pytest.mark.many
def test_operators_add_up_to_the_gpu_time(name, chunks):
    cost = cost_of(name, MODELS[name])
    points = RooflineStopPoints(cost, by_operator=True)
    _, embed, layers, tail = points.spans_ns(chunks, len(chunks))
    total = embed + tail + sum(count * edges[-1] for count, edges in layers)
    assert total == pytest.approx(1e9 * cost.explain(chunks, logits=len(chunks)).gpu_s, rel=1e-9)
    assert sum(count for count, _ in layers) == cost.model.layer_count
    for _, edges in layers:
        assert (np.diff([0.0, *edges]) > 0).all()


def every_boundary(points: RooflineStopPoints, chunks, logits, duration_ns) -> list[int]:
    """List all boundaries by asking for the one behind each."""
    found, at = [], 1
    while True:
        at = points.next_ns(chunks, logits, duration_ns, at)
        found.append(at)
        if at >= duration_ns:
            return found
        at += 1


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("name", ["llama-3.1-8b", "mixtral-8x7b"])
@pytest.mark.parametrize("check_ns", [0, 20_000])
def test_next_is_the_first_of_all(name, check_ns, lookahead):
    cost = cost_of(name, MODELS[name], lookahead)
    chunks, logits = [(4000, 0)], 1
    counts = {}
    for by_operator in (False, True):
        points = RooflineStopPoints(cost, by_operator, check_ns)
        duration = cost.step_ns(chunks, 0, 0, 0, logits) + points.checks_ns
        assert points.checks_ns == points.looks * check_ns
        found = every_boundary(points, chunks, logits, duration)
        counts[by_operator] = len(found)
        assert len(found) == points.looks + 2  # before the first layer, and the end of the step
        for at in np.linspace(1, duration, 97).astype(int).tolist():
            after = next(boundary for boundary in found if boundary >= at)
            assert abs(points.next_ns(chunks, logits, duration, at) - after) <= 1
    layers = cost.model.layer_count
    assert counts[False] == layers + 2
    # qkv, attention, o, gate_up, down; qkv, attention, o, experts
    assert counts[True] == layers * (5 if name == "llama-3.1-8b" else 4) + 2


def test_the_longest_operator_bounds_the_wait():
    """Of a prompt of 16,000 tokens attention and gate_up are the longest; a layer is far longer."""
    cost = cost_of("llama-3.1-8b")
    points = RooflineStopPoints(cost, by_operator=True)
    _, _, layers, _ = points.spans_ns([(16_000, 0)], 1)
    ((count, edges),) = layers
    gate_up = 2 * 2 * 16_000 * 4096 * 14_336 / (989.4e12)  # FLOP over the peak [s]
    longest = max(np.diff([0.0, *edges])) / 1e9
    assert count == 32
    assert longest > gate_up
    assert longest < 0.5 * edges[-1] / 1e9
    assert math.isfinite(longest)
