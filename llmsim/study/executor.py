"""Where the runs of a study are simulated: the cores of this machine, or a Dask cluster.

::

    with open_workers(Executor("dask", scheduler="tcp://10.0.0.1:8786")) as workers:
        for index, point in workers.completed(simulate_point, [(scenario,) for ...]):
            ...
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final, Literal, Protocol, TypeVar, get_args

from llmsim.core.errors import Fault, InputError, nearest
from llmsim.study.points import code_hash

T = TypeVar("T")
Task = tuple[Any, ...]
"""Positional arguments of one call; they are pickled."""

Kind = Literal["local", "dask"]

CONNECT_S: Final = 10
"""How long to wait until a Dask scheduler answers [s]."""


@dataclass(frozen=True, slots=True)
class Executor:
    """Where to simulate.

    Parameters
    ----------
    kind : {"local", "dask"}
    jobs : int
        Processes on this machine; -1 for one per core. A cluster with an address has its own.
    scheduler : str or None
        Address of a Dask scheduler, such as ``tcp://10.0.0.1:8786``; None starts a cluster of
        `jobs` workers on this machine.

    Raises
    ------
    InputError
        If there is no such kind, it is not installed, or the rest does not go with it.
    """

    kind: Kind = "local"
    jobs: int = -1
    scheduler: str | None = None

    def __post_init__(self) -> None:
        faults = []
        if self.kind not in get_args(Kind):
            hint = nearest(self.kind, get_args(Kind))
            faults.append(Fault("", "executor", f"unknown executor '{self.kind}'.", hint))
        if self.kind == "dask" and find_spec("distributed") is None:
            hint = "pip install 'llmsim[dask]' brings it."
            faults.append(Fault("", "executor", "Dask is not installed here.", hint))
        if self.kind == "local" and self.scheduler is not None:
            hint = "Say dask, or leave the address out."
            faults.append(Fault("", "scheduler", "is for the executor dask.", hint))
        if self.jobs != -1 and self.jobs < 1:
            faults.append(Fault("", "jobs", f"{self.jobs}, must be at least 1, or -1."))
        if faults:
            raise InputError("executor", faults)


class Workers(Protocol):
    """Processes that calls are handed to."""

    def completed(
        self, call: Callable[..., T], tasks: Sequence[Task]
    ) -> Generator[tuple[int, T], None, None]:
        """Yield (index of the task, what the call returned), each as soon as it is done.

        Parameters
        ----------
        call : callable
            A function of a module that the workers can import.
        tasks : sequence of tuple
            Positional arguments of each call.

        Notes
        -----
        What the call raises comes out here. Whoever stops reading, Ctrl-C included, gives up the
        calls that are not done yet.
        """
        ...


@contextmanager
def open_workers(executor: Executor) -> Iterator[Workers]:
    """Give workers for as long as a study needs them.

    Raises
    ------
    InputError
        If no Dask scheduler answers at the address.
    """
    if executor.kind == "local":
        yield _Local(executor.jobs)
        return
    with closing(_Dask(executor)) as cluster:
        yield cluster


def in_order(workers: Workers, call: Callable[..., T], tasks: Sequence[Task]) -> Iterator[T]:
    """Yield what each call returned in the order of the tasks, each as soon as it is its turn."""
    waiting: dict[int, T] = {}
    due = 0
    for index, made in workers.completed(call, tasks):
        waiting[index] = made
        while due in waiting:
            yield waiting.pop(due)
            due += 1


def run_in_order(call: Callable[..., T], tasks: Sequence[Task], jobs: int) -> Iterator[T]:
    """Yield the same, from processes of this machine.

    Parameters
    ----------
    call : callable
    tasks : sequence of tuple
    jobs : int
        Processes; -1 for one per core.
    """
    with open_workers(Executor("local", jobs)) as workers:
        yield from in_order(workers, call, tasks)


@dataclass(frozen=True, slots=True)
class _Local:
    """Processes of this machine; they stay for the next study (loky)."""

    jobs: int

    def completed(
        self, call: Callable[..., T], tasks: Sequence[Task]
    ) -> Generator[tuple[int, T], None, None]:
        if self.jobs == 1 or len(tasks) < 2:
            for index, task in enumerate(tasks):
                yield index, call(*task)
            return
        from joblib import Parallel, delayed

        # single runs take from milliseconds to minutes: no batches of them
        pool = Parallel(n_jobs=self.jobs, return_as="generator_unordered", batch_size=1)
        yield from pool(delayed(_numbered)(index, call, task) for index, task in enumerate(tasks))


def _numbered(index: int, call: Callable[..., T], task: Task) -> tuple[int, T]:
    return index, call(*task)


class _Dask:
    """Workers of a Dask cluster. A call whose worker dies is made again by another one."""

    def __init__(self, executor: Executor) -> None:
        from distributed import Client, LocalCluster

        self._cluster: Any = None
        address = executor.scheduler
        if address is None:
            # a simulation holds one core and never lets go of it: processes, not threads
            self._cluster = LocalCluster(
                n_workers=None if executor.jobs == -1 else executor.jobs,
                threads_per_worker=1,
                dashboard_address=None,
                # what a call raises comes back as itself; what else a worker calls an error is that
                # its scheduler went first when all of them were told to stop
                silence_logs=logging.CRITICAL,
                preload=[__name__],
            )
        try:
            self._client: Any = Client(
                address or self._cluster, timeout=CONNECT_S, set_as_default=False
            )
        except (OSError, ValueError, ImportError) as error:
            message = f"no Dask scheduler answers at '{address}': {error}."
            raise InputError("executor", [Fault("", "scheduler", message)]) from error

    def completed(
        self, call: Callable[..., T], tasks: Sequence[Task]
    ) -> Generator[tuple[int, T], None, None]:
        from distributed import as_completed

        code = code_hash()
        # `pure` would make one task of equal arguments; who asks twice wants two
        futures = {
            self._client.submit(_checked, code, call, task, pure=False): index
            for index, task in enumerate(tasks)
        }
        try:
            ended = as_completed(futures, loop=self._client.loop, with_results=True)
            for future, made in ended:
                index = futures.pop(future)
                future.release()  # the cluster need not remember it any longer
                yield index, made
        finally:
            self._client.cancel(list(futures))

    def close(self) -> None:
        """Leave the cluster; stop it if it was started here."""
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()


def dask_setup(_worker: object) -> None:
    """Have a worker of a cluster that was started here never see Ctrl-C.

    Dask calls it by its name when a worker starts. A terminal sends Ctrl-C to every process of a
    command; workers are told to stop by the one that asked, and need not die of it first.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _checked(code: str, call: Callable[..., T], task: Task) -> T:
    """Make a call on a worker, unless it would simulate by other code or other cards."""
    if code_hash() != code:
        message = "a worker has another llmsim, or other cards, than this machine."
        raise InputError("executor", [Fault("", "scheduler", message, "Install the same there.")])
    return call(*task)
