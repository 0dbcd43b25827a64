"""LMCache's arithmetic: from which length on a prompt is sooner loaded than computed."""

from __future__ import annotations

import pytest

import llmsim as ls
from llmsim.report.terminal import fact_rows
from llmsim.specs import load_gpu, load_model

LENGTHS = [2**power for power in range(10, 21)]


def break_even(gpu, gbit_per_s):
    """The shortest power of two that is sooner loaded than computed at half the GPU's peak."""
    flops = 0.5 * load_gpu(gpu).peak_flops_per_s["bf16"]
    model = load_model("llama-3.1-8b")
    token_s = model.kv_bytes_per_token(1, "bf16") * 8 / (gbit_per_s * 1e9)
    for tokens in LENGTHS:
        work = 2 * 8e9 * tokens + 4 * model.layer_count * 4096 * tokens**2 / 2
        if tokens * token_s < work / flops:
            return tokens
    return 0


@pytest.mark.parametrize(
    ("gpu", "gbit_per_s", "tokens"),
    [
        ("h100-sxm", 8, 2**18),
        ("h100-sxm", 16, 2**16),
        ("h100-sxm", 100, 2**10),
        ("b200", 16, 2**18),
        ("b200", 32, 2**17),
        ("b200", 200, 2**10),
    ],
)
def test_from_which_length_on_a_load_pays(gpu, gbit_per_s, tokens):
    """256 K at 8 Gb/s and 64 K at 16 Gb/s on an H100, a step more or less; always where links are
    fast. The paper's figure for a B200 at 32 Gb/s is 256 K."""
    assert tokens / 2 <= break_even(gpu, gbit_per_s) <= 2 * tokens


@pytest.mark.slow
def test_what_went_where_is_said(tmp_path):
    """Loads come over the link from the host; what is read of the disk comes over it too."""
    result = ls.run("tiers", {"traffic.requests": 60})
    tiers, links = result.tiers.set_index("name"), result.links.set_index("name")
    assert 0 < tiers.loaded_tokens.sum() <= result.requests.cached_tokens.sum()
    assert links.moved_bytes["to host"] == pytest.approx(tiers.written_bytes["host"], rel=1e-6)
    read = tiers.loaded_tokens.sum() * 131_072
    assert links.moved_bytes["from host"] == pytest.approx(read, rel=1e-6)
    assert (links.used_frac <= 1).all()
    assert tiers.hit_frac.sum() < 1
    told = dict(fact_rows(result.evaluate(), result.facts))
    assert told["KV in host"].startswith(f"{tiers.loaded_tokens['host']:,} tokens loaded")
    assert "GB from host" in told["KV over links"]
    again = ls.load(result.save(tmp_path / "run"))
    assert again.tiers.equals(result.tiers)
    assert again.links.equals(result.links)
