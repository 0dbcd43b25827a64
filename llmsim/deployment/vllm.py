"""A pool as a command of vLLM."""

from __future__ import annotations

from typing import Final

from llmsim.core.errors import Fault
from llmsim.deployment.line import CommandLine, Shell
from llmsim.deployment.site import Site

RPC_PORT: Final = 29550
"""Port for the messages of data parallelism: vLLM's own default."""
MASTER_PORT: Final = 29501
"""Port for setting up a group of nodes: vLLM's own default."""
SIDE_CHANNEL_PORT: Final = 5600
"""Port at which engines shake hands for KV transfers: vLLM's own default."""

ROLES_SINCE: Final = "vllm-0.33"
"""From then on the NIXL connector wants to know the role and deprecates kv_both (vLLM 0.33.0,
vllm/distributed/kv_transfer/kv_connector/v1/nixl/connector.py); before, its guide said kv_both."""

KV_WORDS: Final = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp8": "fp8",
    "int8": "int8_per_token_head",
}
"""vLLM's words for number formats of the KV cache."""

ROLES_WORDS: Final = {"prefill": "kv_producer", "decode": "kv_consumer"}
"""vLLM's words for roles."""


def faults_for_vllm(site: Site) -> list[Fault]:
    """Return what about a pool's layout vLLM cannot do."""
    pool, at = site.pool, f"fleet.pools.{site.name}"
    faults = []
    if pool.ep not in (1, pool.tp * pool.dp):
        message = f"vLLM deals experts over all {pool.tp * pool.dp} GPUs or none (got {pool.ep})."
        faults.append(Fault("", f"{at}.ep", message, f"Use 1 or {pool.tp * pool.dp}."))
    if pool.spare_experts and not pool.expert_balancing:
        message = "vLLM copies only what it balances."
        hint = "Set expert_balancing: true, or use --engine sglang."
        faults.append(Fault("", f"{at}.spare_experts", message, hint))
    if pool.dp > 1 and pool.pp > 1 and site.nodes > 1:
        # it numbers GPUs by rank, then stage: parallel_state.py, "DP x PP x PCP x TP"
        message = (
            f"vLLM puts the {pool.pp} stages of an attention rank side by side, so that the "
            f"experts of a stage would lie on all {site.nodes} nodes, not as simulated."
        )
        faults.append(Fault("", f"{at}.pp", message, "Use --engine sglang."))
    elif pool.dp > 1 and site.nodes > 1 and site.node_gpus % (pool.tp * pool.pp):
        message = f"an attention rank of {pool.tp * pool.pp} GPUs would lie on two nodes."
        faults.append(Fault("", f"{at}.dp", message, "Use --engine sglang."))
    return faults


def vllm_line(site: Site, worker: bool = False) -> CommandLine:
    """Return a pool's flags for ``vllm serve``; the checkpoint is its first word.

    Parameters
    ----------
    site : Site
    worker : bool
        For a node of a replica that is not its first.
    """
    line = CommandLine(site.table, site.card, site.name)
    line.put("--served-model-name", site.model, "model")
    if not worker:
        line.put("--host", "0.0.0.0")
        line.put("--port", site.table.port)
    _layout(site, line, worker)
    _limits(site, line)
    _cache(site, line)
    _role(site, line)
    _policies(site, line)
    return line


def vllm_environment(site: Site, address: str) -> dict[str, str]:
    """Return the variables that a pool's engine needs.

    Parameters
    ----------
    site : Site
    address : str
        How the shell, or Kubernetes, names the address of the machine.
    """
    if site.pool.role == "mixed":
        return {}
    return {
        "VLLM_NIXL_SIDE_CHANNEL_HOST": address,
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(SIDE_CHANNEL_PORT),
    }


def _layout(site: Site, line: CommandLine, worker: bool) -> None:
    """Say how a replica is spread over GPUs and nodes."""
    pool = site.pool
    line.put("--tensor-parallel-size", pool.tp, "tp")
    line.put("--pipeline-parallel-size", pool.pp, "pp")
    if pool.dp > 1:
        line.put("--data-parallel-size", pool.dp, "dp")
    line.leave("dp", "ep", "spare_experts", "expert_balancing")
    if pool.ep > 1:
        line.put("--enable-expert-parallel", None, "ep")
    if pool.expert_balancing:
        line.put("--enable-eplb", None, "expert_balancing")
    if pool.spare_experts:
        config = {"num_redundant_experts": pool.spare_experts}
        line.put("--eplb-config", config, "spare_experts")
    if pool.rank_routing != "least-loaded" and pool.dp > 1:
        line.note("rank_routing", pool.rank_routing, "vLLM sends to the rank with the least queue")
    line.leave("rank_routing")
    if site.nodes == 1:
        return
    leader, rank = Shell("$LEADER_ADDRESS"), Shell("$NODE_RANK")
    if pool.dp > 1:
        local = site.node_gpus // (pool.tp * pool.pp)
        line.put("--data-parallel-size-local", local)
        line.put("--data-parallel-address", leader)
        line.put("--data-parallel-rpc-port", RPC_PORT)
        if worker:
            line.put("--data-parallel-start-rank", Shell(f"$((NODE_RANK * {local}))"))
    else:
        line.put("--nnodes", site.nodes)
        line.put("--node-rank", rank)
        line.put("--master-addr", leader)
        line.put("--master-port", MASTER_PORT)
    if worker:
        line.put("--headless", None)


