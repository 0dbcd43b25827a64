"""How far every kernel is from its reference on this machine: ``python -m llmsim_kernels.check``.

With a CUDA device, that is where kernels run; without one, Triton interprets them on the CPU.
"""

from __future__ import annotations

import os
import sys
import time

from llmsim_kernels.catalog import KERNELS, LIMITS


def main() -> int:
    """Print one line per kernel and type; return 1 if one is off its reference."""
    try:
        import torch
    except ImportError:
        sys.stderr.write("torch is missing: pip install 'llmsim[profile]'\n")
        return 2

    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
    capability = 0
    if device != "cpu":
        major, minor = torch.cuda.get_device_capability()
        capability = 10 * major + minor
    wrong = 0
    for kernel in KERNELS:
        for dtype in kernel.dtypes:
            head = f"{kernel.id:28}{kernel.variant:14}{dtype:6}"
            if device == "cpu" and dtype == "bf16":
                continue  # the interpreter multiplies bf16 as if it were integers
            if device != "cpu" and capability < kernel.least_capability:
                sys.stdout.write(f"{head}needs SM {kernel.least_capability}\n")
                continue
            start = time.perf_counter()
            error = kernel.check(device, dtype)
            took_s = time.perf_counter() - start
            ok = error < LIMITS[dtype]
            wrong += not ok
            word = "ok" if ok else f"WRONG (limit {LIMITS[dtype]:g})"
            sys.stdout.write(f"{head}{error:9.2e}  {took_s:6.2f} s  {word}\n")
            sys.stdout.flush()
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
