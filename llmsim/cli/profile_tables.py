"""`llmsim profile import | validate | show | fit | diff`: looking after profiles.

The commands join the group `profile`, which measures when called alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmsim.cli.answering import JsonOption, print_json
from llmsim.cli.ending import WRONG_INPUT, exit_code_for_errors
from llmsim.cli.looking import print_rows

if TYPE_CHECKING:
    from llmsim.costmodel.measured.card_terms import FittedTerms
    from llmsim.costmodel.measured.tables import KernelTable

FolderArgument = Annotated[
    str,
    typer.Argument(metavar="PROFILE", help="A profile folder, or <device>/<id> of a known one."),
]


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the group `profile`."""
    app.command(name="import")(import_)
    app.command()(validate)
    app.command()(show)
    app.command()(fit)
    app.command()(diff)


def import_(
    source: Annotated[Path, typer.Argument(help="Where the tables lie: a checkout, a folder.")],
    format_: Annotated[
        str,
        typer.Option("--format", help="aiconfigurator, vidur, llmservingsim, splitwise or tidy."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of profiles to write into.")] = Path("profiles"),
    only: Annotated[
        str, typer.Option(help="Only profiles whose <device>/<engine>-<version> contains this.")
    ] = "",
    version: Annotated[
        str, typer.Option(help="Commit or release of the source, kept in meta.json.")
    ] = "",
    csv: Annotated[bool, typer.Option(help="Write rows.csv.gz in place of rows.parquet.")] = False,
    fits: Annotated[
        bool, typer.Option("--fit/--no-fit", help="Fit them too, so that they load faster.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Turn public kernel tables into profiles; their licence and source go into meta.json.

    Example: llmsim profile import my-tables --format tidy --out profiles
    """
    with exit_code_for_errors():
        from llmsim.specs.importers import import_tables
        from llmsim.specs.profile_meta import read_meta

        made: list[dict[str, object]] = []
        for folder in import_tables(format_, source, out, only=only, version=version, as_csv=csv):
            meta = read_meta(folder)
            made.append({"folder": folder, "meta": meta})
            if not as_json:
                typer.echo(str(folder))
            for note in filter(None, meta.notes.split("; ")):
                typer.echo(f"note: {note}", err=True)
            if fits and meta.device.get("gpu_card"):
                from llmsim.costmodel.measured.fitting import fit_profile

                fit_profile(folder)
        if as_json:
            print_json(made)


def validate(profile: FolderArgument, as_json: JsonOption = False) -> None:
    """Say whether a profile is right: columns, words, duplicates, checksum, drift, physics.

    Example: llmsim profile validate my-profile
    """
    with exit_code_for_errors():
        from llmsim.core.errors import CardError, Fault
        from llmsim.costmodel.measured.fitting import implausible
        from llmsim.costmodel.measured.profile import find_profile, load_profile
        from llmsim.specs.profile_meta import read_meta
        from llmsim.specs.profile_rows import check_rows, find_rows, read_rows, rows_checksum

        folder = find_profile(profile)
        meta = read_meta(folder)
        rows = find_rows(folder)
        faults = check_rows(read_rows(rows))
        if meta.rows_checksum and rows_checksum(rows) != meta.rows_checksum:
            message = "is not the checksum of the rows: they were changed."
            faults.append(Fault(str(folder / "meta.json"), "rows_checksum", message))
        if meta.state != "failed":
            faults += implausible(load_profile(folder))
        if faults:
            raise CardError(str(folder), faults)
        count = len(read_rows(rows))
        if as_json:
            told = {"origin": meta.origin, "state": meta.state}
            print_json({"folder": folder, "rows": count} | told)
        else:
            typer.echo(f"{folder}: {count} rows, {meta.origin}, {meta.state}")


def show(profile: FolderArgument, as_json: JsonOption = False) -> None:
    """Show what a profile holds, operator by operator, and how wrong its fits are.

    Example: llmsim profile show my-profile
    """
    with exit_code_for_errors():
        from llmsim.costmodel.measured.profile import find_profile, load_profile

        loaded = load_profile(find_profile(profile), failed_too=True)
        meta = loaded.meta
        assert meta is not None
        tables = [table for op in loaded.operators() for table in loaded.tables(op)]
        if as_json:
            print_json({"meta": meta, "tables": _documents(meta.fit, tables)})
            return
        for name, value in (
            ("device", f"{meta.device['name']} ({loaded.device.name})"),
            ("origin", f"{meta.origin} {meta.source}".strip()),
            ("libraries", ", ".join(f"{key} {word}" for key, word in meta.libs.items())),
            ("created", meta.created),
            ("state", f"{meta.state}, drift {100 * meta.drift_frac:.1f}%"),
            ("licence", meta.licence),
        ):
            typer.echo(f"{name:<10} {value}")
        print_rows(_table(meta.fit, tables))


def _documents(fits: Mapping[str, Any], tables: Sequence[KernelTable]) -> list[dict[str, Any]]:
    """Return what `_table` prints, as numbers."""
    return [
        {
            "operator": table.family.op,
            "formats": [table.types.a, table.types.w, table.types.kv],
            "kernel": table.kernel_id,
            "libs": table.libs,
            "rows": len(table),
            "unseen": (fits.get(table.key) or {}).get("holdout"),
        }
        for table in tables
    ]


def _table(fits: Mapping[str, Any], tables: Sequence[KernelTable]) -> list[tuple[str, ...]]:
    """Return a row per kernel table."""
    made: list[tuple[str, ...]] = [
        ("operator", "formats", "kernel", "libs", "rows", "unseen: median", "p90", "bias")
    ]
    for table in tables:
        errors = (fits.get(table.key) or {}).get("holdout") or {}
        figures = [
            f"{100 * errors[name]:.1f}%" if name in errors else "-"
            for name in ("median", "p90", "bias")
        ]
        types = "/".join(dict.fromkeys((table.types.a, table.types.w, table.types.kv)))
        first = (table.family.op, types, table.kernel_id, table.libs, str(len(table)))
        made.append((*first, *figures))
    return made


def fit(
    profile: FolderArgument,
    seed: Annotated[int, typer.Option(help="Of what the check does not see.")] = 0,
    kernels: Annotated[
        Path | None,
        typer.Option(help="Write the roofline terms of a GPU card here instead."),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(help="With --kernels: profiles for what the first has no sound rows of."),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(help="With --kernels: families to leave out, such as moe.mxfp4."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Fit mean functions, write them and their errors on unseen rows into meta.json.

    Example: llmsim profile fit my-profile --seed 1
    """
    with exit_code_for_errors():
        from llmsim.costmodel.measured.card_files import write_card_terms
        from llmsim.costmodel.measured.fitting import fit_profile
        from llmsim.costmodel.measured.profile import find_profile, load_profile

        folder = find_profile(profile)
        if kernels is not None:
            folders = [folder, *map(find_profile, also or ())]
            profiles = [load_profile(each) for each in folders]
            found = write_card_terms(profiles, kernels, seed, without or ())
            if as_json:
                print_json([_family(each) for each in found])
            else:
                print_rows(_terms_table(found))
            return
        fit_profile(folder, seed)
        loaded = load_profile(folder, failed_too=True)
        assert loaded.meta is not None
        tables = [table for op in loaded.operators() for table in loaded.tables(op)]
        if as_json:
            print_json({"folder": folder, "tables": _documents(loaded.meta.fit, tables)})
        else:
            print_rows(_table(loaded.meta.fit, tables))


def _family(each: FittedTerms) -> dict[str, object]:
    """Return a family of `_terms_table`, as numbers."""
    return {
        "family": each.path,
        "terms": each.terms,
        "libs": each.table.libs,
        "kernel": each.table.kernel_id,
        "fitted": each.fitted,
        "borrowed": each.borrowed,
        "unseen": each.errors,
    }


def _terms_table(found: Sequence[FittedTerms]) -> list[tuple[str, ...]]:
    """Return a row per family and regime: errors on shapes that the fit did not see."""
    made: list[tuple[str, ...]] = [
        ("family", "libs", "kernel", "fitted", "regime", "unseen", "median", "p90", "bias")
    ]
    for each in found:
        table = each.table
        for regime, errors in each.errors.items():
            figures = (errors.median, errors.p90, errors.bias)
            made.append(
                (
                    each.path + ("*" if each.borrowed else ""),
                    table.libs,
                    table.kernel_id,
                    str(each.fitted),
                    regime,
                    str(errors.rows),
                    *(f"{100 * figure:.1f}%" for figure in figures),
                )
            )
    return made


def diff(first: FolderArgument, second: FolderArgument, as_json: JsonOption = False) -> None:
    """Compare two profiles at the shapes that both have: another day, driver, or version.

    Example: llmsim profile diff my-profile other-profile
    """
    with exit_code_for_errors():
        from llmsim.costmodel.measured.fitting import compare_profiles
        from llmsim.costmodel.measured.profile import find_profile, load_profile

        old, new = (load_profile(find_profile(name), failed_too=True) for name in (first, second))
        rows = compare_profiles(old, new)
        if not rows:
            typer.echo("no shape that both have", err=True)
            raise typer.Exit(WRONG_INPUT)
        if as_json:
            print_json(rows)
            return
        head = ("operator", "formats", "shapes", "new / old: median", "|change| median", "p90")
        table = [
            (
                each.operator,
                each.formats,
                str(each.shapes),
                f"{each.ratio:.3f}",
                f"{100 * each.change_median:.1f}%",
                f"{100 * each.change_p90:.1f}%",
            )
            for each in rows
        ]
        print_rows([head, *table])
