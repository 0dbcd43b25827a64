"""`llmsim sweep`: a scenario at many points of its fields, and the best of them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmsim.cli.answering import JsonOption, print_json
from llmsim.cli.ending import INTERRUPTED, exit_code_for_errors

if TYPE_CHECKING:
    from llmsim.study.swept import Sweep


class ExecutorKind(StrEnum):
    """Where runs are simulated."""

    LOCAL = "local"
    DASK = "dask"
    RAY = "ray"


ExecutorOption = Annotated[
    ExecutorKind,
    typer.Option(help="Cores of this machine, or a cluster: llmsim[dask] or llmsim[ray]."),
]
SchedulerOption = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Of the cluster: tcp://10.0.0.1:8786 of Dask, 10.0.0.1:6379 of Ray; one on this "
        "machine if absent.",
    ),
]


OverOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH=VALUES",
        help="What to go over: 64,128,256; 1..8:5 (5 values), 1..8:5:log; "
        "1..8:sobol or 1..8:random (as many as --samples), :log as well.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a value for every point."),
]
SamplesOption = Annotated[
    int | None, typer.Option(min=1, help="Points drawn from sobol and random axes [64].")
]
SeedsOption = Annotated[
    int | None, typer.Option(min=1, help="Seeds of each point, from 1 on; its own if absent.")
]
MaximiseOption = Annotated[
    list[str] | None, typer.Option(metavar="METRIC", help="More is better. See docs/metrics.md.")
]
MinimiseOption = Annotated[list[str] | None, typer.Option(metavar="METRIC", help="Less is better.")]
ConditionOption = Annotated[
    list[str] | None,
    typer.Option(metavar="CONDITION", help='Such as "ttft_p99_s<=0.5"; may be given again.'),
]
CountOption = Annotated[bool, typer.Option(help="Let points be best whose fleet does not keep up.")]
OutOption = Annotated[
    Path | None, typer.Option(help="Folder of tables and page [runs/sweep-<scenario>-<time>].")
]


def sweep(
    scenario: Annotated[
        str,
        typer.Argument(metavar="SCENARIO|SWEEP", help="A YAML file of either, or a shipped name."),
    ],
    over: OverOption = None,
    set_: SetOption = None,
    samples: SamplesOption = None,
    seeds: SeedsOption = None,
    maximise: MaximiseOption = None,
    minimise: MinimiseOption = None,
    subject_to: ConditionOption = None,
    count_overloaded: CountOption = False,
    executor: ExecutorOption = ExecutorKind.LOCAL,
    scheduler: SchedulerOption = None,
    jobs: Annotated[int, typer.Option(help="Processes; -1 for one per core.")] = -1,
    out: OutOption = None,
    force: Annotated[bool, typer.Option(help="Replace a folder that is not empty.")] = False,
    fresh: Annotated[bool, typer.Option(help="Use and keep no runs of earlier sweeps.")] = False,
    top: Annotated[int, typer.Option(min=0, help="Points to show; 0 for all.")] = 20,
    quiet: Annotated[bool, typer.Option(help="Print the name of the folder only.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Simulate a scenario at many points of its fields, and find the best of them.

    Example: llmsim sweep quickstart --over engine.max_num_seqs=16,32,64
    --over traffic.arrivals.rate_rps=4..12:3 --maximise goodput_rps --subject-to "ttft_p99_s<=0.5"
    """
    with exit_code_for_errors():
        from llmsim import api
        from llmsim.cli.running import default_folder, progress_bar
        from llmsim.results.folder import check_free
        from llmsim.scenario import parse_assignments

        if out is not None:
            check_free(out, force)
        with progress_bar("sweep", quiet=quiet or as_json, unit="runs") as progress:
            found = api.sweep(
                scenario,
                over or (),
                parse_assignments(set_ or []),
                samples=samples,
                seeds=seeds,
                maximise=maximise or (),
                minimise=minimise or (),
                subject_to=subject_to or (),
                count_overloaded=count_overloaded,
                executor=executor.value,
                scheduler=scheduler,
                jobs=jobs,
                fresh=fresh,
                progress=progress,
            )
        folder = found.save(out or default_folder(f"sweep-{found.base.name}"), force)
        if as_json:
            print_json({"folder": folder} | found.as_json())
        elif quiet:
            typer.echo(str(folder))
        else:
            _show(found, folder, top)
        if found.interrupted:
            _say_how_far(found, fresh)
            raise typer.Exit(INTERRUPTED)


def _show(found: Sweep, folder: Path, top: int) -> None:
    from llmsim.report.sweeps import print_sweep

    print_sweep(found, top)
    typer.echo(f"saved in {folder}")


def _say_how_far(found: Sweep, fresh: bool) -> None:
    done, points = sum(row.done for row in found.rows), len(found.rows)
    more = "" if fresh else "; the same command goes on from there"
    typer.echo(f"Interrupted: {done} of {points} points are done{more}.", err=True)
