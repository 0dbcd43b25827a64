"""The settings of one engine instance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llmsim.policies.rules import EngineRules


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Settings of one engine instance.

    Parameters
    ----------
    max_num_seqs : int [requests]
        Most requests that run at a time.
    max_num_batched_tokens : int [tokens]
        Most tokens computed in a step.
    max_model_len : int [tokens]
        Longest prompt plus output.
    block_tokens : int [tokens]
        Tokens per KV block.
    kv_blocks : int [blocks]
        Usable KV blocks.
    prefix_caching, chunked_prefill : bool
    chunk_limit_tokens : int [tokens]
        Most tokens of one prompt per step (vLLM: long_prefill_token_threshold); 0 for no limit.
    watermark_blocks : int [blocks]
        Free blocks that an admission must leave, unless nothing runs.
    reserve_prompt : bool
        Admit only if the whole known text would fit, not just its first chunk.
    lookahead : int
        0: plan a step when the one before has ended. 1: plan it while that one runs.
    fast_forward : bool
        Merge steps whose composition does not change; exact either way.
    rules : EngineRules
    evict_rank : callable or None
        Ranks cached blocks that nobody holds, see `policies.EvictionPolicy`; None for vLLM's order.
    recompute_frac : float or None
        Share of a segment's tokens that is computed anew where its KV is reused away from the
        front; None where only prefixes are reused.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    block_tokens: int
    kv_blocks: int
    prefix_caching: bool
    chunked_prefill: bool
    chunk_limit_tokens: int
    watermark_blocks: int
    reserve_prompt: bool
    lookahead: int
    fast_forward: bool
    rules: EngineRules
    evict_rank: Callable[[int, int, int], int] | None = None
    recompute_frac: float | None = None
