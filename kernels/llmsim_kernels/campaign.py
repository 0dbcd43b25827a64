"""Everything that is to be measured on a GPU, in one resumable command.

::

    python -m llmsim_kernels.campaign --out profiles/nvidia-h100-80gb-hbm3/2026-11 --budget 260

checks and compiles the kernels on all cores, profiles the grid with the shapes of some models, and
runs the reference engine: saturated, then with two kinds of traffic at three loads, then one load
again with the same and with another seed. What is in the folder already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmsim.specs.load import load_model
from llmsim_kernels.engine.scheduler import EngineSettings

MODELS = ("llama-3.1-8b", "qwen3-8b", "qwen3-30b-a3b", "deepseek-v2-lite")
"""Whose shapes a profile gets beside the grid's."""

LOADS = (0.4, 0.7, 0.9)
"""Of the rate that the saturated run reached."""

PHASES = ("compile", "profile", "engine")
MOST_OUTPUT_TOKENS = 1024
"""Longer outputs are cut, so that a run ends soon after its last arrival."""

HOST_RUN = "-seed9"
"""End of the name of the run from which host terms are taken, and nothing else."""

_DRAIN_S = 20.0
"""About how long the last requests take, when no more come [s]."""

_SATURATING_RPS = 50
"""More than any GPU serves of an 8B model: a saturated run has so many requests per second."""


@dataclass(frozen=True, slots=True)
class EngineRun:
    """One run of the reference engine.

    Parameters
    ----------
    kind : str
        Of `llmsim_kernels.engine.traffic`.
    load : float
        Of the saturated rate; 0 for everybody at once.
    seed : int
    again : int
        Which repetition of the same.
    """

    kind: str
    load: float
    seed: int = 1
    again: int = 0

    @property
    def name(self) -> str:
        """First part of its files' names."""
        load = f"load{round(100 * self.load)}" if self.load else "saturated"
        again = f"-again{self.again}" if self.again else ""
        return f"{self.kind}-{load}-seed{self.seed}{again}"


def engine_runs() -> tuple[EngineRun, ...]:
    """Return the runs in the order in which they are made, the most telling first."""
    burst, talk = "burstgpt-like", "conversation-like"
    return (
        EngineRun(talk, 0.0),
        EngineRun(talk, 0.5, seed=9),  # see HOST_RUN
        EngineRun(talk, 0.7),
        EngineRun(talk, 0.9),
        EngineRun(burst, 0.0),
        EngineRun(burst, 0.7),
        EngineRun(talk, 0.4),
        EngineRun(talk, 0.7, again=1),
        EngineRun(talk, 0.7, seed=2),
        EngineRun(burst, 0.4),
        EngineRun(burst, 0.9),
    )


def compile_all(
    out: Path,
    models: Sequence[str],
    processes: int,
    limit_s: float,
    *,
    every_row: bool,
    tune: bool,
) -> None:
    """Check and compile kernels in several processes; what they print goes to ``out/log``.

    Parameters
    ----------
    out : Path
    models : sequence of str
    processes : int
    limit_s : float [s]
        Processes that take longer are ended.
    every_row : bool
        Run rows that need no compiling once as well, to see that they run, and check kernels of
        every type rather than of those that are profiled.
    tune : bool
        Compile the candidates of `llmsim_kernels.tune`, too.
    """
    logs = out / "log"
    logs.mkdir(parents=True, exist_ok=True)
    ahead = "llmsim_kernels.profiler.ahead"
    own = [word for model in models for word in ("--model", model)]
    rows = ["--all"] if every_row else ["--dtype", "bf16"]
    tasks = [
        [ahead, *rows, *own, "--checks", "--share", f"{n}/{processes}"] for n in range(processes)
    ]
    if tune:
        shares = [f"{n}/{processes}" for n in range(processes)]
        tasks += [["llmsim_kernels.tune", "--compile", share] for share in shares]
    began = time.monotonic()
    running: list[subprocess.Popen[bytes]] = []
    for number, task in enumerate(tasks):
        while sum(each.poll() is None for each in running) >= processes:
            if time.monotonic() - began > limit_s:
                break
            time.sleep(0.05)
        with open(logs / f"{number:02d}-{task[0].rpartition('.')[2]}.txt", "wb") as file:
            running.append(
                subprocess.Popen([sys.executable, "-m", *task], stdout=file, stderr=file)
            )
    while any(each.poll() is None for each in running):
        if time.monotonic() - began > limit_s:
            for each in running:
                each.kill()
            say(f"compiling was ended after {limit_s:g} s")
            break
        time.sleep(0.05)
    say(f"compiled in {time.monotonic() - began:.0f} s")


