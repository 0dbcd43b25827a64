"""A whole profile as tables, and the tiers that answer a query from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import astuple, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmsim.core.errors import CardError, Fault, InputError, nearest
from llmsim.core.paths import data_roots
from llmsim.costmodel.measured.answers import Answer, Memory, identity_of
from llmsim.costmodel.measured.choice import (
    fastest_kernel,
    in_reach,
    nearest_kernel,
    offered,
    scales_to,
    unlike,
    words_of,
)
from llmsim.costmodel.measured.families import (
    FAMILIES,
    Device,
    Family,
    Shapes,
    Types,
    dealt_without_skew,
    device_of,
)
from llmsim.costmodel.measured.means import Fit, Floats, MeanTerms, Work, mean_s
from llmsim.costmodel.measured.tables import (
    DTYPE_SIGMA,
    EXACT_SIGMA,
    KERNEL_SIGMA,
    NO_PROFILE_SIGMA,
    OTHER_SIGMA,
    ROOFLINE,
    SOURCES,
    TRANSFERRED,
    Context,
    KernelTable,
    Latencies,
    Latency,
)
from llmsim.costmodel.measured.usage import Usage
from llmsim.specs import GpuCard
from llmsim.specs.profile_meta import ProfileMeta, read_meta
from llmsim.specs.profile_rows import ABSENT, BY_NAME, OPS, ProfileTable, find_rows, read_rows

_DEFAULTS: Mapping[str, float] = {"window": 0.0, "skew": 0.0, "nodes": 1.0, "kv_len": 0.0}
_OPTIONAL: Mapping[str, tuple[str, ...]] = {
    "attention_decode": ("window",),
    "attention_prefill": ("window",),
    "moe": ("skew",),
    **dict.fromkeys(("all_reduce", "all_gather", "reduce_scatter", "all_to_all"), ("nodes",)),
}
_MAD_OF_NORMAL = 1.4826
LEAST_SIGMA = 0.005
"""No row is repeated more exactly than this from day to day: clocks alone drift as much."""
P90_OF_NORMAL = 1.645
"""The absolute error that a tenth exceeds, in standard deviations."""
_LEAST_ROWS = 4  # fewer cannot say anything about a mean function


_LABELS = ("kernel_id", "libs", "dtype_a", "dtype_w", "dtype_kv")


def columns_of(family: Family) -> tuple[str, ...]:
    """Return the columns that the tables of a family are made from."""
    return (*_LABELS, "graph", "t_median_us", "t_mad_us", *shape_names(family))


def shape_names(family: Family) -> tuple[str, ...]:
    """Return the columns that a query of this family gives."""
    return (*OPS[family.op], *_OPTIONAL.get(family.op, ()))


def filled(family: Family, shapes: Shapes) -> Shapes:
    """Return the shapes with optional columns filled in, all as equally long float arrays.

    Raises
    ------
    InputError
        If a column that the operator needs is not given.
    """
    names = shape_names(family)
    missing = [name for name in names if name not in shapes and name not in _DEFAULTS]
    if missing:
        faults = [Fault("", name, f"missing; {family.op} needs it.") for name in missing]
        raise InputError(f"latency of {family.op}", faults)
    given = [np.atleast_1d(np.asarray(shapes.get(n, _DEFAULTS.get(n)), dtype=float)) for n in names]
    return dict(zip(names, np.broadcast_arrays(*given), strict=True))


class Profile:
    """Kernel tables of one device.

    Parameters
    ----------
    name : str
    table : ProfileTable or callable that reads it
        Rows of split ``fit`` with a time are used; holdout rows never. A callable is called when
        a row is first needed.
    device : Device
    meta : ProfileMeta or None
    memory : Memory or None
        Answers of earlier runs; None to answer from the rows alone.
    """

    def __init__(
        self,
        name: str,
        table: ProfileTable | Callable[[], ProfileTable],
        device: Device,
        meta: ProfileMeta | None = None,
        memory: Memory | None = None,
    ) -> None:
        self.name = name
        self.device = device
        self.meta = meta
        self.usage = Usage(Counter(), Counter(), set())
        self._memory = memory
        self._table = table
        self._tables: dict[str, list[KernelTable]] = {}

    def fresh(self) -> Profile:
        """Return the same tables with nothing used yet."""
        twin = copy(self)
        twin.usage = Usage(Counter(), Counter(), set())
        return twin

    @cached_property
    def rows(self) -> ProfileTable:
        """All rows of the profile."""
        return self._table() if callable(self._table) else self._table

    @cached_property
    def _fit_rows(self) -> NDArray[np.bool_]:
        # batches with one long context tell what skew costs; they are no points of the even grid
        skewed = (self.rows["op"] == "attention_decode") & (self.rows["skew"] > 0)
        return np.asarray(self.rows.usable & (self.rows["split"] == "fit") & ~skewed)

    def tables(self, op: str) -> list[KernelTable]:
        """Return the tables of an operator, largest first; made when first asked for."""
        if op not in self._tables:
            family = FAMILIES[op]
            rows = self.rows.where(self._fit_rows & (self.rows["op"] == op), columns_of(family))
            found = list(_tables_of(family, rows, self.device, laid=self._laid(op)))
            self._tables[op] = sorted(found, key=lambda table: -len(table))
            for table in found:
                self._recall(table)
        return self._tables[op]

    def _laid(self, op: str) -> Callable[[Shapes, Types, Device], Work] | None:
        """Return how the rows of an operator were laid out, where not as a query's work is.

        Imported rows of experts without skew were dealt in turn; those that llmsim measured were
        drawn.
        """
        imported = self.meta is not None and self.meta.origin == "imported"
        return dealt_without_skew if imported and op == "moe" else None

    def _recall(self, table: KernelTable) -> None:
        """Take fit and certainty from meta, where they are those of as many rows."""
        stated = self.meta.fit.get(table.key) if self.meta is not None else None
        if not isinstance(stated, Mapping) or stated.get("rows") != len(table):
            return
        if stated.get("laid", "") != table.understood:
            return
        terms = MeanTerms(**stated["terms"])
        table.known_fit = Fit(terms, len(table), stated["fit"]["median"], stated["fit"]["p90"])
        if stated.get("holdout"):
            table.far_sigma = max(EXACT_SIGMA, stated["holdout"]["p90"] / P90_OF_NORMAL)

    def operators(self) -> tuple[str, ...]:
        """Return the operators that have tables."""
        return tuple(op for op in FAMILIES if self.tables(op))

    def holdout_tables(self) -> dict[str, KernelTable]:
        """Return the rows that the profile keeps from fits, by the key of their table."""
        kept = self.rows.usable & (self.rows["split"] == "holdout")
        if not kept.any():
            return {}
        found: dict[str, KernelTable] = {}
        for op, family in FAMILIES.items():
            rows = self.rows.where(kept & (self.rows["op"] == op), columns_of(family))
            tables = _tables_of(family, rows, self.device, 1, self._laid(op))
            found |= {table.key: table for table in tables}
        return found

    def latency(self, op: str, shape: Mapping[str, float], context: Context) -> Latency:
        """Price one operator at one shape.

        Parameters
        ----------
        op : str
            A key of `FAMILIES`.
        shape : mapping of str to number
            The columns of the operator.
        context : Context

        Raises
        ------
        InputError
            If the operator or a column is unknown, or nothing fits and the context is strict.
        """
        answer = self.latencies(op, {name: np.array([v]) for name, v in shape.items()}, context)
        return Latency(
            float(answer.seconds[0]), float(answer.sigma[0]), SOURCES[int(answer.source[0])]
        )

    def latencies(
        self, op: str, shapes: Shapes, context: Context, roofline: MeanTerms | None = None
    ) -> Latencies:
        """Price one operator at many shapes; see `latency`.

        Parameters
        ----------
        op : str
        shapes : mapping of str to ndarray (queries,)
        context : Context
        roofline : MeanTerms or None
            Last tier; None for the family's prior.
        """
        if op not in FAMILIES:
            fault = Fault("", op, "no operator of this name has a cost.", nearest(op, FAMILIES))
            raise InputError("latency", [fault])
        whole = filled(FAMILIES[op], shapes)

        def work_out() -> Answer:
            answer, note = self._answer(FAMILIES[op], whole, context, roofline)
            return Answer(
                np.stack([answer.seconds, answer.sigma, answer.source, answer.outside]), note
            )

        asked = (context, roofline, *(part for pair in whole.items() for part in pair))
        found = self.remembered(work_out, "latencies", op, *asked)
        seconds, sigma, source, outside = found.values
        answer = Latencies(seconds, sigma, source.astype(np.int64), outside)
        if found.note:
            self.usage.relaxed.add(found.note)
        self._note(op, answer)
        return answer

    def remembered(self, work_out: Callable[[], Answer], *question: object) -> Answer:
        """Return what an earlier run answered, or work it out and keep it.

        Parameters
        ----------
        work_out : callable
        *question : object
            All that the answer depends on, beside rows and device; see `Memory.path`.
        """
        if self._memory is None:
            return work_out()
        path = self._memory.path(*question)
        found = self._memory.recall(path)
        if found is None:
            found = work_out()
            self._memory.keep(path, found)
        return found

    def covers(self, op: str, context: Context) -> bool:
        """Say whether any rows answer for an operator, transferred ones included."""

        def work_out() -> Answer:
            return Answer(np.array([float(bool(self._ranked(op, context)[0]))]))

        return bool(self.remembered(work_out, "covers", op, context).values[0])

    def reaches(self, op: str, shape: Mapping[str, float], context: Context) -> bool:
        """Say whether rows that answer for an operator are like a shape; see `in_reach`."""

        def work_out() -> Answer:
            return Answer(np.array([float(in_reach(self._ranked(op, context)[0], shape))]))

        return bool(self.remembered(work_out, "reaches", op, shape, context).values[0])

    def terms(self, op: str, context: Context) -> MeanTerms:
        """Return the mean function that the rows of an operator gave; its prior without rows."""

        def work_out() -> Answer:
            tables = self._ranked(op, context)[0]
            terms = tables[0].fit.terms if tables else FAMILIES[op].start
            return Answer(np.array(astuple(terms)))

        return MeanTerms(*self.remembered(work_out, "terms", op, context).values.tolist())

    def kernel(self, op: str, context: Context) -> str:
        """Return the kernel whose rows answer for an operator; empty where none does."""
        tables = self._ranked(op, context)[0]
        return tables[0].kernel_id if tables else ""

    def _ranked(self, op: str, context: Context) -> tuple[list[KernelTable], float, str]:
        """Return the closest tables that exist, the sigma that they add, and what was relaxed."""
        tables, kernel_id = offered(self.tables(op), op, context)
        typed = [table for table in tables if table.types == context.types]
        of_libs = [t for t in typed if context.libs in ("", t.libs)]
        both = [t for t in of_libs if kernel_id in ("", t.kernel_id)]
        if both and FAMILIES[op].fastest:
            return both, 0.0, ""
        if both:
            libs = context.libs or both[0].libs
            return [table for table in both if table.libs == libs], 0.0, ""
        if context.strict:
            return [], 0.0, ""
        of_kernel = [t for t in typed if kernel_id in ("", t.kernel_id)]
        if of_kernel:
            used = of_kernel[0].libs
            note = f"{op}: rows of {used or 'unnamed libraries'}, not of {context.libs}"
            return [table for table in of_kernel if table.libs == used], 0.0, note
        if typed:
            other = (of_libs or typed)[0]
            note = f"{op}: kernel {other.kernel_id} in place of {kernel_id}"
            return [other], KERNEL_SIGMA, note
        if tables:
            asked = context.types
            near = min(tables, key=lambda table: unlike(table.types, asked))
            if not scales_to(near.types, asked):
                return [], 0.0, ""
            return (
                [near],
                DTYPE_SIGMA,
                f"{op}: {words_of(near.types)} rows scaled to {words_of(asked)}",
            )
        return [], 0.0, ""

    def _answer(
        self, family: Family, shapes: Shapes, context: Context, roofline: MeanTerms | None
    ) -> tuple[Latencies, str]:
        """Return the answer of the first tier that has one, and what was used in place of what."""
        tables, added, note = self._ranked(family.op, context)
        if not tables:
            if context.strict:
                self._refuse(family.op, context)
            return self._roofline(family, shapes, context.types, roofline), ""
        types = None if tables[0].types == context.types else context.types
        if len(tables) == 1:
            answer = tables[0].price(shapes, types)
        elif family.fastest:
            answer = fastest_kernel(tables, shapes)
        else:
            answer = nearest_kernel(tables, shapes)
        if note:
            moved = np.full(len(answer.source), SOURCES.index(TRANSFERRED))
            answer = replace(answer, sigma=answer.sigma + added, source=moved)
        return answer, note

    def _roofline(
        self, family: Family, shapes: Shapes, types: Types, terms: MeanTerms | None
    ) -> Latencies:
        work = family.work(shapes, types, self.device)
        seconds = mean_s(work, terms or family.start)
        count = len(seconds)
        sigma = np.full(count, NO_PROFILE_SIGMA.get(family.op, OTHER_SIGMA))
        source = np.full(count, SOURCES.index(ROOFLINE))
        return Latencies(seconds, sigma, source, np.zeros(count))

    def _refuse(self, op: str, context: Context) -> None:
        asked = ", ".join(
            part for part in (context.kernel_id, context.libs, words_of(context.types)) if part
        )
        have = sorted({f"{t.kernel_id} ({words_of(t.types)}; {t.libs})" for t in self.tables(op)})
        hint = f"It has: {'; '.join(have)}." if have else f"It has no rows of {op}."
        fault = Fault("", op, f"the profile has no rows for {asked}, and strict is set.", hint)
        raise InputError(f"profile '{self.name}'", [fault])

    def _note(self, op: str, answer: Latencies) -> None:
        for index, word in enumerate(SOURCES):
            self.usage.queries[word] += int((answer.source == index).sum())
        beyond = int((answer.outside > 1e-9).sum())
        if beyond:
            self.usage.outside[op] += beyond


def _tables_of(
    family: Family,
    rows: ProfileTable,
    device: Device,
    least: int = _LEAST_ROWS,
    laid: Callable[[Shapes, Types, Device], Work] | None = None,
) -> Iterator[KernelTable]:
    """Yield one table per kernel, library versions and formats."""
    if not len(rows):
        return
    keys = list(zip(*(rows[name].tolist() for name in _LABELS), strict=True))
    labels = sorted(set(keys), key="\x1f".join)
    code = {label: number for number, label in enumerate(labels)}
    codes = np.fromiter((code[key] for key in keys), np.int64, len(keys))
    for label in labels:
        part = rows.where(codes == code[label])
        if family.fastest:  # launching one by one is the host's price, not the kernel's
            part = part.where(part["graph"] != 0)
        if len(part) < least:
            continue
        kernel_id, libs, a, w, kv = label
        types = Types(a or "bf16", w or a or "bf16", kv or "bf16")
        shapes = {name: _floats(part, name) for name in shape_names(family)}
        table = KernelTable(
            family, types, kernel_id, libs, shapes, part["t_median_us"] * 1e-6, device, laid
        )
        table.near_sigma = _repeat_sigma(part)
        yield table


def _repeat_sigma(rows: ProfileTable) -> float:
    """Return how far a repeat lies from its row; the usual one where rows do not tell."""
    spread = _MAD_OF_NORMAL * rows["t_mad_us"] / rows["t_median_us"]
    known = spread[np.isfinite(spread) & (spread > 0)]
    return max(LEAST_SIGMA, float(np.median(known))) if len(known) else EXACT_SIGMA


def _floats(rows: ProfileTable, name: str) -> Floats:
    values = np.asarray(rows[name], dtype=float)
    absent = np.isnan(values) if BY_NAME[name].kind == "float" else values == ABSENT
    return np.where(absent, _DEFAULTS.get(name, 1.0), values)


def find_profile(name_or_path: str, near: Path | None = None) -> Path:
    """Return the folder of a profile.

    Parameters
    ----------
    name_or_path : str
        A folder, or ``<device>/<id>`` below a `profiles` folder that llmsim knows.
    near : Path or None
        Folder that a relative path starts from.

    Raises
    ------
    CardError
        If there is none.
    """
    places = [(near or Path()) / name_or_path, Path(name_or_path)]
    for place in places:
        if (place / "meta.json").is_file():
            return place
    known: dict[str, Path] = {}
    for root in data_roots():
        for path in sorted(root.glob("profiles/*/*/meta.json")):
            known.setdefault(f"{path.parts[-3]}/{path.parts[-2]}", path.parent)
    if name_or_path in known:
        return known[name_or_path]
    hint = nearest(name_or_path, known) or "A profile is a folder with meta.json and rows.csv."
    fault = Fault(str(places[0]), "", "no profile here.", hint)
    raise CardError(f"profile '{name_or_path}'", [fault])


def load_profile(folder: Path, card: GpuCard | None = None, *, failed_too: bool = False) -> Profile:
    """Read a profile folder.

    Parameters
    ----------
    folder : Path
    card : GpuCard or None
        The pool's, whose datasheet figures the mean functions then use.
    failed_too : bool
        Read a profile whose device drifted too far: to look at it, not to price with it.

    Raises
    ------
    CardError
        With every fault of the files.
    """
    meta = read_meta(folder)
    if meta.state == "failed" and not failed_too:
        message = f"is 'failed': ceilings drifted by {100 * meta.drift_frac:.0f}% while it ran."
        raise CardError("meta.json", [Fault(str(folder / "meta.json"), "state", message)])
    device = device_of(meta, card)
    rows = find_rows(folder)
    memory = Memory(identity_of((rows, folder / "meta.json"), device))
    return Profile(meta.profile_id, lambda: read_rows(rows), device, meta, memory)
