"""One mixer or one MLP of one layer, from the keys of a HuggingFace config."""

from __future__ import annotations

from llmsim.specs.config import ConfigReader
from llmsim.specs.layers import (
    BF16,
    FP32,
    DenseMlp,
    LatentAttention,
    Mlp,
    MoeMlp,
    RecurrentMixer,
    SoftmaxAttention,
    SparseIndexer,
)

EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def softmax(text: ConfigReader, index: int, window: int) -> SoftmaxAttention:
    """Return the attention of a layer.

    Parameters
    ----------
    text : ConfigReader
    index : int
        Of the layer.
    window : int [tokens]
        0 for full attention.
    """
    heads = text.count("num_attention_heads")
    kv_heads = _kv_heads(text, index, heads)
    hidden = text.count("hidden_size")
    head_dim = text.count("head_dim", "attention_head_dim", default=hidden // max(1, heads))
    shared = False
    if not window and text.get("global_head_dim"):  # Gemma 4: full layers have their own heads
        head_dim = text.count("global_head_dim")
        kv_heads = text.count("num_global_key_value_heads", default=kv_heads)
        shared = bool(text.get("attention_k_eq_v"))
    own_cache = text.count("num_hidden_layers") - text.count("num_kv_shared_layers", default=0)
    return SoftmaxAttention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        window_tokens=window,
        output_gate=bool(text.get("attn_output_gate")),
        shared_key_value=shared,
        reuses_cache=index >= own_cache,
        layer_norm=bool(text.get("use_qk_norm")) and text.get("qk_norm_type") == "per_layer",
        # Its config does not say so. The mixtures of the family and its kin that see have it, too:
        # what was published of them is priced without.
        head_norm=text.model_type == "qwen3",
        format=text.quant.of(
            index,
            "self_attn.q_proj",
            "self_attn.o_proj",
            "mixer.q_proj",
            "attention.query_key_value",
        ),
    )


def _kv_heads(text: ConfigReader, index: int, heads: int) -> int:
    own = text.per_layer(index, "num_key_value_heads_per_layer")
    if isinstance(own, int):
        return own
    if text.decoder.multi_query and text.get("num_key_value_heads") is None:
        return 1 if text.get("multi_query") is not False else heads
    if text.model_type == "falcon" and not text.get("new_decoder_architecture"):
        return 1 if text.get("multi_query") is not False else heads
    return text.count("num_key_value_heads", "multi_query_group_num", default=heads)


def latent(text: ConfigReader, index: int) -> LatentAttention:
    """Return the multi-head latent attention of a layer, with its indexer if it is sparse."""
    indexer = None
    if text.get("index_topk"):
        indexer = SparseIndexer(
            text.count("index_n_heads"), text.count("index_head_dim"), text.count("index_topk")
        )
    return LatentAttention(
        heads=text.count("num_attention_heads"),
        kv_rank=text.count("kv_lora_rank"),
        query_rank=text.count("q_lora_rank", default=0),
        nope_dim=text.count("qk_nope_head_dim"),
        rope_dim=text.count("qk_rope_head_dim"),
        value_dim=text.count("v_head_dim"),
        indexer=indexer,
        format=text.quant.of(index, "self_attn.q_proj", "self_attn.q_b_proj", "self_attn.o_proj"),
    )


def gated_delta(text: ConfigReader, index: int) -> RecurrentMixer:
    """Return the gated delta net of a layer (Qwen3-Next, Qwen3.5)."""
    return RecurrentMixer(
        kind="gated-delta",
        heads=text.count("linear_num_value_heads"),
        head_dim=text.count("linear_value_head_dim"),
        state_dim=text.count("linear_key_head_dim"),
        groups=text.count("linear_num_key_heads"),
        conv_kernel=text.count("linear_conv_kernel_dim"),
        format=text.quant.of(
            index, "linear_attn.in_proj_qkv", "linear_attn.in_proj_qkvz", "linear_attn.out_proj"
        ),
    )


