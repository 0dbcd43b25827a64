"""`llmsim init` and `llmsim schema`: a first scenario, and completion for editors."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from llmsim.cli.answering import JsonOption, print_json
from llmsim.cli.ending import exit_code_for_errors
from llmsim.core.files import write_whole

T = TypeVar("T")


class SchemaKind(StrEnum):
    """Sorts of files with a schema."""

    SCENARIO = "scenario"
    PLAN = "plan"
    SWEEP = "sweep"


def schema(
    kind: Annotated[
        SchemaKind, typer.Argument(help="Of which sort of file.")
    ] = SchemaKind.SCENARIO,
) -> None:
    """Print the JSON schema of a sort of file, for completion in editors.

    Example: llmsim schema scenario > scenario.schema.json
    """
    with exit_code_for_errors():
        from llmsim.api.schemas import schema_of

        typer.echo(json.dumps(schema_of(kind.value), indent=1))


@dataclass(frozen=True, slots=True)
class Asking:
    """Asks for what the command line leaves open, where somebody is there to answer."""

    ask: bool

    def value(self, given: T | None, text: str, otherwise: T, kind: Callable[[Any], T]) -> T:
        """Return what was given, or answered, or the default."""
        if given is not None or not self.ask:
            return otherwise if given is None else given
        answer: T = typer.prompt(text, default=otherwise, type=kind, err=True)
        return answer


def init(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="The scenario to write.")] = Path(
        "scenario.yaml"
    ),
    model: Annotated[
        str | None, typer.Option(help="Model card, or a path to a config.json.")
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="GPU card.")] = None,
    tp: Annotated[int | None, typer.Option(min=1, help="Tensor-parallel GPUs per replica.")] = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="How many replicas.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="A trace to replay; else traffic is drawn.")
    ] = None,
    rate_rps: Annotated[float | None, typer.Option(min=1e-6, help="Requests per second.")] = None,
    prompt_tokens: Annotated[int | None, typer.Option(min=1, help="Mean prompt.")] = None,
    output_tokens: Annotated[int | None, typer.Option(min=1, help="Mean output.")] = None,
    ttft_s: Annotated[float | None, typer.Option(min=1e-6, help="Promised first token.")] = None,
    tpot_s: Annotated[float | None, typer.Option(min=1e-6, help="Promised per token.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing, take defaults.")] = False,
    force: Annotated[bool, typer.Option(help="Replace a file that is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a first scenario with comments, from a few answers.

    Asks for what the options leave open; with --yes, or where nobody can answer, takes defaults.

    Example: llmsim init mine.yaml --model llama-3.1-8b --gpu h100-sxm --yes
    """
    with exit_code_for_errors():
        from llmsim.core.errors import Fault, InputError, OutputError
        from llmsim.scenario import Scenario
        from llmsim.scenario.starting import Answers, least_tp, starter_text
        from llmsim.specs import load_gpu, load_model

        if out.suffix not in (".yaml", ".yml"):
            fault = Fault("", str(out), "should end in .yaml.")
            raise InputError("llmsim init", [fault])
        if out.exists() and not force:
            raise OutputError(f"{out} is there already; --force replaces it")
        asking = Asking(not yes and sys.stdin.isatty())
        named = asking.value(model, "Model (llmsim list models)", "llama-3.1-8b", str)
        load_model(named)
        card = asking.value(gpu, "GPU (llmsim list gpus)", "h100-sxm", str)
        load_gpu(card)
        split = asking.value(tp, "Tensor-parallel GPUs", tp or least_tp(named, card), int)
        count = asking.value(replicas, "Replicas", 1, int)
        kind, path = _trace(asking, trace)
        told: dict[str, Any] = {}
        if not path:
            told["rate_rps"] = asking.value(rate_rps, "Requests per second", 4.0, float)
            told["prompt_tokens"] = asking.value(prompt_tokens, "Mean prompt [tokens]", 1000, int)
            told["output_tokens"] = asking.value(output_tokens, "Mean output [tokens]", 200, int)
        told["ttft_s"] = asking.value(ttft_s, "Promised time to the first token [s]", 1.0, float)
        told["tpot_s"] = asking.value(tpot_s, "Promised time per token [s]", 0.05, float)
        name = "".join(c if c.isalnum() or c in "._-" else "-" for c in out.stem).strip("-._")
        answers = Answers(name or "mine", named, card, count, split, kind, path, **told)
        text = starter_text(answers)
        import yaml

        Scenario.parse(yaml.safe_load(text), out.resolve().parent)
        write_whole(out, text)
        if as_json:
            print_json({"path": out} | {k.name: getattr(answers, k.name) for k in fields(answers)})
        else:
            typer.echo(str(out))
        typer.echo(f"Try: llmsim run {out}", err=True)


def _trace(asking: Asking, trace: Path | None) -> tuple[str, str]:
    from llmsim.workload import TRACES
    from llmsim.workload.detect import detect_kind

    told = asking.value(None if trace is None else str(trace), "A trace, or nothing", "", str)
    if not told:
        return "", ""
    path = Path(told).expanduser().resolve()
    return detect_kind(path, TRACES.names()), str(path)
