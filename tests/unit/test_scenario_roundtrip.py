"""Whatever loads is written out whole, and loads again to the same scenario."""

import json

import numpy as np
import pytest
from drawing import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from scenario_files import write

from llmsim.core.paths import list_data
from llmsim.scenario import Scenario, build_workload, load_scenario, schema
from llmsim.scenario.document import parse_document

seconds = st.floats(1e-6, 1e6)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,8}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=40)
routings = st.one_of(
    st.sampled_from(["round-robin", "least-loaded", "power-of-two", "session-sticky"]),
    st.fixed_dictionaries(
        {"kind": st.just("prefix-affinity")},
        optional={"min_match_frac": st.floats(0, 1), "max_imbalance": st.integers(0, 99)},
    ),
)
arrivals = st.one_of(
    st.fixed_dictionaries(
        {"kind": st.just("gamma"), "rate_rps": seconds}, optional={"cv": st.floats(0.1, 10)}
    ),
    st.fixed_dictionaries(
        {"kind": st.sampled_from(["poisson", "deterministic"]), "rate_rps": seconds}
    ),
)
lengths = st.fixed_dictionaries(
    {
        "kind": st.just("fixed"),
        "prompt_tokens": st.integers(1, 9999),
        "output_tokens": st.integers(1, 9999),
    }
)
engines = st.fixed_dictionaries(
    {},
    optional={
        "version": st.sampled_from(["vllm-0.33", "vllm-0.20"]),
        "block_tokens": st.sampled_from([8, 16, 32]),
        "kv_blocks": st.none() | st.integers(1, 10**6),
        "max_num_seqs": st.integers(1, 2048),
        "max_num_batched_tokens": st.integers(2048, 65536),
        "max_model_len": st.integers(1, 131072),
        "prefix_caching": st.booleans(),
        "watermark_frac": st.floats(0, 1),
        "lookahead": st.sampled_from([0, 1]),
        "kv_dtype": st.sampled_from(["bf16", "fp8"]),
        "quantisation": st.sampled_from([None, "fp8", "int4_awq"]),
    },
)
pools = st.fixed_dictionaries(
    {"gpu": st.sampled_from(["h100-sxm", "l40s"])},
    optional={
        "replicas": st.integers(1, 99),
        "tp": st.sampled_from([1, 2, 4]),
        "gpu_price_usd_per_hour": st.floats(0, 100),
        "engine": engines,
        "batching": st.sampled_from(
            ["vllm", "prefill-first", {"kind": "vllm", "order": "priority"}]
        ),
    },
)
scenarios = st.fixed_dictionaries(
    {
        "llmsim": st.just(1),
        "name": names,
        "model": st.sampled_from(["llama-3.1-8b", "llama-3.1-70b"]),
        "traffic": st.fixed_dictionaries(
            {"arrivals": arrivals, "lengths": lengths, "requests": st.integers(1, 10**9)},
            optional={
                "prompts": st.just("distinct"),
                "warmup_s": st.floats(0, 1e6),
                "timeout_s": seconds,
                "abort": st.fixed_dictionaries(
                    {"frac": st.floats(0.01, 1), "mean_s": seconds},
                    optional={"law": st.sampled_from(["fixed", "exponential"])},
                ),
            },
        ),
        "fleet": st.fixed_dictionaries(
            {"pools": st.dictionaries(names, pools, min_size=1, max_size=3)},
            optional={"routing": routings, "view_age_s": st.floats(0, 10)},
        ),
    },
    optional={
        "description": texts,
        "seed": st.integers(0, 2**63),
        "slo": st.fixed_dictionaries(
            {}, optional={"ttft_s": seconds, "attained_frac": st.floats(0.01, 1)}
        ),
        "engine": engines,
    },
)


@pytest.mark.slow
@settings(deadline=None, max_examples=examples(60))
@given(scenarios)
def test_resolved_yaml_loads_back_to_an_equal_scenario(data):
    first = Scenario.parse(data)
    text = first.resolved_yaml()
    again = Scenario.parse(parse_document(text).data)
    assert again == first
    assert again.resolved_yaml() == text
    assert again.override({}) == first
    assert hash(again) == hash(first)


