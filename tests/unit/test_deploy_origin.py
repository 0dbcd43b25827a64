"""Commands back to scenarios: what `deploy` writes is read as it was; what people have is read."""

import pytest
from test_deploy_flags import CASES, ENGINE, MAIN

import llmsim as ls
from llmsim.core.errors import CardError, InputError
from llmsim.deployment import deploy
from llmsim.deployment.command import read_command
from llmsim.deployment.origin import from_command
from llmsim.deployment.tables import PROGRAMS, load_table
from llmsim.scenario import Scenario
from llmsim.specs import load_gpu

TRAFFIC = {"kind": "burstgpt-like", "requests": 20}
SGLANG = {
    ENGINE + "version": "sglang-0.5",
    MAIN + "batching": {"kind": "sglang"},
}


def command_of(made):
    (launch,) = made.launches
    return " ".join((*launch.command, *(argument.shell for argument in launch.leader)))


def again(program, command):
    origin = from_command(program, command, "h100-sxm", TRAFFIC)
    return Scenario.parse(origin.data), origin


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("changes", [{}, *(case[0] for case in CASES)], ids=str)
@pytest.mark.many
def test_what_deploy_writes_comes_back_as_the_same_command(program, changes):
    base = SGLANG if program == "sglang" else {}
    if program == "sglang" and changes.get(MAIN + "batching", {}).get("kind") == "vllm":
        pytest.skip("a policy of vLLM that SGLang is not told")
    if MAIN + "pp" in changes:  # no scenario has SGLang's rules and several stages
        base = {key: value for key, value in base.items() if key != MAIN + "batching"}
    made = deploy("quickstart", base | changes, engine=program)
    command = command_of(made)
    scenario, origin = again(program, command)
    assert command_of(deploy(scenario, engine=program)) == command
    harmless = "does not change how long a step takes"
    assert all(harmless in each.text for each in origin.ignored)


@pytest.mark.parametrize("program", PROGRAMS)
def test_ranks_and_experts_come_back(program):
    base = dict(SGLANG) if program == "sglang" else {}
    changes = {"model": "qwen3-30b-a3b", MAIN + "dp": 2, MAIN + "tp": 2, MAIN + "ep": 4}
    changes |= {MAIN + "spare_experts": 4, MAIN + "expert_balancing": True}
    made = deploy("quickstart", base | changes, engine=program)
    scenario, _ = again(program, command_of(made))
    pool = scenario.fleet.pools["main"]
    assert (pool.tp, pool.dp, pool.ep) == (2, 2, 4)
    assert (pool.spare_experts, pool.expert_balancing) == (4, True)
    assert command_of(deploy(scenario, engine=program)) == command_of(made)


@pytest.mark.parametrize("program", PROGRAMS)
def test_ranks_on_stages_come_back(program):
    changes = {ENGINE + "version": "sglang-0.5"} if program == "sglang" else {}
    changes |= {"model": "qwen3-30b-a3b", MAIN + "dp": 4, MAIN + "ep": 4, MAIN + "pp": 2}
    made = deploy("quickstart", changes, engine=program)
    words = "--pipeline-parallel-size 2 --data-parallel-size 4"
    words = words if program == "vllm" else "--tp-size 4 --pp-size 2 --attn-dp-size 4"
    assert words in command_of(made)
    scenario, origin = again(program, command_of(made))
    pool = scenario.fleet.pools["main"]
    assert (pool.tp, pool.dp, pool.ep, pool.pp) == (1, 4, 4, 2)
    assert command_of(deploy(scenario, engine=program)) == command_of(made)
    assert not any("each stage on nodes of its own" in each for each in origin.assumed)


def test_stages_do_not_run_ahead():
    command = "vllm serve meta-llama/Llama-3.1-70B -tp 4 -pp 2 --async-scheduling"
    origin = from_command("vllm", command, "h100-sxm")
    assert "lookahead" not in origin.data["engine"]
    (ignored,) = origin.ignored
    assert str(ignored) == "--async-scheduling: micro-batches in flight take its place (pp)"
    traffic = {"arrivals": {"kind": "poisson", "rate_rps": 1.0}, "requests": 1}
    traffic["lengths"] = {"kind": "fixed", "prompt_tokens": 10, "output_tokens": 10}
    assert Scenario.parse(origin.data | {"traffic": traffic}).fleet.pools["main"].pp == 2


