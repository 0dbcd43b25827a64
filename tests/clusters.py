"""Whether the libraries that run a study on a cluster are here, and start."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import Any

import pytest

MODULES = {"dask": "distributed", "ray": "ray"}

_TRY = "import ray; ray.init('local', num_cpus=1, include_dashboard=False); ray.shutdown()"
_PATIENCE_S = 60


def need_cluster(kind: str) -> None:
    """Skip a test whose executor is not installed, or of Ray, which starts five servers, does not
    start in a minute on this machine.
    """
    if kind == "local":
        return
    pytest.importorskip(MODULES[kind])
    if kind == "ray" and (fault := _fault_of_ray()):
        pytest.skip(f"Ray does not start on this machine: {fault}")


@cache
def _fault_of_ray() -> str:
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRY], capture_output=True, text=True, timeout=_PATIENCE_S
        )
    except subprocess.TimeoutExpired:
        return f"nothing after {_PATIENCE_S} s"
    return done.stderr[-300:] if done.returncode else ""


def apart(call: Callable[..., Any], *words: Any) -> Any:
    """Make a call in a process of its own and return what it returns, or raise what it raises.

    Ray forks its driver for each of its servers. That of a test process which has grown for twenty
    minutes has failed for want of memory on a small machine; a new process is small.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        return processes.submit(call, *words).result()
