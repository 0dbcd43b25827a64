"""Coefficients of the latency functions: how close to the datasheet each kernel family comes.

They are card data. `profiles/kernels/prior.yaml` holds the values for a chip of which nothing is
known; a GPU card states the ones that were measured on it. Efficiencies are at most 1, so no
operator can be priced below FLOP/peak or bytes/bandwidth: the physical floor holds by
construction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from llmsim.core.errors import Fault, InputError


@dataclass(frozen=True, slots=True)
class SmoothRoofline:
    """``t = t0 + [(F / (e_c P))^p + (X / (e_m BW))^p]^(1/p)``.

    Parameters
    ----------
    t0_s : float [s]
        Floor of one launch.
    compute_frac, memory_frac : float
        e_c and e_m: reachable share of peak and of bandwidth, in (0, 1].
    norm : float
        p, at least 1: how sharply the two limits meet.
    """

    t0_s: float
    compute_frac: float
    memory_frac: float
    norm: float


@dataclass(frozen=True, slots=True)
class GemmTerms:
    """GEMM: ``t = t0 + norm(F (1 + c SM / tiles), X, l k / 1024) + q X_q``, tiles of 128 x 128.

    Parameters
    ----------
    roofline : SmoothRoofline
    loop_s : float [s]
        l: one tile's way through 1,024 elements of the inner dimension; no split makes a product
        shorter than this.
    half_tiles_per_sm : float
        c: tiles per SM at which half of the compute efficiency is reached.
    quantise_s_per_byte : float [s/byte]
        q: quantising the activations, per byte read and written; 0 where they stay as they are.
    """

    roofline: SmoothRoofline
    loop_s: float
    half_tiles_per_sm: float
    quantise_s_per_byte: float


@dataclass(frozen=True, slots=True)
class DecodeAttentionTerms:
    """Decode attention: ``t = t0 + w B Hk / SM + norm(F, X)``, contexts rounded up to 128.

    Parameters
    ----------
    roofline : SmoothRoofline
    wave_s : float [s]
        w: cost of one more KV head of one more request per SM.
    """

    roofline: SmoothRoofline
    wave_s: float


@dataclass(frozen=True, slots=True)
class PrefillAttentionTerms:
    """Prefill attention: compute efficiency times ``C / (C + c SM)``, C tiles in flight.

    Parameters
    ----------
    roofline : SmoothRoofline
    half_tiles_per_sm : float
        c: tiles per SM at which half of the efficiency is reached.
    """

    roofline: SmoothRoofline
    half_tiles_per_sm: float


@dataclass(frozen=True, slots=True)
class MoeTerms:
    """Grouped expert GEMMs: ``t = t0 + w_e E_act + norm(F / row_eff, X) + permute bytes``.

    Parameters
    ----------
    roofline : SmoothRoofline
    expert_s : float [s]
        w_e: per expert that is hit.
    half_rows : float [rows]
        Rows per expert at which half of the compute efficiency is reached.
    permute_s_per_byte : float [s/byte]
        Gathering and scattering tokens.
    hidden_multiple, width_multiple : int [elements]
        What the model's width and the width of an expert's share on one rank are padded to. The
        zeros are read and multiplied like any other weight.
    """

    roofline: SmoothRoofline
    expert_s: float
    half_rows: float
    permute_s_per_byte: float
    hidden_multiple: int = 1
    width_multiple: int = 1

    def padded_share(self, hidden: int, width: int) -> float:
        """Return an expert's matrices as the kernel holds them, over those of the model.

        Parameters
        ----------
        hidden, width : int [elements]
            Of the model, and of an expert's share on one rank.
        """
        tall = -(-hidden // self.hidden_multiple) * self.hidden_multiple
        wide = -(-width // self.width_multiple) * self.width_multiple
        return tall * wide / (hidden * width)


@dataclass(frozen=True, slots=True)
class KernelTerms:
    """All kernel families of one GPU.

    Parameters
    ----------
    gemm : mapping of str to GemmTerms
        By family: bf16, fp8 (a scale per tensor, channel or token), fp8_block (a scale per block
        of weights), int8, fp4, and w8a16 and w4a16: narrow weights, 16-bit products.
    decode_attention : mapping of str to DecodeAttentionTerms
        By KV dtype: bf16, fp8.
    prefill_attention : PrefillAttentionTerms
    latent_decode : SmoothRoofline
        MLA decode with absorbed projections.
    moe : mapping of str to MoeTerms
        By family: bf16, fp8 (int8 shares it), fp8_block, fp4, w4a16 and mxfp4 (4-bit weights,
        16-bit products), mxfp4_marlin (the same, by Marlin); where the chip has such kernels
        mxfp4_fp8, with 8-bit activations, and fp8_block_triton, by Triton.
    recurrent : SmoothRoofline
    elementwise_floor_s : float [s]
        Least time of a norm, rotary embedding or activation kernel.
    cache_bandwidth_ratio : float
        Bandwidth of the last-level cache over that of memory, for warm activations.
    sampler_t0_s : float [s]
    sampler_passes : float
        Times the fp32 logits are read or written.
    mixed_launches : int
        2 when prefill and decode attention of a mixed step are two launches, 1 when fused.
    mixed_slope_per_group : float
        kappa - 1 per query head that shares a KV head beyond the first: decode inside a fused
        launch costs ``kappa (t_d - t0)``.
    """

    gemm: Mapping[str, GemmTerms]
    decode_attention: Mapping[str, DecodeAttentionTerms]
    prefill_attention: PrefillAttentionTerms
    latent_decode: SmoothRoofline
    moe: Mapping[str, MoeTerms]
    recurrent: SmoothRoofline
    elementwise_floor_s: float
    cache_bandwidth_ratio: float
    sampler_t0_s: float
    sampler_passes: float
    mixed_launches: int
    mixed_slope_per_group: float


@dataclass(frozen=True, slots=True)
class OperatorScales:
    """Factors on the time of whole operator families: what a calibration or a draw changes.

    A factor below 1 never takes an operator below FLOP/peak or bytes/bandwidth.

    Parameters
    ----------
    gemm, attention_prefill, attention_decode, moe, communication, elementwise : float
        All above 0; 1 for the price as it is. Elementwise are norms, rotary embedding,
        activations, gathers and the sampler.

    Raises
    ------
    InputError
        If a factor is not a positive finite number; all of them are listed.
    """

    gemm: float = 1.0
    attention_prefill: float = 1.0
    attention_decode: float = 1.0
    moe: float = 1.0
    communication: float = 1.0
    elementwise: float = 1.0

    def __post_init__(self) -> None:
        faults = [
            Fault("", f"{name}_scale", f"is {value:g}, must be a positive finite number.")
            for name, value in self.by_family().items()
            if not 0.0 < value < math.inf
        ]
        if faults:
            raise InputError("operator scales", faults)

    def by_family(self) -> dict[str, float]:
        """Return the factors by family name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


UNSCALED = OperatorScales()
"""Every price as it is."""
