"""Say how a model, on given GPUs, with a given scheduler, will serve given traffic.

Typical use::

    import llmsim as ls

    result = ls.run("quickstart")
    result.requests       # one row per request
    result.summary()      # metric, value, unit, interval

Names are loaded when they are first used, so that ``import llmsim`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmsim.api import (
        calibrate,
        card,
        compare,
        deploy,
        from_command,
        knee,
        load,
        names,
        placement,
        plan,
        run,
        step,
        sweep,
        trace,
        validate,
    )
    from llmsim.core.errors import (
        CardError,
        InputError,
        InvariantError,
        LlmsimError,
        ModelDoesNotFitError,
        OutputError,
        RegistryError,
        ScenarioError,
        TraceError,
    )
    from llmsim.results.result import Result
    from llmsim.scenario import Scenario

_HOMES = {
    "CardError": "llmsim.core.errors",
    "InputError": "llmsim.core.errors",
    "InvariantError": "llmsim.core.errors",
    "LlmsimError": "llmsim.core.errors",
    "ModelDoesNotFitError": "llmsim.core.errors",
    "OutputError": "llmsim.core.errors",
    "RegistryError": "llmsim.core.errors",
    "Result": "llmsim.results.result",
    "Scenario": "llmsim.scenario",
    "ScenarioError": "llmsim.core.errors",
    "TraceError": "llmsim.core.errors",
    "calibrate": "llmsim.api",
    "card": "llmsim.api",
    "compare": "llmsim.api",
    "deploy": "llmsim.api",
    "from_command": "llmsim.api",
    "knee": "llmsim.api",
    "load": "llmsim.api",
    "names": "llmsim.api",
    "placement": "llmsim.api",
    "plan": "llmsim.api",
    "run": "llmsim.api",
    "step": "llmsim.api",
    "sweep": "llmsim.api",
    "trace": "llmsim.api",
    "validate": "llmsim.api",
}

__all__ = [
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


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'llmsim' has no attribute '{name}'")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
