"""Every notebook runs from top to bottom, cell by cell; a kernel is not needed for that."""

import json

import pytest
from blocks import CHECKOUT

NOTEBOOKS = sorted((CHECKOUT / "notebooks").glob("*.ipynb"))


def run_cells(path):
    """Return the names that a notebook leaves behind."""
    names = {"__name__": "__main__"}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{path.name}:{cell['id']}", "exec"), names)
    return names


def test_notebooks_keep_no_outputs():
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert all(not cell.get("outputs") for cell in cells), path.name


@pytest.mark.slow
def test_disaggregation_wins_where_the_pace_is_tight_alone():
    names = run_cells(CHECKOUT / "notebooks" / "disaggregation.ipynb")
    table = names["table"].set_index(["mix", "tpot_ms"])
    assert (table[["mixed", "chunked", "pd"]] >= 0).all(axis=None)
    tight, loose = (table.loc["long prompts"].iloc[at] for at in (0, -1))
    assert tight["pd"] > tight["mixed"]
    assert loose["pd"] < max(loose["mixed"], loose["chunked"])