def profile_all(out: Path, models: Sequence[str], budget_s: float, device: str) -> None:
    """Profile the grid, with the shapes of every model, into one folder.

    Parameters
    ----------
    out : Path
    models : sequence of str
    budget_s : float [s]
        For all of them.
    device : str
    """
    from llmsim_kernels.profiler.run import (
        ProfileOrder,
        open_device,
        run_profile,
        summary_lines,
    )

    opened = open_device(device)
    began = time.monotonic()
    for model in models:
        left = budget_s - (time.monotonic() - began)
        if left < 5.0:
            say(f"no time for {model}")
            continue
        outcome = run_profile(ProfileOrder(budget_s=left, model=model, out=out), device=opened)
        say(f"{model} after {time.monotonic() - began:.0f} s: {outcome.statuses} {outcome.cut}")
        if model == models[-1] or outcome.cut:
            for line in summary_lines(outcome):
                say(line)


def run_engine(
    out: Path,
    model_name: str,
    settings: EngineSettings,
    seconds: float,
    saturated_s: float,
    device: str,
    limit_s: float,
) -> None:
    """Make every run of the reference engine that is not there yet.

    Parameters
    ----------
    out : Path
    model_name : str
    settings : EngineSettings
    seconds : float [s]
        Arrivals of each run; of the one for host terms, half of it.
    saturated_s : float [s]
        Of the runs that tell capacities.
    device : str
    limit_s : float [s]
        No run starts that would end later.
    """
    from llmsim_kernels.engine.model import DecoderShape
    from llmsim_kernels.engine.runner import Runner

    began = time.monotonic()
    folder = out / "engine"
    folder.mkdir(parents=True, exist_ok=True)
    model = load_model(model_name)
    here = device or _first_device()
    runner = Runner(DecoderShape.of_model(model), settings, here)
    say(f"engine ready after {time.monotonic() - began:.0f} s: {runner.settings}")
    for run in engine_runs():
        if (folder / f"{run.name}_meta.json").exists():
            continue
        length_s = seconds if run.load else saturated_s
        length_s *= 0.5 if run.name.endswith(HOST_RUN) else 1.0
        if time.monotonic() - began + length_s + min(_DRAIN_S, length_s / 2) > limit_s:
            say(f"no time for {run.name}")
            continue
        told = one_run(run, model, runner, length_s, here, folder)
        say(f"{run.name} after {time.monotonic() - began:.0f} s: {told}")


def _first_device() -> str:
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def one_run(
    run: EngineRun, model: Any, runner: Any, seconds: float, device: str, folder: Path
) -> str:
    """Serve one traffic and write it down; return what became of it in a few words."""
    from llmsim_kernels.engine.replay import run_reference
    from llmsim_kernels.engine.traffic import arriving, at_once, lengths_of

    settings = runner.settings
    most = min(settings.max_model_len, settings.kv_blocks * settings.block_tokens) - 8
    if run.load:
        rate_rps = run.load * saturated_rps(folder, run.kind)
        count = max(4, round(rate_rps * seconds))
        lengths = lengths_of(run.kind, count, run.seed, most, MOST_OUTPUT_TOKENS)
        coming = arriving(lengths, rate_rps, run.seed)
        trace = [each for each in coming if each.arrival_s < seconds] or coming[:1]
    else:
        count = max(4, round(_SATURATING_RPS * seconds))
        drawn = lengths_of(run.kind, count, run.seed, most, MOST_OUTPUT_TOKENS)
        trace = at_once(arriving(drawn, 1.0, run.seed))
    made = run_reference(
        trace,
        model,
        settings,
        device=device,
        minutes=1e6,
        stop_s=float("inf") if run.load else seconds,
        out=folder,
        name=run.name,
        runner=runner,
    )
    done = sum(request.last_token_s >= 0 for request in made.requests)
    busy_s = sum(step.seconds for step in made.steps)
    return f"{done} of {len(made.requests)} requests, {len(made.steps)} steps, {busy_s:.1f} s busy"