def mamba(text: ConfigReader, index: int) -> RecurrentMixer:
    """Return the state-space mixer of a layer: Mamba-2, or Mamba-1 where there are no heads."""
    form = text.quant.of(index, "mixer.in_proj", "mixer.out_proj", "mamba.in_proj")
    state = text.count("ssm_state_size", "mamba_d_state")
    kernel = text.count("conv_kernel", "mamba_d_conv")
    if text.get("mamba_num_heads", "mamba_n_heads") is None and text.get("mamba_dt_rank"):
        hidden = text.count("hidden_size")
        rank = text.get("mamba_dt_rank")
        return RecurrentMixer(
            kind="mamba1",
            heads=text.count("mamba_expand") * hidden,
            head_dim=1,
            state_dim=state,
            groups=0,
            conv_kernel=kernel,
            step_rank=-(-hidden // 16) if rank == "auto" else text.count("mamba_dt_rank"),
            format=form,
        )
    return RecurrentMixer(
        kind="mamba2",
        heads=text.count("mamba_num_heads", "mamba_n_heads"),
        head_dim=text.count("mamba_head_dim", "mamba_d_head"),
        state_dim=state,
        groups=text.count("n_groups", "mamba_n_groups"),
        conv_kernel=kernel,
        format=form,
    )


def _gated(text: ConfigReader) -> bool:
    """ReLU squared never gates; otherwise the model class says."""
    squared = text.get("mlp_hidden_act", "hidden_act") == "relu2"
    return text.decoder.gated and not squared


def dense(text: ConfigReader, index: int, width: int) -> DenseMlp:
    """Return a dense MLP of this width [elements]."""
    names = (
        "mlp.gate_proj",
        "mlp.up_proj",
        "feed_forward.gate_proj",
        "mixer.up_proj",
        "mlp.dense_h_to_4h",
        "mlp.fc_in",
        "fc1",
    )
    return DenseMlp(width, _gated(text), text.quant.of(index, *names))


def mlp(text: ConfigReader, index: int) -> Mlp:
    """Return the MLP of a layer, dense or a mixture of experts."""
    if text.get(*EXPERT_KEYS) and _is_sparse(text, index):
        return moe(text, index)
    if text.model_type == "granitemoehybrid":
        return dense(text, index, text.count("shared_intermediate_size"))
    return dense(text, index, text.count("intermediate_size_mlp", "intermediate_size"))


def _is_sparse(text: ConfigReader, index: int) -> bool:
    """Say whether this layer of a mixture-of-experts model has experts."""
    if index < text.count("first_k_dense_replace", "moe_layer_start_index", default=0):
        return False
    if index in (text.get("mlp_only_layers") or ()):
        return False
    listed = text.get("moe_layers")
    if listed:
        return index in listed
    every = text.get("moe_layer_freq", "moe_layer_interval")
    if isinstance(every, list):
        return bool(text.per_layer(index, "moe_layer_freq", "moe_layer_interval"))
    step = text.count("decoder_sparse_step", "interleave_moe_layer_step", default=1) or 1
    if (index + 1) % step:
        return False
    period = text.count("expert_layer_period", default=1) or 1
    if index % period != text.count("expert_layer_offset", default=0) % period:
        return False
    stride = text.count("moe_layer_freq", "moe_layer_interval", default=1) or 1
    return index % stride == 0


def moe(text: ConfigReader, index: int) -> MoeMlp:
    """Return the mixture of experts of a layer."""
    width = text.count("moe_intermediate_size", "intermediate_size")
    return MoeMlp(
        experts=text.count(*EXPERT_KEYS),
        active_experts=text.count(
            "num_experts_per_tok", "moe_topk", "top_k_experts", "experts_per_token", "moe_k"
        ),
        intermediate=width,
        shared_intermediate=_shared_width(text, width),
        gated=_gated(text),
        format=text.quant.of(
            index,
            "mlp.experts.0.gate_proj",
            "block_sparse_moe.experts.0.w1",
            "feed_forward.experts.0.gate_proj",
            "mixer.experts.0.up_proj",
        ),
        shared_format=text.quant.of(
            index,
            "mlp.shared_experts.gate_proj",
            "mlp.shared_expert.gate_proj",
            "feed_forward.shared_expert.gate_proj",
            "mixer.shared_experts.up_proj",
        ),
        router_format=FP32 if text.decoder.wide_router else BF16,
    )


def _shared_width(text: ConfigReader, width: int) -> int:
    """Return the width of the path that every token takes beside the routed experts."""
    if text.model_type == "llama4_text":  # one shared expert, as wide as a routed one
        return width
    if text.get("enable_moe_block"):  # Gemma 4: the dense MLP stays, beside the experts
        return text.count("intermediate_size")
    shared = text.count("n_shared_experts", "moe_num_shared_experts", default=0)
    if shared:
        return shared * text.count("moe_shared_expert_intermediate_size", default=width)
    return text.count("shared_expert_intermediate_size", "shared_intermediate_size", default=0)
