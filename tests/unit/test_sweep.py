"""Sweeps that are simulated: each point is the run it says, stopped ones go on, nothing is lost."""

import os
import signal
from dataclasses import replace

import pytest

import llmsim as ls
from llmsim.core.errors import InputError
from llmsim.scenario import Scenario
from llmsim.study import sweep as sweeping
from llmsim.study.axes import parse_axes
from llmsim.study.executor import Executor
from llmsim.study.goal import parse_goal
from llmsim.study.points import PointStore, simulate_point
from llmsim.study.sweep import SweepOrder, run_sweep

TINY = {
    "traffic.requests": 40,
    "traffic.arrivals": {"kind": "poisson", "rate_rps": 8},
    "traffic.lengths": {"kind": "fixed", "prompt_tokens": 300, "output_tokens": 10},
}
BASE = Scenario.load("quickstart", TINY)
SEQS, REPLICAS = "engine.max_num_seqs", "fleet.pools.main.replicas"


def order(over, goal=(), **more):
    goal = parse_goal(BASE, subject_to=goal, overloaded_counts=True)
    more = {"executor": Executor("local", 1)} | more
    return SweepOrder(BASE, parse_axes(over), goal, **more)


@pytest.fixture
def count(monkeypatch):
    """Count the simulations."""
    made = []

    def counted(scenario):
        made.append(scenario)
        return sweeping.simulate_point(scenario)

    monkeypatch.setattr(sweeping, "try_point", counted)
    return made


def test_a_point_is_the_run_that_its_values_give():
    sweep = run_sweep(order({SEQS: [1, 64], REPLICAS: [1, 2]}))
    for number, row in enumerate(sweep.rows):
        alone = ls.run(BASE, row.change)
        assert row.points[0].digest == alone.digest
        assert sweep.frame["goodput_rps"][number] == alone.metrics["goodput_rps"]
        assert sweep.scenario(number) == BASE.override(row.change)
    digests = {row.points[0].digest for row in sweep.rows}
    assert len(digests) == 4


def test_seeds_go_with_every_point():
    sweep = run_sweep(order({SEQS: [1, 64]}, seeds=(3, 4)))
    assert sweep.runs[["point", "seed"]].to_numpy().tolist() == [[0, 3], [0, 4], [1, 3], [1, 4]]
    assert sweep.rows[1].points[0].digest == ls.run(BASE, {SEQS: 64}, seed=3).digest


def test_a_seed_may_be_swept_itself():
    sweep = run_sweep(order({"seed": [3, 4]}))
    assert sweep.runs["seed"].tolist() == [3, 4]
    assert sweep.rows[0].points[0].digest == ls.run(BASE, seed=3).digest
    with pytest.raises(InputError, match="seed is swept"):
        run_sweep(order({"seed": [3, 4]}, seeds=(1, 2)))


def test_a_stopped_sweep_keeps_what_is_done_and_goes_on(tmp_path, count):
    wanted = order({SEQS: [1, 2, 4, 8]}, store=PointStore(tmp_path))

    def stop(done, whole):
        assert whole == 4
        if done == 2:
            raise KeyboardInterrupt

    cut = run_sweep(wanted, stop)
    assert cut.interrupted
    assert [status for status, _ in cut.standings] == ["feasible"] * 2 + ["not done"] * 2
    assert len(count) == 2
    whole = run_sweep(wanted)
    assert not whole.interrupted
    assert len(count) == 4
    assert whole.rows[:2] == cut.rows[:2]
    assert all(row.done for row in whole.rows)


def test_stopped_before_anything_was_done_there_is_no_sweep():
    def stop(_done, _whole):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(order({SEQS: [1, 2]}, seeds=(1, 2)), stop)


def test_a_run_that_was_cut_short_is_not_kept(tmp_path, monkeypatch):
    def cut(scenario):
        raise KeyboardInterrupt  # what `simulate_whole` makes of an interrupted run

    store = PointStore(tmp_path)
    monkeypatch.setattr("llmsim.study.points.simulate_whole", cut)
    with pytest.raises(KeyboardInterrupt):
        store.point(BASE)
    assert store.kept(BASE) is None


