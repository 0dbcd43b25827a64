"""JSON schemas of the files that people write, for completion in editors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from llmsim.core.errors import Fault, InputError, nearest

KINDS: Final = ("scenario", "plan", "sweep")
DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def schema_of(kind: str) -> dict[str, Any]:
    """Return the JSON schema of a sort of file, as an editor wants it.

    Parameters
    ----------
    kind : str
        ``scenario``, ``plan`` or ``sweep``.

    Returns
    -------
    dict
        JSON Schema, draft 2020-12, with every key's meaning, unit and default, and every kind
        that is registered here, also by packages of yours.

    Raises
    ------
    InputError
        If there is no such sort of file.

    Notes
    -----
    A scenario that extends another need not repeat what that says, at any depth, so that required
    keys are left out but at the top of a file that extends nothing. `llmsim check` knows better.
    """
    if kind not in KINDS:
        fault = Fault("", "kind", f"no schema of a '{kind}'.", nearest(kind, KINDS))
        raise InputError("llmsim schema", [fault])
    made = {"scenario": _scenario, "plan": _plan, "sweep": _sweep}[kind]()
    return {"$schema": DIALECT, "title": f"llmsim {kind}", **made}


def _scenario() -> dict[str, Any]:
    from llmsim.scenario.schema import schema

    made = schema()
    required = made.pop("required")
    made["$defs"] = {name: _lenient(part) for name, part in made["$defs"].items()}
    made["if"] = {"not": {"required": ["extends"]}}
    made["then"] = {"required": required}
    return made


def _plan() -> dict[str, Any]:
    from llmsim.planner.keys import PlanFile
    from llmsim.planner.reading import MODELS
    from llmsim.planner.several_reading import OF_ALL_MODELS

    made = PlanFile.model_json_schema()
    properties = made["properties"]
    own = [key for key in properties if key not in OF_ALL_MODELS]
    needed = [key for key in made.pop("required") if key != "name"]
    section = {
        "type": "object",
        "properties": {key: properties[key] for key in own},
        "additionalProperties": False,
    }
    properties[MODELS] = {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": section,
        "description": "Several models from one inventory, each by a name of yours: what a plan "
        "says, where it differs from what stands beside this key.",
    }
    shared = [key for key in needed if key not in own]
    made["if"] = {"required": [MODELS]}
    return made | {"then": {"required": shared}, "else": {"required": needed}}


def _sweep() -> dict[str, Any]:
    scenario = _scenario()
    definitions = scenario.pop("$defs")
    scenario.pop("title", None)
    texts: dict[str, Any] = {
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]
    }
    properties: dict[str, Any] = {
        "scenario": {
            "anyOf": [{"type": "string"}, scenario],
            "description": "A shipped name, a file, or a scenario written out here.",
        },
        "set": {
            "type": "object",
            "description": "Values of the scenario by dotted path, the same in every point.",
        },
        "over": {
            "type": "object",
            "description": "Dotted paths, each with a list of values or a range such as 1..8:5, "
            "1..8:sobol, 0.5..8:random:log.",
        },
        "samples": {"type": "integer", "minimum": 1, "description": "Draws of drawn ranges."},
        "seeds": {
            "anyOf": [
                {"type": "integer", "minimum": 1},
                {"type": "array", "items": {"type": "integer", "minimum": 0}},
            ],
            "description": "How many seeds, from 1 on, or which.",
        },
        "maximise": {**texts, "description": "Metrics that should be large."},
        "minimise": {**texts, "description": "Metrics that should be small."},
        "subject_to": {**texts, "description": "Conditions such as ttft_p99_s<=0.5."},
        "count_overloaded": {
            "type": "boolean",
            "default": False,
            "description": "Let a point be best whose fleet does not keep up.",
        },
    }
    return {
        "type": "object",
        "properties": properties,
        "required": ["scenario", "over"],
        "additionalProperties": False,
        "$defs": definitions,
    }


def _lenient(part: Any) -> Any:
    """Return a schema without required keys, but for the kind that tells components apart."""
    if isinstance(part, Mapping):
        kept = {key: _lenient(value) for key, value in part.items() if key != "required"}
        if "kind" in part.get("required", ()):
            kept["required"] = ["kind"]
        return kept
    return [_lenient(each) for each in part] if isinstance(part, list) else part
