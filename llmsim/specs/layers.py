"""What a transformer layer is made of: mixers, MLPs, and the weight matrices of each.

Every matrix is listed once, as a `Linear`, by the part that owns it. Parameter counts, weight
bytes per rank and the GEMMs of a step all come from that one list, so they cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How the weights of one tensor class are stored and multiplied.

    Parameters
    ----------
    name : str
        Such as ``bf16``, ``fp8-block128`` or ``nvfp4``.
    bytes_per_weight : float [bytes]
        Scales and zero points included.
    compute_dtype : str
        Tensor-core type of the product where the chip has it: bf16, fp8, int8 or fp4.

    Notes
    -----
    Quantising the activations is no operator of its own: fp8, int8 and fp4 GEMM terms have a part
    for it, and their rows were measured with it.
    """

    name: str
    bytes_per_weight: float
    compute_dtype: str


BF16 = WeightFormat("bf16", 2.0, "bf16")
FP32 = WeightFormat("fp32", 4.0, "fp32")


@dataclass(frozen=True, slots=True)
class Linear:
    """One weight matrix on one rank: ``y[m, n] = x[m, k] w[n, k]``.

    Parameters
    ----------
    name : str
    n, k : int [elements]
        Outputs and inputs on this rank.
    format : WeightFormat
    copies : int
        Matrices of this shape, such as one per head or per expert; 1 for a plain GEMM.
    """

    name: str
    n: int
    k: int
    format: WeightFormat
    copies: int = 1

    @property
    def parameters(self) -> int:
        """Weights on this rank [elements]."""
        return self.n * self.k * self.copies

    @property
    def weight_bytes(self) -> float:
        """Stored size on this rank, scales included [bytes]."""
        return self.parameters * self.format.bytes_per_weight


