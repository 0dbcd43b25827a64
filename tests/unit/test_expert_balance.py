"""Copies of experts and where they lie: by hand, against draws, and in memory and price."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_popularity import SKEW, dealt, drawn

import llmsim as ls
from llmsim.core.errors import InputError
from llmsim.costmodel.expert_balance import copies_of, packed
from llmsim.costmodel.layout import check_layout
from llmsim.costmodel.memory import plan_memory
from llmsim.costmodel.popularity import loads, visited
from llmsim.specs import MoeMlp, ParallelPlan, load_gpu, load_model

DEEPSEEK = MoeMlp(256, 8, 2048, skew=SKEW)


def test_copies_by_hand():
    """90 is split in two, and its halves of 45 are still the largest; then 40 is."""
    loads_of = np.array([90.0, 40.0, 30.0, 20.0])
    assert copies_of(loads_of, 0).tolist() == [1, 1, 1, 1]
    assert copies_of(loads_of, 1).tolist() == [2, 1, 1, 1]
    assert copies_of(loads_of, 2).tolist() == [3, 1, 1, 1]
    assert copies_of(loads_of, 3).tolist() == [3, 2, 1, 1]


def test_copies_are_those_of_the_readme():
    """The first layer in the README of github.com/deepseek-ai/EPLB: 1, 4, 5 and 10 are doubled."""
    weights = np.array([90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86], dtype=float)
    doubled = np.flatnonzero(copies_of(weights, 4) == 2)
    assert doubled.tolist() == [1, 4, 5, 10]


def test_packing_by_hand():
    """Heaviest first: 40 | 30, then 30 to the lighter side, and so on, three to each side."""
    each = np.array([30.0, 30.0, 30.0, 40.0, 30.0, 20.0])
    rank_of = packed(each, 2)
    assert rank_of.tolist() == [1, 1, 0, 0, 1, 0]
    assert [each[rank_of == rank].sum() for rank in (0, 1)] == [90, 90]


def test_a_full_rank_gets_nothing_more():
    rank_of = packed(np.array([100.0, 1.0, 1.0, 1.0]), 2)
    assert np.bincount(rank_of).tolist() == [2, 2]


@pytest.mark.parametrize("ep", [4, 8, 16, 32])
def test_balanced_beats_unbalanced(ep):
    tokens = np.array([1024.0, 8192.0])
    even = 8 * tokens / ep
    unbalanced = loads(DEEPSEEK, dealt(ep), tokens)[1] / even
    moved = loads(DEEPSEEK, dealt(ep, 0, balancing=True), tokens)[1] / even
    copied = loads(DEEPSEEK, dealt(ep, 32, balancing=True), tokens)[1] / even
    assert (unbalanced > moved).all()
    assert (moved > copied - 0.01).all()
    assert (copied < 1.15).all()
    few = np.array([1.0, 4.0, 16.0])
    assert (
        loads(DEEPSEEK, dealt(ep, 0, balancing=True), few)[1] <= loads(DEEPSEEK, dealt(ep), few)[1]
    ).all()


def test_deepseek_was_as_uneven():
    """Rows of the busiest rank over the mean, as TensorRT-LLM counted them for DeepSeek-R1.

    1,024 rows a rank; 2.564 on 32 ranks, and 1.115 on 36 with 288 slots
    (examples/wide_ep/ep_load_balancer), where popularity was learnt from another run.
    """
    alone = loads(DEEPSEEK, dealt(32), np.array([4096.0]))[1][0] / 1024
    assert alone == pytest.approx(2.564, rel=0.02)
    copied = loads(DEEPSEEK, dealt(36, 32, balancing=True), np.array([4608.0]))[1][0] / 1024
    assert 1.0 + 0.5 * 0.115 < copied < 1.115


def test_without_copies_the_most_popular_expert_stays_too_much_for_a_rank():
    """Of 32 ranks each should have 1/32 of the rows; one expert alone has a good deal more."""
    alone = visited(256, 8, SKEW)[0] / 8
    rows = loads(DEEPSEEK, dealt(32, 0, balancing=True), np.array([8.0]))[1]
    assert alone > 1.5 / 32
    assert 64 * alone < rows[0] <= loads(DEEPSEEK, dealt(32), np.array([8.0]))[1][0]


def test_copies_by_number_are_no_help():
    """Four of 32 ranks have nine halves, the rest nine or so: eight and an eighth in the mean."""
    uniform = MoeMlp(256, 8, 2048)
    rows = loads(uniform, dealt(32, 32), np.array([1024.0]))[1]
    assert rows[0] == pytest.approx(8 * 1024 / 256 * 9)
    tokens = np.array([8192.0])
    by_number = loads(DEEPSEEK, dealt(32, 32), tokens)[1]
    assert by_number[0] > loads(DEEPSEEK, dealt(32), tokens)[1][0]


def ranks_by_number(ep, spare, rng):
    """Slot i holds expert i modulo 256; which of them are popular is chance."""
    own = (256 + spare) // ep
    slots = [[n, n + 256] if n < spare else [n] for n in rng.permutation(256)]
    return [[slot // own for slot in each] for each in slots]


def ranks_balanced(ep, spare):
    shares = visited(256, 8, SKEW)
    counts = copies_of(shares, spare)
    rank_of = packed(np.repeat(shares / counts, counts), ep)
    return np.split(rank_of, np.cumsum(counts)[:-1])


@pytest.mark.parametrize(
    ("ep", "spare", "balancing"),
    [(8, 0, True), (8, 32, True), (32, 32, True), (8, 32, False), (32, 32, False)],
)
@pytest.mark.parametrize("tokens", [16, 64, 2048])
def test_the_busiest_rank_is_that_of_draws(ep, spare, balancing, tokens):
    """Each token goes to one of its expert's copies, whichever."""
    rng = np.random.default_rng(5)
    hits, rows = [], []
    places = ranks_balanced(ep, spare)
    for _ in range(150 if tokens < 1000 else 40):
        if not balancing:
            places = ranks_by_number(ep, spare, rng)
        chosen = drawn(256, 8, tokens, rng).ravel().tolist()
        copies = [(e, int(rng.integers(len(places[e])))) for e in chosen]
        rows.append(np.bincount([places[e][c] for e, c in copies], minlength=ep).max())
        hits.append(np.bincount([places[e][c] for e, c in set(copies)], minlength=ep).max())
    hit, row = loads(DEEPSEEK, dealt(ep, spare, balancing), np.array([float(tokens)]))
    assert hit[0] == pytest.approx(np.mean(hits), rel=0.06)
    if tokens > 1000:  # with few, which of them come together adds to it
        assert row[0] == pytest.approx(np.mean(rows), rel=0.05 if balancing or ep == 8 else 0.1)


