"""`llmsim list` and `llmsim show`: what exists, and where each number comes from."""

from __future__ import annotations

import platform
import textwrap
from collections.abc import Iterable, Sequence
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder
from inspect import getdoc
from itertools import zip_longest
from pathlib import Path

import typer

import llmsim
from llmsim.cli.answering import print_json, records
from llmsim.core.errors import InputError, RegistryError, nearest
from llmsim.core.paths import list_data
from llmsim.core.units import GIB

CARDS = ("gpus", "models", "links", "engines", "calibrations")
_WIDTH = 80  # columns of a terminal that nobody has widened
_ROW = ("field", "value", "unit", "source")


def print_rows(rows: Iterable[Sequence[str]], indent: str = "", wrap: bool = False) -> None:
    """Print rows in aligned columns; the last one runs on, or cells go on below themselves.

    With `wrap` the widest columns are narrowed, never below their longest word, until a line fits
    80 columns.
    """
    table = [tuple(row) for row in rows]
    if not table:
        return
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    if wrap:
        widths = _narrowed(table, widths, _WIDTH - len(indent) - 2 * (len(widths) - 1))
    for row in table:
        cells = [
            textwrap.wrap(cell, width, break_on_hyphens=False) if wrap and width else [cell]
            for cell, width in zip(row, widths, strict=True)
        ]
        for line in zip_longest(*cells, fillvalue=""):
            ahead = [part.ljust(width) for part, width in zip(line[:-1], widths, strict=False)]
            typer.echo((indent + "  ".join([*ahead, line[-1]])).rstrip())


def _narrowed(table: Sequence[Sequence[str]], widths: Sequence[int], room: int) -> list[int]:
    """Return widths that fit in a line, if words allow it: the widest column gives way first."""
    words = [
        max((len(word) for row in table for word in row[i].split()), default=0)
        for i in range(len(widths))
    ]
    found = list(widths)
    while sum(found) > room:
        spare = [i for i, width in enumerate(found) if width > words[i]]
        if not spare:
            break
        found[max(spare, key=lambda i: found[i])] -= 1
    return found


def list_things(what: str | None, as_json: bool = False) -> None:
    """Print what exists of one sort, or of all.

    Parameters
    ----------
    what : str or None
        A folder of cards, ``prices``, ``scenarios``, or a seam.
    as_json : bool

    Raises
    ------
    RegistryError
        If there is no such sort of thing; gives the nearest.
    """
    from llmsim.scenario.component import SEAMS

    sorts = (*CARDS, "prices", "scenarios", *SEAMS)
    if what is not None and what not in sorts:
        raise RegistryError(f"cannot list '{what}'. {nearest(what, sorts)}")
    if as_json:
        asked = sorts if what is None else (what,)
        print_json({each: _records(each) for each in asked})
        return
    if what is not None:
        print_rows(_things(what), wrap=True)
    else:
        for each in sorts:
            typer.echo(each)
            print_rows(_things(each), indent="  ", wrap=True)
    if what in (None, "prices"):
        _say_reach_of_prices()


def _records(what: str) -> list[dict[str, object]]:
    """Return what exists of one sort, for scripts."""
    if what != "prices":
        return records(("name", "about"), _things(what))
    from llmsim.cli.pricing import price_records

    return price_records()


def _say_reach_of_prices() -> None:
    from llmsim.cli.pricing import reach_of_prices

    for note in reach_of_prices():
        typer.echo(f"note: {note}", err=True)


def _things(what: str) -> list[tuple[str, ...]]:
    """Return (name, one line about it), or the table of prices."""
    if what == "prices":
        from llmsim.cli.pricing import price_table

        return price_table()
    if what in CARDS:
        return [
            (name, _card_line(what, name))
            for name in sorted(list_data(f"profiles/{what}", ".yaml"))
        ]
    if what == "scenarios":
        return [
            (name, _told(path)) for name, path in sorted(list_data("scenarios", ".yaml").items())
        ]
    from llmsim.scenario.component import parameters_of, registry

    found = registry(what)
    rows: list[tuple[str, ...]] = []
    for name in found.names():
        try:
            cls = found.get(name)
        except RegistryError as error:
            rows.append((name, str(error)))  # of a package that is broken; the others are there
            continue
        line = (getdoc(cls) or "").split("\n")[0]
        keys = ", ".join(parameters_of(cls).model_fields)
        rows.append((name, f"{line} [{keys}]" if keys else line))
    return rows


