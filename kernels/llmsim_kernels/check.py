"""How far every kernel is from its reference on this machine: ``python -m llmsim_kernels.check``.

With a CUDA device, that is where kernels run; without one, Triton interprets them on the CPU.
Kernel ids on the command line leave out the others.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time

from llmsim.core.errors import InputError
from llmsim_kernels.catalog import KERNELS, LIMITS, find


def main(words: list[str]) -> int:
    """Print one line per kernel and type.

    Parameters
    ----------
    words : list of str
        Kernel ids; all kernels if empty.

    Returns
    -------
    int
        1 if a kernel is off its reference, 2 if there is nothing to check with, else 0.
    """
    if not all(importlib.util.find_spec(name) for name in ("torch", "triton")):
        sys.stderr.write("torch or triton is missing: pip install 'llmsim[profile]'\n")
        return 2
    try:
        wanted = {find(word).id for word in words}
    except InputError as faults:
        sys.stderr.write(f"{faults}\n")
        return 2
    import torch

    capability = 0
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        capability = 10 * major + minor
    else:
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
    wrong = 0
    for kernel in KERNELS:
        for dtype in kernel.dtypes:
            if wanted and kernel.id not in wanted:
                continue
            if capability == 0 and dtype == "bf16":
                continue  # the interpreter multiplies bf16 matrices wrongly
            sys.stdout.write(f"{kernel.id:28}{kernel.variant:14}{dtype:6}")
            if 0 < capability < kernel.least_capability:
                sys.stdout.write(f"needs SM {kernel.least_capability}\n")
                continue
            start = time.perf_counter()
            error = kernel.check("cuda:0" if capability else "cpu", dtype)
            took_s = time.perf_counter() - start
            wrong += not error < LIMITS[dtype]
            word = "ok" if error < LIMITS[dtype] else f"WRONG (limit {LIMITS[dtype]:g})"
            sys.stdout.write(f"{error:9.2e}  {took_s:6.2f} s  {word}\n")
            sys.stdout.flush()
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