def test_copies_take_memory():
    model, gpu = load_model("deepseek-r1-nvfp4"), load_gpu("gb200")
    plan = ParallelPlan(dp=32, ep=32)
    few = plan_memory(model, gpu, plan)
    more = plan_memory(model, gpu, replace(plan, spare_experts=32))
    experts = [layer for layer in model.layers if isinstance(layer.mlp, MoeMlp)]
    one = sum(
        layer.count * part.weight_bytes / 256
        for layer in experts
        for part in layer.mlp.expert_linears(model.hidden, 1)
    )
    assert more.weights_bytes - few.weights_bytes == pytest.approx(one)  # 32 copies on 32 GPUs
    fewer = (few.kv_blocks - more.kv_blocks) * few.block_bytes
    assert fewer == pytest.approx(one, abs=few.block_bytes)


def test_slots_are_dealt_out_evenly():
    model, gpu = load_model("deepseek-r1-nvfp4"), load_gpu("gb200")
    check_layout(model, gpu, ParallelPlan(dp=48, ep=48, spare_experts=32))
    with pytest.raises(InputError, match="48 does not divide the 256 experts of"):
        check_layout(model, gpu, ParallelPlan(dp=48, ep=48))
    with pytest.raises(InputError, match="32 does not divide the 256 experts and 8 spare ones"):
        check_layout(model, gpu, ParallelPlan(dp=32, ep=32, spare_experts=8))


@pytest.mark.parametrize(("key", "value"), [("spare_experts", 8), ("expert_balancing", True)])
def test_one_group_has_nothing_to_balance(key, value):
    with pytest.raises(InputError, match=f"{key}.*needs ep"):
        ls.run("ranks", {"fleet.pools.main.ep": 1, f"fleet.pools.main.{key}": value})


def test_a_run_is_faster_balanced_and_as_before_without_the_keys():
    main = "fleet.pools.main."
    base = {main + "ep": 8, main + "cost": {"kind": "roofline", "expert_skew": SKEW}}
    told = base | {main + "spare_experts": 0, main + "expert_balancing": False}
    plain, same, balanced = (
        ls.run("ranks", changes | {"traffic.duration_s": 60})
        for changes in (base, told, base | {main + "expert_balancing": True})
    )
    assert plain.digest == same.digest
    assert balanced.metrics["e2e_mean_s"] < plain.metrics["e2e_mean_s"]
