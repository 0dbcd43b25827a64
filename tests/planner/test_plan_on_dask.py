"""A plan on clusters of two workers of this machine; of Dask's, one is killed half-way."""

from __future__ import annotations

import os
import signal

import pytest
from clusters import apart, need_cluster
from test_plan import ASKED

import llmsim as ls
from llmsim.study.executor import Executor

FAST = {
    "traffic.requests": 300,
    "prove.seeds": [2, 4],
    "prove.most_fleets": 6,
    "prove.micro_columns": 3,
}


@pytest.mark.slow
def test_a_worker_that_dies_loses_nothing_of_a_plan(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "far"))
    killed: list[int] = []
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None
    ) as cluster:

        def kill_half_way(what, done, whole):
            if what == "fleets simulated" and done == 2 and not killed:
                process = cluster.workers[0].process.pid
                os.kill(process, signal.SIGKILL)
                killed.append(process)

        executor = Executor("dask", scheduler=cluster.scheduler_address)
        far = ls.plan(ASKED, FAST, executor=executor, progress=kill_half_way)
    assert killed
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "near"))
    near = plan_on(Executor("local", 1))
    assert far.replicas == near.replicas
    assert far.evidence == near.evidence  # the digest of every run included
    assert far.corrected == near.corrected


def plan_on(executor):
    return ls.plan(ASKED, FAST, executor=executor)


@pytest.mark.slow
def test_a_plan_on_ray_is_the_same(tmp_path, monkeypatch):
    need_cluster("ray")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "far"))
    far = apart(plan_on, Executor("ray", 2))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "near"))
    near = plan_on(Executor("local", 1))
    assert far.replicas == near.replicas
    assert far.evidence == near.evidence  # the digest of every run included
