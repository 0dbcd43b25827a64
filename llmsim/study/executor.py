"""Where the runs of a study are simulated: the cores of this machine, or a Dask or Ray cluster.

::

    with open_workers(Executor("dask", scheduler="tcp://10.0.0.1:8786")) as workers:
        for index, point in workers.completed(simulate_point, [(scenario,) for ...]):
            ...
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import chdir, closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeVar, get_args

from llmsim.core.errors import Fault, InputError, nearest
from llmsim.scenario.component import registry
from llmsim.scenario.owncode import OwnKind, own_kinds
from llmsim.study.points import code_hash

T = TypeVar("T")
Task = tuple[Any, ...]
"""Positional arguments of one call; they are pickled."""

Kind = Literal["local", "dask", "ray"]

CONNECT_S: Final = 10
"""How long to wait until a cluster answers [s]."""

_NEEDS: Final = {"dask": ("distributed", "Dask"), "ray": ("ray", "Ray")}
"""Module and name of what an executor runs on."""

_PACKAGE: Final = Path(__file__).resolve().parents[1]

_RAY_TASKS_PER_CORE: Final = 2  # the second, so that no core waits and clusters know to grow
_RAY_STORE_BYTES: Final = 128 * 2**20  # of a cluster on this machine; results are small


@dataclass(frozen=True, slots=True)
class Executor:
    """Where to simulate.

    Parameters
    ----------
    kind : {"local", "dask", "ray"}
    jobs : int
        Processes on this machine; -1 for one per core. A cluster with an address has its own.
    scheduler : str or None
        Address of a Dask scheduler, such as ``tcp://10.0.0.1:8786``, or of the head of a Ray
        cluster, such as ``10.0.0.1:6379``, ``ray://10.0.0.1:10001`` from outside of it, or ``auto``
        for the one that this machine belongs to; None starts a cluster of `jobs` workers on this
        machine.

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
        module, name = _NEEDS.get(self.kind, ("", ""))
        if module and find_spec(module) is None:
            hint = f"pip install 'llmsim[{self.kind}]' brings it."
            faults.append(Fault("", "executor", f"{name} is not installed here.", hint))
        if self.kind == "local" and self.scheduler is not None:
            hint = "Say dask or ray, or leave the address out."
            faults.append(Fault("", "scheduler", "is for the executors dask and ray.", hint))
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
        If no cluster answers at the address.
    """
    if executor.kind == "local":
        yield _Local(executor.jobs)
        return
    with closing(_Ray(executor) if executor.kind == "ray" else _Dask(executor)) as cluster:
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
        own = own_kinds()
        with _without_interrupts():  # workers start here, and are told to stop by this process
            made = pool(delayed(_numbered)(own, i, call, task) for i, task in enumerate(tasks))
        yield from made


def _numbered(
    own: Sequence[OwnKind], index: int, call: Callable[..., T], task: Task
) -> tuple[int, T]:
    """Make a call in another process, which gets to know what was registered in this one."""
    for seam, name, cls in own:
        registry(seam).register(name)(cls)
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
            raise _silent("Dask scheduler", address, error) from error

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


class _Ray:
    """Workers of a Ray cluster. A call whose worker dies is made again by another one.

    Calls that are given up while they run, run on to their end on a cluster that was there before,
    and end with one that was started here.
    """

    def __init__(self, executor: Executor) -> None:
        import ray

        self._ray: Any = ray
        self._executor = executor
        self._entered = not ray.is_initialized()  # else somebody else's, who will leave it
        self._folder = ""  # where calls are made that may name files
        address = executor.scheduler
        if not self._entered:
            return
        quiet: dict[str, Any] = {"logging_level": logging.CRITICAL, "log_to_driver": False}
        if address is None:
            self._folder = os.getcwd()
            self._start(quiet)
            return
        try:
            _knock(address)
            ray.init(address, **quiet)
        except (OSError, ValueError, RuntimeError) as error:
            raise _silent("Ray cluster", address, error) from error

    def _start(self, quiet: dict[str, Any]) -> None:
        """Start a cluster on this machine: some servers, and `jobs` workers."""
        jobs = self._executor.jobs
        with (
            _environment(
                # workers import what is asked of them from where it is found here ...
                PYTHONPATH=os.pathsep.join(map(os.path.abspath, sys.path)),
                RAY_USAGE_STATS_ENABLED="0",
                RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",  # else it warns of what there is not
            ),
            # ... and before that, Ray has them look in the folder that it was started in
            chdir(_PACKAGE.parent),
        ):
            try:
                self._ray.init(
                    "local",
                    num_cpus=(os.cpu_count() or 1) if jobs == -1 else jobs,
                    include_dashboard=False,
                    object_store_memory=_RAY_STORE_BYTES,
                    **quiet,
                )
            except (OSError, RuntimeError) as error:
                # the machine's fault: Ray forks this process for each server, and that asks for as
                # much memory as the process has
                why = getattr(error, "strerror", None) or error
                number = getattr(error, "errno", None) or errno.EAGAIN
                raise OSError(number, f"Ray did not start on this machine: {why}") from error

    def completed(
        self, call: Callable[..., T], tasks: Sequence[Task]
    ) -> Generator[tuple[int, T], None, None]:
        ray = self._ray
        from ray.exceptions import RayTaskError

        code = code_hash()
        # one core each, as a simulation takes one; made again where a worker dies, never where the
        # call itself fails
        make = ray.remote(num_cpus=1, max_retries=3, retry_exceptions=False)(_checked_in)
        todo = enumerate(tasks)
        running: dict[Any, int] = {}
        while True:
            # Ray (2.60) may die of cancelling a call that is just ending, so what is given up is
            # left to end: few are handed over beyond those that have a core
            cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
            for index, task in islice(todo, max(0, _RAY_TASKS_PER_CORE * cores - len(running))):
                running[make.remote(self._folder, code, call, task)] = index
            if not running:
                return
            for future in ray.wait(list(running), num_returns=1)[0]:
                try:
                    made = ray.get(future)
                except RayTaskError as error:
                    raise error.cause from None
                yield running.pop(future), made

    def close(self) -> None:
        """Leave the cluster; that stops it if it was started here."""
        if self._entered:
            self._ray.shutdown()


def _silent(who: str, address: str | None, error: Exception) -> InputError:
    message = f"no {who} answers at '{address}': {error}."
    return InputError("executor", [Fault("", "scheduler", message)])


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set environment variables for as long as processes are started that inherit them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C for a moment, and for good in the processes that are started meanwhile.

    A terminal sends it to every process of a command; workers are told to stop by the one that
    asked, and would complain of it. What is ignored stays so in a new process; a signal that is
    only blocked is not, by the time joblib's workers run.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only that one hears of signals, and may say what becomes of them
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        # None: somebody set it who is not Python, and nothing can set that again
        signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)


def _knock(address: str) -> None:
    """Raise an `OSError` if nobody listens at an address; Ray itself waits for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()


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


def _checked_in(folder: str, code: str, call: Callable[..., T], task: Task) -> T:
    """Make a call on a worker that was started in another folder than it is to be made in."""
    if folder:
        os.chdir(folder)
    return _checked(code, call, task)
