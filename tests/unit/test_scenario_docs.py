"""docs/scenario.md is what the schema says, and says it for every key."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from llmsim.scenario import Scenario
from llmsim.scenario.component import SEAMS, parameters_of, registry
from llmsim.scenario.docs import scenario_page
from llmsim.scenario.faults import all_keys
from llmsim.scenario.meanings import Meaning, meanings, split_unit

PAGE = Path(__file__).parents[2] / "docs" / "scenario.md"


@pytest.fixture(scope="module")
def page():
    return scenario_page()


def test_the_page_is_current(page):
    current = PAGE.read_text(encoding="utf-8") == page
    assert current, "run: python -m llmsim.scenario.docs docs/scenario.md"


def test_every_key_has_a_row_with_a_meaning(page):
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", page, re.MULTILINE))
    for path in all_keys(Scenario):
        key = path.rsplit(".", 1)[-1]
        assert rows[key].strip(), path


def test_every_kind_and_parameter_is_on_the_page(page):
    for seam in SEAMS:
        assert f"### {seam}\n" in page
        for kind in registry(seam).names():
            assert f"**`{kind}`**: " in page
            for key in parameters_of(registry(seam).get(kind)).model_fields:
                assert f"| `{key}` |" in page


def test_keys_with_a_dimension_name_their_unit(page):
    suffixes = {"_s": "s", "_tokens": "tokens", "_usd_per_hour": "USD/h"}
    for key, unit in re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \|", page, re.MULTILINE):
        for suffix, expected in suffixes.items():
            if key.endswith(suffix) and not key.endswith("_per_s"):
                assert unit.strip() == expected, key


@dataclass
class Parent:
    """Something.

    Parameters
    ----------
    first, second : float [s]
        How long
        it takes.
    third : int
    """

    first: float = 1.0
    second: float = 1.0
    third: int = 1


@dataclass
class Child(Parent):
    """Something else."""

    fourth: int = 1
    """Some of them [tokens]."""


def test_both_styles_of_documentation_are_read():
    found = meanings(Child)
    assert found["first"] == found["second"] == Meaning("s", "How long it takes.")
    assert found["third"] == Meaning("", "")
    assert found["fourth"] == Meaning("tokens", "Some of them.")
    assert split_unit("[s] Age.") == Meaning("s", "Age.")
