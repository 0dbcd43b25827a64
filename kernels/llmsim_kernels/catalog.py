"""Every Triton kernel of the package: what it computes, on what, and how it is checked.

A kernel is trusted on a device only after `Kernel.check` has found it close to its reference
there, at two ragged shapes. Importing this module imports neither torch nor triton.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llmsim.core.errors import Fault, InputError, nearest

Shape = Mapping[str, Any]
"""Axes by the names of the profile's columns; contexts and new tokens as tuples, per request."""

LIMITS: Mapping[str, float] = {"bf16": 1e-2, "fp16": 1e-3, "fp32": 1e-3}
"""Largest norm of the error over that of the reference, by type of the activations."""


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel with inputs of one shape.

    Parameters
    ----------
    run : callable
        Launches the kernel, and nothing else: this is what may be timed.
    reference : callable
        Returns the numbers that should come out, from plain torch.
    numbers : callable
        Turns what `run` returned into numbers.
    """

    run: Callable[[], Any]
    reference: Callable[[], Any]
    numbers: Callable[[Any], Any] = lambda result: result

    def error(self) -> float:
        """Return the norm of the error over the norm of the reference."""
        found, right = self.numbers(self.run()).double(), self.reference().double()
        return float((found - right).norm() / right.norm())


@dataclass(frozen=True, slots=True)
class Kernel:
    """One entry of the catalogue.

    Parameters
    ----------
    id : str
        Goes into the column kernel_id of profiles; its version changes with the code.
    op : str
        Operator, a key of `llmsim.specs.profile_rows.OPS`.
    variant : str
        What else tells entries with one id apart, such as the type of the cache.
    dtypes : tuple of str
        Of the activations.
    least_capability : int
        Oldest compute capability times ten.
    builder : str
        Word for the function of `llmsim_kernels.cases` that makes the inputs.
    shapes : tuple of Shape
        The two of the check: small, ragged, some tiles not full.
    typical : tuple of Shape
        Those that are compiled ahead of time, one for each branch of the tile table; none
        where another entry's are the same.
    """

    id: str
    op: str
    variant: str
    dtypes: tuple[str, ...]
    least_capability: int
    builder: str
    shapes: tuple[Shape, Shape]
    typical: tuple[Shape, ...]

    def case(self, shape: Shape, device: str, dtype: str) -> Case:
        """Make inputs of a shape.

        Parameters
        ----------
        shape : Shape
        device : str
            Such as ``cuda:0`` or ``cpu``; the latter only in Triton's interpreter.
        dtype : str
            Of the activations.
        """
        from llmsim_kernels import cases

        return cases.make(self.builder, shape, device, dtype)

    def check(self, device: str, dtype: str) -> float:
        """Return the largest error of all shapes, to be held against `LIMITS`.

        Parameters
        ----------
        device : str
            On a GPU the typical shapes are checked as well, since they take other branches of the
            tile tables than small ones; Triton's interpreter would need minutes for them.
        dtype : str
            Of the activations.
        """
        shapes = self.shapes if device == "cpu" else (*self.shapes, *self.typical)
        return max(self.case(shape, device, dtype).error() for shape in shapes)


_ALL = ("bf16", "fp16", "fp32")
_HALF = ("bf16", "fp16")

_DECODE = (
    {"contexts": (5, 131, 64), "heads_q": 8, "heads_kv": 2, "head_dim": 64, "page": 16},
    {"contexts": (700, 1), "heads_q": 6, "heads_kv": 2, "head_dim": 64, "page": 64, "window": 100},
)
_DECODE_TYPICAL = (
    {"contexts": (2048,) * 8, "heads_q": 32, "heads_kv": 8, "head_dim": 128, "page": 16},
    {"contexts": (16,), "heads_q": 8, "heads_kv": 1, "head_dim": 128, "page": 16},
)
_LOW_BIT = ({"m": 5, "n": 48, "k": 256}, {"m": 70, "n": 80, "k": 512})
_LOW_BIT_TYPICAL = tuple({"m": m, "n": 1024, "k": 1024} for m in (16, 512, 1))


def _decode(dtype_kv: str) -> Kernel:
    more = {} if dtype_kv == "same" else {"dtype_kv": dtype_kv}
    return Kernel(
        "triton.paged_decode.v2",
        "attention_decode",
        f"kv {dtype_kv}",
        _HALF if dtype_kv == "fp8" else _ALL,
        80,
        "paged_decode",
        (_DECODE[0] | more, _DECODE[1] | more),
        tuple(shape | more for shape in _DECODE_TYPICAL),
    )


def _low_bit(bits: int) -> Kernel:
    more = {"bits": bits}
    return Kernel(
        "triton.wna16_gemm.v2",
        "gemm",
        f"w{bits}a16",
        _ALL,
        80,
        "low_bit_gemm",
        (_LOW_BIT[0] | more, _LOW_BIT[1] | more),
        # large tiles of the usual width, and of the one that needs most registers
        tuple(shape | more for shape in _LOW_BIT_TYPICAL[: 3 if bits in (4, 7) else 1]),
    )


def _varlen(pack: bool) -> Kernel:
    small = {"heads_q": 6, "heads_kv": 2, "head_dim": 64, "page": 16, "pack": pack}
    large = {"heads_q": 32, "heads_kv": 8, "head_dim": 128, "page": 16, "pack": pack}
    return Kernel(
        "triton.varlen_attention.v1",
        "attention_mixed",
        "packed" if pack else "unpacked",
        _ALL,
        80,
        "varlen_attention",
        (
            {"contexts": (5, 50, 77), "new": (5, 20, 1), **small},
            {"contexts": (33, 90), "new": (33, 1), "window": 17, **small},
        ),
        (
            {"contexts": (512, 1024), "new": (512, 1), **large},
            {"contexts": (1024, 1024), "new": (1, 1), **large},
            {"contexts": (300, 700), "new": (300, 200), **large},
        ),
    )


def _moe(choose: str) -> Kernel:
    sizes = {"experts": 6, "topk": 2, "hidden": 64, "inter": 48, "choose": choose}
    large = {"experts": 8, "topk": 2, "hidden": 512, "inter": 512, "choose": choose}
    return Kernel(
        "triton.fused_moe.v1",
        "moe",
        choose,
        _ALL,
        80,
        "fused_moe",
        ({"tokens": 1, **sizes}, {"tokens": 37, **sizes}),
        tuple({"tokens": tokens, **large} for tokens in (1, 16, 256, 2048) if choose == "even"),
    )


def _row(kernel: str, op: str, kind: str, builder: str) -> Kernel:
    typical = ({"tokens": 64, "hidden": 4096, "kind": kind},)
    shapes = (
        {"tokens": 5, "hidden": 300, "kind": kind},
        {"tokens": 3, "hidden": 384, "group": 128, "kind": kind},
    )
    return Kernel(kernel, op, kind, _ALL, 80, builder, shapes, typical)


def _rope(kind: str) -> Kernel:
    heads = {"heads_q": 4, "heads_kv": 2, "head_dim": 64, "page": 16, "kind": kind}
    typical = {"heads_q": 32, "heads_kv": 8, "head_dim": 128, "page": 16, "kind": kind}
    return Kernel(
        "triton.rope_kv_write.v1",
        "rope",
        f"kv {kind}",
        _HALF if kind == "fp8" else _ALL,
        80,
        "rope_write",
        ({"tokens": 1, **heads}, {"tokens": 9, **heads}),
        ({"tokens": 64, **typical},),
    )


def _sparse(phase: str) -> Kernel:
    heads = {"batch": 2, "heads_q": 4, "heads_kv": 2, "head_dim": 64}
    wide = {"batch": 1, "heads_q": 32, "heads_kv": 8, "head_dim": 128}
    if phase == "prefill":
        shapes = (
            {"q_len": 40, "kv_len": 40, "block": 16, "block_q": 16, **heads},
            {"q_len": 20, "kv_len": 100, "block": 32, "block_q": 16, **heads},
        )
        typical = ({"q_len": 256, "kv_len": 256, "block": 64, "block_q": 64, **wide},)
    else:
        shapes = (
            {"q_len": 1, "kv_len": 70, "block": 16, "block_q": 1, **heads},
            {"q_len": 1, "kv_len": 200, "block": 32, "block_q": 1, **heads},
        )
        typical = ({"q_len": 1, "kv_len": 1024, "block": 64, "block_q": 1, **wide},)
    name = "triton.sparse_attention.v1"
    return Kernel(name, f"attention_{phase}", phase, _ALL, 80, "sparse_attention", shapes, typical)


_KV_HEADS = {"heads_kv": 2, "head_dim": 64, "page": 16}

KERNELS: tuple[Kernel, ...] = (
    *(_decode(kind) for kind in ("same", "fp8", "int4")),
    *(_varlen(pack) for pack in (True, False)),
    *(_low_bit(bits) for bits in range(2, 9)),
    Kernel(
        "triton.w4a8_gemm.v1", "gemm", "w4a8", _HALF, 80, "w4a8_gemm", _LOW_BIT, _LOW_BIT_TYPICAL
    ),
    *(_moe(choose) for choose in ("even", "few")),
    *(_row("triton.quantise.v1", "act_quant", kind, "quantise") for kind in ("int8", "fp8")),
    *(_row("triton.dequantise.v1", "act_quant", kind, "dequantise") for kind in ("int8", "fp8")),
    Kernel(
        "triton.hadamard64.v1",
        "rope",
        "hadamard",
        _ALL,
        80,
        "hadamard64",
        ({"tokens": 3, "hidden": 128}, {"tokens": 17, "hidden": 192}),
        ({"tokens": 64, "hidden": 4096},),
    ),
    Kernel(
        "triton.kv_write_int4.v1",
        "kv_write",
        "int4 hadamard",
        _ALL,
        80,
        "kv_write_int4",
        ({"tokens": 1, **_KV_HEADS}, {"tokens": 9, **_KV_HEADS}),
        ({"tokens": 64, "heads_kv": 8, "head_dim": 128, "page": 16},),
    ),
    *(_sparse(phase) for phase in ("prefill", "decode")),
    *(_row("triton.rmsnorm.v1", "norm", kind, "rmsnorm") for kind in ("same", "int8", "fp8")),
    *(_rope(kind) for kind in ("same", "fp8")),
    Kernel(
        "triton.sampler.v2",
        "sampler",
        "top-k top-p",
        ("fp32",),
        80,
        "sampler",
        ({"logit_rows": 4, "vocab": 1000}, {"logit_rows": 3, "vocab": 2500}),
        ({"logit_rows": 4, "vocab": 32768}, {"logit_rows": 4, "vocab": 151936}),
    ),
)
"""All kernels; entries that share an id differ in `variant`."""


def find(kernel_id: str, variant: str = "") -> Kernel:
    """Return the kernel with an id, and of a variant if that is not empty.

    Raises
    ------
    InputError
        If there is none.
    """
    ours = [kernel for kernel in KERNELS if kernel.id == kernel_id]
    found = [kernel for kernel in ours if variant in ("", kernel.variant)]
    if found:
        return found[0]
    if ours:
        hint = nearest(variant, [kernel.variant for kernel in ours])
        message = f"{kernel_id} has no variant {variant!r}."
    else:
        hint = nearest(kernel_id, [kernel.id for kernel in KERNELS])
        message = f"no kernel {kernel_id!r}."
    raise InputError("kernels", [Fault("", kernel_id, message, hint)])
