"""`llmsim gallery`: published systems put to the test."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmsim.cli.answering import JsonOption, print_json
from llmsim.cli.ending import exit_code_for_errors
from llmsim.cli.helping import Group
from llmsim.core.errors import Fault, InputError
from llmsim.core.files import check_target, write_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmsim.gallery.scoring import Standing

gallery_app = typer.Typer(
    cls=Group,
    rich_markup_mode=None,
    help="Published systems against the best public alternative, from committed results.\n\n"
    "Example: llmsim gallery",
    invoke_without_command=True,
)

BROKEN_NULL = 1
"""Exit code where a null regime surely brings something."""

NameArgument = Annotated[
    str, typer.Argument(metavar="SYSTEM", help="A name that `llmsim gallery` lists, or a folder.")
]


@dataclass(frozen=True, slots=True)
class GalleryOrder:
    """What `llmsim gallery run` was told."""

    name: str
    seeds: int
    quick: bool
    regimes: tuple[str, ...]
    out: Path | None
    save: bool
    jobs: int
    fresh: bool
    as_json: bool = False


@gallery_app.callback()
def gallery(
    context: typer.Context,
    docs: Annotated[
        Path | None, typer.Option(help="Write gallery.md and bands.md into this folder.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List published systems: what the paper found, what is found here, and the verdict."""
    if context.invoked_subcommand is not None:
        return
    with exit_code_for_errors():
        from llmsim.gallery.page import bands_page, gallery_page, standings

        if docs is not None:
            check_target(docs / "gallery.md")
        shown = standings()
        if docs is not None:
            write_whole(docs / "gallery.md", gallery_page(shown))
            write_whole(docs / "bands.md", bands_page(shown))
        if as_json:
            print_json([each.as_json() for each in shown])
        if docs is not None or as_json:
            return
        from llmsim.gallery.tables import LIST_HEAD, list_row

        # What each plugs into stands in --json and the docs: 80 columns have no room for it.
        rows = [LIST_HEAD, *(list_row(each) for each in shown)]
        _print([(name, *rest) for name, _, *rest in rows])


@gallery_app.command(name="run")
def run_(
    name: NameArgument,
    seeds: Annotated[int, typer.Option(min=2, help="Pairs behind every gain.")] = 5,
    quick: Annotated[bool, typer.Option(help="Bands and nulls alone, on three seeds.")] = False,
    regime: Annotated[
        list[str] | None, typer.Option(help="Only this regime; may be given several times.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the page, the drawing and the results.")
    ] = None,
    save: Annotated[
        bool, typer.Option(help="Keep the results beside the card, where the list finds them.")
    ] = False,
    jobs: Annotated[int, typer.Option(help="Processes; -1 for one per core.")] = -1,
    fresh: Annotated[bool, typer.Option(help="Do not use runs kept from earlier orders.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a system's card: gains with intervals, nulls, ablations, and a drawing of them.

    Ends with code 1 if a null regime surely brings something.

    Example: llmsim gallery run orca --quick
    """
    with exit_code_for_errors():
        regimes = tuple(regime or ())
        order = GalleryOrder(name, seeds, quick, regimes, out, save, jobs, fresh, as_json)
        code = run_card(order)
    raise typer.Exit(code)


@gallery_app.command()
def show(name: NameArgument, as_json: JsonOption = False) -> None:
    """Show a system's card and its committed results.

    Example: llmsim gallery show orca
    """
    with exit_code_for_errors():
        from llmsim.gallery.page import section
        from llmsim.gallery.reading import find_exhibit
        from llmsim.gallery.results import load_results
        from llmsim.gallery.scoring import stand

        exhibit = find_exhibit(name)
        standing = stand(exhibit, load_results(exhibit.folder, exhibit.name))
        if as_json:
            print_json(standing.as_json())
        else:
            typer.echo("\n".join(section(standing)))


def run_card(order: GalleryOrder) -> int:
    """Run a card, print and draw what came out; return the exit code.

    Raises
    ------
    GalleryError
        If the card is wrong.
    """
    from llmsim.cli.running import default_folder, progress_bar
    from llmsim.gallery.reading import find_exhibit
    from llmsim.gallery.results import RESULTS, dump_results, load_results
    from llmsim.gallery.running import QUICK_GROUPS, QUICK_SEEDS, Order, run_order
    from llmsim.gallery.scoring import stand
    from llmsim.study.points import PointStore

    exhibit = find_exhibit(order.name)
    _check_regimes(order.regimes, [each.name for each in exhibit.settings()])
    asked = Order(
        exhibit,
        seeds=QUICK_SEEDS if order.quick else order.seeds,
        groups=QUICK_GROUPS if order.quick else None,
        names=order.regimes,
        ablations=not order.quick,
        jobs=order.jobs,
        store=PointStore(None) if order.fresh else PointStore.default("gallery"),
    )
    with progress_bar(exhibit.name, quiet=not sys.stderr.isatty(), unit="pairs") as progress:
        results = run_order(asked, progress)
    standing = stand(exhibit, results)
    if order.as_json:
        print_json(standing.as_json())
    else:
        print_standing(standing)
    folder = order.out or default_folder(f"gallery-{exhibit.name}")
    folder.mkdir(parents=True, exist_ok=True)
    _draw(standing, folder)
    write_whole(folder / RESULTS, dump_results(results))
    if order.save:
        before = load_results(exhibit.folder, exhibit.name)
        whole = results if before is None else before.under(results)
        text = dump_results(whole.of(exhibit.settings()))
        write_whole(exhibit.folder / RESULTS, text)
    typer.echo(f"written to {folder}", err=True)
    return BROKEN_NULL if standing.broken_nulls else 0


def _check_regimes(asked: Sequence[str], known: Sequence[str]) -> None:
    from llmsim.core.errors import nearest

    faults = [
        Fault("", "--regime", f"'{name}' is no regime of this card.", nearest(name, known))
        for name in asked
        if name not in known
    ]
    if faults:
        raise InputError("llmsim gallery run", faults)


def _draw(standing: Standing, folder: Path) -> None:
    from llmsim.gallery.figure import gains_svg, render_gallery

    write_whole(folder / "gains.svg", gains_svg(standing))
    write_whole(folder / "gallery.html", render_gallery(standing))


def print_standing(standing: Standing) -> None:
    """Print gains, ablations and what stands beside the ratios."""
    from llmsim.gallery import tables

    card = standing.exhibit.card
    typer.echo(f"{card.title}: {standing.verdict}")
    typer.echo(f"baseline   {card.baseline.label}\ntreatment  {card.treatment.label}\n")
    _print([tables.GAIN_HEAD, *tables.gain_rows(standing)])
    ablated = tables.ablation_rows(standing)
    if ablated:
        typer.echo("")
        _print([tables.ABLATION_HEAD, *ablated])
    for name, (verdict, why) in standing.sweeps().items():
        if verdict:
            typer.echo(f"sweep {name}: {verdict}; {why}")
    typer.echo("")
    _print([tables.COUNTER_HEAD, *tables.counter_rows(standing)])


def _print(rows: Sequence[Sequence[str]]) -> None:
    from llmsim.cli.looking import print_rows

    print_rows(rows, wrap=True)
