"""The compiled engine and the Python sources that it is made from give the same runs."""

import json
import sys

import pandas as pd
import pytest
from blocks import CHECKOUT, call
from drawing import QUICK

import llmsim as ls
from llmsim.cli.looking import engine_is_compiled

LITTLE_KV = {
    "traffic.requests": 150,
    "traffic.arrivals.rate_rps": 40,
    "engine.max_model_len": 8192,
    "engine.kv_blocks": 2500,
    "engine.prefix_caching": False,
    "fleet.pools.main.gpu": "a100-80gb-sxm",
}
"""A queue before few blocks, for policies that go by believed lengths."""

BUCKETS = {"estimators.output_length": {"kind": "bucket", "bucket_tokens": 200}}

FORKS = {
    "traffic.requests": 100,
    "traffic.duration_s": None,
    "traffic.warmup_s": 0,
    "fleet.routing": "block",
    "estimators.output_length": {"kind": "noisy", "sigma": 0.5},
}
"""A router that asks forks, in scenarios of several replicas."""

RUNS = {
    "quickstart": ("quickstart", {}),
    "prefixes, timeouts, aborts": ("assistants", {"fleet.view_age_s": 0.2}),
    "preemptions": ("quickstart", {"engine.kv_blocks": 9000, "traffic.arrivals.rate_rps": 60}),
    "priority": (
        "quickstart",
        {
            "engine.kv_blocks": 9000,
            "traffic.arrivals.rate_rps": 60,
            "fleet.pools.main.batching": {"kind": "vllm", "order": "priority"},
        },
    ),
    "sessions": ("burstgpt", {"traffic.trace.limit": 3000, "fleet.routing": "session-sticky"}),
    "stepped": ("assistants", {"traffic.duration_s": 90, "engine.fast_forward": False}),
    "handed over": (
        "disaggregated",
        {
            "traffic.duration_s": 60,
            "traffic.warmup_s": 0,
            "traffic.timeout_s": 4,
            "fleet.pools.decode.engine.kv_blocks": 9000,
        },
    ),
    "forks": ("predictive", {"traffic.requests": 300, "traffic.arrivals.rate_rps": 45}),
    "forks of ranks": ("ranks", FORKS | {"fleet.pools.main.replicas": 2}),
    "forks with tiers": ("tiers", FORKS | {"fleet.pools.main.replicas": 2}),
    "forks of lanes": ("lanes", FORKS),
    "forks of pipelines": ("pipeline", FORKS | {"fleet.pools.main.replicas": 2}),
    "least left first": ("shortest-first", {"traffic.requests": 200}),
    "buckets": (
        "quickstart",
        LITTLE_KV
        | BUCKETS
        | {"fleet.pools.main.batching": "s3", "fleet.pools.main.allocation": "s3"},
    ),
    "past and future": ("quickstart", LITTLE_KV | {"fleet.pools.main.batching": "past-future"}),
    "two candidates": (
        "assistants",
        {"traffic.duration_s": 90, "fleet.routing": {"kind": "dualmap", "ttft_slo_s": 0.3}},
    ),
    "documents": (
        "quickstart",
        {
            "traffic.requests": 200,
            "traffic.prompts": {"kind": "documents", "documents": 20, "document_tokens": 400},
            "engine.kv_blocks": 9000,
            "fleet.pools.main.segments": {},
        },
    ),
    "stages": ("pipeline", {"traffic.requests": 200, "fleet.pools.main.engine.kv_blocks": 2000}),
    "stages of ranks": ("two-nodes", {"traffic.duration_s": 20, "traffic.warmup_s": 0}),
    "whole prompts": (
        "assistants",
        {"traffic.duration_s": 90, "fleet.pools.main.batching": "prefill-first"},
    ),
}

FEW = ["handed over"]
"""Runs of `make quick`."""

TRIED = {name: RUNS[name] for name in (FEW if QUICK else RUNS)}

IN_THE_CHECKOUT = """
import json, sys
import llmsim as ls
from llmsim.cli.looking import engine_is_compiled

assert not engine_is_compiled()
assert ls.__file__.startswith(sys.argv[1])
for name, (scenario, overrides) in json.loads(sys.argv[2]).items():
    ls.run(scenario, overrides, out=name)
"""


MEASURED = """
import sys
from measured_profiles import rows, write_profile
from pathlib import Path

write_profile(Path(sys.argv[1]), rows(noise=0.03))
"""


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """Overrides that price steps from a synthetic profile of an H100."""
    folder = tmp_path_factory.mktemp("profile")
    path = f"{CHECKOUT}:{CHECKOUT / 'tests' / 'unit'}"
    call([sys.executable, "-c", MEASURED, str(folder)], folder, PYTHONPATH=path)
    cost = {"kind": "measured", "profile": str(folder)}
    keys = {"traffic.requests": 300, "fleet.pools.main.gpu": "h100-sxm"}
    return keys | {"fleet.pools.main.cost": cost}


@pytest.fixture(scope="module")
def pure(tmp_path_factory):
    """Run folders written by the checkout's sources."""
    if not engine_is_compiled():
        pytest.skip("the llmsim under test is pure Python; `make test` compiles it")
    folder = tmp_path_factory.mktemp("pure")
    words = [sys.executable, "-c", IN_THE_CHECKOUT, str(CHECKOUT), json.dumps(TRIED)]
    call(words, folder, PYTHONPATH=str(CHECKOUT))
    return folder


@pytest.mark.slow
def test_a_measured_profile_is_priced_the_same(profiled, tmp_path):
    if not engine_is_compiled():
        pytest.skip("the llmsim under test is pure Python; `make test` compiles it")
    runs = json.dumps({"measured": ("quickstart", profiled)})
    words = [sys.executable, "-c", IN_THE_CHECKOUT, str(CHECKOUT), runs]
    call(words, tmp_path, PYTHONPATH=str(CHECKOUT))
    here, there = ls.run("quickstart", profiled), ls.load(tmp_path / "measured")
    assert here.digest == there.digest
    assert here.metrics == pytest.approx(there.metrics, rel=0, abs=0, nan_ok=True)
    pd.testing.assert_frame_equal(here.requests, there.requests, check_exact=True)


@pytest.mark.parametrize("name", TRIED)
def test_compiled_and_pure_runs_are_equal(name, pure):
    scenario, overrides = RUNS[name]
    here, there = ls.run(scenario, overrides), ls.load(pure / name)
    assert here.digest == there.digest
    assert here.facts.events == there.facts.events
    assert here.metrics == pytest.approx(there.metrics, rel=0, abs=0, nan_ok=True)
    pd.testing.assert_frame_equal(here.requests, there.requests, check_exact=True)
    pd.testing.assert_frame_equal(here.timeline(), there.timeline(), check_exact=True)
    if name in ("preemptions", "priority"):
        assert here.metrics["preemptions"] > 0
