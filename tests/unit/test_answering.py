"""The one way of answering in JSON: what goes in, what comes out, what is refused."""

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import pytest

from llmsim.cli.answering import plain, print_json, records


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True, slots=True)
class Inner:
    value: float
    where: Path


def test_everything_becomes_what_json_knows(capsys):
    print_json(
        {
            "inner": Inner(float("nan"), Path("a/b")),
            "colour": Colour.RED,
            1: np.float64(2.5),
            "counts": np.arange(3),
            "set": {3, 1},
            "infinite": [float("inf"), np.float32("-inf"), 0.0],
            ("never",): None,
            "yes": True,
        }
    )
    out, err = capsys.readouterr()
    told = json.loads(out, parse_constant=pytest.fail)
    assert err == ""
    assert told == {
        "inner": {"value": None, "where": "a/b"},
        "colour": "red",
        "1": 2.5,
        "counts": [0, 1, 2],
        "set": [1, 3],
        "infinite": [None, None, 0.0],
        "['never']": None,
        "yes": True,
    }


def test_what_has_no_json_is_refused():
    with pytest.raises(TypeError, match="no JSON for object"):
        plain({"a": [object()]})
    with pytest.raises(TypeError, match="no JSON for type"):
        plain(Inner)
    with pytest.raises(TypeError, match="no JSON for bytes"):
        plain(b"raw")


def test_rows_under_a_head():
    assert records(("a", "b"), [(1, 2), (3, 4)]) == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]
    with pytest.raises(ValueError, match="shorter"):
        records(("a", "b"), [(1,)])
