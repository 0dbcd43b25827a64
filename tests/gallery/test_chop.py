"""Whatever published system is deleted, nobody else notices."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import llmsim
from llmsim.gallery.reading import exhibits, read_exhibit
from llmsim.systems import SYSTEMS

CARDS = {name: read_exhibit(folder, prove=False).card for name, folder in exhibits().items()}

LOOK = """
import sys
from llmsim.gallery.reading import read_exhibit, exhibits
from llmsim.scenario.component import SEAMS, kinds_schema
from llmsim.systems import SYSTEMS
gone, cards = sys.argv[1], sys.argv[2:]
assert gone not in SYSTEMS
for seam in SEAMS:
    kinds_schema(seam)
folders = exhibits()
for name in cards:
    read_exhibit(folders[name])
print("looked")
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chopped")
    ignored = shutil.ignore_patterns("_data", "__pycache__")
    shutil.copytree(Path(llmsim.__file__).parent, folder / "llmsim", ignore=ignored)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_can_be_deleted(system, copy, tmp_path):
    """Every seam still lists, and every card that does not name it is still right."""
    module = copy / "llmsim" / "systems" / f"{system}.py"
    beside = tmp_path / module.name
    others = [name for name, card in CARDS.items() if system not in card.modules]
    roots = [str(folder.parents[2]) for folder in exhibits().values()][:1]
    shutil.move(module, beside)
    try:
        told = subprocess.run(
            [sys.executable, "-c", LOOK, system, *others],
            cwd=copy,
            env={"PYTHONPATH": str(copy), "LLMSIM_PATH": ":".join(roots)},
            capture_output=True,
            text=True,
        )
    finally:
        shutil.move(beside, module)
    assert told.stdout == "looked\n", told.stderr


@pytest.mark.parametrize("name", sorted(CARDS))
def test_a_card_names_modules_that_are_there(name):
    assert set(CARDS[name].modules) <= set(SYSTEMS)


@pytest.mark.parametrize("name", sorted(CARDS))
def test_a_card_stands_alone(name):
    """Its scenarios lie beside it or are shipped ones, none in another card's folder."""
    folder = exhibits()[name]
    for path in folder.glob("*.yaml"):
        assert "../" not in path.read_text(encoding="utf-8"), path
