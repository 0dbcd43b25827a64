"""The plain roofline against arithmetic by hand, and the needs read from it backwards."""

from dataclasses import replace

import pytest
from typer.testing import CliRunner

from llmsim.cli.app import app
from llmsim.core.errors import InputError
from llmsim.costmodel.ideal import (
    Use,
    decode_rows,
    ideal_cost,
    ideal_rows,
    ideal_seconds,
    needs,
    prefill_rows,
)
from llmsim.specs import load_gpu, load_model, requantise

A40 = load_gpu("a40")
# LLM-Viewer's card of an RTX A6000, after NVIDIA's datasheet: the same chip with faster memory
A6000 = replace(
    A40, memory_bytes_per_s=768e9, peak_flops_per_s=dict(A40.peak_flops_per_s) | {"bf16": 155e12}
)
H100 = load_gpu("h100-sxm")
PRODUCTS = ("qkv", "o", "gate_up", "down")


def named(rows, name):
    (row,) = [each for each in rows if each.name == name]
    return row


@pytest.fixture(scope="module")
def llama2():
    return load_model("llama-2-7b")


def test_a_square_projection_as_llm_viewer_has_it(llama2):
    """Llama-2-7B's o_proj has q_proj's shape: 4096 x 4096 (LLM-Viewer's example, 16 bits)."""
    cost = ideal_cost(llama2, A6000, 1, 2048)
    prefill = named(prefill_rows(cost, [(2048, 0)]), "o")
    assert prefill.calls == 32
    assert prefill.flops == 2 * 2048 * 4096 * 4096  # 68.7 GFLOP
    assert prefill.bytes == 2 * (4096 * 4096 + 2 * 2048 * 4096)  # 67.1 MB
    assert prefill.intensity == 1024
    assert prefill.ridge == pytest.approx(155e12 / 768e9)
    assert (prefill.bound, prefill.attainable_flops_per_s) == ("compute", 155e12)
    assert prefill.seconds() * 1e6 == pytest.approx(443, abs=0.5)

    decode = named(decode_rows(cost, 1, 2048), "o")
    assert decode.flops == 2 * 4096 * 4096  # 33.6 MFLOP
    assert decode.bytes == 2 * (4096 * 4096 + 2 * 4096)  # 33.6 MB
    assert decode.intensity == pytest.approx(1.0, rel=1e-3)
    assert decode.bound == "memory"
    assert decode.attainable_flops_per_s == pytest.approx(768e9, rel=1e-3)
    assert decode.seconds() * 1e6 == pytest.approx(44, abs=0.5)


def products_s(model, batch=1, prompt=None):
    cost = ideal_cost(model, A6000, batch, 2048)
    rows = decode_rows(cost, batch, 2048) if prompt is None else prefill_rows(cost, [(prompt, 0)])
    return sum(row.calls * row.seconds() for row in rows if row.name in PRODUCTS)


def test_four_bit_weights_help_decoding_alone_and_not_beyond_the_ridge(llama2):
    narrow = requantise(llama2, "int4_awq")
    assert 3.5 <= products_s(llama2) / products_s(narrow) <= 4.0
    assert 1.0 <= products_s(llama2, prompt=2048) / products_s(narrow, prompt=2048) <= 1.05
    # the ridge lies at 202 FLOP/byte: 16-bit weights reach it with a batch a little larger
    assert products_s(llama2, batch=256) / products_s(narrow, batch=256) == pytest.approx(1)
    assert products_s(llama2, batch=64) / products_s(narrow, batch=64) > 1.5


@pytest.fixture(scope="module")
def llama3():
    return load_model("llama-3.1-70b")


USE = Use(8000, 192, batch=32, ttft_s=1.0, tpot_s=0.04)


