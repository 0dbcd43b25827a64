"""Launch commands: each flag is one that the engine documents, with the scenario's value."""

import json
import re
import shlex
import subprocess

import pytest

from llmsim.core.errors import InputError, InvariantError
from llmsim.deployment import deploy
from llmsim.deployment.line import Argument, CommandLine, Shell
from llmsim.deployment.tables import PROGRAMS, load_table
from llmsim.scenario.faults import all_keys
from llmsim.scenario.fleet import Fleet, Pool

MAIN = "fleet.pools.main."
ENGINE = MAIN + "engine."
TABLES = (*PROGRAMS, "vllm-router", "sglang-router")

CASES = [
    # what is changed, vLLM's words for it, SGLang's words for it
    ({ENGINE + "max_num_seqs": 77}, "--max-num-seqs 77", "--max-running-requests 77"),
    (
        {ENGINE + "max_num_batched_tokens": 3000},
        "--max-num-batched-tokens 3000",
        "--chunked-prefill-size 3000",
    ),
    ({ENGINE + "max_model_len": 9000}, "--max-model-len 9000", "--context-length 9000"),
    ({ENGINE + "block_tokens": 32}, "--block-size 32", "--page-size 32"),
    ({ENGINE + "kv_blocks": 9999}, "--num-gpu-blocks-override 9999", "--max-total-tokens 159984"),
    ({ENGINE + "prefix_caching": False}, "--no-enable-prefix-caching", "--disable-radix-cache"),
    (
        {ENGINE + "chunked_prefill": False, ENGINE + "max_num_batched_tokens": 131072},
        "--no-enable-chunked-prefill",
        "--chunked-prefill-size -1",
    ),
    (
        {ENGINE + "cuda_graphs": False},
        "--enforce-eager",
        "--cuda-graph-backend-decode disabled --cuda-graph-backend-prefill disabled",
    ),
    ({ENGINE + "lookahead": 0}, "--no-async-scheduling", "--disable-overlap-schedule"),
    ({ENGINE + "kv_dtype": "fp8"}, "--kv-cache-dtype fp8", "--kv-cache-dtype fp8_e4m3"),
    ({ENGINE + "kv_dtype": "bf16"}, "--kv-cache-dtype bfloat16", "--kv-cache-dtype bf16"),
    ({ENGINE + "quantisation": "fp8"}, "--quantization fp8", "--quantization fp8"),
    ({ENGINE + "gpu_memory_utilization_frac": 0.87}, "--gpu-memory-utilization 0.87", None),
    ({ENGINE + "watermark_frac": 0.05}, "--watermark 0.05", None),
    ({ENGINE + "max_graph_tokens": 2048}, "--max-cudagraph-capture-size 2048", None),
    ({ENGINE + "reserve_full_prompt": False}, "--no-scheduler-reserve-full-isl", None),
    (
        {ENGINE + "long_prefill_threshold_tokens": 512},
        "--long-prefill-token-threshold 512",
        None,
    ),
    (
        {MAIN + "batching": {"kind": "vllm", "order": "priority"}},
        "--scheduling-policy priority",
        None,
    ),
    ({MAIN + "tp": 4}, "--tensor-parallel-size 4", "--tp-size 4"),
    ({MAIN + "pp": 2}, "--pipeline-parallel-size 2", "--pp-size 2"),
    ({MAIN + "eviction": "lfu"}, None, "--radix-eviction-policy lfu"),
    (
        {MAIN + "kv": {"tiers": [{"name": "host", "capacity_bytes": 64.0 * 2**30}]}},
        "--kv-offloading-size 64 --kv-offloading-backend native",
        "--enable-hierarchical-cache --hicache-size 68",
    ),
    (
        {MAIN + "batching": {"kind": "sglang", "order": "lpm", "conservativeness": 0.6}},
        None,
        "--max-prefill-tokens 16384 --schedule-policy lpm --schedule-conservativeness 0.6",
    ),
    (
        {MAIN + "batching": {"kind": "sglang", "mixed_chunk": True, "recv_interval_steps": 4}},
        None,
        "--enable-mixed-chunk --scheduler-recv-interval 4",
    ),
]


