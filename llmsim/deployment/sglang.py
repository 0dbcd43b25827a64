"""A pool as a command of SGLang."""

from __future__ import annotations

import math
from typing import Any, Final

from llmsim.core.errors import Fault
from llmsim.deployment.line import CommandLine, Shell
from llmsim.deployment.site import Site

INIT_PORT: Final = 20000
"""Port for setting up a group of nodes: as in SGLang's guides; it has no default."""
BOOTSTRAP_PORT: Final = 8998
"""Port at which decode engines find a prefill engine: SGLang's own default."""
RANKED_CONSERVATIVENESS: Final = 0.3
"""Factor on schedule_conservativeness where attention is split into ranks (SGLang 0.5.23,
arg_groups/parallel_hook.py, handle_data_parallelism)."""

KV_WORDS: Final = {"bf16": "bf16", "fp8": "fp8_e4m3"}
"""SGLang's words for number formats of the KV cache."""
WRITES_WORDS: Final = {"through": "write_through", "evict": "write_back"}
"""SGLang's words for when KV goes to the host."""


def faults_for_sglang(site: Site) -> list[Fault]:
    """Return what about a pool's layout SGLang cannot do; every layout of ours it can."""
    del site
    return []


def sglang_line(site: Site, worker: bool = False) -> CommandLine:
    """Return a pool's flags for ``sglang.launch_server``.

    Parameters
    ----------
    site : Site
    worker : bool
        For a node of a replica that is not its first; the command is the same.
    """
    del worker
    line = CommandLine(site.table, site.card, site.name)
    line.put("--model-path", site.checkpoint, "model")
    line.put("--served-model-name", site.model)
    line.put("--host", "0.0.0.0")
    line.put("--port", site.table.port)
    line.put("--enable-metrics", None)
    _layout(site, line)
    _limits(site, line)
    _memory(site, line)
    _batching(site, line)
    _tiers(site, line)
    _role(site, line)
    return line


def _layout(site: Site, line: CommandLine) -> None:
    """Say how a replica is spread over GPUs and nodes."""
    pool = site.pool
    line.put("--tp-size", pool.tp * pool.dp, "tp")
    line.put("--pp-size", pool.pp, "pp")
    if pool.dp > 1:
        line.put("--attn-dp-size", pool.dp, "dp")
        method = {"least-loaded": "total_requests", "round-robin": "round_robin"}
        line.put("--load-balance-method", method[pool.rank_routing], "rank_routing")
    line.leave("dp", "rank_routing", "ep", "spare_experts", "expert_balancing")
    if pool.ep > 1:
        line.put("--ep-size", pool.ep, "ep")
    if pool.spare_experts:
        line.put("--ep-num-redundant-experts", pool.spare_experts, "spare_experts")
    if pool.expert_balancing:
        line.put("--enable-eplb", None, "expert_balancing")
    if site.nodes > 1:
        line.put("--nnodes", site.nodes)
        line.put("--node-rank", Shell("$NODE_RANK"))
        line.put("--dist-init-addr", Shell(f"$LEADER_ADDRESS:{INIT_PORT}"))


def _limits(site: Site, line: CommandLine) -> None:
    """Say what one step and one request may hold; SGLang counts all attention ranks together."""
    engine, ranks = site.pool.engine, site.pool.dp
    line.put("--max-running-requests", engine.max_num_seqs * ranks, "engine.max_num_seqs")
    chunk = engine.max_num_batched_tokens * ranks if engine.chunked_prefill else -1
    keys = "engine.max_num_batched_tokens", "engine.chunked_prefill"
    line.put("--chunked-prefill-size", chunk, *keys)
    line.put("--context-length", site.max_model_len, "engine.max_model_len")
    if not engine.cuda_graphs:
        line.put("--cuda-graph-backend-decode", "disabled", "engine.cuda_graphs")
        line.put("--cuda-graph-backend-prefill", "disabled", "engine.cuda_graphs")
    line.leave("engine.cuda_graphs")
    if not site.looks_ahead and site.pool.pp == 1:
        line.put("--disable-overlap-schedule", None, "engine.lookahead")
    line.leave("engine.lookahead")
    own: dict[str, tuple[Any, Any]] = {
        "long_prefill_threshold_tokens": (0, "SGLang has no limit of its own for one prompt"),
        "max_graph_tokens": (None, "SGLang captures by number of requests"),
        "watermark_frac": (None, "SGLang keeps free what running requests are believed to need"),
        "reserve_full_prompt": (True, "SGLang admits a prompt only if all of it fits"),
    }
    for key, (usual, text) in own.items():
        value = getattr(engine, key)
        if value != usual:
            line.note(f"engine.{key}", value, text)
        line.leave(f"engine.{key}")


