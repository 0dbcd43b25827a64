"""How an engine instance is laid out and limited: the settings that memory and price depend on."""

from __future__ import annotations

from dataclasses import dataclass, fields

from llmsim.core.errors import Fault, InputError


def _check(call: str, **least: tuple[float, float]) -> None:
    """Raise one InputError that lists every number below its least value."""
    faults = [
        Fault("", name, f"is {value:g}, must be at least {lowest:g}.")
        for name, (value, lowest) in least.items()
        if not value >= lowest
    ]
    if faults:
        raise InputError(call, faults)


@dataclass(frozen=True, slots=True)
class ParallelPlan:
    """How one replica is spread over GPUs.

    Parameters
    ----------
    tp : int [GPUs]
        Tensor-parallel degree: attention and dense layers are split over this many GPUs.
    ep : int [GPUs]
        Expert-parallel degree, a divisor of ``tp dp``: the routed experts are dealt out to this
        many groups of GPUs and each expert is split over the ``tp dp / ep`` GPUs of its group.
    dp : int [ranks]
        Data-parallel ranks of the attention: each has a copy of everything but the routed experts
        on `tp` GPUs of its own, and requests of its own.
    pp : int [stages]
        Pipeline stages: each has a part of the layers, on ``tp dp`` GPUs of its own.
    spare_experts : int
        Copies of routed experts in each layer, beside the experts themselves.
    expert_balancing : bool
        Whether copies and places of experts are chosen by their popularity; else they come as they
        are numbered.

    Raises
    ------
    InputError
        If a degree is below 1, copies below 0, or `ep` does not divide ``tp dp``.

    Notes
    -----
    With one rank, activations are replicated over the `tp` GPUs and one all-reduce adds up what
    the experts gave, as in vLLM with ``--enable-expert-parallel``. With several, tokens go to the
    GPUs of their experts and come back: vLLM's ``--data-parallel-size``; SGLang's
    ``--enable-dp-attention``, whose ``--tp`` is ``tp dp`` here.
    """

    tp: int = 1
    ep: int = 1
    dp: int = 1
    pp: int = 1
    spare_experts: int = 0
    expert_balancing: bool = False

    def __post_init__(self) -> None:
        degrees = {key: (getattr(self, key), 1) for key in ("tp", "ep", "dp", "pp")}
        _check("parallel plan", **degrees, spare_experts=(self.spare_experts, 0))
        if self.expert_gpus % self.ep:
            fault = Fault("", "ep", f"{self.ep} does not divide the {self.expert_words}.")
            raise InputError("parallel plan", [fault])

    @property
    def gpus(self) -> int:
        """GPUs that one replica occupies [GPUs]."""
        return self.stage_gpus * self.pp

    @property
    def stage_gpus(self) -> int:
        """GPUs of one pipeline stage [GPUs]."""
        return self.tp * self.dp

    @property
    def expert_gpus(self) -> int:
        """GPUs that share the routed experts of a layer [GPUs]."""
        return self.tp * self.dp

    @property
    def expert_split(self) -> int:
        """GPUs that share one routed expert [GPUs]."""
        return self.expert_gpus // self.ep

    @property
    def words(self) -> str:
        """The plan as a scenario says it, such as ``tp 8`` or ``tp 1, dp 8, ep 8``."""
        told = [f"tp {self.tp}"]
        told += [
            f"{key} {n}" for key, n in (("dp", self.dp), ("ep", self.ep), ("pp", self.pp)) if n > 1
        ]
        if self.spare_experts:
            told.append(f"spare_experts {self.spare_experts}")
        return ", ".join(told)

    @property
    def expert_words(self) -> str:
        """The GPUs that share the experts, for a message."""
        return f"{self.expert_gpus} GPUs of tp{' and dp' if self.dp > 1 else ''}"


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """The engine settings that bound a step and the KV cache; names and defaults as in vLLM.

    Parameters
    ----------
    max_num_seqs : int [requests]
        Most requests that run at once.
    max_num_batched_tokens : int [tokens]
        Token budget of one step.
    max_model_len : int [tokens]
        Longest context, prompt plus output, of one request.
    block_tokens : int [tokens]
        Size of a KV block.
    cuda_graphs : bool
        Whether steps of captured sizes replay a graph.
    max_graph_tokens : int or None [tokens]
        Largest captured size; None for vLLM's rule, see `graph_sizes`.
    static_memory : bool
        Whether the engine's share of the memory is for weights, state and KV alone, as SGLang's
        ``--mem-fraction-static`` is; else activations lie in it, too, as in vLLM.

    Raises
    ------
    InputError
        If a limit is below 1; all of them are listed.
    """

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int = 8192
    block_tokens: int = 16
    cuda_graphs: bool = True
    max_graph_tokens: int | None = None
    static_memory: bool = False

    def __post_init__(self) -> None:
        top = 1 if self.max_graph_tokens is None else self.max_graph_tokens
        _check(
            "engine limits",
            max_num_seqs=(self.max_num_seqs, 1),
            max_num_batched_tokens=(self.max_num_batched_tokens, 1),
            max_model_len=(self.max_model_len, 1),
            block_tokens=(self.block_tokens, 1),
            max_graph_tokens=(top, 1),
        )

    @property
    def max_step_tokens(self) -> int:
        """Most tokens that a step can hold: the budget, or one per running request [tokens]."""
        return max(self.max_num_batched_tokens, self.max_num_seqs)

    def graph_sizes(self) -> tuple[int, ...]:
        """Return the token counts for which a CUDA graph is captured, rising.

        Returns
        -------
        tuple of int (n,) [tokens]
            Empty without CUDA graphs.

        Notes
        -----
        vLLM v1 (`VllmConfig._set_cudagraph_sizes`): 1, 2, 4, then every 8 below 256, then every
        16 up to ``min(2 max_num_seqs, 512, max_num_batched_tokens)``.
        """
        if not self.cuda_graphs:
            return ()
        top = self.max_graph_tokens
        if top is None:
            top = min(2 * self.max_num_seqs, 512, self.max_num_batched_tokens)
        sizes = [1, 2, 4, *range(8, 256, 8), *range(256, top + 1, 16)]
        return tuple(size for size in sizes if size <= top)