def words_of(made, pool="main"):
    (launch,) = [each for each in made.launches if each.site.name == pool]
    return " ".join(argument.shell for argument in launch.leader)


@pytest.mark.parametrize("program", TABLES)
def test_every_flag_says_what_it_is_and_where_it_was_read(program):
    table = load_table(program)
    keys = {key.replace("<pool>.", "") for key in (*all_keys(Pool), *all_keys(Fleet))}
    assert table.flags
    for flag in table.flags.values():
        assert re.fullmatch(r"--[a-z0-9-]+", flag.name)
        assert flag.meaning.strip()
        assert "{release}" in flag.source
        assert "{file}" not in flag.source
        assert bool(flag.choices) == (flag.takes == "choice")
        for key in flag.carries:
            # the parameters of a component are no keys of their own
            assert key in keys or key.split(".")[0] in ("batching", "eviction"), key
    for fact in (table.image, table.health, *table.metrics.values(), *table.environment.values()):
        assert fact.value
        assert fact.source


@pytest.mark.parametrize(("changes", "vllm", "sglang"), CASES)
@pytest.mark.many
def test_a_setting_is_said_in_the_words_of_each_engine(changes, vllm, sglang):
    usual = {program: words_of(deploy("quickstart", engine=program)) for program in PROGRAMS}
    for program, wanted in (("vllm", vllm), ("sglang", sglang)):
        said = words_of(deploy("quickstart", changes, engine=program))
        if wanted is not None:
            assert f" {wanted} " in f" {said} "
            assert f" {wanted} " not in f" {usual[program]} "


@pytest.mark.parametrize(("changes", "vllm", "sglang"), CASES)
@pytest.mark.many
def test_what_an_engine_cannot_be_told_is_noted(changes, vllm, sglang):
    for program, wanted in (("vllm", vllm), ("sglang", sglang)):
        made = deploy("quickstart", changes, engine=program)
        noted = {note.path for note in made.notes}
        if wanted is None:
            assert noted & set(changes), (program, changes)
        assert all(note.text for note in made.notes)


@pytest.mark.slow
def test_every_flag_in_a_table_is_used_by_some_fleet():
    used = {program: set() for program in TABLES}
    fleets = [("quickstart", changes) for changes, _, _ in CASES]
    fleets += [(name, {}) for name in ("disaggregated", "two-models", "ranks")]
    fleets += [("quickstart", TWO_NODES), ("ranks", MORE_RANKS), ("ranks", BALANCED)]
    fleets += [
        ("quickstart", {"fleet.routing": kind}) for kind in ("session-sticky", "prefix-affinity")
    ]
    for name, changes in fleets:
        for program in PROGRAMS:
            made = deploy(name, changes, engine=program)
            for launch in made.launches:
                for argument in (*launch.leader, *launch.worker):
                    used[program].add(argument.flag)
            scripts = "".join(
                text for path, text in made.files.items() if path.rpartition("/")[2][:6] == "router"
            )
            used[f"{program}-router"] |= set(re.findall(r" (--[a-z][a-z-]+)", scripts))
    for program in TABLES:
        known = set(load_table(program).flags)
        said = {
            flag if flag in known else f"--{flag.removeprefix('--no-')}" for flag in used[program]
        }
        said.discard("----quiet")  # pip's
        assert said == known, program


BALANCED = {MAIN + "ep": 8, MAIN + "spare_experts": 8, MAIN + "expert_balancing": True}
TWO_NODES = {
    "model": "llama-3.1-405b",
    MAIN + "tp": 8,
    MAIN + "pp": 2,
    ENGINE + "max_model_len": 8192,
}
MORE_RANKS = {MAIN + "dp": 16, MAIN + "ep": 16}


