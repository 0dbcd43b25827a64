"""Compile ahead, on all cores: every row of the grid runs once, untimed, in several processes.

Triton compiles a kernel when it is first launched, one to three seconds each; a profile that did so
between its timings would spend most of its minutes on it. Compiled kernels stay in Triton's cache
on disk, where the profile finds them. ``python -m llmsim_kernels.profiler.ahead --share 0/12``
does a share; rows that fail are printed, one line each.
"""

from __future__ import annotations

import argparse
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llmsim.specs.load import load_model
from llmsim_kernels.catalog import KERNELS, LIMITS
from llmsim_kernels.profiler.blocks import BLOCKS
from llmsim_kernels.profiler.plan import ALL_BLOCKS, Plan, Rates, choose
from llmsim_kernels.profiler.spec import Device, DeviceLostError, RowFault, RowSpec

MOST_RESIDENT_BYTES = 2 << 30
"""Larger operands are left out, since several processes share the memory; smaller rows of the same
kernel compile the same code."""

_KIND = (
    *("op", "kernel_id", "dtype_a", "dtype_w", "dtype_kv", "heads_q", "heads_kv", "head_dim"),
    *("window", "experts", "experts_local"),
)
"""Rows that differ in something else mostly share compiled code, so one process takes them all."""


def shared_out(specs: Sequence[RowSpec], share: int, shares: int) -> list[RowSpec]:
    """Return the rows of one process, those of like kernels together.

    Parameters
    ----------
    specs : sequence of RowSpec
    share, shares : int
        Which of how many processes.
    """

    def place(spec: RowSpec) -> int:
        words = "|".join(str(spec.key.get(name)) for name in _KIND)
        return zlib.crc32(words.encode()) % shares

    return [spec for spec in specs if place(spec) == share]


def rows_of(device: Device, models: Sequence[str], *, triton_only: bool) -> list[RowSpec]:
    """Return the rows of a profile that one short call can run.

    Parameters
    ----------
    device : Device
    models : sequence of str
        Cards whose shapes are added.
    triton_only : bool
        Leave out what needs no compiling.
    """
    found: dict[tuple[str, ...], RowSpec] = {}
    for model in models or ("",):
        plan = Plan(device.facts, False, Rates(5e14, 2e12), load_model(model) if model else None)
        blocks = [BLOCKS[number] for number in ALL_BLOCKS if number not in (0, 10, 11)]
        for spec in choose(blocks, plan).rows:
            wanted = spec.needs == "triton" or not triton_only
            if wanted and spec.measure is None and spec.resident_bytes < MOST_RESIDENT_BYTES:
                found.setdefault(tuple(str(value) for value in spec.key.values()), spec)
    return list(found.values())


def run_once(device: Any, specs: Sequence[RowSpec]) -> Iterator[str]:
    """Run one call of every row; yield a line for each that fails.

    Parameters
    ----------
    device : CudaDevice
    specs : sequence of RowSpec
    """
    for spec in specs:
        try:
            _try(device, spec)
        except RowFault as fault:
            if fault.status != "unsupported":
                yield f"{_name(spec)}: {fault}"
        except DeviceLostError as error:
            yield f"{_name(spec)}: the device was lost: {error}"
            return


def _try(device: Any, spec: RowSpec) -> None:
    def once(call: Any, effort: Any) -> list[float]:
        call.variants[0]()
        device.bench.torch.cuda.synchronize()
        return [1e-6]

    device.bench.pass_gate = lambda call: None
    device.replay_graph = device.run_eager = once
    device.time(spec, None)


def _name(spec: RowSpec) -> str:
    return " ".join(
        f"{name}={value}" for name, value in spec.key.items() if value not in (None, "")
    )


def check_some(share: int, shares: int, dtype: str, write: Callable[[str], Any]) -> None:
    """Check every `shares`-th kernel of the catalogue against its reference, here.

    Parameters
    ----------
    share, shares : int
    dtype : str
        Of the activations; empty for all.
    write : callable
        Gets a line for each kernel and type.
    """
    pairs = [
        (kernel, each)
        for kernel in KERNELS
        for each in kernel.dtypes
        if each == dtype or not dtype or dtype not in kernel.dtypes
    ]
    for kernel, each in pairs[share::shares]:
        name = f"{kernel.id:28}{kernel.variant:14}{each:6}"
        try:
            error = kernel.check("cuda:0", each)
        except Exception as fault:
            write(f"{name}FAILED {type(fault).__name__}: {str(fault).splitlines()[0][:200]}\n")
            continue
        word = "ok" if error < LIMITS[each] else f"WRONG (limit {LIMITS[each]:g})"
        write(f"{name}{error:9.2e}  {word}\n")


def main(words: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m llmsim_kernels.profiler.ahead")
    parser.add_argument("--share", default="0/1", help="which of how many processes this is")
    parser.add_argument("--model", action="append", default=[], help="card whose shapes are added")
    parser.add_argument(
        "--checks", action="store_true", help="check kernels against their references, too"
    )
    parser.add_argument("--dtype", default="", help="check kernels of this type alone")
    parser.add_argument("--all", action="store_true", help="rows without Triton, too")
    given = parser.parse_args(words)
    share, shares = (int(word) for word in given.share.split("/"))
    began = time.monotonic()
    from llmsim_kernels.profiler.run import open_device

    device = open_device("")
    specs = shared_out(rows_of(device, given.model, triton_only=not given.all), share, shares)
    sys.stdout.write(f"{len(specs)} rows, ready after {time.monotonic() - began:.1f} s\n")
    for line in run_once(device, specs):
        sys.stdout.write(f"{line}\n")
    sys.stdout.write(f"rows done after {time.monotonic() - began:.1f} s\n")
    if given.checks:
        check_some(share, shares, given.dtype, sys.stdout.write)
        sys.stdout.write(f"checks done after {time.monotonic() - began:.1f} s\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
