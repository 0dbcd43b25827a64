"""What holds without the extra: the catalogue is readable, and the kernels keep to their rules."""

import ast
import subprocess
import sys
from pathlib import Path

import llmsim_kernels
import pytest
from llmsim_kernels.catalog import KERNELS

PACKAGE = Path(llmsim_kernels.__file__).parent
OPS = sorted((PACKAGE / "ops").glob("*.py"))


def test_the_catalogue_needs_neither_torch_nor_triton():
    code = (
        "import sys, llmsim_kernels.catalog, llmsim.cli; "
        "sys.exit(bool({'torch', 'triton'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_llmsim_does_not_load_the_kernels():
    code = "import sys, llmsim, llmsim.cli; sys.exit('llmsim_kernels' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_kernel_id_is_in_the_catalogue():
    found = set()
    for path in OPS:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and node.targets[0].id.endswith("_ID"):
                found.add(node.value.value)
    assert found == {kernel.id for kernel in KERNELS}


@pytest.mark.parametrize("path", OPS, ids=lambda path: path.name)
def test_a_kernel_file_is_short_and_tunes_nothing(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 250
    assert "autotune" not in text  # needs a driver, and makes timings depend on luck
