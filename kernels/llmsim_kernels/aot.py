"""Compile kernels for GPUs that are not there, and read what the compiler made of them.

Launches are caught before they reach a device: their arguments become a signature, which Triton
and ptxas compile to a cubin. ``python -m llmsim_kernels.aot 90`` prints one line of JSON for each.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from llmsim_kernels.catalog import KERNELS, Kernel

SHARED_LIMIT_BYTES: Mapping[int, int] = {
    80: 163 << 10,
    89: 99 << 10,
    90: 227 << 10,
    100: 227 << 10,
}
"""Shared memory that one block may have (CUDA C++ Programming Guide, technical specifications)."""

_ALIGNED = 16
"""Pointers and numbers that are multiples of this are told to the compiler, as at a launch."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A launch that was caught.

    Parameters
    ----------
    function : JITFunction
    arguments : mapping of str to value
        By the names of the function's parameters.
    options : mapping of str to value
        Such as num_warps.
    """

    function: Any
    arguments: Mapping[str, Any]
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Compiled:
    """What the compiler made of one launch.

    Parameters
    ----------
    kernel, variant, dtype, function : str
    capability : int
        Compute capability times ten.
    cubin_bytes, shared_bytes : int [bytes]
        Size of the code; shared memory of a block.
    registers : int
        Of a thread.
    spilled_bytes : int [bytes]
        Of a thread, in local memory: what its registers did not hold.
    e4m3_instructions : int
        Conversions from and to e4m3 in the PTX.
    """

    kernel: str
    variant: str
    dtype: str
    function: str
    capability: int
    cubin_bytes: int
    shared_bytes: int
    registers: int
    spilled_bytes: int
    e4m3_instructions: int


@contextmanager
def _caught() -> Iterator[list[Launch]]:
    """Catch launches instead of running them."""
    from triton.runtime.jit import JITFunction

    found: list[Launch] = []

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        names = [parameter.name for parameter in self.params]
        arguments = dict(zip(names, args, strict=False))
        arguments |= {name: kwargs.pop(name) for name in list(kwargs) if name in names}
        found.append(Launch(self, arguments, kwargs))

    before: Callable[..., Any] = JITFunction.run
    JITFunction.run = run
    try:
        yield found
    finally:
        JITFunction.run = before


def launches(kernel: Kernel, dtype: str, capability: int) -> list[Launch]:
    """Return the distinct launches of a kernel's typical shapes on a device of a capability.

    Parameters
    ----------
    kernel : Kernel
    dtype : str
        Of the activations.
    capability : int
        Compute capability times ten.
    """
    from llmsim_kernels.ops.device import assumed

    with assumed(capability), _caught() as found:
        for shape in kernel.typical:
            kernel.case(shape, "cpu", dtype).run()
    distinct = {str((each.function.__name__, *_source(each), each.options)): each for each in found}
    return list(distinct.values())


def compile_launch(launch: Launch, capability: int) -> tuple[bytes, str, Any]:
    """Return the cubin, the PTX and Triton's metadata.

    Parameters
    ----------
    launch : Launch
    capability : int
        Compute capability times ten.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = _source(launch)
    source = ASTSource(launch.function, signature, constants, attributes)
    target = GPUTarget("cuda", capability, 32)
    # the default of Triton 3.9 and before, named, as a later one changes it
    options = {"enable_fp_fusion": True, **launch.options}
    made = triton.compile(source, target=target, options=options)
    return made.asm["cubin"], made.asm["ptx"], made.metadata


def compile_kernel(kernel: Kernel, dtype: str, capability: int) -> list[Compiled]:
    """Compile a kernel's typical launches; see `launches`."""
    rows = []
    for launch in launches(kernel, dtype, capability):
        cubin, ptx, metadata = compile_launch(launch, capability)
        registers, spilled_bytes = _resources(cubin)
        rows.append(
            Compiled(
                kernel.id,
                kernel.variant,
                dtype,
                launch.function.__name__,
                capability,
                len(cubin),
                int(metadata.shared),
                registers,
                spilled_bytes,
                len(re.findall(r"^\s*cvt\S*e4m3", ptx, re.MULTILINE)),
            )
        )
    return rows


def _source(launch: Launch) -> tuple[dict[str, str], dict[Any, Any], dict[Any, Any]]:
    """Return the signature, the constants and the attributes of a launch."""
    signature: dict[str, str] = {}
    constants: dict[Any, Any] = {}
    attributes: dict[Any, Any] = {}
    for at, parameter in enumerate(launch.function.params):
        value = launch.arguments[parameter.name]
        whole = isinstance(value, int) and not parameter.do_not_specialize
        if parameter.is_constexpr or (whole and value == 1):  # a launch makes 1 a constant too
            signature[parameter.name] = "constexpr"
            constants[(at,)] = value
            continue
        signature[parameter.name] = _type(value)
        if hasattr(value, "data_ptr") or (whole and value % _ALIGNED == 0):
            attributes[(at,)] = [["tt.divisibility", _ALIGNED]]
    return signature, constants, attributes


def _type(value: Any) -> str:
    """Return Triton's word for the type of an argument."""
    if isinstance(value, float):
        return "fp32"
    if isinstance(value, int):
        return "i32" if -(1 << 31) <= value < 1 << 31 else "i64"
    words = {
        "bfloat16": "bf16",
        "float16": "fp16",
        "float32": "fp32",
        "uint8": "u8",
        "int8": "i8",
        "int32": "i32",
        "int64": "i64",
    }
    return "*" + words[str(value.dtype).removeprefix("torch.")]


def _resources(cubin: bytes) -> tuple[int, int]:
    """Return registers of a thread and bytes it spills, as cuobjdump reads them from a cubin."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        words = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    usage = {name: int(count) for name, count in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", told)}
    return usage["REG"], usage["STACK"] + usage["LOCAL"]


def main(words: list[str]) -> int:
    """Compile everything for the capabilities named; return 1 if something needs too much."""
    wrong = 0
    for capability in [int(word) for word in words] or list(SHARED_LIMIT_BYTES):
        for kernel in KERNELS:
            for row in compile_kernel(kernel, kernel.dtypes[0], capability):
                wrong += row.shared_bytes > SHARED_LIMIT_BYTES[capability]
                sys.stdout.write(json.dumps(asdict(row)) + "\n")
                sys.stdout.flush()
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
