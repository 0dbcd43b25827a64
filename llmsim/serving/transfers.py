"""What it takes to move KV between replicas: bytes, messages, and the ports they go through."""

from __future__ import annotations

from pathlib import Path

from llmsim.scenario.fleet import Handoff, Pool
from llmsim.scenario.operations import Migration
from llmsim.serving.handoff import TransferPrice
from llmsim.specs import ModelSpec, load_gpu, load_link


def port_bytes_per_s(asked: Handoff | Migration, pool: Pool, folder: Path | None) -> float:
    """Return what one replica can send, or receive, over all its GPUs' ports [bytes/s]."""
    gpu = load_gpu(pool.gpu, folder).joined_by(pool.inter_node_link, pool.node_gpus)
    name = asked.link or gpu.scale_out
    if not name:
        return 1.0  # of lanes on one GPU, between which nothing moves
    return load_link(name, folder).p2p_bytes_per_s * pool.tp * pool.pp


def transfer_price(asked: Handoff | Migration, pool: Pool, model: ModelSpec) -> TransferPrice:
    """Price transfers to a pool, whose every GPU gets its own part of the KV."""
    model = pool.engine.checkpoint(model)
    dtype = pool.engine.kv_dtype or model.kv_dtype
    parts = 2 * model.layer_count  # K and V; a latent cache is one message, but then of both
    by_block = asked.messages == "per-block"
    of_gpu = model.kv_bytes_per_token(pool.tp, dtype)
    gathers = asked.gather_bytes_per_s if isinstance(asked, Handoff) else None
    copied = 2 * of_gpu * pool.engine.block_tokens / gathers if gathers else 0.0
    return TransferPrice(
        bytes_per_token=of_gpu * pool.tp,
        fixed_bytes=model.state_bytes_per_sequence(pool.tp) * pool.tp,
        messages_per_block=parts if by_block else 0,
        messages=0 if by_block else parts,
        message_s=asked.message_s,
        gathered_s_per_block=copied,
    )
