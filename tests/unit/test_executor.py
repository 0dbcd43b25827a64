"""Where runs are made: processes of this machine, Dask or Ray; nothing lost, nothing twice."""

import errno
import os
import pickle
import re
import signal
import time

import pytest
from clusters import MODULES, apart, need_cluster

from llmsim.core.errors import Fault, InputError, ScenarioError
from llmsim.study.executor import Executor, in_order, open_workers, run_in_order


def late_first(number, count):
    """The first tasks take longest."""
    time.sleep(0.02 * (count - number))
    return number**2


def bad_at_two(number):
    if number == 2:
        raise ScenarioError("two.yaml", [Fault("two.yaml:3", "fleet", "is wrong.", "Mend it.")])
    return number


class Backwards:
    """Workers that end what they began last first."""

    def completed(self, call, tasks):
        for index, task in reversed(list(enumerate(tasks))):
            yield index, call(*task)


@pytest.mark.slow
def test_every_task_comes_back_under_its_own_number():
    tasks = [(number, 4) for number in range(4)]
    with open_workers(Executor("local", 2)) as workers:
        made = list(workers.completed(late_first, tasks))
    assert sorted(made) == [(0, 0), (1, 1), (2, 4), (3, 9)]


def test_order_is_that_of_the_tasks_however_they_end():
    assert list(in_order(Backwards(), pow, [(2, 1), (2, 2), (2, 3)])) == [2, 4, 8]


def test_a_turn_is_given_out_before_the_last_task_is_done():
    begun = []

    def note(number):
        begun.append(number)
        return number

    with open_workers(Executor("local", 1)) as workers:
        assert next(in_order(workers, note, [(1,), (2,), (3,)])) == 1
    assert begun == [1]


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_a_task_raises_comes_out_as_it_was(jobs):
    with pytest.raises(
        ScenarioError, match=r"1 problem in two\.yaml:\n  two\.yaml:3  fleet"
    ) as caught:
        list(run_in_order(bad_at_two, [(number,) for number in range(4)], jobs))
    assert caught.value.faults[0].hint == "Mend it."


def test_errors_survive_the_way_between_processes():
    error = InputError("sweep", [Fault("", "jobs", "0.")])
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back), back.faults) == (InputError, str(error), error.faults)


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (("dusk",), "unknown executor 'dusk'. Did you mean 'dask'?"),
        (("local", 0), "jobs: 0, must be at least 1, or -1."),
        (("local", -1, "tcp://10.0.0.1:8786"), "scheduler: is for the executors dask and ray."),
    ],
)
def test_wrong_orders_are_told(order, words):
    with pytest.raises(InputError) as caught:
        Executor(*order)
    assert words in str(caught.value)


@pytest.mark.parametrize(("kind", "name"), [("dask", "Dask"), ("ray", "Ray")])
def test_without_a_cluster_s_library_the_way_to_get_it_is_told(kind, name, monkeypatch):
    monkeypatch.setattr("llmsim.study.executor.find_spec", lambda _: None)
    words = rf"{name} is not installed here. pip install 'llmsim\[{kind}\]'"
    with pytest.raises(InputError, match=words):
        Executor(kind)


def slow_square(number):
    time.sleep(0.05)
    return os.getpid(), number**2


def squares_with_a_death(kind):
    with open_workers(Executor(kind, 2)) as workers:
        made = {}
        killed = 0
        for index, (process, square) in workers.completed(slow_square, [(n,) for n in range(60)]):
            assert index not in made
            made[index] = square
            if len(made) == 20:
                os.kill(process, signal.SIGKILL)
                killed = process
    assert killed
    return made


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dask", "ray"])
def test_a_worker_that_dies_takes_nothing_with_it(kind):
    need_cluster(kind)
    assert apart(squares_with_a_death, kind) == {number: number**2 for number in range(60)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "address", "who"),
    [
        ("dask", "tcp://127.0.0.1:1", "Dask scheduler"),
        ("ray", "127.0.0.1:1", "Ray cluster"),
        ("ray", "ray://127.0.0.1:1", "Ray cluster"),
    ],
)
def test_a_cluster_that_does_not_answer_is_named(kind, address, who, monkeypatch):
    pytest.importorskip(MODULES[kind])
    monkeypatch.setattr("llmsim.study.executor.CONNECT_S", 0.2)
    order = Executor(kind, scheduler=address)
    words = f"no {who} answers at '{re.escape(address)}'"
    with pytest.raises(InputError, match=words), open_workers(order):
        pass


def errors_of_far_tasks(kind):
    """Return what comes out of a task that raises, and of workers of another version."""
    with open_workers(Executor(kind, 1)) as workers:
        with pytest.raises(ScenarioError) as raised:
            list(workers.completed(bad_at_two, [(number,) for number in range(4)]))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("llmsim.study.executor.code_hash", lambda: "another")
            with pytest.raises(InputError) as refused:
                list(workers.completed(pow, [(2, 2), (2, 3)]))
    return raised.value, str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dask", "ray"])
def test_what_a_far_task_raises_comes_out_and_workers_of_another_version_are_refused(kind):
    need_cluster(kind)
    raised, refused = apart(errors_of_far_tasks, kind)
    assert re.search(r"two\.yaml:3  fleet", str(raised))
    assert raised.faults[0].hint == "Mend it."
    assert "a worker has another llmsim, or other cards" in refused


def two_users_of_one_ray():
    import ray

    with open_workers(Executor("ray", 1)) as outer:
        with open_workers(Executor("ray", 1)) as inner:
            assert list(inner.completed(pow, [(2, 5)])) == [(0, 32)]
        assert ray.is_initialized()
        more = list(outer.completed(pow, [(2, power) for power in range(600)]))  # in several goes
    return sorted(more), ray.is_initialized()


@pytest.mark.slow
def test_a_ray_cluster_of_somebody_else_s_is_used_and_left_as_it_was():
    need_cluster("ray")
    made, left_on = apart(two_users_of_one_ray)
    assert made == [(power, 2**power) for power in range(600)]
    assert not left_on


def test_a_machine_without_the_memory_for_ray_is_told_so(monkeypatch):
    ray = pytest.importorskip("ray")

    def no_memory(*_words, **_more):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(ray, "init", no_memory)
    words = "Ray did not start on this machine: Cannot allocate memory"
    with pytest.raises(OSError, match=words) as caught, open_workers(Executor("ray", 1)):
        pass
    assert caught.value.errno == errno.ENOMEM
