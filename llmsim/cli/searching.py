"""`llmsim knee` and `llmsim placement`: the largest load, and the split of GPUs that has it."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from llmsim.cli.answering import JsonOption, print_json
from llmsim.cli.ending import exit_code_for_errors
from llmsim.core.errors import Fault, InputError

ScenarioArgument = Annotated[
    str, typer.Argument(help="A YAML file, a run's folder, or a shipped name.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a value. The value is YAML."),
]
LimitOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="METRIC=VALUE",
        help="What a load must keep, such as itl_p99_s=0.1; the scenario's SLO if absent.",
    ),
]
ToleranceOption = Annotated[
    float, typer.Option(help="How far below the first load that fails, as a share.")
]
JobsOption = Annotated[int, typer.Option(help="Processes; -1 for one per core.")]


def knee(
    scenario: ScenarioArgument,
    set_: SetOption = None,
    limit: LimitOption = None,
    key: Annotated[
        str | None, typer.Option(help="Dotted path of the load; the arrival rate if absent.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds, from 1 on.")] = 5,
    tolerance: ToleranceOption = 0.02,
    jobs: JobsOption = -1,
    as_json: JsonOption = False,
) -> None:
    """Search the largest load at which a fleet keeps its promises, under several seeds.

    Example: llmsim knee quickstart --limit ttft_p99_s=1 --limit tpot_p99_s=0.03
    """
    with exit_code_for_errors():
        from llmsim import api
        from llmsim.cli.running import progress_bar
        from llmsim.scenario import parse_assignments

        with progress_bar("knee", quiet=as_json, unit="seeds") as progress:
            found = api.knee(
                scenario,
                parse_assignments(set_ or []),
                limits=_limits(limit, "knee"),
                key=key,
                seeds=range(1, seeds + 1),
                tolerance_frac=tolerance,
                jobs=jobs,
                progress=progress,
            )
        if as_json:
            rows = json.loads(found.table().to_json(orient="records"))
            print_json({"scenario": found.name, "key": found.key, "seeds": rows})
            return
        from llmsim.cli.looking import print_rows
        from llmsim.results.wording import number

        rows = [
            tuple(number(float(cell)) for cell in row) for row in found.table().to_numpy().tolist()
        ]
        print_rows([("seed", "load", "per GPU", "runs"), *rows])
        low, high = found.interval()
        typer.echo(f"{found.key}: {number(found.mean)} (95% {number(low)} to {number(high)})")


def placement(
    scenario: ScenarioArgument,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs to share out between both phases.")],
    set_: SetOption = None,
    tp: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Tensor-parallel degree to try; may be given several times."),
    ] = None,
    limit: LimitOption = None,
    tolerance: ToleranceOption = 0.05,
    jobs: JobsOption = -1,
    as_json: JsonOption = False,
) -> None:
    """Search how many GPUs should compute prompts and how many decode, and in groups of how many.

    The scenario has one pool of role prefill and one of role decode; every split is simulated, and
    worth the largest load per GPU at which the promises are kept.

    Example: llmsim placement disaggregated --gpus 4 --tp 1 --tp 2
    """
    with exit_code_for_errors():
        from llmsim import api
        from llmsim.cli.running import progress_bar
        from llmsim.scenario import parse_assignments
        from llmsim.study.placement import TENSOR_PARALLEL

        with progress_bar("placement", quiet=as_json, unit="plans") as progress:
            found = api.placement(
                scenario,
                gpus,
                parse_assignments(set_ or []),
                tps=tuple(tp or TENSOR_PARALLEL),
                limits=_limits(limit, "placement"),
                tolerance_frac=tolerance,
                jobs=jobs,
                progress=progress,
            )
        if as_json:
            rows = json.loads(found.table().to_json(orient="records"))
            print_json({"gpus": gpus, "plans": rows})
            return
        from llmsim.cli.looking import print_rows
        from llmsim.results.wording import number

        rows = [
            (str(each.plan), *(number(load) for load in (each.load, each.per_gpu)))
            if each.knee is not None
            else (str(each.plan), "does not fit", "")
            for each in found.tried
        ]
        print_rows([("plan", "load", "per GPU"), *rows])


def _limits(given: list[str] | None, command: str) -> dict[str, float]:
    """Return limits by metric.

    Raises
    ------
    InputError
        If one of them is no number.
    """
    from llmsim.scenario import parse_assignments

    found = {}
    for name, value in parse_assignments(given or []).items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            fault = Fault("", f"--limit {name}", f"should be a number (got {value!r}).")
            raise InputError(f"llmsim {command}", [fault])
        found[name] = float(value)
    return found