def test_beyond_a_node_vllm_lays_ranks_and_stages_out_otherwise():
    """SGLang has a stage on each node, as simulated; vLLM would have half of every stage there."""
    with pytest.raises(InputError, match="experts of a stage would lie on all 2 nodes"):
        deploy("two-nodes", engine="vllm")
    made = deploy("two-nodes", {ENGINE + "version": "sglang-0.5"}, engine="sglang")
    assert "--tp-size 8 --pp-size 2 --attn-dp-size 8" in command_of(made)
    assert "--nnodes 2" in command_of(made)
    command = "vllm serve deepseek-ai/DeepSeek-V3 -dp 8 -pp 2 --enable-expert-parallel"
    origin = from_command("vllm", command, "h100-sxm")
    assert origin.data["fleet"]["pools"]["main"] == {
        "gpu": "h100-sxm", "dp": 8, "ep": 8, "pp": 2
    }  # fmt: skip
    (told,) = [each for each in origin.assumed if each.startswith("each stage on nodes of its own")]
    assert "slower than simulated" in told


def test_a_command_of_vllm_in_its_many_spellings():
    told = [
        "vllm serve Qwen/Qwen3-8B --tensor-parallel-size 2 --max-model-len 32768",
        "vllm serve Qwen/Qwen3-8B -tp 2 --max_model_len=32K",
        "CUDA_VISIBLE_DEVICES=0,1 /opt/bin/vllm serve --max-model-len 32K -tp=2 Qwen/Qwen3-8B",
        "python -m vllm.entrypoints.openai.api_server --model Qwen/Qwen3-8B -tp 2 \\\n"
        " --max-model-len 32768",
        "docker run --gpus all -p 8000:8000 vllm/vllm-openai:latest --model Qwen/Qwen3-8B "
        "--tensor-parallel-size 2 --max-model-len 32768",
        "docker run --gpus all --entrypoint vllm vllm/vllm-openai serve Qwen/Qwen3-8B -tp 2 "
        "--max-model-len 32768",
        "cd /a/vllm && nohup vllm serve Qwen/Qwen3-8B \\\r\n -tp 2 --max-model-len 32K > a 2>&1 &",
        "vllm serve Qwen/Qwen3-8B -tp 2 --max-model-len 32K # the large one",
    ]
    found = [from_command("vllm", each, "h100-sxm") for each in told]
    assert all(each.data == found[0].data for each in found)
    assert found[0].data["engine"]["max_model_len"] == 32768
    assert found[0].data["fleet"] == {"pools": {"main": {"gpu": "h100-sxm", "tp": 2}}}
    assert found[0].ignored == ()


def test_a_file_of_flags_counts_less_than_the_command(tmp_path):
    file = tmp_path / "flags.yaml"
    file.write_text(
        "model: Qwen/Qwen3-8B\ntensor-parallel-size: 2\nmax_num_seqs: 128\n"
        "enable-prefix-caching: false\nenforce-eager: true\nuvicorn-log-level: info\n"
        "compilation-config: {level: 3}\n"
    )
    read = from_command("vllm", f"vllm serve --config {file} --max-num-seqs 64", "h100-sxm")
    assert read.data["model"] == "qwen3-8b"
    assert read.data["engine"]["max_num_seqs"] == 64
    assert read.data["engine"]["cuda_graphs"] is False
    assert "prefix_caching" not in read.data["engine"]  # false there is no flag at all
    assert read.data["fleet"]["pools"]["main"]["tp"] == 2
    named = {each.flag: each.value for each in read.ignored}
    assert named == {"--uvicorn-log-level": "info", "--compilation-config": '{"level": 3}'}
    file.write_text("model-path: Qwen/Qwen3-8B\ntp-size: 4\n")
    command = f"python -m sglang.launch_server --config={file}"
    assert from_command("sglang", command, "h100-sxm").data["fleet"]["pools"]["main"]["tp"] == 4
    for content, expected in (("- a\n", "flags.yaml"), ("a: [1\n", "flags.yaml:")):
        file.write_text(content)
        with pytest.raises(InputError, match=expected):
            read_command("vllm", f"vllm serve --config {file}")
    for told in ("--config", "--config nowhere.yaml"):
        with pytest.raises(InputError, match=r"--config: (needs a file|no such file)"):
            read_command("vllm", f"vllm serve Qwen/Qwen3-8B {told}")