@settings(deadline=None, max_examples=examples(40))
@given(scenarios)
def test_everything_that_was_said_is_in_the_resolved_scenario(data):
    def said(given, found, path):
        for key, value in given.items():
            if isinstance(value, dict):
                said(value, found.get(key, {}), f"{path}.{key}")
            elif path.endswith(".engine") and key not in found:
                continue  # equal to the scenario's own engine: folded into it
            else:
                kind = found[key]["kind"] if isinstance(found[key], dict) else found[key]
                assert kind == value, f"{path}.{key}"

    said(data, Scenario.parse(data).resolved(), "")


def test_every_default_is_filled_in(tmp_path):
    data = load_scenario(write(tmp_path)).resolved()
    assert set(data) == set(Scenario.model_fields)
    assert set(data["engine"]) == set(type(Scenario.parse(data).engine).model_fields)
    assert data["fleet"]["routing"] == {
        "kind": "prefix-affinity",
        "min_match_frac": 0.1,
        "max_imbalance": 4,
        "max_nodes": 2_000_000,
    }


def test_the_json_schema_knows_every_key_and_kind():
    made = schema()
    json.dumps(made)
    assert {"extends", *Scenario.model_fields} == set(made["properties"])
    assert made["required"] == ["llmsim", "model", "traffic", "fleet"]
    routing = made["$defs"]["Fleet"]["properties"]["routing"]["oneOf"]
    assert "prefix-affinity" in routing[0]["enum"]
    shape = next(s for s in routing if s.get("title") == "PrefixAffinity")
    assert shape["properties"]["kind"] == {"const": "prefix-affinity"}
    assert shape["additionalProperties"] is False
    for definition in made["$defs"].values():
        for name, item in definition.get("properties", {}).items():
            assert item.get("description") or name not in Scenario.model_fields


def drawn(scenario):
    chunks = list(build_workload(scenario).chunks())
    return [np.concatenate([getattr(c, n) for c in chunks]) for n in ("arrival_ns", "abort_ns")]


def test_the_workload_is_the_same_every_time_and_aborts_shift_nothing(tmp_path):
    plain = load_scenario(write(tmp_path), {"traffic.requests": 20_000})
    aborting = plain.override({"traffic.abort": {"frac": 0.25, "mean_s": 8.0}})
    arrival, none = drawn(plain)
    same_arrival, abort = drawn(aborting)
    assert (none == -1).all()
    np.testing.assert_array_equal(arrival, same_arrival)
    np.testing.assert_array_equal(abort, drawn(aborting)[1])
    leaving = abort[abort >= 0] / 1e9
    # 4 standard errors: share sqrt(pq/n), exponential mean 8/sqrt(5000).
    assert abs(len(leaving) / 20_000 - 0.25) < 4 * (0.25 * 0.75 / 20_000) ** 0.5
    assert abs(leaving.mean() - 8.0) < 4 * 8.0 / 5000**0.5
    fixed = drawn(aborting.override({"traffic.abort.law": "fixed"}))[1]
    assert set(fixed.tolist()) == {-1, 8_000_000_000}


def test_draws_of_aborts_do_not_depend_on_chunks(tmp_path):
    shipped = list_data("traces", ".csv.gz")["burstgpt-like"]
    trace = {"kind": "burstgpt", "path": str(shipped), "limit": 3000}
    base = load_scenario(write(tmp_path)).override(
        {
            "traffic.arrivals": None,
            "traffic.lengths": None,
            "traffic.requests": None,
            "traffic.trace": trace,
            "traffic.abort": {"frac": 0.5, "mean_s": 2.0},
        }
    )
    small = base.override({"traffic.trace.chunk_rows": 77})
    workload = build_workload(base)
    assert workload.clients
    np.testing.assert_array_equal(drawn(base)[1], drawn(small)[1])