def test_bandwidth_is_weights_and_kv_over_the_time_of_a_token(llama3):
    """GenZ's identity at 32 requests of 8k tokens in 40 ms: (141 GB + 86 GB) / 0.04 s."""
    found = {each.name: each for each in needs(llama3, H100, USE)}
    kv = 32 * 8192 * 80 * 2 * 8 * 128 * 2  # layers, K and V, heads, width, 16 bits
    embedding = 128256 * 8192 * 2  # of which a step reads a row per request
    weights = llama3.weight_bytes()
    assert weights / 1e9 == pytest.approx(141, abs=0.2)
    assert kv / 1e9 == pytest.approx(86, abs=0.2)
    assert found["memory"].amount == pytest.approx(weights + kv)
    bandwidth = found["bandwidth, decode"]
    # activations between operators are the rest: 1%
    assert (weights - embedding + kv) / 0.04 <= bandwidth.amount
    assert bandwidth.amount == pytest.approx((weights - embedding + kv) / 0.04, rel=0.01)
    assert f"{bandwidth.amount / 1e12:.1f}" == "5.7"
    assert bandwidth.gpus == pytest.approx(bandwidth.amount / H100.memory_bytes_per_s)


@pytest.mark.parametrize("efficiency", [1.0, 0.7])
def test_with_the_bandwidth_that_it_needs_a_step_takes_its_time(llama3, efficiency):
    found = {each.name: each for each in needs(llama3, H100, USE, efficiency)}
    rows = decode_rows(ideal_cost(llama3, H100, 32, 8192), 32, 8192)
    reached = efficiency * found["bandwidth, decode"].gpus
    assert ideal_seconds(rows, bandwidth=reached) == pytest.approx(0.04, rel=0.01)
    # and with the compute that a prompt needs, memory aside, the prompt its own
    prompt = prefill_rows(ideal_cost(llama3, H100, 32, 8192), [(8000, 0)])
    reached = efficiency * found["compute, prompt"].gpus
    assert ideal_seconds(prompt, compute=reached, bandwidth=1e9) == pytest.approx(1.0, rel=0.01)


def test_twice_the_flops_help_prompts_and_not_decoding_below_the_ridge(llama3):
    cost = ideal_cost(llama3, H100, 1024, 8192)

    def faster(rows):
        return ideal_seconds(rows) / ideal_seconds(rows, compute=2.0)

    assert 1.8 <= faster(prefill_rows(cost, [(8000, 0)])) <= 2.0
    assert faster(decode_rows(cost, 32, 8192)) < 1.05
    # products of a batch beyond the ridge of 295 FLOP/byte do gain, at contexts that leave them
    assert faster(decode_rows(cost, 1024, 64)) > 1.3


def test_no_product_is_priced_below_the_plain_roofline(llama3):
    cost = ideal_cost(llama3, H100, 64, 4096)
    for chunks, contexts in (([(4096, 0)], []), ([], [4096] * 64)):
        step = cost.explain(chunks, contexts)
        priced = {row.name: row.seconds for row in step.rows if row.dtype == "bf16"}
        ideal = {row.name: row.calls * row.seconds() for row in ideal_rows(step, H100)}
        assert len(priced) >= 6
        assert all(seconds >= ideal[name] for name, seconds in priced.items())


def test_a_use_without_tokens_or_time_is_refused(llama3):
    with pytest.raises(InputError, match="2 problems in needs") as caught:
        Use(0, 1, 1, 1.0, 0.0)
    assert "tpot: 0, must be above 0." in str(caught.value)
    with pytest.raises(InputError, match=r"efficiency: 1\.2, must be above 0 and at most 1"):
        needs(llama3, H100, USE, 1.2)


def test_both_tables_are_printed():
    cards = ["--model", "llama-2-7b", "--gpu", "a40"]
    told = CliRunner().invoke(app, ["show", "roofline", *cards, "--prompt", "2048"])
    assert told.exit_code == 0, told.output
    assert "prefill: 1 x 2,048 tokens" in told.output
    row = next(line for line in told.output.splitlines() if line.startswith("o "))
    assert row.split() == [
        "o",
        "32",
        "68.7",
        "G",
        "67.1",
        "M",
        "1,024.0",
        "150",
        "T",
        "459.0",
        "compute",
    ]
    told = CliRunner().invoke(app, ["show", "needs", *cards, "--ttft", "1", "--tpot", "0.05"])
    assert told.exit_code == 0, told.output
    assert "a40 by " in told.output
    told = CliRunner().invoke(app, ["show", "needs", *cards, "--ttft", "1", "--tpot", "0"])
    assert told.exit_code == 2
    assert "tpot: 0, must be above 0." in told.output
