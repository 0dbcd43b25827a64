"""Attention of prefill and decode in one launch: kappa from rows, and MLA prefill."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from measured_profiles import rows, true_s, write_profile

from llmsim.costmodel import RooflineCost
from llmsim.costmodel.measured import Context, MeasuredCost, load_profile
from llmsim.costmodel.measured.mixed import measured_kappa
from llmsim.specs import EngineLimits, load_gpu, load_model

LIMITS = EngineLimits(max_model_len=32768)
HEADS = {"heads_q": 32, "heads_kv": 8, "head_dim": 128}
TRUE_KAPPA = {8: 1.5, 64: 2.0, 256: 3.0}
T0_S = 9e-6


def mixed_rows():
    """Return rows of one launch whose decode part is `TRUE_KAPPA` times as slow."""
    made = []
    for chunk, past, decodes, context in product((64, 256), (0, 1024), TRUE_KAPPA, (2048, 8192)):
        prefill = {"batch": 1, "q_len": chunk, "kv_len": past, "window": 0, **HEADS}
        decode = {"batch": decodes, "kv_len": context, "window": 0, **HEADS}
        seconds = true_s("attention_prefill", prefill)
        seconds += TRUE_KAPPA[decodes] * (true_s("attention_decode", decode) - T0_S)
        made.append(
            {
                "op": "attention_mixed",
                "kernel_id": "true.v1",
                "libs": "lib 1",
                "phase": "mixed",
                "batch": 1,
                "q_len": chunk,
                "kv_len": past,
                "decode_batch": decodes,
                "decode_kv_len": context,
                **HEADS,
                "t_median_us": seconds * 1e6,
            }
        )
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_profile(tmp_path_factory.mktemp("mixed"), [*rows(), *mixed_rows()])


def cost_of(folder, mixed="card", model="llama-3.1-8b"):
    base = RooflineCost(load_model(model), load_gpu("h100-sxm"), limits=LIMITS)
    return MeasuredCost(base, load_profile(folder, load_gpu("h100-sxm")), None, mixed)


def test_kappa_is_found_and_interpolated(folder):
    profile = load_profile(folder, load_gpu("h100-sxm"))
    kappa = measured_kappa(profile, {n: float(v) for n, v in HEADS.items()}, Context())
    assert kappa.decodes.tolist() == list(TRUE_KAPPA)
    assert kappa.factor.tolist() == pytest.approx(list(TRUE_KAPPA.values()), rel=0.08)
    assert kappa.error < 0.03
    table = kappa.table(512)
    assert table[1] == table[8] == pytest.approx(kappa.factor[0])
    assert table[512] == pytest.approx(kappa.factor[-1])
    assert kappa.factor[0] < table[23] < kappa.factor[1]


def test_without_rows_the_card_decides(tmp_path):
    profile = load_profile(write_profile(tmp_path / "profile", rows()))
    shape = {name: float(value) for name, value in HEADS.items()}
    assert measured_kappa(profile, shape, Context()) is None


def test_a_mixed_step_pays_kappa_only_in_one_launch(folder):
    """The card of H100 says two launches; rows of mixed batches overrule it, a scenario both."""
    chunk, decodes, padded = [(256, 1024)], 64, 64 * 8192
    given = (chunk, decodes, padded, 0, decodes)
    one, two = cost_of(folder).step_ns(*given), cost_of(folder, "split").step_ns(*given)
    decode = {"batch": decodes, "kv_len": 8192, "window": 0, **HEADS}
    beside = 32 * (true_s("attention_decode", decode) - T0_S) * 1e9
    assert one - two == pytest.approx((2.0 - 1.0) * beside - 32 * T0_S * 1e9, rel=0.1)
    explained = cost_of(folder).explain(chunk, [8192] * decodes, decodes)
    assert explained.seconds * 1e9 == pytest.approx(one, rel=0.002)


def test_mla_prefill_is_priced_from_its_rows(tmp_path):
    """Rows that are twice as slow as others make the step's attention twice as slow."""
    shapes = list(product((1, 4), (128, 1024, 4096), (0, 4096), (128,)))
    priced = {}
    for factor in (1.0, 2.0):
        made = [
            {
                "op": "mla_prefill",
                "kernel_id": "true.v1",
                "libs": "lib 1",
                "phase": "prefill",
                "batch": batch,
                "q_len": new,
                "kv_len": past,
                "heads_q": heads,
                "t_median_us": factor * (20.0 + batch * heads * new * (past + new / 2) * 640 / 4e8),
            }
            for batch, new, past, heads in shapes
        ]
        cost = cost_of(write_profile(tmp_path / str(factor), made), model="deepseek-v3")
        mixer = cost.mixers[0]
        sums = cost.base.chunk_sums([(1024, 0)])
        priced[factor] = mixer.prefill.at(sums, 1) / mixer.price.layers
    row_ns = (20.0 + 128 * 1024 * 512 * 640 / 4e8) * 1e3
    assert priced[1.0] == pytest.approx(row_ns, rel=0.05)
    assert priced[2.0] == pytest.approx(2.0 * row_ns, rel=0.05)
    assert np.isfinite(priced[2.0])
