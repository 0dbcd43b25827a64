"""The scenario file: what is simulated, in one frozen value.

Start with `model` (every key of the file, with unit and default), then `component` (how
``kind:`` and its parameters become a policy), `document` (YAML with line numbers) and `loader`
(``extends``, overrides and all faults at once). `docs` makes the reference page.
"""

from llmsim.scenario.component import Component
from llmsim.scenario.loader import find_scenario, load_scenario, parse_assignments
from llmsim.scenario.model import (
    Abort,
    Engine,
    Fleet,
    Pool,
    Record,
    Scenario,
    Slo,
    Traffic,
)
from llmsim.scenario.schema import schema

__all__ = [
    "Abort",
    "Component",
    "Engine",
    "Fleet",
    "Pool",
    "Record",
    "Scenario",
    "Slo",
    "Traffic",
    "find_scenario",
    "load_scenario",
    "parse_assignments",
    "schema",
]
