"""`llmsim validate`: how wrong the simulator is against measurements."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from llmsim.cli.answering import JsonOption, print_json, records
from llmsim.cli.ending import exit_code_for_errors
from llmsim.cli.referencing import ReferenceOrder, check_reference
from llmsim.core.errors import Fault, InputError

if TYPE_CHECKING:
    from rich.progress import Progress

    from llmsim.fidelity.ablation import Ablated
    from llmsim.fidelity.benchfile import Bench
    from llmsim.fidelity.cases import Case
    from llmsim.fidelity.kvmemory import KvRow
    from llmsim.fidelity.validation import Order, Report
    from llmsim.specs import CalibrationCard

REFERENCE: Final = "reference"
"""Not an engine of the measurements, but the one that is run here."""


@dataclass(frozen=True, slots=True)
class ValidateOrder:
    """What `llmsim validate` was asked for."""

    folder: Path
    sources: tuple[str, ...]
    grades: tuple[str, ...]
    engines: tuple[str, ...]
    gpus: tuple[str, ...]
    models: tuple[str, ...]
    headline: bool
    disaggregated: bool
    cost: str
    out: Path | None
    scenarios: Path | None
    jobs: int
    fresh: bool
    calibration: Path | None = None
    profiles: Path | None = None
    ceilings: Path | None = None
    docs: Path | None = None
    ablate: bool = False
    as_json: bool = False


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


WhereArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="DIR|FILE",
        help="A folder of measurements, the package aiconfigurator_core, or a result file of "
        "vllm bench serve or SGLang.",
    ),
]
SourceOption = Annotated[str, typer.Option(help="Sources to take, such as 'aic-*,nebius*'.")]
CostOption = Annotated[
    str, typer.Option(help="Cost component, in YAML, such as '{kind: roofline}'.")
]
OutOption = Annotated[Path | None, typer.Option(help="Write CSV files, Markdown and a page there.")]
ScenariosOption = Annotated[
    Path | None, typer.Option(help="Write the scenario of every case there.")
]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        "--calibrations",
        help="Folder of files that `llmsim calibrate` wrote, or 'shipped'. Each case is predicted "
        "by a fit that has not seen its model.",
    ),
]
ProfilesOption = Annotated[
    Path | None, typer.Option(help="Folder of kernel tables, for --cost measured.")
]
CeilingsOption = Annotated[
    Path | None, typer.Option(help="Write today's errors of a fixed sample there.")
]
DocsOption = Annotated[
    Path | None, typer.Option(help="Write the page 'How wrong is llmsim?' there.")
]
AblateOption = Annotated[
    bool, typer.Option(help="Also change each assumption in turn, on a sample of 200.")
]
TpOption = Annotated[int, typer.Option(min=1, help="For a result file: tensor-parallel GPUs.")]
VersionOption = Annotated[
    str, typer.Option(help="For a result file: the engine's version; without it the newest card.")
]
EngineOption = Annotated[
    str,
    typer.Option(
        help="Engines to take; 'reference': that of llmsim: on this machine, or runs kept in DIR."
    ),
]
TraceOption = Annotated[Path | None, typer.Option(help="For the reference engine: what it serves.")]
MinutesOption = Annotated[
    float, typer.Option(min=0.01, help="For the reference engine: how much of the trace.")
]
DeviceOption = Annotated[str, typer.Option(help="For the reference engine: cpu, cuda:1.")]
OfflineOption = Annotated[
    bool, typer.Option(help="For the reference engine: everybody arrives at time 0.")
]
ApartOption = Annotated[bool, typer.Option(help="Only cases with prefill and decode apart.")]
FreshOption = Annotated[bool, typer.Option(help="Do not use results kept from earlier runs.")]


def validate(
    where: WhereArgument = None,
    source: SourceOption = "",
    grade: Annotated[str, typer.Option(help="Qualities to take.")] = "A,B",
    engine: EngineOption = "",
    gpu: Annotated[str, typer.Option(help="GPUs to take.")] = "",
    model: Annotated[str, typer.Option(help="Models (model_key) to take.")] = "",
    headline: Annotated[bool, typer.Option(help="Only the cases of the headline.")] = False,
    disaggregated: ApartOption = False,
    cost: CostOption = "roofline",
    out: OutOption = None,
    save_scenarios: ScenariosOption = None,
    calibration: CalibrationOption = None,
    profiles: ProfilesOption = None,
    ceilings: CeilingsOption = None,
    docs: DocsOption = None,
    ablate: AblateOption = False,
    tp: TpOption = 1,
    engine_version: VersionOption = "",
    trace: TraceOption = None,
    minutes: MinutesOption = 3.0,
    device: DeviceOption = "",
    offline: OfflineOption = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    fresh: FreshOption = False,
    as_json: JsonOption = False,
) -> None:
    """Replay measured serving runs and print the error: TTFT, TPOT, throughput, capacity.

    Example: llmsim validate result.json --gpu h100-sxm --model llama-3.1-8b
    """
    with exit_code_for_errors():
        if engine == REFERENCE:
            priced, chosen = _component(cost), out or Path("runs/reference")
            asked = ReferenceOrder(
                *(trace, minutes, model, gpu, device, offline, priced, chosen, where, docs),
                as_json=as_json,
            )
            check_reference(asked)
            return
        if where is None:
            fault = Fault("", "DIR|FILE", "is missing: measurements to compare with.")
            raise InputError("llmsim validate", [fault])
        from llmsim.fidelity.benchfile import Bench

        if where.is_file() and where.name != "silicon_sample.csv":
            compare_file(where, Bench(model, gpu, tp, engine or "vllm", engine_version), as_json)
            return
        takes = (_words(source), _words(grade), _words(engine), _words(gpu), _words(model))
        files = (calibration, profiles, ceilings, docs)
        order = ValidateOrder(
            *(where, *takes, headline, disaggregated, cost, out),
            *(save_scenarios, jobs, fresh, *files),
            ablate=ablate,
            as_json=as_json,
        )
        run_validation(order)


def _component(text: str) -> dict[str, Any]:
    from llmsim.scenario.document import parse_value

    cost = parse_value(text)
    return cost if isinstance(cost, dict) else {"kind": cost}


def compare_file(path: Path, bench: Bench, as_json: bool = False) -> None:
    """Simulate one benchmark result and print measured beside predicted."""
    from llmsim.fidelity.benchfile import compare_bench

    case, found, scenario = compare_bench(path, bench)
    guessed = not bench.engine_version
    _tell_simulated(case, scenario, guessed)
    rows = [
        (metric, stat, value, predicted, predicted / value - 1)
        for (metric, stat), value in case.measured.items()
        if value and (predicted := found.values.get((metric, stat))) is not None
    ]
    if as_json:
        head = ("metric", "stat", "measured", "predicted", "error_frac")
        names = ("version", "max_num_seqs", "max_num_batched_tokens")
        engine = {name: scenario["engine"][name] for name in names} | {"version_guessed": guessed}
        metrics = records(head, rows)
        told = {"file": path, "engine": engine, "metrics": metrics, "warnings": found.warnings}
        print_json(told)
    else:
        table = [
            (f"{metric} {stat}", _unit(metric), f"{value:.6g}", f"{predicted:.6g}", f"{error:+.1%}")
            for metric, stat, value, predicted, error in rows
        ]
        _print(("", "unit", "measured", "predicted", "error"), table)
    for warning in found.warnings:
        typer.echo(f"note: {warning}", err=True)


def _unit(metric: str) -> str:
    if metric == "request_throughput":
        return "requests/s"
    return "tokens/s" if metric.endswith("throughput") else "s"


def _tell_simulated(case: Case, scenario: Mapping[str, Any], guessed: bool) -> None:
    """Say what the file does not, and was therefore taken for granted."""
    engine, text = scenario["engine"], case.text
    pace = f"{text('rate_rps')}/s" if text("rate_rps") else f"{text('concurrency')} at a time"
    alike = scenario["traffic"]["lengths"]["kind"] == "fixed"
    lengths = "all alike (the file has no length of each)" if alike else "lengths as in it"
    why = "the newest card, as no --engine-version was said" if guessed else "--engine-version"
    said = (
        f"{text('num_requests')} requests at {pace}, {lengths}, to {scenario['model']} on "
        f"{text('tp')} x {text('gpu')} (--tp, --gpu)",
        f"engine {engine['version']} ({why})",
        f"its defaults max_num_seqs {engine['max_num_seqs']}, max_num_batched_tokens "
        f"{engine['max_num_batched_tokens']}: taken for granted",
    )
    for line in said:
        typer.echo(f"simulated: {line}", err=True)


def run_validation(asked: ValidateOrder) -> None:
    """Validate, print the tables, write the files."""
    from llmsim.core.files import check_place, check_target, write_whole
    from llmsim.fidelity.page import render_page
    from llmsim.fidelity.sample import ceilings_of, draw_sample, write_ceilings
    from llmsim.fidelity.tables import docs_page, report_markdown, write_csv
    from llmsim.fidelity.validation import Selection, order_of, validate

    for page in filter(None, (asked.docs, asked.ceilings)):
        check_target(page)
    if asked.out is not None:
        check_place(asked.out, asked.out)
    selection = Selection(
        *(asked.sources, asked.engines, asked.gpus, asked.models, asked.grades),
        asked.headline,
        asked.disaggregated,
    )
    calibrations = _calibrations(asked.calibration, asked.as_json)
    order = order_of(
        asked.folder,
        selection,
        _component(asked.cost),
        calibrations,
        asked.profiles,
        asked.jobs,
        asked.fresh,
    )
    order = replace(order, scenarios=asked.scenarios)
    with _bar() as bar:
        task = bar.add_task("simulating", total=None)
        report = validate(order, lambda done, of: bar.update(task, completed=done, total=of))
    if not asked.as_json:
        print_report(report)
    if asked.out is not None:
        write_csv(report, asked.out)
        write_whole(asked.out / "report.md", report_markdown(report))
        write_whole(asked.out / "report.html", render_page(report))
        typer.echo(f"written to {asked.out}", err=True)
    ablated = _ablated(order, report, asked.as_json) if asked.ablate else []
    if asked.docs is not None:
        write_whole(asked.docs, docs_page(report, ablated))
    if asked.ceilings is not None:
        sample = draw_sample(each.case for each in report.replayed)
        write_ceilings(ceilings_of(sample, report.chosen), asked.ceilings)
    if asked.as_json:
        own = {
            card.name: {
                row.field.removeprefix("errors."): row.value
                for row in card.rows()
                if row.field.startswith("errors.")
            }
            for card in calibrations.values()
        }
        print_json(report.as_json() | {"calibrations": own, "ablated": ablated})


def _calibrations(folder: Path | None, quiet: bool) -> dict[tuple[str, str], CalibrationCard]:
    """Read calibration cards that are of use, and print the errors that all of them state."""
    from llmsim.core.paths import find_data
    from llmsim.fidelity.calibration import read_calibrations, worth_using

    if folder is not None and str(folder) == "shipped":
        folder = find_data("profiles", "calibrations")
    if folder is None:
        return {}
    found = read_calibrations(folder)
    for card in () if quiet else found.values():
        word = "calibrated" if card.helps else "left aside, as it makes groups never seen worse"
        typer.echo(f"{word}: {card.name}; {_errors_of(card)}")
    return worth_using(found)


def _errors_of(card: CalibrationCard) -> str:
    """Return the errors that a card states of its own fit."""
    stated = {row.field: row.value for row in card.rows() if row.field.startswith("errors.")}
    told = []
    for side, words in (("in_sample", "in sample"), ("never_seen", "groups never seen")):
        values = [stated.get(f"errors.{side}.{key}") for key in ("before", "after", "cases")]
        if None not in values:
            before, after, cases = (float(value or 0.0) for value in values)
            told.append(f"{words} {before:.1%} -> {after:.1%} ({cases:.0f})")
    return "TPOT " + ", ".join(told)


def _ablated(order: Order, report: Report, quiet: bool) -> list[Ablated]:
    """Print what each assumption is worth on a fixed sample of these cases, and return it."""
    from llmsim.fidelity.ablation import CASES, ablate
    from llmsim.fidelity.replay import cache_folder
    from llmsim.fidelity.requests import RequestFiles
    from llmsim.fidelity.sample import draw_sample
    from llmsim.fidelity.tables import ABLATION_HEAD, ablation_rows

    cases = [each.case for each in report.replayed]
    files = RequestFiles(order.folder, cache_folder() / "traces", cases)
    sample = draw_sample(cases, CASES)
    with _bar() as bar:
        task = bar.add_task("without one assumption", total=None)

        def told(done: int, of: int) -> None:
            bar.update(task, completed=done, total=of)

        found = ablate(sample, order.options, files, order.store, order.jobs, told)
    if not quiet:
        _print(ABLATION_HEAD, ablation_rows(found))
    return found


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def print_report(report: Report) -> None:
    """Print the tables of a validation."""
    from llmsim.fidelity.scores import reasons
    from llmsim.fidelity.tables import (
        HEAD,
        TITLES,
        TWINS_HEAD,
        capacity_rows,
        group_rows,
        headline_rows,
        twins_rows,
    )
    from llmsim.fidelity.twins import find_twins
    from llmsim.fidelity.validation import SIDES

    typer.echo("median / P90 / worst absolute error (signed median), percent")
    _print_groups(HEAD, [*headline_rows(report), *group_rows(report.groups["all"])])
    for side in SIDES:
        if len(report.groups[side]) > 1:
            _print_groups((TITLES[side], *HEAD[1:]), group_rows(report.groups[side]))
    ladders = capacity_rows(report.ladders)
    if ladders:
        _print(("capacity", "ladders", "largest throughput"), ladders)
    if report.memory:
        _print_memory(report.memory)
    twins = find_twins(each.case for each in report.replayed)
    if twins:
        _print(TWINS_HEAD, twins_rows(twins))
    if any("/" in name for name in report.priced):
        _print(("priced by", "cases"), [(name, str(n)) for name, n in report.priced.items()])
    missing = reasons(report.replayed)
    if missing:
        _print(("not simulated", "cases"), [(why, str(count)) for why, count in missing])


def _print_groups(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print the errors of groups, a metric per column where the terminal is wide enough."""
    from llmsim.fidelity.tables import WIDE, tall_rows

    if shutil.get_terminal_size().columns >= WIDE:
        _print(head, rows)
    else:
        first, *rest = tall_rows(head, rows)
        _print(first, rest)


def _print_memory(memory: Sequence[KvRow]) -> None:
    """Print logged KV capacities with the long columns last, and what differs below the name."""
    from llmsim.cli.looking import print_rows
    from llmsim.fidelity.tables import KV_HEAD, memory_rows

    rows = []
    for name, *numbers, terms in (KV_HEAD, *memory_rows(memory)):
        rows.append((*numbers, name))
        if terms and rows[1:]:
            rows.append((*("" for _ in numbers), terms))
    typer.echo("")
    print_rows(rows, wrap=True)


def _print(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from llmsim.cli.looking import print_rows

    typer.echo("")
    print_rows([head, *rows])
