"""Reading measurements: units, faults with their lines, and what a rule takes for granted."""

import gzip

import pytest

from llmsim.core.errors import InputError
from llmsim.fidelity.assumptions import assume, numbers_of, read_rules
from llmsim.fidelity.cases import Case, read_cases
from llmsim.specs import load_engine

HEADER = (
    "case_id,quality,source,model,model_key,gpu,n_gpu,tp,dp,engine,engine_version,workload,"
    "isl,osl,arrival,rate_rps,concurrency,num_requests,metric,stat,value,unit\n"
)
ROW = "a,A,lab,org/m,llama-3.1-8b,h100-sxm,1,1,1,vllm,0.15.1,random,100,10,closed loop,inf,4,,"


def write(folder, text):
    with gzip.open(folder / "e2e.csv.gz", "wt") as file:
        file.write(text)
    return folder


def test_rows_of_a_case_come_together_in_si(tmp_path):
    text = HEADER + f"{ROW}ttft,mean,250,ms\n{ROW}output_throughput,mean,40,tok/s\n"
    (case,) = read_cases(write(tmp_path, text))
    assert case.measured == {("ttft", "mean"): 0.25, ("output_throughput", "mean"): 40.0}
    assert case.whole("concurrency") == 4
    assert case.number("rate_rps") is None  # inf: as fast as the slots allow
    assert case.number("num_requests") is None


def test_a_plain_csv_will_do(tmp_path):
    (tmp_path / "e2e.csv").write_text(HEADER + f"{ROW}tpot,p50,9,ms\n")
    assert read_cases(tmp_path)[0].measured == {("tpot", "p50"): pytest.approx(0.009)}


def test_every_bad_number_is_told_with_its_line(tmp_path):
    text = HEADER + f"{ROW}ttft,mean,fast,ms\n{ROW}tpot,mean,1,ms\n{ROW}e2e,mean,,ms\n"
    with pytest.raises(InputError) as told:
        read_cases(write(tmp_path, text))
    assert [fault.where.rpartition(":")[2] for fault in told.value.faults] == ["2", "4"]
    assert "'fast'" in str(told.value)


def test_a_missing_column_and_a_missing_file_are_named(tmp_path):
    with pytest.raises(InputError, match=r"holds no e2e\.csv\.gz"):
        read_cases(tmp_path)
    with pytest.raises(InputError, match="Did you mean 'metrics'"):
        read_cases(write(tmp_path, HEADER.replace("metric,", "metrics,")))


def case_of(**fields):
    return Case("x", "A", fields, {})


@pytest.mark.parametrize(
    ("version", "numbers"),
    [
        ("0.15.1 (fork with tracing)", (0, 15, 1)),
        ("1.2.0rc6.post1", (1, 2, 0)),
        ("2024 (not recorded)", ()),
        ("Jun 2026 image", ()),
        ("", ()),
    ],
)
def test_versions(version, numbers):
    assert numbers_of(version) == numbers


@pytest.mark.parametrize(
    ("version", "lookahead"), [("0.12.0", 0), ("0.14.0", 1), ("0.15.1", 1), ("0.22.0", 1)]
)
def test_vllm_schedules_ahead_from_0_14(version, lookahead):
    found = assume(case_of(engine="vllm", engine_version=version, gpu="A100-80G"))
    assert load_engine(found.engine["version"]).lookahead == lookahead
    assert found.engine["max_num_batched_tokens"] == 2048  # an A100 keeps the small budget
    assert len(found.sources) >= 2


def test_later_rules_win_key_by_key():
    found = assume(
        case_of(
            engine="vllm",
            engine_version="0.18.0",
            gpu="B200",
            source="aic-silicon-inferencex",
            model_key="gpt-oss-120b",
            arrival="closed loop",
            workload="InferenceX random (lengths ~ U[0.8,1.0] x nominal)",
        )
    )
    assert found.engine["kv_dtype"] == "fp8"
    assert found.engine["max_num_seqs"] == 512
    assert found.engine["block_tokens"] == 16
    assert found.client["requests_per_slot"] == 10
    assert found.client["length_min_frac"] == 0.8


def test_recipes_say_which_kernels_ran_and_how_prompts_were_admitted():
    hopper = {"engine": "vllm", "gpu": "H200-141G-SXM", "engine_version": "0.18.0"}
    found = assume(
        case_of(source="aic-silicon-inferencex", model_key="gpt-oss-120b", tp="8", **hopper)
    )
    skew = {"expert_skew": 0.69}
    assert found.cost == {"fused_norm": True, "expert_kernel": "marlin"} | skew
    assert assume(case_of(**hopper | {"engine_version": "0.15.1"})).cost == skew

    minimax = {"source": "aic-silicon-inferencex", "engine": "vllm", "gpu": "B200", "quant": "fp8"}
    early, late = (
        assume(case_of(**minimax, model_key="minimax-m2.5", engine_version=version))
        for version in ("0.17.0", "0.19.0")
    )
    assert early.cost["expert_kernel"] == "triton"
    assert early.expert_rows[0].startswith("vllm_fused_moe")
    assert "expert_kernel" not in late.cost
    assert late.expert_rows == ["*fp8moe_flashinfer_trtllm*"]

    llama = {
        "source": "aic-silicon-inferencex",
        "engine": "trtllm",
        "gpu": "B200",
        "model_key": "llama-3.1-70b",
        "quant": "fp4",
        "isl": "1024",
        "osl": "1024",
    }
    found = assume(case_of(tp="4", **llama))
    assert found.batching == {"kind": "gathering", "wait_steps": 20, "fill_frac": 0.9}
    assert found.engine["max_num_batched_tokens"] == 2248
    assert assume(case_of(tp="8", **llama)).batching == {}


def test_what_a_rule_was_fitted_to_proves_nothing():
    llama = {
        "source": "aic-silicon-inferencex",
        "engine": "vllm",
        "gpu": "B200",
        "model_key": "llama-3.1-70b",
    }
    fitted, held = (assume(case_of(quant=quant, tp="8", **llama)) for quant in ("fp8", "fp4"))
    assert fitted.seen_by
    assert not held.seen_by
    assert fitted.cost == held.cost
    assert fitted.cost["prefill_layer_s"] > 0


def test_a_rule_needs_an_origin_and_known_words(tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text("rules:\n  - when: {engine: vllm}\n    set: {engin: {}}\n")
    with pytest.raises(InputError, match="Did you mean 'engine'") as told:
        read_rules(path)
    assert "every value needs its origin" in str(told.value)


def test_keys_of_a_pool_add_up_over_rules(tmp_path):
    rows = [
        "{set: {pools: {decode: {spare_experts: 32, engine: {max_num_seqs: 8}}}}, source: one}",
        "{set: {pools: {decode: {engine: {kv_dtype: fp8}}, prefill: {tp: 2}}}, source: other}",
    ]
    table = tmp_path / "rules.yaml"
    table.write_text("rules: [" + ", ".join(rows) + "]")
    found = assume(case_of(engine="vllm"), read_rules(table)).pools
    engine = {"max_num_seqs": 8, "kv_dtype": "fp8"}
    assert found == {"decode": {"spare_experts": 32, "engine": engine}, "prefill": {"tp": 2}}
