"""`llmsim trace`: look at a trace, convert, scale and anonymise it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmsim.cli.answering import JsonOption, print_json
from llmsim.cli.ending import exit_code_for_errors
from llmsim.cli.helping import Group

if TYPE_CHECKING:
    from llmsim.workload.writing import Written

trace_app = typer.Typer(
    cls=Group,
    rich_markup_mode=None,
    help="Look at a trace of any known kind; convert, scale and anonymise it.\n\n"
    "Example: llmsim trace inspect burstgpt-like.csv.gz",
    no_args_is_help=True,
)

FileArgument = Annotated[
    Path, typer.Argument(metavar="TRACE", help="A file, plain, gzip or zstd; or a ServeGen pool.")
]
OutArgument = Annotated[
    Path, typer.Argument(metavar="OUT", help="A name in .csv, .jsonl (also .gz, .zst), .parquet.")
]
KindOption = Annotated[
    str | None,
    typer.Option(help="What `llmsim list trace` lists. Default: told by what is in the file."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="A parameter of the kind, such as time_unit=ms. YAML."
    ),
]
SeedOption = Annotated[int, typer.Option(help="For what is drawn and not in the file.")]
ForceOption = Annotated[bool, typer.Option(help="Replace a file that is there.")]


@trace_app.command()
def inspect(
    trace: FileArgument,
    kind: KindOption = None,
    set_: SetOption = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with drawings there.")] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Say what a trace is like: rate, bursts, lengths, clients, shared prefixes.

    Example: llmsim trace inspect burstgpt-like.csv.gz --html trace.html
    """
    with exit_code_for_errors():
        from llmsim.api.trace import inspect as inspect_trace
        from llmsim.report.trace_text import profile_json, profile_lines

        path = _found(trace)
        profile = inspect_trace(path, kind, _options(set_), seed=seed, html=html)
        if as_json:
            print_json(profile_json(profile))
        else:
            typer.echo("\n".join(profile_lines(profile)))
        if html is not None:
            typer.echo(f"written to {html}", err=True)


@trace_app.command()
def head(
    trace: FileArgument,
    rows: Annotated[int, typer.Option("-n", "--rows", min=1, help="How many.")] = 10,
    kind: KindOption = None,
    set_: SetOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Print the first requests of a trace as llmsim reads them.

    Example: llmsim trace head burstgpt-like.csv.gz -n 5
    """
    with exit_code_for_errors():
        from llmsim.api.trace import head as first_of
        from llmsim.cli.looking import print_rows

        table = first_of(_found(trace), rows, kind, _options(set_), seed=seed)
        if as_json:
            typer.echo(table.to_json(orient="records", double_precision=9))
            return
        cells = [[f"{each:.6f}" for each in table.pop("arrival_s")]]
        names = ["arrival_s", *table.columns]
        cells += [[str(each) for each in table[name]] for name in table.columns]
        print_rows([names, *zip(*cells, strict=True)])


@trace_app.command()
def convert(
    trace: FileArgument,
    out: OutArgument,
    kind: KindOption = None,
    set_: SetOption = None,
    seed: SeedOption = 0,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a trace as a table that llmsim and other programs read.

    Example: llmsim trace convert burstgpt-like.csv.gz trace.parquet --set limit=1000
    """
    with exit_code_for_errors():
        from llmsim.api.trace import convert as convert_trace

        options = _options(set_)
        made = convert_trace(_found(trace), out, kind, options, seed=seed, force=force)
        _tell(made, as_json)


@trace_app.command()
def scale(
    trace: FileArgument,
    out: OutArgument,
    rate_scale: Annotated[
        float | None, typer.Option(help="So many times faster; think times shrink, too.")
    ] = None,
    rate_rps: Annotated[
        float | None, typer.Option(help="As fast as gives this mean rate [requests/s].")
    ] = None,
    keep_frac: Annotated[
        float | None, typer.Option(help="Keep this share of the sessions; times stay.")
    ] = None,
    kind: KindOption = None,
    set_: SetOption = None,
    seed: SeedOption = 0,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a trace at another rate; exactly one of the three options says which.

    Example: llmsim trace scale burstgpt-like.csv.gz faster.csv --rate-rps 20
    """
    with exit_code_for_errors():
        from llmsim.api.trace import scale as scale_trace

        told: dict[str, Any] = {
            "rate_scale": rate_scale,
            "rate_rps": rate_rps,
            "keep_frac": keep_frac,
        }
        options = _options(set_)
        made = scale_trace(_found(trace), out, kind, options, **told, seed=seed, force=force)
        _tell(made, as_json)


@trace_app.command()
def anonymise(
    trace: FileArgument,
    out: OutArgument,
    round_tokens: Annotated[int, typer.Option(min=1, help="Round lengths to multiples of it.")] = 1,
    kind: KindOption = None,
    set_: SetOption = None,
    seed: SeedOption = 0,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a trace without dates, client names and session ids. Times and lengths stay.

    Example: llmsim trace anonymise burstgpt-like.csv.gz shared.csv --round-tokens 16
    """
    with exit_code_for_errors():
        from llmsim.api.trace import anonymise as anonymise_trace

        told: dict[str, Any] = {"round_tokens": round_tokens, "seed": seed, "force": force}
        _tell(anonymise_trace(_found(trace), out, kind, _options(set_), **told), as_json)


def _found(trace: Path) -> Path:
    """Return the file, or the shipped one of that name."""
    from llmsim.core.paths import find_data

    shipped = None if trace.exists() or len(trace.parts) > 1 else find_data("traces", trace.name)
    return trace if shipped is None else shipped


def _options(told: list[str] | None) -> dict[str, Any]:
    """Return parameters of a trace, also named as in a scenario: ``traffic.trace.columns``."""
    from llmsim.scenario import parse_assignments

    found = parse_assignments(told or [])
    return {name.removeprefix("traffic.trace."): value for name, value in found.items()}


def _tell(written: Written, as_json: bool) -> None:
    if as_json:
        print_json(written)
    else:
        typer.echo(str(written.path))
    typer.echo(f"{written.requests:,} requests", err=True)
    if written.prefixes_lost:
        text = "Which prompts share a prefix is left out: only .jsonl has room for it."
        typer.echo(text, err=True)
