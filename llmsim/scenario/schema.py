"""The scenario file as JSON schema, for editors and for other programs."""

from __future__ import annotations

from typing import Any

from llmsim.scenario.model import Scenario


def schema() -> dict[str, Any]:
    """Return the JSON schema of a scenario file, with every registered kind.

    Returns
    -------
    dict
        JSON Schema, draft 2020-12. It knows ``extends``; a file that extends another need not
        hold the required keys itself, which the schema cannot say.
    """
    made = Scenario.model_json_schema()
    made["properties"] = {
        "extends": {
            "type": "string",
            "description": "One scenario that this one changes: a file, or a shipped name.",
        },
        **made["properties"],
    }
    made["required"] = [key for key in made["required"] if key != "name"]
    return made
