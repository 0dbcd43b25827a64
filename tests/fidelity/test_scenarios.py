"""A case as a scenario: what is recorded wins, what is missing is said."""

import gzip

import pytest

from llmsim.fidelity.cases import Case
from llmsim.fidelity.requests import RequestFiles, tells_arrivals, write_trace
from llmsim.fidelity.scenarios import NotSimulatedError, Options, scenario_data
from llmsim.scenario import Scenario, build_workload

CLOSED = {
    "source": "lab",
    "model_key": "llama-3.1-8b",
    "gpu": "H100-80G-SXM",
    "n_gpu": "2",
    "tp": "2",
    "engine": "vllm",
    "engine_version": "0.15.1",
    "isl": "1000",
    "osl": "100",
    "arrival": "closed loop",
    "rate_rps": "inf",
    "concurrency": "8",
}


def case(**changed):
    return Case("lab-1", "A", {**CLOSED, **changed}, {})


def test_a_closed_loop_sends_ten_requests_a_slot_unless_their_number_is_known():
    loop = scenario_data(case())["traffic"]["arrivals"]
    assert (loop["in_flight"], loop["requests_per_slot"]) == (8, 10)
    loop = scenario_data(case(num_requests="24"))["traffic"]["arrivals"]
    assert loop["requests_per_slot"] == 3


def test_lengths_are_drawn_where_the_client_draws_them():
    fixed = scenario_data(case())["traffic"]["lengths"]
    assert fixed == {"kind": "fixed", "prompt_tokens": 1000, "output_tokens": 100}
    drawn = scenario_data(case(workload="InferenceX random (...)"))["traffic"]["lengths"]
    assert (drawn["prompt_min_tokens"], drawn["prompt_max_tokens"]) == (800, 1000)


def test_what_a_run_records_wins_over_what_is_assumed():
    engine = scenario_data(
        case(
            max_num_seqs="128",
            max_num_batched_tokens="2048",
            prefix_cache="off",
            engine_args="gpu_memory_utilization=0.95; max_model_len=4096; kv_blocks=700",
        )
    )["engine"]
    assert (engine["max_num_seqs"], engine["max_num_batched_tokens"]) == (128, 2048)
    assert engine["prefix_caching"] is False
    assert engine["gpu_memory_utilization_frac"] == 0.95
    assert (engine["max_model_len"], engine["kv_blocks"]) == (4096, 700)


def test_a_recipe_makes_the_budget_from_the_load():
    engine = scenario_data(case(source="aic-silicon-internal"))["engine"]
    assert (engine["max_num_seqs"], engine["max_num_batched_tokens"]) == (8, 8 + 1000 + 1500)
    older = case(source="aic-silicon-internal", engine="trtllm", engine_version="1.0.0rc3")
    assert scenario_data(older)["engine"]["max_num_batched_tokens"] == 8 + 1000 + 1000


def test_every_scenario_is_a_valid_one_and_a_closed_loop_has_all_its_requests():
    scenario = Scenario.parse(scenario_data(case()))
    workload = build_workload(scenario)
    assert workload.total == 80
    assert scenario.fleet.pools["main"].tp == 2


def test_poisson_where_the_files_say_so():
    data = scenario_data(
        case(source="inference-sim-x", arrival="constant", rate_rps="5", duration_s="60")
    )
    assert data["traffic"]["arrivals"] == {"kind": "poisson", "rate_rps": 5.0}
    assert data["traffic"]["requests"] == 300
    assert data["traffic"]["prompts"]["prompts"] == 100


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"isl": ""}, "input length"),
        ({"osl": ""}, "output length"),
        ({"tp": ""}, "layout"),
        ({"n_gpu": "8"}, "8 GPUs do not make"),
        ({"pp": "2", "n_gpu": "8"}, "8 GPUs do not make 1 x tp 2, pp 2"),
        ({"disagg": "1p1d"}, "prefill and decode workers are not counted"),
        ({"engine": "s-lora"}, "no model here"),
        ({"concurrency": ""}, "concurrency"),
        ({"arrival": "production"}, "arrivals 'production'"),
    ],
)
def test_why_a_case_is_not_simulated(changed, reason):
    with pytest.raises(NotSimulatedError, match=reason):
        scenario_data(case(arrival=changed.pop("arrival", "closed loop"), **changed))


def test_stages_become_a_pipeline():
    pool = Scenario.parse(scenario_data(case(pp="2", n_gpu="4"))).fleet.pools["main"]
    assert (pool.tp, pool.pp, pool.plan.gpus) == (2, 2, 4)


def test_ranks_may_stand_on_stages():
    given = case(model_key="qwen3-30b-a3b", pp="2", n_gpu="8", dp="2", ep="4")
    pool = Scenario.parse(scenario_data(given)).fleet.pools["main"]
    assert (pool.tp, pool.dp, pool.ep, pool.pp, pool.replicas) == (2, 2, 4, 2, 1)
    assert pool.plan.gpus == 8


def test_options_change_every_case_alike():
    data = scenario_data(case(), Options({"kind": "roofline"}, {"length_min_frac": 0.5}))
    assert data["traffic"]["lengths"]["kind"] == "uniform"


def test_recorded_prompts_repeat_with_their_period(tmp_path):
    path = tmp_path / "trace.jsonl"
    lengths = [600, 700, 600, 700, 600]
    write_trace([(0.5 * i, n, 4) for i, n in enumerate(lengths)], path, period=2)
    scenario = Scenario.parse(scenario_data(case(), replay=path))
    (chunk,) = build_workload(scenario).chunks()
    assert chunk.prompt_tokens.tolist() == lengths
    assert chunk.segments[0] == chunk.segments[2] == chunk.segments[4]
    assert chunk.segments[1] == chunk.segments[3] != chunk.segments[0]


