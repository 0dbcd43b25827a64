"""Rows of experts that were dealt tokens in turn, asked for as experts that draw them."""

from __future__ import annotations

import numpy as np
import pytest
from measured_profiles import DEVICE

from llmsim.costmodel.measured import Types
from llmsim.costmodel.measured.families import FAMILIES, dealt_moe, dealt_without_skew
from llmsim.costmodel.measured.means import MeanTerms, mean_s
from llmsim.costmodel.measured.tables import KernelTable

TERMS = MeanTerms(4e-5, 0.5, 0.8, 2.0, 1e-6, 30.0, 2e-13)
TOKENS = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 512.0, 2048.0])


def shapes(tokens: np.ndarray) -> dict[str, np.ndarray]:
    fixed = {"hidden": 2880.0, "inter": 1440.0, "topk": 4.0, "experts": 128.0, "skew": 0.0}
    fixed["experts_local"] = 128.0
    return {"tokens": tokens, **{name: np.full_like(tokens, x) for name, x in fixed.items()}}


def table() -> KernelTable:
    columns = shapes(TOKENS)
    dealt_s = mean_s(dealt_moe(columns, Types(), DEVICE), TERMS)
    return KernelTable(
        FAMILIES["moe"], Types(), "k", "lib", columns, dealt_s, DEVICE, dealt_without_skew
    )


def test_drawn_experts_cost_what_those_that_are_hit_cost() -> None:
    asked = shapes(np.array([16.0, 32.0, 64.0, 2048.0]))
    drawn_s = mean_s(FAMILIES["moe"].work(asked, Types(), DEVICE), TERMS)
    assert table().price(asked).seconds == pytest.approx(drawn_s, rel=0.02)


def test_dealt_rows_are_dearer_where_chance_leaves_experts_out() -> None:
    rows = table()
    one, many = TOKENS.tolist().index(32.0), TOKENS.tolist().index(2048.0)
    # 32 tokens of 4 experts: dealt they reach 128, drawn 82; 2,048 reach all of them either way.
    assert rows.asked_s[one] < 0.75 * rows.measured_s[one]
    assert rows.asked_s[many] == pytest.approx(rows.measured_s[many], rel=1e-6)
