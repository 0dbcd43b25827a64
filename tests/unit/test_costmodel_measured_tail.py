"""What one long context adds to a decode launch: found from rows, priced along lines."""

from __future__ import annotations

import numpy as np
import pytest
from measured_profiles import DEVICE, rows, true_s, write_profile

from llmsim.costmodel import RooflineCost, overhang_of, padded_sums
from llmsim.costmodel.measured import Context, MeasuredCost, load_profile
from llmsim.costmodel.measured.tail import EQUAL_PARTS, measured_pace
from llmsim.specs import EngineLimits, HostTerms, load_gpu, load_model

KERNEL = "triton.paged_decode.v1"
HEADS = {"heads_q": 32, "heads_kv": 8, "head_dim": 128}
TRUE_PACE_S = 30e-9
LIMITS = EngineLimits(max_model_len=32768)


def parts_by_hand(batch: int, longest: int) -> int:
    """Two waves of programs on 132 multiprocessors, 8 to a request and part."""
    return max(1, min(64, -(-2 * DEVICE.sm_count // (8 * batch)), longest // 256))


def uneven_rows(kernel: str = KERNEL, kv: str = "bf16") -> list[dict]:
    """Return rows of batches whose longest context has the true pace after the others."""
    made = []
    for batch, mean, ratio in ((8, 1024, 4), (8, 8192, 4), (64, 2048, 4), (64, 2048, 8)):
        longest = mean * ratio
        others = (batch * mean - longest) // (batch - 1)
        seconds = true_s("attention_decode", {"batch": batch, "kv_len": others, **HEADS})
        seconds += TRUE_PACE_S * (longest - others) / parts_by_hand(batch, longest)
        key = {"op": "attention_decode", "kernel_id": kernel, "libs": "lib 1", "graph": True}
        shape = {"batch": batch, "kv_len": mean, "window": 0, "skew": float(ratio), **HEADS}
        kinds = {"dtype_a": "bf16", "dtype_w": "bf16", "dtype_kv": kv}
        made.append({**key, **kinds, **shape, "t_median_us": 1e6 * seconds})
    return made


def profile_of(folder, made):
    return load_profile(write_profile(folder, made), load_gpu("h100-sxm"))


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    made = [*rows(kernel_id=KERNEL), *uneven_rows()]
    return profile_of(tmp_path_factory.mktemp("uneven"), made)


def cost_of(profile, lookahead=1, host_s=0.0, model="llama-3.1-8b") -> MeasuredCost:
    base = RooflineCost(
        load_model(model),
        load_gpu("h100-sxm"),
        limits=LIMITS,
        lookahead=lookahead,
        host=HostTerms(base_s=host_s),
    )
    return MeasuredCost(base, profile)


def test_the_pace_is_found(profile):
    pace = measured_pace(profile, Context())
    assert pace.token_s == pytest.approx(TRUE_PACE_S, rel=0.05)
    assert pace.error < 0.05
    assert pace.rows == 4


@pytest.mark.parametrize(
    "made",
    [
        rows(kernel_id=KERNEL),
        [*rows(kernel_id=KERNEL), *uneven_rows()[:3]],
        [*rows(), *uneven_rows("true.v1")],
        [*rows(kernel_id=KERNEL), *uneven_rows(kv="fp8")],
    ],
    ids=["no rows", "too few", "another kernel", "another KV"],
)
def test_without_rows_of_its_kernel_a_batch_is_priced_by_its_sum(tmp_path, made):
    cost = cost_of(profile_of(tmp_path / "profile", made))
    assert not cost.uneven
    even = cost.step_ns((), 8, 8 * 1024, 0, 8)
    assert cost.step_ns((), 8, 8 * 1024, 0, 8, 5000) == even
    assert cost.decode_line(8, 8 * 1024, 5000) == cost.decode_line(8, 8 * 1024)


def test_a_launch_takes_as_long_as_its_longest_context(profile):
    cost = cost_of(profile)
    for batch, short, longest in ((8, 1024, 8192), (32, 512, 16_384), (200, 1024, 4096)):
        contexts = [longest] + [short] * (batch - 1)
        padded, _ = padded_sums(contexts, 128, 0)
        uneven = cost.step_ns((), batch, padded, 0, batch, overhang_of(contexts))
        even = cost.step_ns((), batch, batch * short, 0, batch)
        tail_s = TRUE_PACE_S * (longest - short) / parts_by_hand(batch, longest)
        assert uneven - even == pytest.approx(32e9 * tail_s, rel=0.06)
        assert uneven > cost.step_ns((), batch, padded, 0, batch)


@pytest.mark.parametrize(("lookahead", "host_s"), [(1, 0.0), (0, 1e-3), (1, 8e-3), (1, 1.0)])
@pytest.mark.parametrize("overhang", [1, 100, 3000, 30_000])
def test_step_equals_line_and_lines_follow_each_other(profile, overhang, lookahead, host_s):
    cost = cost_of(profile, lookahead, host_s)
    padded, met = 3 * 128 + overhang, 0
    while padded < 3 * 32768:
        line = cost.decode_line(3, padded, overhang)
        assert padded <= line.until_tokens
        for size in {padded, min(line.until_tokens, 3 * 32768)}:
            # one line holds until it ends, wherever it was asked for
            assert cost.decode_line(3, size, overhang) == line
            expected = max(1, round(line.base_ns + line.per_token_ns * size))
            assert cost.step_ns((), 3, size, 0, 3, overhang) == expected
        padded, met = line.until_tokens + 1, met + 1
    assert met < 120


def test_the_longer_of_host_and_gpu_counts(profile):
    bare, hidden = cost_of(profile), cost_of(profile, host_s=9e-3)
    host_ns = sum(hidden.base.host_ns(16, 16, 0))
    assert host_ns > 9e6
    for longest in np.geomspace(1024, 32_000, 9).astype(int).tolist():
        contexts = [longest] + [512] * 15
        padded, _ = padded_sums(contexts, 128, 0)
        given = ((), 16, padded, 0, 16, overhang_of(contexts))
        assert hidden.step_ns(*given) == pytest.approx(max(bare.step_ns(*given), host_ns), abs=1)


def test_explanations_of_uneven_batches_add_up(profile):
    cost = cost_of(profile)
    for chunks, contexts in (
        ((), [300, 9000, 20_000]),
        ((), [4096] + [512] * 63),
        (((512, 4096), (100, 0)), [300, 9000, 20_000]),
    ):
        parts = cost.explain(chunks, contexts)
        padded, windowed = padded_sums(contexts, cost.context_tile, cost.window_tokens)
        logits = len(contexts) + len(chunks)
        given = (chunks, len(contexts), padded, windowed, logits)
        ns = cost.step_ns(*given, overhang_of(contexts))
        assert sum(row.seconds for row in parts.rows) * 1e9 == pytest.approx(ns, rel=0.003)
        assert ns > cost.step_ns(*given)


def test_an_overhang_is_the_longest_less_the_mean_of_the_others():
    assert overhang_of([]) == overhang_of([900]) == overhang_of([7, 7, 7]) == 0
    assert overhang_of([900, 100, 300]) == 700
    assert overhang_of([100, 100, 900, 900]) == 533  # of a mean of 366 2/3, rounded down


def test_programs_are_those_of_the_kernel():
    programs = EQUAL_PARTS[KERNEL]
    found = programs(np.array([32.0, 8.0, 128.0]), np.array([8.0, 8.0, 1.0]))
    assert found.tolist() == [8.0, 8.0, 2.0]  # 64 query heads to a program at most