def saturated_rps(folder: Path, kind: str) -> float:
    """Return the rate of a saturated run: requests that ended in its last two thirds, per second.

    Parameters
    ----------
    folder : Path
    kind : str
    """
    import csv

    name = EngineRun(kind, 0.0).name
    with open(folder / f"{name}_requests.csv", encoding="utf-8", newline="") as file:
        ends = [float(row["e2e_s"]) for row in csv.DictReader(file) if row["e2e_s"]]
    stop_s = float(json.loads((folder / f"{name}_meta.json").read_text())["stop_s"])
    return float(max(1, sum(end > stop_s / 3 for end in ends)) / (stop_s * 2 / 3))


def say(text: str) -> None:
    """Tell the user at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _phases(given: argparse.Namespace) -> Iterator[Callable[[], None]]:
    models = given.models.split(",") if given.models else []
    settings = EngineSettings(
        max_num_seqs=given.max_num_seqs,
        max_num_batched_tokens=given.max_num_batched_tokens,
        max_model_len=given.max_model_len,
        kv_blocks=given.kv_blocks,
        max_graph_tokens=given.max_graph_tokens,
    )
    processes = max(1, (os.cpu_count() or 2) - 2)
    yield lambda: compile_all(
        given.out,
        models,
        processes,
        given.compile_limit,
        every_row=given.every_row,
        tune=given.tune,
    )
    yield lambda: profile_all(given.out, models or [""], given.budget, given.device)
    yield lambda: run_engine(
        given.out,
        given.engine_model,
        settings,
        given.seconds,
        given.saturated_seconds,
        given.device,
        given.engine_limit,
    )


def main(words: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    usual = EngineSettings()
    parser = argparse.ArgumentParser(prog="python -m llmsim_kernels.campaign", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the profile")
    parser.add_argument("--only", default=",".join(PHASES), help=f"of {', '.join(PHASES)}")
    parser.add_argument("--device", default="", help="cpu, cuda:0; default: a GPU if there is one")
    parser.add_argument("--models", default=",".join(MODELS), help="cards for the profile")
    parser.add_argument("--budget", type=float, default=480.0, help="of the profile [s]")
    parser.add_argument("--compile-limit", type=float, default=180.0, help="of compiling [s]")
    parser.add_argument("--every-row", action="store_true", help="try all rows while compiling")
    parser.add_argument("--tune", action="store_true", help="compile for llmsim_kernels.tune")
    parser.add_argument("--engine-model", default=MODELS[0], help="card or config.json")
    parser.add_argument("--engine-limit", type=float, default=1200.0, help="of all its runs [s]")
    parser.add_argument("--seconds", type=float, default=90.0, help="of arrivals in each run")
    parser.add_argument("--saturated-seconds", type=float, default=60.0, help="of saturated runs")
    parser.add_argument("--kv-blocks", type=int, default=0, help="default: as many as fit")
    parser.add_argument("--max-num-seqs", type=int, default=usual.max_num_seqs)
    parser.add_argument("--max-num-batched-tokens", type=int, default=usual.max_num_batched_tokens)
    parser.add_argument("--max-model-len", type=int, default=usual.max_model_len)
    parser.add_argument("--max-graph-tokens", type=int, default=usual.max_graph_tokens)
    given = parser.parse_args(words)
    given.out.mkdir(parents=True, exist_ok=True)
    wanted = given.only.split(",")
    for name, phase in zip(PHASES, _phases(given), strict=True):
        if name in wanted:
            phase()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
