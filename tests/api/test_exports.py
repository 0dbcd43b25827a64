"""What `import llmsim` gives, and what it costs."""

import json
import subprocess
import sys

import pytest

import llmsim

EXPORTS = [
    "CardError",
    "InputError",
    "InvariantError",
    "LlmsimError",
    "ModelDoesNotFitError",
    "OutputError",
    "RegistryError",
    "Result",
    "Scenario",
    "ScenarioError",
    "TraceError",
    "calibrate",
    "card",
    "compare",
    "deploy",
    "from_command",
    "knee",
    "load",
    "names",
    "placement",
    "plan",
    "run",
    "step",
    "sweep",
    "trace",
    "validate",
]

IMPORTED = """
import json, sys
before = set(sys.modules)
{code}
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def imported_by(code):
    """Return the modules that a statement brings into a fresh process."""
    words = [sys.executable, "-c", IMPORTED.format(code=code)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_exported_names_are_pinned():
    assert llmsim.__all__ == EXPORTS
    assert len(EXPORTS) <= 26
    assert dir(llmsim) == EXPORTS


@pytest.mark.parametrize("name", EXPORTS)
def test_every_export_is_there_and_described(name):
    thing = getattr(llmsim, name)
    assert thing.__doc__
    assert getattr(thing, "__module__", thing.__name__).startswith("llmsim.")


def test_other_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="'llmsim' has no attribute 'simulate'"):
        llmsim.simulate  # noqa: B018


def test_every_error_is_an_llmsim_error():
    errors = [getattr(llmsim, name) for name in EXPORTS if name.endswith("Error")]
    assert all(issubclass(error, llmsim.LlmsimError) for error in errors)


def test_import_llmsim_loads_the_standard_library_alone():
    # Modules, not milliseconds: a count does not depend on the machine. 30 of them are 12 ms here.
    modules = imported_by("import llmsim")
    assert [name for name in modules if name.startswith("llmsim")] == ["llmsim"]
    strange = [name for name in modules if name.split(".")[0] not in sys.stdlib_module_names]
    assert strange == ["llmsim"]
    assert len(modules) <= 60


def test_help_loads_nothing_that_only_a_command_needs():
    call = "import contextlib, io; from llmsim.cli.app import app"
    call += "\nwith contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):"
    modules = imported_by(call + "\n    app(['--help'])")
    heavy = {"rich", "numpy", "yaml", "pydantic", "pandas", "pyarrow", "simpy", "matplotlib"}
    assert heavy.isdisjoint(name.split(".")[0] for name in modules)
    assert "importlib.metadata" not in modules
    assert len(modules) <= 160


@pytest.mark.slow
def test_run_is_ready_without_tables_plots_and_solvers():
    heavy = {
        "torch",
        "triton",
        "matplotlib",
        "pulp",
        "pandas",
        "pyarrow",
        "scipy",
        "jinja2",
        "rich",
    }
    modules = imported_by("import llmsim; llmsim.run")
    assert "llmsim.serving.simulate" in modules
    assert heavy.isdisjoint(name.split(".")[0] for name in modules)