def _memory(site: Site, line: CommandLine) -> None:
    """Say how much KV there is, in what format."""
    engine, memory = site.pool.engine, site.memory
    line.put("--page-size", engine.block_tokens, "engine.block_tokens")
    if engine.kv_blocks is not None:
        line.put("--max-total-tokens", engine.kv_blocks * engine.block_tokens, "engine.kv_blocks")
    line.leave("engine.kv_blocks")
    # SGLang's share has no activations in it: weights and KV as planned, over what the GPU has
    static = (memory.weights_bytes + memory.kv_bytes) / memory.total_bytes
    share = math.floor(static * 1000) / 1000
    key = "engine.gpu_memory_utilization_frac"
    line.put("--mem-fraction-static", share, key)
    text = f"SGLang's share is of weights and KV alone: {share}, by our plan of the memory"
    line.note(key, engine.gpu_memory_utilization_frac, text)
    if not engine.prefix_caching:
        line.put("--disable-radix-cache", None, "engine.prefix_caching")
    line.leave("engine.prefix_caching")
    _formats(site, line)
    eviction = site.pool.eviction
    if eviction.kind in ("lru", "lfu"):
        line.put("--radix-eviction-policy", eviction.kind, "eviction")
    else:
        line.note("eviction", eviction, "SGLang has no such order")


def _formats(site: Site, line: CommandLine) -> None:
    """Say in what number formats weights and KV are."""
    dtype = site.pool.engine.kv_dtype
    line.leave("engine.kv_dtype", "engine.quantisation")
    if dtype in KV_WORDS:
        line.put("--kv-cache-dtype", KV_WORDS[dtype], "engine.kv_dtype", told=dtype)
    elif dtype is not None:
        line.note("engine.kv_dtype", dtype, "SGLang has no such format; it takes the model's own")
    if site.quantise:
        line.put("--quantization", site.quantise, "engine.quantisation")


def _batching(site: Site, line: CommandLine) -> None:
    """Say SGLang's own rules of scheduling, and note others."""
    pool = site.pool
    line.leave("batching", "allocation", "retention")
    if pool.batching.kind == "sglang":
        _sglang_rules(site, line, pool.batching.params)
    else:
        line.note("batching", pool.batching, "SGLang has its own rules (kind: sglang)")
        budget = pool.engine.max_num_batched_tokens
        line.put("--max-prefill-tokens", budget, "engine.max_num_batched_tokens")
    for key, kind in (("allocation", "paged"), ("retention", "none")):
        asked = getattr(pool, key)
        if asked.kind != kind:
            line.note(key, asked, f"SGLang has its own ({kind}) and no other")


def _sglang_rules(site: Site, line: CommandLine, rules: dict[str, Any]) -> None:
    line.put("--max-prefill-tokens", rules["max_prefill_tokens"], "batching")
    line.put("--schedule-policy", rules["order"], "batching")
    factor = RANKED_CONSERVATIVENESS if site.pool.dp > 1 else 1.0
    line.put("--schedule-conservativeness", rules["conservativeness"] / factor, "batching")
    if rules["mixed_chunk"]:
        line.put("--enable-mixed-chunk", None, "batching")
    if rules["recv_interval_steps"] != 1:
        line.put("--scheduler-recv-interval", rules["recv_interval_steps"], "batching")


def _tiers(site: Site, line: CommandLine) -> None:
    """Say how much host memory keeps KV; farther tiers need a store of their own."""
    kv = site.pool.kv
    line.leave("kv.tiers")
    if kv is None or not kv.tiers:
        return
    first, *rest = kv.tiers
    if first.scope != "replica":
        rest = list(kv.tiers)
    else:
        line.put("--enable-hierarchical-cache", None, "kv.tiers")
        each = first.capacity_bytes / site.pool.plan.gpus / 1e9
        line.put("--hicache-size", math.floor(each), "kv.tiers")
        line.put("--hicache-write-policy", WRITES_WORDS.get(first.write, "write_through"))
        text = f"{math.floor(each)} GB on each of {site.pool.plan.gpus} ranks"
        line.note("kv.tiers", first.name, f"{text}, in whole GB and by SGLang's own rules")
    for tier in rest:
        line.note("kv.tiers", tier.name, "needs a storage backend: see --hicache-storage-backend")


def _role(site: Site, line: CommandLine) -> None:
    """Say who computes prompts and who decodes."""
    role = site.pool.role
    line.leave("role")
    if role == "mixed":
        return
    line.put("--disaggregation-mode", role, "role")
    line.put("--disaggregation-transfer-backend", "nixl")
    if role == "prefill":
        line.put("--disaggregation-bootstrap-port", BOOTSTRAP_PORT)
