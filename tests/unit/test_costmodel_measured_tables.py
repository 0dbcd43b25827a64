"""The method on public kernel tables (aiconfigurator, Apache-2.0, 095f58a51): few rows price many.

Rows are chosen by shape alone, as many as the minimal grid of a profile has; a fixed sample of the
others is priced. `tests/benchmarks/kernel_tables.py` prints every table, the worse ones too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmsim.costmodel.measured import Profile, load_profile
from llmsim.costmodel.measured.fitting import Errors, errors_of, part_of, spread_rows
from llmsim.costmodel.measured.means import UNIVERSAL, mean_s
from llmsim.costmodel.measured.tables import KernelTable
from llmsim.specs.importers import import_tables

TABLES = Path(__file__).resolve().parents[2].parent / "shared" / "kernels"
pytestmark = pytest.mark.skipif(not TABLES.is_dir(), reason="shared kernel tables are not here")
PRICED = 2500


@pytest.fixture(scope="module")
def h200(tmp_path_factory) -> Profile:
    place = tmp_path_factory.mktemp("tables")
    for name in ("gemm", "attention_decode", "attention_prefill", "moe"):
        file = f"{name}_h200-141g-sxm.csv.gz"
        (place / file).symlink_to(TABLES / file)
    (place / "comm.csv.gz").symlink_to(TABLES / "comm.csv.gz")
    return load_profile(import_tables("tidy", place, place / "out")[0])


def usual(table: KernelTable) -> KernelTable:
    columns = table.columns
    if "head_dim" not in columns:
        return table
    return part_of(table, (columns["head_dim"] == 128) & (columns["window"] == 0))


def priced(table: KernelTable, chosen: np.ndarray) -> tuple[Errors, Errors]:
    """Return the errors of the measured price and of the universal roofline, rows unseen."""
    rest = part_of(table, ~chosen)
    if len(rest) > PRICED:
        sample = np.random.default_rng(0).choice(len(rest), PRICED, replace=False)
        rest = part_of(rest, np.isin(np.arange(len(rest)), sample))
    work = rest.family.work(rest.columns, rest.types, rest.device)
    found = part_of(table, chosen).price(rest.columns)
    return (
        errors_of(found.seconds, rest.measured_s),
        errors_of(mean_s(work, UNIVERSAL), rest.measured_s),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("op", "rows"), [("gemm", 108), ("attention_decode", 86), ("attention_prefill", 55)]
)
def test_unseen_shapes(h200, op, rows):
    """Bars of the method: median 6%, 90th percentile 18%."""
    table = usual(h200.tables(op)[0] if op != "gemm" else bf16(h200))
    errors, universal = priced(table, spread_rows(table, rows))
    assert errors.rows == PRICED
    assert errors.median <= 0.06
    assert errors.p90 <= 0.18
    assert errors.median < universal.median


def bf16(profile: Profile) -> KernelTable:
    return next(table for table in profile.tables("gemm") if table.types.w == "bf16")


@pytest.mark.slow
def test_experts_at_measured_shapes(h200):
    """Seven token counts per shape price the others: 6%."""
    table = h200.tables("moe")[0]
    names = table.family.shape
    stacked = np.column_stack([table.columns[name] for name in names])
    _, group = np.unique(stacked, axis=0, return_inverse=True)
    chosen = np.zeros(len(table), dtype=bool)
    for index in range(group.max() + 1):
        rows = np.flatnonzero(group == index)
        rows = rows[np.argsort(table.columns["tokens"][rows])]
        chosen[rows[np.round(np.linspace(0, len(rows) - 1, 7)).astype(int)]] = True
    assert priced(table, chosen)[0].median <= 0.06


@pytest.mark.parametrize("op", ["all_reduce", "all_gather", "reduce_scatter", "all_to_all"])
@pytest.mark.slow
def test_collectives_between_measured_sizes(h200, op):
    """Sizes four-fold apart price those between: 10%."""
    for table in h200.tables(op):
        sizes = table.columns["message_bytes"]
        exponent = np.log(sizes / sizes.min()) / np.log(4.0)
        chosen = np.abs(exponent - np.round(exponent)) < 0.1
        assert (~chosen).sum() > 20
        assert priced(table, chosen)[0].median <= 0.10
