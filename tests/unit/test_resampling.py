"""Traces drawn anew in blocks: which rows come, when, and how often."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from llmsim.core.errors import ScenarioError
from llmsim.scenario import Scenario, build_workload


def written(path, rows):
    """Write an Azure trace of (second, prompt, output)."""
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    lines += [f"2023-11-16 18:{s // 60:02}:{s % 60:02}.0000000,{p},{o}" for s, p, o in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def trace(tmp_path):
    # prompts say which row it was; ten requests in the first two minutes, then two a second
    rows = [(12 * n, n + 1, n + 1) for n in range(10)]
    rows += [(120 + n // 2, n + 11, n + 11) for n in range(240)]
    return written(tmp_path / "trace.csv", rows)


def scenario(trace, seed=1, **traffic):
    return Scenario.parse(
        {
            "llmsim": 1,
            "name": "resampled",
            "seed": seed,
            "model": "llama-3.1-8b",
            "traffic": {"trace": {"kind": "azure-2023", "path": str(trace)}, **traffic},
            "fleet": {"pools": {"main": {"gpu": "h100-sxm"}}},
        }
    )


def columns(made):
    chunks = list(build_workload(made).chunks())
    return [
        np.concatenate([getattr(chunk, name) for chunk in chunks])
        for name in ("arrival_ns", "prompt_tokens", "output_tokens")
    ]


def test_the_same_seed_draws_the_same_and_another_seed_others(trace):
    one, same, other = (columns(scenario(trace, s, resample_s=30.0)) for s in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one[1], other[1])


def test_rows_stay_whole_and_blocks_keep_their_gaps(trace):
    times, prompts, outputs = columns(scenario(trace, resample_s=60.0))
    assert np.array_equal(prompts, outputs)
    assert times[0] == 0
    assert np.all(np.diff(times) >= 0)
    # neighbours that were neighbours are as far apart as they were, in the busy part 0 or 1 s
    busy = (np.diff(prompts) == 1) & (prompts[:-1] > 10)
    assert set(np.diff(times)[busy].tolist()) <= {0, 1_000_000_000}


def test_the_rate_is_right_on_average(trace):
    counts = [len(columns(scenario(trace, seed, resample_s=20.0))[0]) for seed in range(60)]
    assert np.mean(counts) == pytest.approx(250, rel=0.1)
    drawn = Counter(columns(scenario(trace, 5, resample_s=20.0))[1].tolist())
    assert max(drawn.values()) > 1


def test_without_it_the_trace_is_as_it_was(trace):
    assert np.array_equal(columns(scenario(trace))[1], np.arange(1, 251))


def test_synthetic_traffic_has_no_need_of_it():
    with pytest.raises(ScenarioError, match=r"traffic\.resample_s: is for a trace"):
        Scenario.load("quickstart", {"traffic.resample_s": 30})
