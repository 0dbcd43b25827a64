"""`llmsim deploy`: launch commands and manifests of a scenario's fleet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from llmsim.cli.answering import print_json
from llmsim.cli.ending import exit_code_for_errors
from llmsim.core.errors import Fault, InputError


def deploy(
    scenario: Annotated[
        str, typer.Argument(help="A YAML file, a run's folder, or a shipped name.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder. Default: deploy/<scenario>.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value. The value is YAML."),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="vllm or sglang, for all pools; what each pool simulates if absent."),
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL=REPOSITORY",
            help="Weights of a model; where its card was read if absent.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace a folder of an earlier deployment.")] = False,
    quiet: Annotated[bool, typer.Option(help="Print the name of the folder only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print deploy.json.")] = False,
) -> None:
    """Write launch commands of vLLM or SGLang, Kubernetes manifests and a router for a fleet.

    What the scenario says and an engine cannot be told is listed, here and in the README of the
    folder. Nothing is applied or run.

    Example: llmsim deploy disaggregated -o deploy/pd
    """
    with exit_code_for_errors():
        from llmsim import api
        from llmsim.scenario import Scenario, parse_assignments

        overrides = parse_assignments(set_ or [])
        folder = out or Path("deploy") / Scenario.load(scenario, overrides).name
        made = api.deploy(
            scenario,
            overrides,
            engine=engine,
            checkpoints=_checkpoints(checkpoint or []),
            out=folder,
            force=force,
        )
        if as_json:
            print_json(json.loads(made.files["deploy.json"]))
            return
        if not quiet:
            for note in made.notes:
                typer.echo(f"{note.path} ({note.value}): {note.text}")
        typer.echo(str(folder))


def _checkpoints(given: list[str]) -> dict[str, str]:
    """Return repositories by model.

    Raises
    ------
    InputError
        With every text that is not of the form MODEL=REPOSITORY, and every model said twice.
    """
    found: dict[str, str] = {}
    faults = []
    for text in given:
        model, sign, repository = text.partition("=")
        if not sign or not model or not repository:
            hint = "Write it like llama-3.1-8b=meta-llama/Llama-3.1-8B."
            faults.append(Fault("", f"--checkpoint {text}", "is no MODEL=REPOSITORY.", hint))
        elif model in found:
            faults.append(Fault("", f"--checkpoint {model}", "is said twice."))
        else:
            found[model] = repository
    if faults:
        raise InputError("llmsim deploy", faults)
    return found
