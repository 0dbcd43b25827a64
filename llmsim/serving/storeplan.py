"""From a pool's keys on KV below its GPUs to what the engine takes."""

from __future__ import annotations

import math
from pathlib import Path

from llmsim.core.errors import Fault, InputError
from llmsim.scenario.fleet import Pool
from llmsim.scenario.tiers import Kv, KvSwap, KvTier
from llmsim.serving.storehouse import KvPlan, TierPlan
from llmsim.serving.swap import SwapPlan
from llmsim.specs import ModelSpec, load_gpu, load_link
from llmsim.specs.stages import layers_by_stage, stage_of


def kv_plan(pool: Pool, model: ModelSpec, folder: Path | None) -> KvPlan | None:
    """Return what a pool does with KV beyond its GPUs; None if it has nothing there.

    Parameters
    ----------
    pool : Pool
    model : ModelSpec
        As the pool's engine loads it.
    folder : Path or None
        That paths of cards start from.

    Raises
    ------
    InputError
        If a store is too small for one chunk, or the model keeps state that is not KV.
    CardError
        If the link card is wrong.
    """
    kv = pool.kv
    if kv is None:
        return None
    if model.state_bytes_per_sequence(pool.tp):
        text = f"{model.name} keeps state beside its KV; such a prefix cannot be loaded from a tier"
        raise InputError("scenario", [Fault("", "fleet.pools.kv", text)])
    link = load_link(kv.host_link or load_gpu(pool.gpu, folder).host_link, folder)
    return KvPlan(
        tiers=tuple(_tier_plan(tier, kv, pool, model) for tier in kv.tiers),
        host_bytes_per_s=link.p2p_bytes_per_s * pool.tp / _largest_share(pool, model),
        load=kv.loading.build,
        by_layer=kv.gate == "layer",
        joins_loads=kv.shared_loads == "wait",
        layers=layers_by_stage(model.layer_count, pool.pp),
        swap=None if kv.swap is None else _swap_plan(kv.swap, pool, model),
    )


def _largest_share(pool: Pool, model: ModelSpec) -> float:
    """Return which part of a token's KV lies on the pipeline stage that has most of it.

    All stages copy their parts at once, over host links of their own, and a copy is over when the
    last one has its part: the links carry together what that stage's carries, over its share.
    """
    if pool.pp == 1:
        return 1.0
    dtype = pool.engine.kv_dtype or model.kv_dtype
    parts = [
        stage_of(model, stage, pool.pp).kv_bytes_per_token(pool.tp, dtype)
        for stage in range(pool.pp)
    ]
    return max(parts) / sum(parts)


def _swap_plan(swap: KvSwap, pool: Pool, model: ModelSpec) -> SwapPlan:
    dtype = pool.engine.kv_dtype or model.kv_dtype
    per_token = model.kv_bytes_per_token(pool.tp, dtype) * pool.tp
    block_bytes = per_token * pool.engine.block_tokens
    return SwapPlan(
        blocks=int(swap.capacity_bytes / block_bytes),
        block_bytes=block_bytes,
        message_s=swap.message_s,
        parts=2 * max(layers_by_stage(model.layer_count, pool.pp)),  # stages copy at once
        run_blocks=swap.run_blocks,
        keeps_copies=swap.keeps_copies,
        overlaps=swap.overlaps,
    )


def _tier_plan(tier: KvTier, kv: Kv, pool: Pool, model: ModelSpec) -> TierPlan:
    dtype = pool.engine.kv_dtype or model.kv_dtype
    per_token = model.kv_bytes_per_token(pool.tp, dtype) * pool.tp * tier.format_frac
    chunks = int(tier.capacity_bytes / (per_token * tier.chunk_tokens))
    if not chunks:
        need = f"{per_token * tier.chunk_tokens:.3g} bytes"
        text = f"tier {tier.name} has {tier.capacity_bytes:.3g} bytes, but a chunk takes {need}"
        raise InputError("scenario", [Fault("", "fleet.pools.kv.tiers", text)])
    each = 1.0
    if tier.messages == "per-block":
        layers = max(layers_by_stage(model.layer_count, pool.pp))  # stages copy at once
        each = 2.0 * layers * (tier.chunk_tokens / pool.engine.block_tokens)
    return TierPlan(
        name=tier.name,
        scope=tier.scope,
        chunks=chunks,
        chunk_tokens=tier.chunk_tokens,
        bytes_per_token=per_token,
        read_bytes_per_s=tier.read_bytes_per_s or math.inf,
        write_bytes_per_s=tier.write_bytes_per_s or math.inf,
        port_bytes_per_s=tier.port_bytes_per_s or math.inf,
        codec_bytes_per_s=tier.codec_bytes_per_s or math.inf,
        latency_s=tier.latency_s,
        message_s=tier.message_s,
        messages_per_chunk=each,
        write=tier.write,
        rank=None if tier.eviction.kind == "lru" else tier.eviction.build().rank,
        spare_chunks=int(tier.watermark_frac * chunks),
    )
