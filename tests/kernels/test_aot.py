"""Every kernel compiles for Ampere, Ada, Hopper and Blackwell, without a GPU.

Triton's wheel brings ptxas for all of them. The compiler runs in a process of its own, since this
one has Triton's interpreter.
"""

import json
import os
import subprocess
import sys

import pytest
from llmsim_kernels.catalog import KERNELS

pytest.importorskip("torch")
pytest.importorskip("triton")
pytestmark = pytest.mark.torch

SHARED_LIMIT_BYTES = {80: 166_912, 89: 101_376, 90: 232_448, 100: 232_448}
"""CUDA C++ Programming Guide, technical specifications: 163, 99, 227 and 227 KiB a block."""

MOST_SPILLED_BYTES = 128
"""A few registers of the largest tiles; a spilled accumulator would be kilobytes."""


def python(*words, cache):
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment = kept | {"TRITON_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 89, 90, 100])
def test_every_kernel_compiles(capability, tmp_path):
    done = python("-m", "llmsim_kernels.aot", str(capability), cache=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    wanted = {(kernel.id, kernel.variant) for kernel in KERNELS if kernel.typical}
    assert {(row["kernel"], row["variant"]) for row in rows} == wanted
    assert {kernel.id for kernel in KERNELS} == {row["kernel"] for row in rows}
    for row in rows:
        assert row["cubin_bytes"] > 0, row
        assert 0 < row["registers"] <= 255, row
        assert row["shared_bytes"] <= SHARED_LIMIT_BYTES[capability], row
        assert row["spilled_bytes"] <= MOST_SPILLED_BYTES, row
    converting = {row["kernel"] for row in rows if row["e4m3_instructions"]}
    e4m3 = {kernel.id for kernel in KERNELS if "fp8" in kernel.variant}
    assert converting == (set() if capability == 80 else e4m3)


def test_ampere_has_no_e4m3_instruction(tmp_path):
    """Why the bits are moved there: the compiler refuses the conversion."""
    code = (
        "from llmsim_kernels import aot, catalog\n"
        "kernel = catalog.find('triton.dequantise.v1', 'fp8')\n"
        "(native,) = aot.launches(kernel, 'bf16', 89)\n"
        "(moved,) = aot.launches(kernel, 'bf16', 80)\n"
        "assert aot.compile_launch(moved, 80)[0]\n"
        "aot.compile_launch(native, 80)\n"
    )
    done = python("-c", code, cache=tmp_path)
    assert done.returncode == 1
    assert "CompilationError" in done.stderr
    assert "fp8e4nv" in done.stderr


@pytest.mark.parametrize(
    ("kernel", "variant", "function"),
    [
        ("triton.wna16_gemm.v2", "w4a16", "_transposed_product"),
        ("triton.paged_decode.v2", "kv int4", "attend_int4_part"),
    ],
)
def test_four_bits_reach_hoppers_tensor_cores_from_registers(kernel, variant, function, tmp_path):
    """wgmma's left operand is a list of registers; had it passed through memory, a descriptor."""
    code = (
        "import re\n"
        "from llmsim_kernels import aot, catalog\n"
        f"kernel = catalog.find({kernel!r}, {variant!r})\n"
        "for launch in aot.launches(kernel, 'bf16', 90):\n"
        f"    if launch.function.__name__ != {function!r}:\n"
        "        continue\n"
        "    _, ptx, _ = aot.compile_launch(launch, 90)\n"
        "    products = re.findall(r'wgmma\\.mma_async\\S+ \\{[^}]*\\},\\s*(\\S)', ptx)\n"
        "    print(len(products), products.count('{'))\n"
    )
    done = python("-c", code, cache=tmp_path)
    assert done.returncode == 0, done.stderr
    found = [line.split() for line in done.stdout.splitlines()]
    assert len(found) == 2  # few rows, and many; parts, and none
    for products, registers in found:
        assert int(products) == int(registers) > 0


def test_shapes_share_compiled_kernels(tmp_path):
    """Each compilation takes a second or two: a profile has ten minutes."""
    code = (
        "from dataclasses import replace\n"
        "from llmsim_kernels import aot, catalog\n"
        "kernel = catalog.find('triton.paged_decode.v2')\n"
        "heads = {'heads_q': 8, 'heads_kv': 2, 'head_dim': 64, 'page': 16}\n"
        "lengths = [(n,) * b for b in (1, 3, 16) for n in (100, 1000, 1600, 5000, 9000)]\n"
        "shapes = tuple({'contexts': each, **heads} for each in lengths)\n"
        "found = aot.launches(replace(kernel, typical=shapes), 'bf16', 90)\n"
        "names = [each.function.__name__ for each in found]\n"
        "print(names.count('_attend_part'), names.count('_join_parts'))\n"
    )
    done = python("-c", code, cache=tmp_path)
    assert done.returncode == 0, done.stderr
    kernels, joins = map(int, done.stdout.split())
    assert kernels == 2  # with and without splits
    assert joins <= 6  # one for each power of two
