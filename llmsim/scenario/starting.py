"""A first scenario of one's own, with a comment on every line that one may want to change."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from llmsim.core.errors import ModelDoesNotFitError
from llmsim.costmodel import plan_memory
from llmsim.specs import EngineLimits, ParallelPlan, load_gpu, load_model

TENSOR_PARALLEL: Final = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class Answers:
    """What a first scenario needs to know.

    Parameters
    ----------
    name, model, gpu : str
    replicas, tp : int
    trace_kind, trace_path : str
        Both empty for generated traffic.
    rate_rps : float [requests/s]
    prompt_tokens, output_tokens : int [tokens]
        Means of generated traffic.
    ttft_s, tpot_s : float [s]
        What the service promises 95% of its requests.
    """

    name: str
    model: str
    gpu: str
    replicas: int = 1
    tp: int = 1
    trace_kind: str = ""
    trace_path: str = ""
    rate_rps: float = 4.0
    prompt_tokens: int = 1000
    output_tokens: int = 200
    ttft_s: float = 1.0
    tpot_s: float = 0.05


ROOM_REQUESTS: Final = 16
"""Requests of `ROOM_TOKENS` that a replica should have room for, to batch at all."""
ROOM_TOKENS: Final = 8192


def least_tp(model: str, gpu: str) -> int:
    """Return the fewest tensor-parallel GPUs with room for a model and 16 requests of 8,192 tokens.

    8 where not even these have that room, but hold the model and one request.

    Parameters
    ----------
    model, gpu : str
        Cards.

    Raises
    ------
    CardError
        If there is no such card.
    ModelDoesNotFitError
        If not even 8 GPUs hold it.
    """
    spec, card = load_model(model), load_gpu(gpu)
    longest = min(spec.max_context_tokens or ROOM_TOKENS, ROOM_TOKENS)
    limits = EngineLimits(max_num_seqs=256, max_num_batched_tokens=8192, max_model_len=longest)
    for tp in TENSOR_PARALLEL:
        last = tp == TENSOR_PARALLEL[-1]
        try:
            memory = plan_memory(spec, card, ParallelPlan(tp), limits)
        except ModelDoesNotFitError:
            if last:
                raise
            continue
        if last or memory.kv_blocks * memory.block_tokens >= ROOM_REQUESTS * longest:
            return tp
    raise AssertionError("unreachable: the last of these returns or raises")


def starter_text(answers: Answers) -> str:
    """Return the text of a scenario file.

    Parameters
    ----------
    answers : Answers
    """
    told = answers
    if told.trace_path:
        traffic = f"""\
  trace:                        # every format and its parameters: docs/traces.md
    kind: {told.trace_kind}
    path: {json.dumps(told.trace_path)}
    # rate_scale: 2             # the same trace twice as fast
    # limit: 10000              # only so many requests"""
    else:
        longest = 20 * max(told.prompt_tokens, told.output_tokens)
        traffic = f"""\
  arrivals: {{kind: gamma, rate_rps: {told.rate_rps:g}, cv: 1.0}}  # cv 1: Poisson; above: bursts
  lengths:
    kind: lognormal
    prompt_mean_tokens: {told.prompt_tokens}
    prompt_cv: 1.0
    prompt_max_tokens: {longest}
    output_mean_tokens: {told.output_tokens}
    output_cv: 1.0
    output_max_tokens: {longest}
  requests: 2000                # or duration_s: 600"""
    return f"""\
# yaml-language-server: $schema=scenario.schema.json
# (completion in editors: llmsim schema scenario > scenario.schema.json)
#
#   llmsim check {told.name}.yaml      says everything that is wrong, with its line
#   llmsim run {told.name}.yaml        simulates it; runs/.../report.html is the page to read
#   llmsim run {told.name}.yaml --set fleet.pools.main.replicas={2 * told.replicas}
llmsim: 1                       # version of this file format
name: {told.name}
seed: 1                         # the same seed gives the same run, bit for bit
model: {told.model:<24} # `llmsim list models`, or a path to a config.json
slo:                            # what the service promises
  ttft_s: {told.ttft_s:<21g} # time to the first token [s]
  tpot_s: {told.tpot_s:<21g} # time per further token [s]
  attained_frac: 0.95
traffic:
{traffic}
engine:                         # names follow vLLM; what is left out has vLLM's default
  version: vllm-0.33
  # max_num_seqs: 256           # most requests in one step
  # max_num_batched_tokens: 8192
  # max_model_len: 32768
  # kv_dtype: fp8
fleet:
  routing: least-loaded         # `llmsim list routing` names the others
  pools:
    main:
      gpu: {told.gpu:<20} # `llmsim list gpus`
      replicas: {told.replicas}
      tp: {told.tp:<21} # tensor-parallel GPUs of each replica
"""