def _limits(site: Site, line: CommandLine) -> None:
    """Say what one step and one request may hold."""
    engine = site.pool.engine
    line.put("--max-num-seqs", engine.max_num_seqs, "engine.max_num_seqs")
    line.put(
        "--max-num-batched-tokens", engine.max_num_batched_tokens, "engine.max_num_batched_tokens"
    )
    line.put("--max-model-len", site.max_model_len, "engine.max_model_len")
    line.put("--enable-chunked-prefill", engine.chunked_prefill, "engine.chunked_prefill")
    threshold = engine.long_prefill_threshold_tokens
    if threshold:
        line.put(
            "--long-prefill-token-threshold", threshold, "engine.long_prefill_threshold_tokens"
        )
    line.leave("engine.long_prefill_threshold_tokens")
    _reserve(site, line)
    if engine.watermark_frac is not None:
        line.put("--watermark", engine.watermark_frac, "engine.watermark_frac")
    line.leave("engine.watermark_frac")
    if not engine.cuda_graphs:
        line.put("--enforce-eager", None, "engine.cuda_graphs")
    if engine.max_graph_tokens is not None:
        line.put("--max-cudagraph-capture-size", engine.max_graph_tokens, "engine.max_graph_tokens")
    line.leave("engine.cuda_graphs", "engine.max_graph_tokens")
    if site.pool.pp == 1:
        line.put("--async-scheduling", site.looks_ahead, "engine.lookahead")
    line.leave("engine.lookahead")


def _reserve(site: Site, line: CommandLine) -> None:
    """Say whether all of a prompt must fit; releases without the flag look at its first chunk."""
    key, wanted = "engine.reserve_full_prompt", site.pool.engine.reserve_full_prompt
    since = site.table.flags["--scheduler-reserve-full-isl"].since
    if wanted or site.table.place(site.card) >= since:
        line.put("--scheduler-reserve-full-isl", wanted, key)
    line.leave(key)


def _cache(site: Site, line: CommandLine) -> None:
    """Say where KV lies and how much of it there is."""
    engine = site.pool.engine
    line.put("--block-size", engine.block_tokens, "engine.block_tokens")
    share = engine.gpu_memory_utilization_frac
    line.put("--gpu-memory-utilization", share, "engine.gpu_memory_utilization_frac")
    if engine.kv_blocks is not None:
        line.put("--num-gpu-blocks-override", engine.kv_blocks, "engine.kv_blocks")
    line.leave("engine.kv_blocks")
    line.put("--enable-prefix-caching", engine.prefix_caching, "engine.prefix_caching")
    if engine.kv_dtype is not None:
        word = KV_WORDS[engine.kv_dtype]
        line.put("--kv-cache-dtype", word, "engine.kv_dtype", told=engine.kv_dtype)
    if engine.kv_dtype == "int8":
        line.note("engine.kv_dtype", "int8", "vLLM keeps a scale per token and head besides")
    line.leave("engine.kv_dtype")
    if site.quantise:
        line.put("--quantization", site.quantise, "engine.quantisation")
    line.leave("engine.quantisation")
    _tiers(site, line)


def _tiers(site: Site, line: CommandLine) -> None:
    """Say how much host memory keeps KV; farther tiers need a store of their own."""
    kv = site.pool.kv
    line.leave("kv.tiers")
    if kv is None or not kv.tiers:
        return
    first, *rest = kv.tiers
    if first.scope != "replica" or site.pool.dp > 1:
        rest = list(kv.tiers)
    else:
        line.put("--kv-offloading-size", first.capacity_bytes, "kv.tiers")
        line.put("--kv-offloading-backend", "native")
        text = "vLLM's own backend keeps it in host memory, by its own rules for chunks and writes"
        line.note("kv.tiers", first.name, text)
    for tier in rest:
        line.note("kv.tiers", tier.name, "needs a store beside the engine, such as LMCache")


def _role(site: Site, line: CommandLine) -> None:
    """Say by which connector KV leaves and comes."""
    role = site.pool.role
    line.leave("role")
    if role == "mixed":
        return
    told_apart = site.table.place(site.card) >= site.table.place(ROLES_SINCE)
    word = ROLES_WORDS[role] if told_apart else "kv_both"
    config = {"kv_connector": "NixlConnector", "kv_role": word}
    line.put("--kv-transfer-config", config, "role")


def _policies(site: Site, line: CommandLine) -> None:
    """Note scheduling rules that are not vLLM's."""
    pool = site.pool
    usual = {"batching": "vllm", "allocation": "paged", "eviction": "lru", "retention": "none"}
    for key, kind in usual.items():
        asked = getattr(pool, key)
        if asked.kind != kind:
            line.note(key, asked, f"vLLM has its own ({kind}) and no other")
        line.leave(key)
    order = pool.batching.params.get("order", "fcfs") if pool.batching.kind == "vllm" else "fcfs"
    if order == "priority":
        line.put("--scheduling-policy", order, "batching")
    elif order != "fcfs":
        line.note("batching.order", order, "vLLM has no such order; first come, first served")