def test_a_flag_that_no_table_has_is_a_fault_of_the_code():
    line = CommandLine(load_table("vllm"), "vllm-0.33", "main")
    with pytest.raises(InvariantError, match="no table of vLLM"):
        line.put("--maximum-speed", 1)
    with pytest.raises(InvariantError, match="--kv-cache-dtype int3"):
        line.put("--kv-cache-dtype", "int3")
    with pytest.raises(InvariantError, match="takes a share"):
        line.put("--watermark", 1.5)
    with pytest.raises(InvariantError, match="takes a whole number"):
        line.put("--block-size", 16.0)
    with pytest.raises(InvariantError, match="takes nothing"):
        line.put("--enforce-eager", True)


def test_a_release_is_told_only_what_it_knows():
    changes = {ENGINE + "version": "vllm-0.14", ENGINE + "watermark_frac": 0.01}
    made = deploy("quickstart", changes | {ENGINE + "kv_dtype": "fp16"})
    said = words_of(made)
    assert made.launches[0].image == "vllm/vllm-openai:v0.14.0"
    assert "--watermark" not in said
    assert "--scheduler-reserve-full-isl" not in said
    assert "--kv-cache-dtype" not in said
    texts = {note.path: note.text for note in made.notes}
    assert texts[ENGINE + "watermark_frac"] == "vLLM 0.14.0 has no --watermark"
    assert texts[ENGINE + "kv_dtype"] == "--kv-cache-dtype of vLLM 0.14.0 does not take float16"
    assert "vLLM 0.14.0 has no" in texts[ENGINE + "reserve_full_prompt"]


def test_prompts_and_decoding_apart_get_the_connector_of_their_role():
    made = deploy("disaggregated")
    for pool, role in (("prefill", "kv_producer"), ("decode", "kv_consumer")):
        words = shlex.split(words_of(made, pool))
        config = json.loads(words[words.index("--kv-transfer-config") + 1])
        assert config == {"kv_connector": "NixlConnector", "kv_role": role}
    older = deploy("disaggregated", {"engine.version": "vllm-0.20"})
    assert '"kv_role": "kv_both"' in words_of(older, "prefill")
    for pool in ("prefill", "decode"):
        said = words_of(deploy("disaggregated", engine="sglang"), pool)
        assert f"--disaggregation-mode {pool} --disaggregation-transfer-backend nixl" in said


def test_ranks_are_counted_as_each_engine_counts_them():
    vllm = words_of(deploy("ranks"))
    assert "--data-parallel-size 8 --enable-expert-parallel --max-num-seqs 256" in vllm
    sglang = words_of(deploy("ranks", engine="sglang"))
    assert "--tp-size 8 --pp-size 1 --attn-dp-size 8" in sglang
    assert "--max-running-requests 2048 --chunked-prefill-size 32768" in sglang


def test_the_share_of_memory_is_that_of_weights_and_kv_for_sglang():
    made = deploy("quickstart", engine="sglang")
    memory = made.launches[0].site.memory
    words = shlex.split(words_of(made))
    share = float(words[words.index("--mem-fraction-static") + 1])
    exact = (memory.weights_bytes + memory.kv_blocks * memory.block_bytes) / memory.total_bytes
    assert 0 <= exact - share < 0.001


def test_scripts_start_what_the_manifests_start(tmp_path):
    """Each script, run with an engine that prints its words, gives the words of the pod."""
    made = deploy("disaggregated", out=tmp_path / "made")
    for name in ("vllm", "hostname"):
        fake = tmp_path / name
        fake.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done\n')
        fake.chmod(0o755)
    for pool in ("prefill", "decode"):
        script = tmp_path / "made" / "launch" / f"{pool}.sh"
        done = subprocess.run(
            [script],
            env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        )
        (pod,) = [
            each
            for each in made.manifests()
            if each["kind"] == "Deployment" and each["metadata"]["name"].endswith(f"-{pool}")
        ]
        (container,) = pod["spec"]["template"]["spec"]["containers"]
        assert ["vllm", *done.stdout.splitlines()] == [*container["command"], *container["args"]]


