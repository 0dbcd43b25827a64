"""The roofline against public kernel tables (aiconfigurator, Apache-2.0, commit 095f58a51)."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from llmsim.costmodel.attention import ChunkSums, price_mixer
from llmsim.costmodel.operators import gemm
from llmsim.specs import LayerSpec, Linear, SoftmaxAttention, load_gpu
from llmsim.specs.layers import BF16

TABLES = Path(__file__).resolve().parents[2].parent / "shared" / "kernels"
pytestmark = pytest.mark.skipif(not TABLES.is_dir(), reason="shared kernel tables are not here")
FILES = {"h200-sxm": "h200-141g-sxm", "b200": "b200"}


def rows(kind: str, gpu: str, every: int) -> Iterator[dict[str, str]]:
    with gzip.open(TABLES / f"{kind}_{FILES[gpu]}.csv.gz", "rt") as lines:
        for index, row in enumerate(csv.DictReader(lines)):
            if index % every == 0:
                yield row


@pytest.mark.parametrize("gpu", FILES)
def test_gemm(gpu: str) -> None:
    card = load_gpu(gpu)
    errors = []
    for row in rows("gemm", gpu, 41):
        if row["dtype"] == "bfloat16":
            shape = Linear("gemm", int(row["n"]), int(row["k"]), BF16)
            priced = gemm(shape, 1, np.array([float(row["m"])]), card).seconds[0]
            errors.append(abs(priced / (float(row["latency_us"]) * 1e-6) - 1))
    assert len(errors) > 200
    assert median(errors) < 0.12


@pytest.mark.parametrize("gpu", FILES)
def test_decode_attention(gpu: str) -> None:
    card = load_gpu(gpu)
    errors = []
    for row in rows("attention_decode", gpu, 29):
        plain = row["kv_dtype"] == "bfloat16" and float(row["window_size"] or 0) <= 0
        if not plain or "fa4" in row["kernel"]:
            continue
        layer = SoftmaxAttention(
            int(row["num_heads"]), int(row["num_kv_heads"]), int(row["head_dim"])
        )
        (price,) = price_mixer(LayerSpec(layer, None), card, 1, "bf16")
        batch, context = int(row["batch"]), -(-int(row["kv_len"]) // 128) * 128
        line = price.decode_ns
        priced_ns = price.decode_fixed_ns + line.request * batch + line.padded * batch * context
        errors.append(abs(priced_ns / (float(row["latency_us"]) * 1e3) - 1))
    assert len(errors) > 200
    assert median(errors) < 0.12


@pytest.mark.parametrize("gpu", FILES)
def test_prefill_attention(gpu: str) -> None:
    card = load_gpu(gpu)
    errors = []
    for row in rows("attention_prefill", gpu, 29):
        plain = row["dtype"] == row["kv_dtype"] == "bfloat16"
        if not plain or float(row["window_size"] or 0) > 0 or "fa4" in row["kernel"]:
            continue
        if "decode" in row["kernel"]:
            continue
        layer = SoftmaxAttention(
            int(row["num_heads"]), int(row["num_kv_heads"]), int(row["head_dim"])
        )
        (price,) = price_mixer(LayerSpec(layer, None), card, 1, "bf16")
        batch, new, past = int(row["batch"]), int(row["isl"]), int(float(row["prefix_len"] or 0))
        pairs = batch * new * (past + 0.5 * (new + 1))
        tiles = batch * -(-new // 128)
        sums = ChunkSums(batch * new, batch * past, pairs, batch * past, pairs, tiles)
        errors.append(abs(price.prefill_ns(sums) / (float(row["latency_us"]) * 1e3) - 1))
    assert len(errors) > 200
    assert median(errors) < 0.20


def test_facts_of_decode_attention() -> None:
    """H200, 64 requests, 32 query and 8 KV heads: 25 us to 128 tokens, 81 at 1k, 271 at 4k."""
    card = load_gpu("h200-sxm")
    (price,) = price_mixer(LayerSpec(SoftmaxAttention(32, 8, 128), None), card, 1, "bf16")

    def us(context: int) -> float:
        padded = 64 * (-(-context // 128) * 128)
        ns = price.decode_fixed_ns + price.decode_ns.request * 64 + price.decode_ns.padded * padded
        return ns / 1e3

    assert us(1) == us(128)
    assert [us(s) for s in (128, 256, 1024, 4096, 8192)] == pytest.approx(
        [25, 38, 81, 271, 491], rel=0.12
    )
    windowed = SoftmaxAttention(32, 8, 128, window_tokens=128)
    (clipped,) = price_mixer(LayerSpec(windowed, None), card, 1, "bf16")
    ns = clipped.decode_fixed_ns + clipped.decode_ns.request * 64
    ns += clipped.decode_ns.windowed * 64 * 128
    assert 24 < ns / 1e3 < 30
