"""Result files of vllm bench serve and sglang.bench_serving."""

import json

import pytest
from typer.testing import CliRunner

from llmsim.cli.app import app
from llmsim.core.errors import InputError
from llmsim.fidelity.benchfile import Bench, compare_bench, read_bench
from llmsim.specs import engine_names, newest_engine

# Keys as the two clients write them; times in ms.
VLLM = {
    "date": "20260101-000000",
    "backend": "vllm",
    "model_id": "llama-3.1-8b",
    "num_prompts": 16,
    "request_rate": "inf",
    "max_concurrency": 4,
    "duration": 2.0,
    "completed": 16,
    "total_input_tokens": 1600,
    "total_output_tokens": 320,
    "request_throughput": 8.0,
    "output_throughput": 160.0,
    "total_token_throughput": 960.0,
    "mean_ttft_ms": 30.0,
    "median_ttft_ms": 28.0,
    "mean_tpot_ms": 8.0,
    "p99_itl_ms": 12.0,
    "mean_e2el_ms": 180.0,
}


def write(folder, data):
    path = folder / "mine.json"
    path.write_text(json.dumps(data))
    return path


def test_a_vllm_file_is_a_closed_loop_case(tmp_path):
    case, lengths = read_bench(write(tmp_path, VLLM), Bench("", "h100-sxm"))
    assert case.model_key == "llama-3.1-8b"
    assert (case.whole("isl"), case.whole("osl"), case.whole("concurrency")) == (100, 20, 4)
    assert case.measured["ttft", "mean"] == pytest.approx(0.03)
    assert case.measured["ttft", "p50"] == pytest.approx(0.028)
    assert case.measured["e2e", "mean"] == pytest.approx(0.18)
    assert case.measured["total_throughput", "mean"] == 960.0
    assert lengths == {}


def test_a_rate_makes_it_open_and_sglang_appends_lines(tmp_path):
    line = {**VLLM, "request_rate": 5.0, "mean_e2e_latency_ms": 200.0}
    path = tmp_path / "lines.jsonl"
    path.write_text(json.dumps(VLLM) + "\n" + json.dumps(line) + "\n")
    case, _ = read_bench(path, Bench("llama-3.1-8b", "h100-sxm", engine="sglang"))
    assert case.text("arrival") == "poisson"
    assert case.number("rate_rps") == 5.0
    assert case.measured["e2e", "mean"] == pytest.approx(0.2)


def test_it_is_simulated_with_the_lengths_of_the_file(tmp_path):
    detailed = {**VLLM, "input_lens": [90, 110] * 8, "output_lens": [20] * 16}
    path = write(tmp_path, detailed)
    case, prediction, data = compare_bench(path, Bench("", "h100-sxm"))
    assert data["traffic"]["lengths"]["prompt_mean_tokens"] == 100
    assert data["traffic"]["lengths"]["prompt_cv"] == pytest.approx(0.1)
    assert prediction.values["completed", "total"] == 16
    assert prediction.values["tpot", "mean"] > 0
    assert set(case.measured) & set(prediction.values)


def test_what_is_no_result_is_refused_with_what_is_missing(tmp_path):
    with pytest.raises(InputError, match="Did you mean 'duratio'"):
        read_bench(write(tmp_path, {"duratio": 1.0}), Bench("", "h100-sxm"))
    path = tmp_path / "bad.json"
    path.write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        read_bench(path, Bench("", "h100-sxm"))
    with pytest.raises(InputError, match="--gpu"):
        read_bench(write(tmp_path, VLLM), Bench("", ""))


def test_the_command_says_what_it_took_for_granted_and_in_which_units(tmp_path):
    def call(data, *more):
        asked = ["validate", str(write(tmp_path, data)), "--gpu", "h100-sxm", *more]
        return CliRunner().invoke(app, asked)

    found = call(VLLM)
    assert found.exit_code == 0, found.stderr
    assert "16 requests at 4 at a time, all alike" in found.stderr
    assert "on 1 x h100-sxm" in found.stderr
    assert f"engine {newest_engine('vllm')} (the newest card, as no --engine-v" in found.stderr
    rows = {line[:24].strip(): line[24:].split() for line in found.stdout.splitlines()}
    assert rows["ttft mean"][:2] == ["s", "0.03"]
    assert rows["output_throughput mean"][:2] == ["tokens/s", "160"]
    detailed = VLLM | {"input_lens": [100] * 16, "output_lens": [20] * 16}
    told = call(detailed, "--tp", "2", "--engine-version", "0.20").stderr
    assert "lengths as in it" in told
    assert "on 2 x h100-sxm" in told
    assert "engine vllm-0.20 (--engine-version)" in told
    answer = json.loads(call(VLLM, "--json", "--engine-version", "v0.14.1").stdout)
    assert answer["engine"]["version"] == "vllm-0.14"
    assert answer["engine"]["version_guessed"] is False


def test_the_newest_card_is_taken_unless_a_release_is_named(tmp_path):
    path = write(tmp_path, VLLM)

    def engine(version, gpu="h100-sxm", program="vllm"):
        return compare_bench(path, Bench("", gpu, 1, program, version))[2]["engine"]

    cards = [name for name in engine_names() if name.startswith("vllm")]
    assert [engine(name)["version"] for name in cards] == cards
    assert engine("")["version"] == newest_engine("vllm") in cards
    assert engine("", program="sglang")["version"] == newest_engine("sglang")
    # vLLM's own limits on a large GPU, in whatever letters it is named
    for gpu in ("h100-sxm", "H100-80G-SXM"):
        assert (engine("", gpu)["max_num_seqs"], engine("", gpu)["max_num_batched_tokens"]) == (
            1024,
            8192,
        )
    assert engine("", "a100-80gb-sxm")["max_num_batched_tokens"] == 2048
    with pytest.raises(InputError, match=r"no release such as 0\.14\.1, read"):
        engine("newest")