@pytest.mark.parametrize(("name", "changes"), [("quickstart", TWO_NODES), ("ranks", MORE_RANKS)])
@pytest.mark.parametrize("program", PROGRAMS)
def test_nodes_of_a_replica_know_their_number_and_the_first(name, changes, program, tmp_path):
    deploy(name, changes, engine=program, out=tmp_path / "made")
    script = tmp_path / "made" / "launch" / "main.sh"
    for fake in ("vllm", "python3"):
        (tmp_path / fake).write_text('#!/bin/sh\necho "$@"\n')
        (tmp_path / fake).chmod(0o755)

    def words(rank):
        told = {"PATH": f"{tmp_path}:/usr/bin:/bin", "LEADER_ADDRESS": "10.0.0.7"}
        told |= {"NODE_RANK": str(rank)}
        done = subprocess.run(
            [script],
            env=told | {"NODE_RANK": str(rank)},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    first, second = words(0), words(1)
    assert "10.0.0.7" in first
    assert "10.0.0.7" in second
    if program == "sglang":
        assert first.replace("--node-rank 0", "--node-rank 1") == second
    elif name == "ranks":
        assert "--data-parallel-size-local 8" in first
        assert "--headless" not in first
        assert "--data-parallel-start-rank 8 --headless" in second
    else:
        assert "--nnodes 2 --node-rank 0" in first
        assert "--nnodes 2 --node-rank 1" in second
        assert "--headless" in second


def test_a_value_from_the_shell_is_quoted_and_others_are_not_expanded():
    assert Argument("--node-rank", (Shell("$NODE_RANK"),)).shell == '--node-rank "$NODE_RANK"'
    assert Argument("--served-model-name", ("a $b",)).shell == "--served-model-name 'a $b'"


def test_an_engine_without_a_table_is_refused_with_the_way_out():
    with pytest.raises(InputError) as error:
        deploy("quickstart", {"engine.version": "trtllm-1.2"})
    (fault,) = error.value.faults
    assert fault.where == "--set"
    assert fault.path == ENGINE + "version"
    assert "--engine vllm or --engine sglang" in fault.hint
    assert deploy("quickstart", {"engine.version": "trtllm-1.2"}, engine="sglang").launches


def test_what_is_wrong_comes_all_at_once_with_its_line():
    changes = {
        "fleet.pools.decode.engine": {"quantisation": "int4_awq"},
        "fleet.pools.prefill.engine": {"version": "trtllm-1.2"},
    }
    with pytest.raises(InputError) as error:
        deploy("disaggregated", changes)
    first, second = error.value.faults
    assert "trtllm-1.2" in str(first)
    assert "is no int4_awq checkpoint. Say which: --checkpoint llama-3.1-8b=" in str(second)
    with pytest.raises(InputError, match=r"lanes\.yaml:\d+  fleet\.pools\.decode\.beside"):
        deploy("lanes")


def test_a_checkpoint_that_is_named_is_served_as_it_is():
    changes = {ENGINE + "quantisation": "int4_awq"}
    made = deploy("quickstart", changes, checkpoints={"llama-3.1-8b": "someone/llama-awq"})
    assert made.launches[0].command[-1] == "someone/llama-awq"
    assert "--quantization" not in words_of(made)
    with pytest.raises(InputError, match="no pool serves this model"):
        deploy("quickstart", checkpoints={"llama-3.1-70b": "x/y"})


def test_experts_in_groups_go_to_sglang_alone():
    changes = {MAIN + "dp": 8, MAIN + "ep": 4}
    with pytest.raises(InputError, match="vLLM deals experts over all 8 GPUs or none"):
        deploy("ranks", changes)
    assert "--ep-size 4" in words_of(deploy("ranks", changes, engine="sglang"))


def test_copies_of_experts():
    vllm = words_of(deploy("ranks", BALANCED))
    assert """--enable-eplb --eplb-config '{"num_redundant_experts": 8}'""" in vllm
    sglang = words_of(deploy("ranks", BALANCED, engine="sglang"))
    assert "--ep-num-redundant-experts 8 --enable-eplb" in sglang
    by_number = BALANCED | {MAIN + "expert_balancing": False}
    assert "--enable-eplb" not in words_of(deploy("ranks", by_number, engine="sglang"))
    with pytest.raises(InputError, match="vLLM copies only what it balances"):
        deploy("ranks", by_number)
