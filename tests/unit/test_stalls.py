"""One long prompt among requests that decode: how long tokens stand still, and what it pays."""

import csv
from datetime import UTC, datetime, timedelta
from functools import cache

import pytest

import llmsim as ls

DECODING, LONG, LATER_S = 32, 8000, 4
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """32 requests that decode on an A100, and a prompt of 8,000 tokens four seconds later."""
    path = tmp_path_factory.mktemp("stalls") / "arrivals.csv"
    with path.open("w", newline="") as handle:
        rows = csv.writer(handle)
        rows.writerow(["TIMESTAMP", "ContextTokens", "GeneratedTokens"])
        for at_s, prompt, output in [(0, 100, 600)] * DECODING + [(LATER_S, LONG, 8)]:
            rows.writerow([f"{START + timedelta(seconds=at_s):%F %T}", prompt, output])

    @cache
    def go(batching: str, budget: int) -> tuple[float, float]:
        """Return the worst gap over the usual one, and the long request's TTFT [s]."""
        result = ls.run(
            ls.Scenario.parse(
                {
                    "llmsim": 1,
                    "name": "stalls",
                    "model": "llama-3.1-8b",
                    "traffic": {"trace": {"kind": "azure-2023", "path": str(path)}},
                    "engine": {"max_num_batched_tokens": budget, "lookahead": 0}
                    | {"max_model_len": 16384},
                    "fleet": {"pools": {"main": {"gpu": "a100-80gb-sxm", "batching": batching}}},
                }
            )
        )
        rows = result.requests
        decoding, late = rows.iloc[:DECODING], rows.iloc[DECODING]
        assert (rows["outcome"] == "finished").all()
        assert decoding["end_s"].min() > LATER_S + late["ttft_s"]  # all of them met the prompt
        usual = result.evaluate().values()["itl_p50_s"]
        return decoding["itl_max_s"].max() / usual, late["ttft_s"]

    return go


@pytest.mark.slow
def test_a_whole_prompt_stalls_everybody_and_chunks_do_not(run):
    """Spec: a whole prompt 20 to 60 steps, 2,048 tokens 8 to 16, 512 tokens at most 5."""
    assert 20 <= run("orca", 16384)[0] <= 60
    assert 8 <= run("vllm", 2048)[0] <= 16
    assert run("vllm", 512)[0] <= 5


@pytest.mark.slow
def test_chunks_are_not_free(run):
    """Small products of matrices use a GPU worse, and decodes take their share of every budget."""
    whole_s, small_s = run("orca", 16384)[1], run("vllm", 512)[1]
    assert small_s > 1.1 * whole_s