def test_ranks_of_a_model_without_experts_are_copies():
    found = from_command("vllm", "vllm serve Qwen/Qwen3-8B -tp 2 -dp 3", "h100-sxm")
    assert found.data["fleet"]["pools"]["main"] == {"gpu": "h100-sxm", "tp": 2, "replicas": 3}
    assert any("without experts" in each for each in found.assumed)
    Scenario.parse({**found.data, "traffic": {"trace": TRAFFIC}})
    experts = from_command("vllm", "vllm serve Qwen/Qwen3-30B-A3B -tp 2 -dp 3", "h100-sxm")
    assert experts.data["fleet"]["pools"]["main"]["dp"] == 3


def test_whole_prompts_leave_sglang_its_share_of_memory():
    told = "python -m sglang.launch_server --model-path Qwen/Qwen3-8B --chunked-prefill-size"
    found = from_command("sglang", f"{told} -1", "h100-sxm")
    # 512 MiB, 1.5 MiB for each of 16,384 tokens, 2 for each of 256 graphs, an eighth of a GiB
    kept_mib = 512 + 16_384 * 1.5 + 256 * 2 + 128
    share = round(1 - kept_mib / (load_gpu("h100-sxm").memory_bytes / 2**20), 3)
    assert f"--mem-fraction-static {share} (SGLang's default, its formula)" in found.assumed
    fewer = from_command("sglang", f"{told} -1 --max-prefill-tokens 8192", "h100-sxm")
    assert f"--mem-fraction-static {share}" not in " ".join(fewer.assumed)
    assert 0 < found.data["engine"]["gpu_memory_utilization_frac"] <= 1


def test_defaults_that_the_engine_would_take_are_taken_and_named():
    command = "vllm serve Qwen/Qwen3-8B"
    limits = {}
    for gpu in ("h100-sxm", "a100-80gb-sxm", "l40s"):
        origin = from_command("vllm", command, gpu)
        engine = origin.data["engine"]
        limits[gpu] = (engine["max_num_batched_tokens"], engine["max_num_seqs"])
        version, *limited = origin.assumed
        assert version.startswith("engine.version: vllm-0.33 (the newest")
        assert len(limited) == 2
    assert limits == {"h100-sxm": (8192, 1024), "a100-80gb-sxm": (2048, 256), "l40s": (2048, 256)}
    old = from_command("vllm", "docker run vllm/vllm-openai:v0.14.3 --model Qwen/Qwen3-8B", "l40s")
    assert old.data["engine"]["version"] == "vllm-0.14"
    assert not any("engine.version" in each for each in old.assumed)
    assert old.data["engine"]["reserve_full_prompt"] is False


def test_sglangs_words_and_shares():
    command = "python3 -m sglang.launch_server --model-path Qwen/Qwen3-30B-A3B --tp 4 --dp 2"
    copies = from_command("sglang", command, "h100-sxm").data["fleet"]["pools"]["main"]
    assert (copies["tp"], copies["replicas"]) == (4, 2)
    split = from_command("sglang", f"{command} --enable-dp-attention --ep 4", "h100-sxm")
    ranks = split.data["fleet"]["pools"]["main"]
    assert (ranks["tp"], ranks["dp"], ranks["ep"]) == (2, 2, 4)
    assert "replicas" not in ranks
    # weights and KV alone: what activations take comes on top
    share = from_command("sglang", f"{command} --mem-fraction-static 0.8", "h100-sxm")
    assert 0.8 < share.data["engine"]["gpu_memory_utilization_frac"] < 0.95


