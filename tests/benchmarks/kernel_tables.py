"""How well few measured rows price many: the method on public kernel tables, by hand.

    python tests/benchmarks/kernel_tables.py TABLES [--forest] [--only h200]

TABLES is a folder of tidy tables (``gemm_<gpu>.csv.gz``, ...) or a folder of profiles made by
``llmsim profile import``. Rows are chosen by shape alone (farthest point first, in the residual's
own coordinates), as many as a ten-minute profile measures; all other rows of the table are priced
and compared. Beside it stand four simpler ways to use the same rows: the bare roofline, one
universal smooth roofline, the nearest measured row, and a random forest on log latency.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmsim.costmodel.measured.families import coordinate
from llmsim.costmodel.measured.fitting import errors_of, part_of, spread_rows
from llmsim.costmodel.measured.means import UNIVERSAL, mean_s
from llmsim.costmodel.measured.profile import Profile, load_profile
from llmsim.costmodel.measured.residual import grid_step
from llmsim.costmodel.measured.tables import KernelTable
from llmsim.specs.importers import import_tables

ROWS = {"gemm": (108, 216), "attention_decode": (86,), "attention_prefill": (55,)}
"""Rows per kernel and format: those of the minimal profile grid; of GEMM twice as many, too."""
SAME_SHAPE_ROWS = 7
COMM_SIZE_STEP = 4.0
BARS = {
    "gemm": (0.06, 0.18),
    "attention_decode": (0.06, 0.18),
    "attention_prefill": (0.06, 0.18),
    "moe": (0.06, None),
    "comm": (0.10, None),
}
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")


def usual(table: KernelTable) -> np.ndarray:
    """Keep what the grid covers: full attention with heads of 128, every GEMM."""
    columns = table.columns
    if "head_dim" in columns:
        return (columns["head_dim"] == 128) & (columns["window"] == 0)
    return np.ones(len(table), dtype=bool)


@dataclass(frozen=True)
class Outcome:
    """Errors on the rows that were not chosen, by method."""

    name: str
    family: str
    fitted: int
    errors: dict[str, object]


def compare(
    name: str, family: str, table: KernelTable, chosen: np.ndarray, forest: bool
) -> Outcome:
    """Price what was not chosen from what was, in every way."""
    few, rest = part_of(table, chosen), part_of(table, ~chosen)
    times = rest.asked_s
    work = rest.family.work(rest.columns, rest.types, rest.device)
    errors = {
        "bare": errors_of(np.maximum(work.compute_s, work.memory_s), times),
        "universal": errors_of(mean_s(work, UNIVERSAL), times),
        "nearest": errors_of(nearest_row(few, rest), times),
    }
    if forest:
        errors["forest"] = errors_of(random_forest(few, rest), times)
    errors["fit"] = errors_of(mean_s(work, few.fit.terms), times)
    errors["measured"] = errors_of(few.price(rest.columns).seconds, times)
    return Outcome(name, family, len(few), errors)


def nearest_row(few: KernelTable, rest: KernelTable) -> np.ndarray:
    from scipy.spatial import cKDTree

    step = np.array([max(0.5, grid_step(column)) for column in few.coordinates.T])
    axes = few.family.axes
    asked = np.column_stack([coordinate(axis, rest.columns) for axis in axes])
    return few.measured_s[cKDTree(few.coordinates / step).query(asked / step)[1]]


def random_forest(few: KernelTable, rest: KernelTable) -> np.ndarray:
    """As Vidur does: trees on the shape, here on log latency, which is kinder to them."""
    from sklearn.ensemble import RandomForestRegressor

    axes = few.family.axes
    asked = np.column_stack([coordinate(axis, rest.columns) for axis in axes])
    model = RandomForestRegressor(200, random_state=0, n_jobs=1)
    model.fit(few.coordinates, np.log(few.measured_s))
    return np.exp(model.predict(asked))


def cross_shape(label: str, profile: Profile, forest: bool) -> Iterator[Outcome]:
    for op, counts in ROWS.items():
        for table in profile.tables(op):
            kept = part_of(table, usual(table))
            types = "/".join(dict.fromkeys((table.types.a, table.types.w, table.types.kv)))
            name = f"{label} {types} {table.kernel_id[:28]}"
            for count in counts:
                if len(kept) >= 20 * count:
                    yield compare(name, op, kept, spread_rows(kept, count), forest)


def same_shape(label: str, profile: Profile, forest: bool) -> Iterator[Outcome]:
    """Price experts at shapes of which seven token counts were measured."""
    for table in profile.tables("moe"):
        chosen = np.zeros(len(table), dtype=bool)
        names = table.family.shape
        stacked = np.column_stack([table.columns[name] for name in names])
        _, group = np.unique(stacked, axis=0, return_inverse=True)
        for index in range(group.max() + 1):
            rows = np.flatnonzero(group == index)
            rows = rows[np.argsort(table.columns["tokens"][rows])]
            places = np.linspace(0, len(rows) - 1, min(SAME_SHAPE_ROWS, len(rows)))
            chosen[rows[np.round(places).astype(int)]] = True
        if (~chosen).sum() >= 100:
            types = "/".join(dict.fromkeys((table.types.a, table.types.w)))
            yield compare(f"{label} {types} {table.kernel_id[:28]}", "moe", table, chosen, forest)


def collectives(label: str, profile: Profile, forest: bool) -> Iterator[Outcome]:
    """Price message sizes between those a profile measures, four-fold apart."""
    for op in COLLECTIVES:
        for table in profile.tables(op):
            sizes = table.columns["message_bytes"]
            exponent = np.log(sizes / sizes.min()) / np.log(COMM_SIZE_STEP)
            chosen = np.abs(exponent - np.round(exponent)) < 0.1
            if (~chosen).sum() >= 10 and chosen.sum() >= 10:
                name = f"{label} {op} {table.kernel_id[:24]}"
                yield compare(name, "comm", table, chosen, False)


def outcomes(label: str, profile: Profile, forest: bool) -> Iterator[Outcome]:
    yield from cross_shape(label, profile, forest)
    yield from same_shape(label, profile, forest)
    yield from collectives(label, profile, forest)


def line(outcome: Outcome, methods: list[str]) -> str:
    bar = BARS[outcome.family]
    found = outcome.errors["measured"]
    right = found.median <= bar[0] and (bar[1] is None or found.p90 <= bar[1])
    cells = [
        f"{100 * outcome.errors[m].median:6.1f}{100 * outcome.errors[m].p90:7.1f}"
        if m in outcome.errors
        else " " * 13
        for m in methods
    ]
    head = f"{outcome.family:<18}{outcome.name:<74}{outcome.fitted:>6}{found.rows:>7}"
    return head + " ".join(cells) + ("  in" if right else "  out")


def profiles_of(tables: Path) -> list[Path]:
    made = sorted(path.parent for path in tables.glob("*/*/meta.json"))
    if made:
        return made
    return import_tables("tidy", tables, Path(tempfile.mkdtemp(prefix="kernel-tables-")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", type=Path)
    parser.add_argument("--only", default="", help="profiles whose path contains this")
    parser.add_argument("--forest", action="store_true", help="with scikit-learn installed")
    options = parser.parse_args()
    methods = ["bare", "universal", "nearest", "forest", "fit", "measured"]
    print(f"{'family':<18}{'table':<74}{'rows':>6}{'priced':>7}", end="")
    print(" ".join(f"{method:>13}" for method in methods), " bar")
    for folder in profiles_of(options.tables):
        label = "/".join(folder.parts[-2:])
        if options.only not in label:
            continue
        for outcome in outcomes(label, load_profile(folder), options.forest):
            print(line(outcome, methods), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