def _card_line(what: str, name: str) -> str:
    """Return the facts of a card that tell it from the others."""
    from llmsim import specs

    try:
        if what == "gpus":
            gpu = specs.load_gpu(name)
            peak = gpu.peak_flops_per_s["bf16"] / 1e12
            memory, speed = gpu.memory_bytes / GIB, gpu.memory_bytes_per_s / 1e12
            return f"{gpu.vendor}, {memory:.0f} GiB at {speed:.2f} TB/s, bf16 {peak:.0f} TFLOP/s"
        if what == "links":
            return f"{specs.load_link(name).bytes_per_s / 1e9:.0f} GB/s per direction"
        if what == "calibrations":
            terms = specs.load_calibration(name).terms
            return ", ".join(
                f"{key.removesuffix('_scale')} {value}" for key, value in terms.items()
            )
        if what == "engines":
            engine = specs.load_engine(name)
            way = "schedules ahead" if engine.lookahead else "schedules between steps"
            return f"{way}, host {engine.host.base_s * 1e3:.2f} ms per step"
        model = specs.load_model(name)
        total, active = model.total_parameters / 1e9, model.active_parameters / 1e9
        return f"{total:.1f}B parameters" + (f", {active:.1f}B active" if active < total else "")
    except InputError as error:
        return f"cannot be read: {error.faults[0]}"


def _told(path: Path) -> str:
    """Return a shipped scenario's own description."""
    from llmsim.scenario.document import read_document

    try:
        return str(read_document(path).data.get("description", ""))
    except InputError:
        return f"cannot be read: llmsim check {path}"


def show_card(what: str, name: str, as_json: bool = False) -> None:
    """Print each number of a card with unit and source; sources once, by number.

    Parameters
    ----------
    what : str
        ``gpu``, ``link``, ``engine``, ``calibration`` or ``price``.
    name : str
        Name of the card, a path, or for prices a GPU's name.
    as_json : bool

    Raises
    ------
    CardError
        If there is no such card, or it is wrong.
    """
    from llmsim import specs

    if what == "price":
        rows = [row for offer in specs.offers_of(name) for row in offer.rows()]
    elif what == "gpu":
        rows = specs.load_gpu(name).rows()
    elif what == "calibration":
        rows = specs.load_calibration(name).rows()
    elif what == "engine":
        rows = specs.load_engine(name).rows()
    else:
        rows = specs.load_link(name).rows()
    if what == "price":
        _say_reach_of_prices()
    if as_json:
        print_json([{name: getattr(row, name) for name in _ROW} for row in rows])
        return
    sources = {source: n for n, source in enumerate(dict.fromkeys(r.source for r in rows), 1)}
    print_rows([_ROW] + [(r.field, _text(r.value), r.unit, f"[{sources[r.source]}]") for r in rows])
    typer.echo("\nsources")
    for source, number in sources.items():
        mark = f"[{number}]".ljust(5)
        told = textwrap.wrap(source, _WIDTH - len(mark), break_on_hyphens=False)
        for line in told or [""]:
            typer.echo((mark + line).rstrip())
            mark = " " * len(mark)


def _text(value: float | str) -> str:
    return (
        value
        if isinstance(value, str)
        else f"{value:.6g}"
        if isinstance(value, float)
        else str(value)
    )


def show_resolved(scenario: str, assignments: Sequence[str], as_json: bool = False) -> None:
    """Print a scenario with every default filled in.

    Raises
    ------
    ScenarioError
        With everything that is wrong with it.
    """
    from llmsim.scenario import Scenario, parse_assignments

    found = Scenario.load(scenario, parse_assignments(tuple(assignments)))
    if as_json:
        print_json(found.resolved())
        return
    typer.echo(found.resolved_yaml(), nl=False)


def engine_is_compiled() -> bool:
    """Return whether the engine of this llmsim is compiled; its results do not depend on it."""
    found = PathFinder.find_spec("replica", [f"{path}/serving" for path in llmsim.__path__])
    return str(found and found.origin).endswith(tuple(EXTENSION_SUFFIXES))


def print_version(as_json: bool) -> None:
    """Print the versions of llmsim and Python, and whether the engine is compiled."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version("llmsim")
    except PackageNotFoundError:
        own = "of a checkout that is not installed"
    engine = "compiled" if engine_is_compiled() else "pure Python"
    if as_json:
        print_json({"llmsim": own, "python": platform.python_version(), "engine": engine})
        return
    typer.echo(f"llmsim {own}, Python {platform.python_version()}, {engine} engine")