def test_every_flag_is_mapped_or_named():
    command = (
        "vllm serve Qwen/Qwen3-8B --trust-remote-code --seed 3 --swap-space 8 "
        '--speculative-config \'{"method": "ngram"}\' --enable-lora --tensor-paralel-size 2 '
        '--quantization awq --kv-transfer-config \'{"kv_role": "kv_producer"}\' --nnodes 2'
    )
    named = {each.flag: str(each) for each in from_command("vllm", command, "h100-sxm").ignored}
    assert "does not change" in named["--trust-remote-code"]
    assert "would change the result" in named["--speculative-config"]
    assert "would change the result" in named["--enable-lora"]
    assert "Did you mean '--tensor-parallel-size'?" in named["--tensor-paralel-size"]
    assert "name a model that is so" in named["--quantization"]
    assert "write the other one" in named["--kv-transfer-config"]
    assert "follows from the GPU's card" in named["--nnodes"]
    assert set(named) >= {"--seed", "--swap-space"}


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("ollama run llama3", "expected 'vllm serve'"),
        ("vllm serve", "the command names no model"),
        ("vllm serve m --max-num-seqs many", "--max-num-seqs: expected a whole number"),
        ("vllm serve m --gpu-memory-utilization 90", "expected a share from 0 to 1"),
        ("vllm serve m --max-model-len", "needs a value"),
        ("vllm serve m --enforce-eager=yes", "takes no value"),
        ("vllm serve 'm", "no command of a shell"),
    ],
)
def test_a_wrong_command_says_what_is_wrong(command, expected):
    with pytest.raises(InputError) as caught:
        read_command("vllm", command)
    assert expected in str(caught.value)


SHOWN = (
    (
        "CUDA_VISIBLE_DEVICES=0,1 vllm serve M -tp 4",
        "shows the engine 2 GPUs, and its flags need 4",
    ),
    ("export CUDA_VISIBLE_DEVICES=3; vllm serve M -tp 2 -pp 2", "need 4 (tp 2, pp 2)"),
    ("CUDA_VISIBLE_DEVICES= vllm serve M", "shows the engine 0 GPUs, and its flags need 1 (tp 1)"),
    ("CUDA_VISIBLE_DEVICES=0,-1,2 vllm serve M -tp 2", "shows the engine 1 GPUs"),
    ("docker run -e HIP_VISIBLE_DEVICES=0 vllm/vllm-openai:v0.20.0 --model M -tp 2", "need 2"),
    ("docker run --gpus '\"device=0,1\"' vllm/vllm-openai:v0.20.0 --model M -dp 4", "replicas 4"),
    (
        "CUDA_VISIBLE_DEVICES=0,1,2 python -m sglang.launch_server --model-path M --tp 2 --dp 2",
        "need 4",
    ),
    ("CUDA_VISIBLE_DEVICES=0,1,2,3 vllm serve M -tp 4", ""),
    ("CUDA_VISIBLE_DEVICES=0,1,2,3 vllm serve M -tp 2", ""),
    ("CUDA_VISIBLE_DEVICES=$MINE vllm serve M -tp 4", ""),
    ("NVIDIA_VISIBLE_DEVICES=all vllm serve M -tp 4", ""),
    ("CUDA_VISIBLE_DEVICES=0,1 vllm serve M -tp 4 --nnodes 2", ""),
    ("CUDA_VISIBLE_DEVICES=0,1 vllm serve M -tp 4 --distributed-executor-backend ray", ""),
)


@pytest.mark.parametrize(("command", "expected"), SHOWN)
def test_a_command_that_shows_its_engine_too_few_gpus_is_refused(command, expected):
    program = "sglang" if "sglang" in command else "vllm"
    told = command.replace(" M", " Qwen/Qwen3-8B")
    if not expected:
        assert from_command(program, told, "h100-sxm").data
        return
    with pytest.raises(InputError) as caught:
        from_command(program, told, "h100-sxm")
    assert expected in str(caught.value)


def test_an_unknown_model_gets_the_way_out(tmp_path):
    with pytest.raises(CardError, match=r"qwen3-8b|config\.json"):
        from_command("vllm", "vllm serve Qwen/Qwen3-8BB", "h100-sxm")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_flag_stands_in_one_place_of_the_table(program):
    table = load_table(program)
    assert not set(table.others) & (set(table.flags) | set(table.aliases))
    understood = {"--model", "--dp-size"}
    assert set(table.aliases.values()) <= set(table.flags) | understood


def test_the_api_takes_a_trace_of_any_kind(tmp_path):
    path = tmp_path / "own.csv"
    rows = [f"{n},{100 + n},{9}" for n in range(8)]
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]))
    origin = ls.from_command("vllm", "vllm serve Qwen/Qwen3-8B", "h100-sxm", trace=path)
    assert origin.data["traffic"]["trace"] == {"kind": "csv", "path": str(path)}
    assert len(ls.run(Scenario.parse(origin.data)).requests) == 8