@dataclass(frozen=True, slots=True)
class HostTerms:
    """What the CPU does for a step.

    ``host = base_s + per_request_s * requests``, plus ``eager_layer_s`` per layer when no graph
    fits the step, or ``prefill_layer_s`` per layer when one does but the step has prefill. Whatever
    else runs beside the GPU, ``gap_s + gap_per_chunk_s * chunks`` adds to its time.

    Parameters
    ----------
    base_s : float [s]
        Scheduling, input preparation and output handling of any step.
    per_request_s : float [s/request]
        Per request in the step.
    eager_layer_s : float [s/layer]
        Launching one layer's kernels one by one.
    prefill_layer_s : float [s/layer]
        Launching what the graph of a step with prefill leaves out of one layer: attention under
        vLLM's piecewise graphs, every kernel in an engine that captures decode alone.
    gap_s : float [s]
        What the GPU waits between two steps even when the next one has been planned.
    gap_per_chunk_s : float [s/chunk]
        The same, more, for each prompt (or chunk of one) in the step.

    Raises
    ------
    InputError
        If a term is negative.

    References
    ----------
    Defaults: fit of BLIS (inference-sim, commit f90a1e3a) to vLLM steps on H100. Versions differ:
    `profiles/engines`.
    """

    base_s: float = 0.13e-3
    per_request_s: float = 4e-6
    eager_layer_s: float = 32e-6
    prefill_layer_s: float = 0.0
    gap_s: float = 0.0
    gap_per_chunk_s: float = 0.0

    def __post_init__(self) -> None:
        _check(
            "host terms",
            base_s=(self.base_s, 0),
            per_request_s=(self.per_request_s, 0),
            eager_layer_s=(self.eager_layer_s, 0),
            prefill_layer_s=(self.prefill_layer_s, 0),
            gap_s=(self.gap_s, 0),
            gap_per_chunk_s=(self.gap_per_chunk_s, 0),
        )

    def times(self, factor: float) -> HostTerms:
        """Return all terms multiplied by a factor."""
        if factor == 1.0:
            return self
        return HostTerms(*(factor * getattr(self, each.name) for each in fields(self)))
