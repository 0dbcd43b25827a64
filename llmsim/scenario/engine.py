"""Every key of a scenario's `engine`, with its unit and its default; see `model`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from annotated_types import Ge, Gt, Le
from pydantic import model_validator

from llmsim.scenario.section import Section
from llmsim.scenario.section import complain as _complain
from llmsim.specs import EngineLimits, ModelSpec, load_engine, requantise

Frac = Annotated[float, Gt(0), Le(1)]
Count = Annotated[int, Ge(1)]
KvDtype = Literal["bf16", "fp16", "fp8", "int8"]
EngineVersion = Literal[
    "vllm-0.33", "vllm-0.20", "vllm-0.14", "vllm-0.12", "trtllm-1.2", "trtllm-1.0", "sglang-0.5"
]
"""Names of the cards in `profiles/engines`."""

Quantisation = Literal[
    "bf16", "fp8", "fp8_block", "nvfp4", "mxfp4", "int4_awq", "int4_gptq", "int8"
]


class Engine(Section):
    """One replica's serving engine; names follow vLLM where vLLM has the same setting."""

    version: EngineVersion = "vllm-0.33"
    """Engine and release, which stands for later ones up to the next: what its host does for a
    step, whether it schedules ahead, and whose scheduling rules hold where versions differ."""
    block_tokens: Count = 16
    """[tokens] Tokens per KV block."""
    kv_blocks: Count | None = None
    """[blocks] Pin the number of usable KV blocks per replica; absent: found from the memory."""
    gpu_memory_utilization_frac: Frac = 0.9
    """[fraction] Share of GPU memory that the engine may use; under SGLang without activations, as
    its ``--mem-fraction-static``."""
    max_num_seqs: Count = 256
    """[requests] Most requests in one step."""
    max_num_batched_tokens: Count = 8192
    """[tokens] Most tokens computed in one step."""
    max_model_len: Count | None = None
    """[tokens] Longest prompt plus output; absent: the model's own limit."""
    prefix_caching: bool = True
    """Keep the KV of finished requests for prompts that begin the same way."""
    chunked_prefill: bool = True
    """Split a prompt that does not fit the token budget of a step."""
    long_prefill_threshold_tokens: Annotated[int, Ge(0)] = 0
    """[tokens] Most tokens of one prompt in one step; 0: no such limit."""
    reserve_full_prompt: bool = True
    """Admit a prompt only if all of it fits the free KV blocks, not just its first chunk."""
    cuda_graphs: bool = True
    """Replay captured graphs for steps of captured sizes."""
    max_graph_tokens: Count | None = None
    """[tokens] Largest captured size, vLLM's ``--max-cudagraph-capture-size``; absent: twice
    max_num_seqs, and 512 or max_num_batched_tokens where that is less."""
    watermark_frac: Annotated[float, Ge(0), Le(1)] | None = None
    """[fraction] KV blocks kept free at admission; absent: as the version does."""
    lookahead: Literal[0, 1] | None = None
    """[steps] How many steps the scheduler runs ahead of the GPU: 1 for asynchronous scheduling;
    absent: as the version does."""
    fast_forward: bool = True
    """Price steps of unchanged composition together; false: one event per step, same results."""
    kv_dtype: KvDtype | None = None
    """Number format of the KV cache; absent: as the checkpoint asks for."""
    quantisation: Quantisation | None = None
    """Serve another checkpoint of the model's architecture; absent: as the model's card says."""

    @model_validator(mode="after")
    def _budget_suffices(self) -> Self:
        # vLLM's SchedulerConfig refuses this at start.
        if self.max_num_batched_tokens < self.max_num_seqs:
            _complain(
                {
                    "max_num_batched_tokens": f"{self.max_num_batched_tokens} is less than "
                    f"max_num_seqs {self.max_num_seqs}: every running request needs a token a step"
                }
            )
        return self

    def checkpoint(self, model: ModelSpec) -> ModelSpec:
        """Return the model as this engine loads it, in the format of `quantisation` if it has one.

        Parameters
        ----------
        model : ModelSpec
            As its card says.
        """
        return requantise(model, self.quantisation) if self.quantisation else model

    def limits(self, model: ModelSpec) -> EngineLimits:
        """Return the limits that memory and prices depend on, for one model.

        Parameters
        ----------
        model : ModelSpec
            Gives the longest context where the scenario does not.
        """
        return EngineLimits(
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_model_len=self.max_model_len or model.max_context_tokens,
            block_tokens=self.block_tokens,
            cuda_graphs=self.cuda_graphs,
            max_graph_tokens=self.max_graph_tokens,
            static_memory=load_engine(self.version).static_memory,
        )

    def clashes(self, model: ModelSpec) -> dict[str, str]:
        """Return what does not go with a model, by key; vLLM refuses to start with each.

        Parameters
        ----------
        model : ModelSpec
        """
        longest, own = model.max_context_tokens, self.max_model_len
        if own is None and not longest:
            return {"max_model_len": f"is missing; {model.name} does not say how long it may get"}
        if own is not None and longest and own > longest:
            return {"max_model_len": f"{own} exceeds the {longest} tokens of {model.name}"}
        top = own or longest
        if not self.chunked_prefill and self.max_num_batched_tokens < top:
            budget = f"{self.max_num_batched_tokens} is less than max_model_len {top}"
            reason = "without chunked_prefill a prompt must fit one step"
            return {"max_num_batched_tokens": f"{budget}: {reason}"}
        return {}
