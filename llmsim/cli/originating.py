"""`llmsim run --from-vllm`, `--from-sglang`: a scenario made of the command that people have."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import typer

from llmsim.core.errors import Fault, InputError, OutputError
from llmsim.core.files import write_whole


@dataclass(frozen=True, slots=True)
class MakeOrder:
    """Where the scenario of a run comes from.

    Parameters
    ----------
    scenario : str or None
        A file or a shipped name.
    vllm, sglang : str or None
        A command instead.
    gpu : str or None
    trace, save : Path or None
        What a command's replica serves; where its scenario goes.
    force : bool
        Replace a file that is there.
    assignments : tuple of str
        Texts of ``--set``; what they say of the trace is saved with the scenario.
    """

    scenario: str | None
    vllm: str | None
    sglang: str | None
    gpu: str | None
    trace: Path | None
    save: Path | None
    force: bool
    assignments: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The command, empty where a scenario is given."""
        return self.vllm or self.sglang or ""


def make_scenario(order: MakeOrder) -> str:
    """Return the scenario to run, made and saved of a command where one is given.

    Raises
    ------
    InputError
        If not exactly one of scenario and commands is given, or the command cannot be read.
    OutputError
        If another file has the scenario's name.
    """
    faults = _faults(order)
    if faults:
        raise InputError("llmsim run", faults)
    if not order.command:
        assert order.scenario is not None
        return order.scenario
    from llmsim import api

    assert order.gpu is not None
    program = "vllm" if order.vllm else "sglang"
    options = _of_trace(order.assignments)
    kind = options.pop("kind", None)
    origin = api.from_command(
        program, order.command, order.gpu, trace=order.trace, kind=kind, options=options
    )
    path = order.save or Path(f"{origin.data['name']}.yaml")
    if path.suffix not in (".yaml", ".yml"):
        fault = Fault("", "--save-scenario", f"'{path}' should end in .yaml.")
        raise InputError("llmsim run", [fault])
    if path.exists() and not order.force and path.read_text(encoding="utf-8") != origin.text:
        message = f"{path} is there already, and other; --save-scenario names another file"
        raise OutputError(f"{message}, --force replaces it")
    write_whole(path, origin.text)
    for title, told in (("assumed", origin.assumed), ("ignored", origin.ignored)):
        for each in told:
            typer.echo(f"{title}: {each}", err=True)
    typer.echo(f"scenario: {path}", err=True)
    return str(path.resolve())


def replaying(scenario: str, trace: Path, assignments: tuple[str, ...]) -> list[str]:
    """Return the assignments that let a scenario replay a file, whatever its traffic was.

    Parameters
    ----------
    scenario : str
        A file or a shipped name. If it is wrong, so is the run: that is said there.
    trace : Path
    assignments : tuple of str
        Texts of ``--set``; a kind that is said there is not looked for.

    Raises
    ------
    TraceError
        If the scenario has no trace, and the file's kind cannot be told.
    """
    from llmsim.scenario import Scenario
    from llmsim.workload import TRACES
    from llmsim.workload.detect import detect_kind

    path = f"traffic.trace.path={json.dumps(str(trace))}"
    try:
        traffic = Scenario.load(scenario).traffic
    except InputError:
        return [path]
    if traffic.trace is not None:
        return [path]
    drawn = [key for key in _DRAWN if getattr(traffic, key) not in (None, False)]
    if "kind" in _of_trace(assignments):
        kind = []
    else:
        kind = [f"traffic.trace.kind={detect_kind(trace.expanduser(), TRACES.names())}"]
    typer.echo(f"traffic: {trace}, in place of what the scenario draws", err=True)
    return [*kind, path, *(f"traffic.{key}=null" for key in drawn)]


_DRAWN: Final = ("arrivals", "lengths", "prompts", "programs", "requests", "duration_s", "clients")
"""Keys of traffic that do not go with a trace."""


def _of_trace(assignments: tuple[str, ...]) -> dict[str, Any]:
    from llmsim.scenario import parse_assignments

    told = parse_assignments(assignments)
    here = "traffic.trace."
    return {
        key.removeprefix(here): value
        for key, value in told.items()
        if key.startswith(here) and "." not in key.removeprefix(here)
    }


def _faults(order: MakeOrder) -> list[Fault]:
    given = [each for each in (order.scenario, order.vllm, order.sglang) if each]
    if len(given) != 1:
        message = "give exactly one of a scenario, --from-vllm and --from-sglang"
        return [Fault("", "SCENARIO", message)]
    if not order.command:
        told = (("--gpu", order.gpu), ("--save-scenario", order.save))
        text = "is for --from-vllm and --from-sglang"
        return [Fault("", name, text) for name, value in told if value is not None]
    faults = []
    if order.gpu is None:
        hint = "`llmsim list gpus` names them."
        faults.append(Fault("", "--gpu", "is missing: the command does not say.", hint))
    if order.trace is None:
        hint = "Any table with a row per request will do (docs/traces.md)."
        faults.append(Fault("", "--trace", "is missing: what should it serve?", hint))
    return faults
