"""The scenario file: what is simulated, in one frozen value.

Start with `model` (every key of the file, with unit and default), then `component` (how
``kind:`` and its parameters become a policy), `document` (YAML with line numbers) and `loader`
(``extends``, overrides and all faults at once). `traffic` makes the workload, `costs` the step
prices, `docs` the reference page.
"""

from llmsim.scenario.component import Component
from llmsim.scenario.engine import Engine
from llmsim.scenario.fleet import Fleet, Pool
from llmsim.scenario.loader import find_scenario, load_scenario, parse_assignments
from llmsim.scenario.model import Abort, Scenario, Traffic
from llmsim.scenario.promises import Slo
from llmsim.scenario.schema import schema
from llmsim.scenario.traffic import build_workload

__all__ = [
    "Abort",
    "Component",
    "Engine",
    "Fleet",
    "Pool",
    "Scenario",
    "Slo",
    "Traffic",
    "build_workload",
    "find_scenario",
    "load_scenario",
    "parse_assignments",
    "schema",
]
