"""A real engine's run against its simulation: decisions, steps, requests."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from llmsim.cli.app import app
from llmsim.fidelity.measuredrun import MeasuredRequest, MeasuredRun, MeasuredStep
from llmsim.fidelity.reference import compare_decisions, fit_line, step_prices_s
from llmsim.policies.rules import ENGINE_RULES
from llmsim.serving.config import EngineConfig

CONFIG = EngineConfig(
    max_num_seqs=4,
    max_num_batched_tokens=64,
    max_model_len=256,
    block_tokens=16,
    kv_blocks=40,
    prefix_caching=False,
    chunked_prefill=True,
    chunk_limit_tokens=0,
    watermark_blocks=0,
    reserve_prompt=True,
    lookahead=0,
    fast_forward=True,
    rules=ENGINE_RULES["vllm-0.33"],
)
MS = 1_000_000


def step(start_ms, ms, phase, *decisions):
    return MeasuredStep(int(start_ms * MS), int(ms * MS), phase, decisions, ())


# By hand: 0 arrives at once, 1 while step 1 runs, so it is admitted in step 2 beside a decode.
RUN = MeasuredRun(
    (MeasuredRequest(0, 10, 4, 0.005, 0.02), MeasuredRequest(6 * MS, 20, 2, 0.004, 0.01)),
    (
        step(0, 4, "context", (0, 10, 0)),
        step(5, 3, "decode", (0, 1, 10)),
        step(9, 6, "mixed", (0, 1, 11), (1, 20, 0)),
        step(16, 3, "decode", (0, 1, 12), (1, 1, 20)),
    ),
    {},
)


class PerToken:
    """10 ms per new token, 1 ms per token of context, 0.1 ms per row of the head."""

    context_tile = 8
    window_tokens = 0

    def decode_line(self, batch, padded_tokens):
        raise AssertionError("steps are priced one by one")

    def step_ns(self, chunks, decode, padded_tokens, windowed_tokens, logits):
        new = decode + sum(tokens for tokens, _ in chunks)
        return 10 * MS * new + MS * padded_tokens + MS // 10 * logits


def test_decisions_at_the_times_of_the_run_are_the_engines():
    assert compare_decisions(RUN, CONFIG) == (4, "")


def test_a_different_decision_is_found_and_told():
    late = replace(RUN.steps[2], decisions=((0, 1, 11),))
    same, told = compare_decisions(replace(RUN, steps=(*RUN.steps[:2], late)), CONFIG)
    assert same == 2
    assert "(1, 20, 0)" in told


def test_steps_are_priced_by_what_was_in_them():
    # contexts 11, 12, 13 and 21 with this step's token, padded to 16, 16, 16 and 24
    want = [100.1, 10 + 16 + 0.1, 210 + 16 + 0.2, 20 + 16 + 24 + 0.2]
    assert step_prices_s(RUN, PerToken()) * 1e3 == pytest.approx(want)


def test_a_constant_and_a_factor_are_found_and_tested_on_the_other_half():
    predicted = np.linspace(1e-3, 4e-3, 60)
    line = fit_line(2e-3 + 1.5 * predicted, predicted)
    assert line.constant_s == pytest.approx(2e-3, rel=1e-3)
    assert line.factor == pytest.approx(1.5, rel=1e-3)
    assert line.errors.worst < 1e-3
    measured = np.where(np.arange(60) < 30, predicted, 2 * predicted)
    assert fit_line(measured, predicted).errors.bias == pytest.approx(-0.5, abs=0.01)


def call(*words, code=0):
    result = CliRunner().invoke(app, ["validate", *map(str, words)])
    assert result.exit_code == code, result.output
    return result.output


def test_without_torch_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    told = call("--engine", "reference", "--trace", tmp_path / "t.csv", code=2)
    assert told.strip().splitlines() == [
        "llmsim validate --engine reference needs torch: pip install 'llmsim[profile]'"
    ]


def test_neither_folder_nor_reference_is_an_error():
    assert "DIR|FILE" in call(code=2)


@pytest.mark.torch
def test_a_run_on_this_cpu_decides_as_the_simulator(tmp_path):
    pytest.importorskip("torch")
    model = tmp_path / "config.json"
    model.write_text(
        '{"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,'
        ' "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,'
        ' "vocab_size": 512, "tie_word_embeddings": false, "max_position_embeddings": 1024,'
        ' "torch_dtype": "bfloat16"}'
    )
    trace = tmp_path / "trace.csv"
    rows = [f"{0.02 * i:.2f},{10 + 17 * i % 90},{3 + 5 * i % 11}" for i in range(20)]
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n" + "\n".join(rows) + "\n")
    words = ["--engine", "reference", "--trace", trace, "--model", model, "--device", "cpu"]
    told = call(*words, "--minutes", 0.1, "--out", tmp_path / "run")
    (line,) = [text for text in told.splitlines() if text.startswith("decisions:")]
    assert line.split()[1] == line.split()[3]  # all of them
    assert int(line.split()[3]) >= 13  # the longest answer takes so many steps, on any machine
    assert {"context", "decode", "ttft", "e2e"} <= {
        text.split(" ")[0] for text in told.splitlines()
    }
    assert "peak_flops_per_s" in (tmp_path / "run" / "cpu-here.yaml").read_text()
