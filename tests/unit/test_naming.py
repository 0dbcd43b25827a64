"""Names of sessions as numbers: what one is called says its number, in any company."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from llmsim.workload.csvrows import Text
from llmsim.workload.formats.naming import session_ids, session_number

NAMES = ["a", "", "17", "sess-ü", "²", "0" * 40, "9" * 19, str(2**63 - 1), str(2**63), "x" * 500]


def by_hand(text: str, numbered: bool) -> int:
    if not text:
        return -1
    if numbered and text.isdecimal() and len(text) < 20 and int(text) < 2**63:
        return int(text)
    return int(hashlib.blake2b(text.encode(), digest_size=8).hexdigest(), 16) // 2


@pytest.mark.parametrize("numbered", [True, False])
@pytest.mark.parametrize(
    "names", [NAMES, NAMES[::-1], ["a", "b"], ["", "b"], ["a", "3"], ["3", "a"], [""], ["3"], []]
)
def test_a_column_gives_each_name_its_number(names: list[str], numbered: bool) -> None:
    codes = np.array([*range(len(names)), *range(len(names))], dtype=np.int32)
    ids = session_ids(Text(codes, names), numbered)
    assert ids.dtype == np.int64
    assert ids.tolist() == [by_hand(name, numbered) for name in names] * 2
    if numbered:
        assert [session_number(name) for name in names] == [by_hand(name, True) for name in names]