def test_without_files_nothing_is_replayed(tmp_path):
    assert RequestFiles(tmp_path, tmp_path, [case()]).find(case()) is None


def test_a_file_of_requests_that_says_no_arrivals_is_not_replayed(tmp_path):
    for name, head in (("a", "arrival_s,input_tokens"), ("b", "input_tokens,ttft_s")):
        with gzip.open(tmp_path / f"{name}_requests.csv.gz", "wt") as file:
            file.write(f"{head}\n1,2\n")
    assert tells_arrivals(tmp_path / "a_requests.csv.gz")
    assert not tells_arrivals(tmp_path / "b_requests.csv.gz")


@pytest.mark.parametrize(
    ("tp", "ep", "gpu", "layout"),
    [
        ("4", "2", "H200-141G-SXM", (2, 2)),
        ("16.0", "4", "H200-141G-SXM", (4, 4)),
        ("64", "8", "H200-141G-SXM", (8, 8)),
        ("8", "8", "H200-141G-SXM", (8, 8)),  # the one row that is as it says
        ("4", "4", "B200", (4, 4)),
    ],
)
def test_gpus_that_a_source_multiplied_by_its_expert_parallel_ones(tp, ep, gpu, layout):
    asked = case(
        source="aic-silicon-inferencex",
        engine="trtllm",
        model_key="gpt-oss-120b",
        gpu=gpu,
        tp=tp,
        n_gpu=tp,
        ep=ep,
    )
    pool = scenario_data(asked)["fleet"]["pools"]["main"]
    assert (pool["tp"], pool["ep"]) == layout


@pytest.mark.parametrize(
    ("gpu", "version", "quant", "tp", "ep"),
    [
        ("H200-141G-SXM", "0.18.0", "fp8", "8", 8),
        ("H200-141G-SXM", "0.16.0", "fp8", "4", 1),
        ("B200", "0.17.0", "fp8", "4", 4),
        ("B200", "0.19.0", "fp8", "4", 1),
        ("B200", "0.17.0", "fp4", "4", 1),
    ],
)
def test_experts_that_a_recipe_dealt_out_though_its_record_does_not_say_so(
    gpu, version, quant, tp, ep
):
    asked = case(
        source="aic-silicon-inferencex",
        engine="vllm",
        engine_version=version,
        model_key="minimax-m2.5",
        quant=quant,
        gpu=gpu,
        tp=tp,
        n_gpu=tp,
        ep="1",
    )
    assert scenario_data(asked)["fleet"]["pools"]["main"].get("ep", 1) == ep


@pytest.mark.parametrize(
    ("isl", "limit"), [("1024", 1024 + 2048 + 200), ("2048", 4096), ("4096", 6144)]
)
def test_the_spare_length_ends_where_the_model_does(isl, limit):
    found = scenario_data(case(model_key="llama-2-7b", isl=isl, osl="2048"))
    assert found["engine"]["max_model_len"] == limit  # the last is too long, as its run will say


@pytest.mark.parametrize(
    ("model_key", "quant", "model", "scheme"),
    [
        ("qwen3.5-397b-a17b", "fp4", "qwen3.5-397b-a17b-nvfp4", None),
        ("qwen3.5-397b-a17b", "fp8", "qwen3.5-397b-a17b", "fp8_block"),
        ("glm-5", "fp8", "glm-5-fp8", None),
    ],
)
def test_a_checkpoint_has_the_weights_that_its_name_says(model_key, quant, model, scheme):
    found = scenario_data(case(model_key=model_key, quant=quant, gpu="B300", tp="8", n_gpu="8"))
    assert (found["model"], found["engine"].get("quantisation")) == (model, scheme)


@pytest.mark.parametrize(
    ("engine", "token_s"), [("vllm", (5.3e-6, 0.0, 1.2e-6)), ("trtllm", (0.0, 6.5e-6, 0.0))]
)
def test_encoding_random_text_delays_a_prompt_by_its_tokens_some_of_it_with_others(engine, token_s):
    def front_s(**changed):
        arrivals = scenario_data(case(engine=engine, **changed))["traffic"]["arrivals"]
        return arrivals["think_s"], arrivals["ingest_s"], arrivals["round_s"]

    assert front_s(isl="5000") == front_s()  # what other clients send is not described
    random = {"source": "aic-silicon-inferencex", "workload": "InferenceX random (...)"}
    more, less = front_s(isl="5000", **random), front_s(**random)
    # The mean of lengths between 0.8 and 1.0 of the nominal.
    longer = [one - other for one, other in zip(more, less, strict=True)]
    assert longer == pytest.approx([0.9 * 4000 * each for each in token_s])
    assert less[2] == pytest.approx(0.0024 + 0.9 * 1000 * token_s[2])  # for every request alike


@pytest.mark.parametrize(("quant", "dtype"), [("fp8", "fp8"), ("", None)])
def test_kv_beside_products_in_8_bits_is_in_8_bits_in_aiconfigurator_s_own_runs(quant, dtype):
    own = {"source": "aic-silicon-internal", "engine": "trtllm", "model_key": "qwen3-32b"}
    found = scenario_data(case(**own, quant=quant, gpu="H100-80G-SXM"))
    assert found["engine"].get("kv_dtype") == dtype