@dataclass(frozen=True, slots=True)
class SoftmaxAttention:
    """Multi-head, grouped-query or windowed attention with a KV cache.

    Parameters
    ----------
    heads, kv_heads : int
        Query and key/value heads of the whole layer.
    head_dim : int [elements]
    window_tokens : int [tokens]
        Sliding window; 0 for full attention.
    output_gate : bool
        Whether the query projection also yields a gate of the same width (Qwen3.5).
    shared_key_value : bool
        Whether one projection serves keys and values (Gemma 4's full layers).
    reuses_cache : bool
        Whether it reads the KV cache of an earlier layer and has none of its own (Gemma 3n).
    layer_norm : bool
        Whether queries and keys are normalised over all heads at once (MiniMax-M2): the ranks of a
        layer then add up their variances first.
    head_norm : bool
        Whether queries and keys are normalised head by head, and that is priced (dense Qwen3).
    format : WeightFormat

    Notes
    -----
    Biases and attention sinks (gpt-oss) are left out: below 0.1% of weights and of work.
    """

    heads: int
    kv_heads: int
    head_dim: int
    window_tokens: int = 0
    output_gate: bool = False
    shared_key_value: bool = False
    reuses_cache: bool = False
    layer_norm: bool = False
    head_norm: bool = False
    format: WeightFormat = BF16

    def kv_heads_per_rank(self, tp: int) -> int:
        """Key/value heads on one rank; replicated when there are fewer heads than ranks."""
        return max(1, self.kv_heads // tp)

    def kv_elements_per_token(self, tp: int) -> int:
        """KV cache entries per token and rank [elements]."""
        return 0 if self.reuses_cache else 2 * self.kv_heads_per_rank(tp) * self.head_dim

    def linears(self, hidden: int, tp: int) -> tuple[Linear, ...]:
        """Return the weight matrices on one rank."""
        query = self.heads * self.head_dim // tp
        projections = 0 if self.reuses_cache else 1 if self.shared_key_value else 2
        key_value = self.kv_heads_per_rank(tp) * self.head_dim * projections
        return (
            Linear("qkv", query * (2 if self.output_gate else 1) + key_value, hidden, self.format),
            Linear("o", hidden, query, self.format),
        )


@dataclass(frozen=True, slots=True)
class SparseIndexer:
    """DeepSeek sparse attention: a light indexer picks the `topk_tokens` that attention reads.

    Parameters
    ----------
    heads : int
    head_dim : int [elements]
    topk_tokens : int [tokens]
    """

    heads: int
    head_dim: int
    topk_tokens: int


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention (MLA): one compressed KV vector for all heads.

    Parameters
    ----------
    heads : int
        Query heads of the whole layer.
    kv_rank : int [elements]
        Width of the compressed KV (``kv_lora_rank``).
    query_rank : int [elements]
        Width of the compressed query (``q_lora_rank``); 0 without compression.
    nope_dim, rope_dim, value_dim : int [elements]
        Per-head widths: query/key without and with rotary embedding, value.
    indexer : SparseIndexer or None
    format : WeightFormat
    """

    heads: int
    kv_rank: int
    query_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    indexer: SparseIndexer | None = None
    format: WeightFormat = BF16

    @property
    def window_tokens(self) -> int:
        """Most tokens that attention reads; 0 for all [tokens]."""
        return self.indexer.topk_tokens if self.indexer else 0

    def kv_elements_per_token(self, tp: int) -> int:
        """KV cache entries per token and rank; not divided by `tp` [elements]."""
        del tp
        return self.kv_rank + self.rope_dim

    def linears(self, hidden: int, tp: int) -> tuple[Linear, ...]:
        """Return the weight matrices on one rank; `kv_b` is used absorbed in decode."""
        heads = self.heads // tp
        query = heads * (self.nope_dim + self.rope_dim)
        down = self.kv_rank + self.rope_dim + self.query_rank
        parts = [Linear("qkv_a", down, hidden, self.format)]
        parts.append(Linear("q_b", query, self.query_rank or hidden, self.format))
        parts.append(
            Linear("kv_b", heads * (self.nope_dim + self.value_dim), self.kv_rank, self.format)
        )
        parts.append(Linear("o", hidden, heads * self.value_dim, self.format))
        if self.indexer:
            index = self.indexer
            wide = index.heads * index.head_dim
            parts.append(Linear("indexer_q", wide, self.query_rank or hidden, BF16))
            parts.append(Linear("indexer_k", index.head_dim + index.heads, hidden, BF16))
        return tuple(parts)


@dataclass(frozen=True, slots=True)
class RecurrentMixer:
    """A linear-recurrent layer: a state per sequence instead of a KV cache.

    Parameters
    ----------
    kind : str
        ``gated-delta`` (Qwen3.5), ``mamba2`` (Nemotron-H) or ``mamba1`` (Jamba).
    heads : int
        Value heads, each with its own state; in ``mamba1`` the channels, of width 1.
    head_dim, state_dim : int [elements]
        The state of a head is ``head_dim x state_dim``.
    groups : int
        Key heads (gated-delta) or B/C groups (mamba2), shared by the value heads; 0 in
        ``mamba1``, whose B and C come from a matrix of their own.
    conv_kernel : int [tokens]
        Width of the short causal convolution.
    step_rank : int [elements]
        Width of the compressed step size; ``mamba1`` alone has one.
    format : WeightFormat
    """

    kind: str
    heads: int
    head_dim: int
    state_dim: int
    groups: int
    conv_kernel: int
    step_rank: int = 0
    format: WeightFormat = BF16

    def groups_per_rank(self, tp: int) -> int:
        """Key heads or groups on one rank; replicated when fewer than ranks."""
        return max(1, self.groups // tp) if self.groups else 0

    def conv_channels(self, tp: int) -> int:
        """Channels of the short convolution on one rank [elements]."""
        return self.heads * self.head_dim // tp + 2 * self.groups_per_rank(tp) * self.state_dim

    def state_bytes(self, tp: int) -> float:
        """State of one sequence on one rank: fp32 recurrence, 16-bit convolution [bytes]."""
        recurrence = 4.0 * self.heads * self.head_dim * self.state_dim / tp
        return recurrence + 2.0 * self.conv_channels(tp) * (self.conv_kernel - 1)

    def linears(self, hidden: int, tp: int) -> tuple[Linear, ...]:
        """Return the weight matrices on one rank."""
        inner = self.heads * self.head_dim // tp
        per_head = {"gated-delta": 2, "mamba2": 1, "mamba1": 0}[self.kind]
        wide = inner + self.conv_channels(tp) + per_head * self.heads // tp
        ends = (
            Linear("in_proj", wide, hidden, self.format),
            Linear("conv", self.conv_channels(tp), self.conv_kernel, BF16),
            Linear("out_proj", hidden, inner, self.format),
        )
        if self.kind != "mamba1":
            return ends
        return (
            *ends,
            Linear("x_proj", self.step_rank + 2 * self.state_dim, inner, self.format),
            Linear("dt_proj", inner, self.step_rank, BF16),
        )


Mixer = SoftmaxAttention | LatentAttention | RecurrentMixer


@dataclass(frozen=True, slots=True)
class DenseMlp:
    """A feed-forward block.

    Parameters
    ----------
    intermediate : int [elements]
    gated : bool
        Three matrices (SwiGLU and kin) or two (ReLU squared).
    format : WeightFormat
    """

    intermediate: int
    gated: bool = True
    format: WeightFormat = BF16

    def linears(self, hidden: int, tp: int) -> tuple[Linear, ...]:
        """Return the weight matrices on one rank."""
        width = self.intermediate // tp
        first = Linear(
            "gate_up" if self.gated else "up", width * (1 + self.gated), hidden, self.format
        )
        return (first, Linear("down", hidden, width, self.format))


@dataclass(frozen=True, slots=True)
class MoeMlp:
    """A mixture of experts, with or without a dense path that every token takes.

    Parameters
    ----------
    experts, active_experts : int
        Routed experts, and how many of them a token visits.
    intermediate : int [elements]
        Width of one routed expert.
    shared_intermediate : int [elements]
        Width of all shared experts together; 0 without.
    gated : bool
    format, shared_format : WeightFormat
        Of routed and of shared experts.
    router_format : WeightFormat
    skew : float
        Power by which the popularity of experts falls with their rank; 0 when all are alike.
    """

    experts: int
    active_experts: int
    intermediate: int
    shared_intermediate: int = 0
    gated: bool = True
    format: WeightFormat = BF16
    shared_format: WeightFormat = BF16
    router_format: WeightFormat = BF16
    skew: float = 0.0

    def shared(self) -> DenseMlp | None:
        """Return the path that every token takes, as a dense block."""
        if not self.shared_intermediate:
            return None
        return DenseMlp(self.shared_intermediate, self.gated, self.shared_format)

    def expert_linears(self, hidden: int, tp: int) -> tuple[Linear, ...]:
        """Return the matrices of all routed experts on one rank (each expert split over `tp`)."""
        one = DenseMlp(self.intermediate, self.gated, self.format).linears(hidden, tp)
        return tuple(
            Linear(f"expert_{part.name}", part.n, part.k, part.format, self.experts) for part in one
        )

    def linears(self, hidden: int, tp: int) -> tuple[Linear, ...]:
        """Return all weight matrices on one rank; the router is replicated."""
        shared = self.shared()
        always = shared.linears(hidden, tp) if shared else ()
        named = tuple(Linear(f"shared_{part.name}", part.n, part.k, part.format) for part in always)
        router = Linear("router", self.experts, hidden, self.router_format)
        return (router, *named, *self.expert_linears(hidden, tp))


Mlp = DenseMlp | MoeMlp


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """`count` equal layers; hybrid models have layers with only one of the two parts.

    Parameters
    ----------
    mixer : SoftmaxAttention, LatentAttention, RecurrentMixer or None
    mlp : DenseMlp, MoeMlp or None
    count : int [layers]
    """

    mixer: Mixer | None
    mlp: Mlp | None
    count: int = 1

    def linears(self, hidden: int, tp: int) -> tuple[Linear, ...]:
        """Return the weight matrices of one such layer on one rank."""
        mixer = self.mixer.linears(hidden, tp) if self.mixer else ()
        mlp = self.mlp.linears(hidden, tp) if self.mlp else ()
        return (*mixer, *mlp)