def test_a_model_that_does_not_fit_is_a_point_that_cannot_be():
    over = {"fleet.pools.main.gpu": ["h100-sxm", "a10"]}
    sweep = run_sweep(order(over))
    assert [status for status, _ in sweep.standings] == ["feasible", "impossible"]
    assert "too large" in sweep.standings[1][1]


def test_values_that_do_not_go_together_are_points_that_cannot_be():
    over = {"traffic.duration_s": [2, 60], "traffic.warmup_s": [0, 3]}
    timed = BASE.override({"traffic.requests": None, "traffic.duration_s": 9})
    sweep = run_sweep(replace(order(over), base=timed))
    assert [status == "impossible" for status, _ in sweep.standings] == [False, True, False, False]
    assert sweep.standings[1][1] == "traffic.warmup_s: leaves nothing to measure of 2 s"


@pytest.mark.parametrize(
    ("over", "words"),
    [
        (
            ["fleet.pools.0.engine.max_num_seqs=64,128"],
            "--over  fleet.pools.0.engine.max_num_seqs: unknown pool '0'. "
            "Did you mean 'engine.max_num_seqs'? Known: main.",
        ),
        (
            ["traffic.rate_rps=1..8:sobol"],
            "traffic.rate_rps: unknown key. Did you mean 'traffic.arrivals.rate_rps'?",
        ),
        (["engine.max_num_seq=1,2"], "unknown key. Did you mean 'max_num_seqs'?"),
        (["fleet.pools.main.tp=1,3"], "3 does not divide the 32 attention heads"),
        (["fleet.pools.main.gpu=h100-sxm,l40"], "unknown gpu 'l40'. Did you mean 'l40s'?"),
        (["fleet.pools.main.gpu=h100-sxm,nothing"], "unknown gpu 'nothing'. Known: a10,"),
        (["engine.max_num_seqs=64,many"], "(got 'many')"),
    ],
)
def test_a_value_that_no_point_can_have_is_a_fault(over, words):
    with pytest.raises(InputError) as caught:
        run_sweep(order([*over, f"{REPLICAS}=1,2"]))
    assert words in str(caught.value)
    assert all(fault.where == "--over" for fault in caught.value.faults)


def test_a_goal_that_no_run_can_measure_is_a_fault():
    axes, store = parse_axes({SEQS: [8]}), PointStore(None)
    bare = BASE.override({"slo": None})
    goal = parse_goal(bare, maximise=["goodput_rps"])
    with pytest.raises(InputError, match="goodput_rps: needs an objective"):
        run_sweep(SweepOrder(bare, axes, goal, store=store))
    goal = parse_goal(BASE, minimise=["jct_p99_s"], overloaded_counts=True)
    with pytest.raises(InputError, match="jct_p99_s: is a number in no run of this sweep"):
        run_sweep(SweepOrder(BASE, axes, goal, executor=Executor("local", 1)))


@pytest.mark.slow
def test_two_hundred_points_on_two_dask_workers_one_of_which_dies(tmp_path):
    distributed = pytest.importorskip("distributed")
    wanted = {SEQS: list(range(1, 41)), REPLICAS: [1, 2, 3, 4, 5]}
    killed = []
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None
    ) as cluster:

        def kill_half_way(done, whole):
            assert whole == 200
            if done == 100:
                process = cluster.workers[0].process.pid
                os.kill(process, signal.SIGKILL)
                killed.append(process)

        far = Executor("dask", scheduler=cluster.scheduler_address)
        swept = run_sweep(order(wanted, executor=far, store=PointStore(tmp_path)), kill_half_way)
    assert killed
    assert not swept.interrupted
    assert len(swept.rows) == 200
    assert all(row.done for row in swept.rows)
    assert len(list(tmp_path.glob("*.json"))) == 200
    for row in swept.rows[::20]:
        here = simulate_point(BASE.override(row.change))
        assert row.points[0].as_json() == here.as_json()
