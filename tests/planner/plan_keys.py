"""The table of keys in docs/plan.md, from the schema; call it to write the page anew."""

from __future__ import annotations

import re
from pathlib import Path

from llmsim.planner.keys import PlanFile
from llmsim.scenario.meanings import split_unit

PAGE = Path(__file__).parents[2] / "docs" / "plan.md"
ELSEWHERE = {"traffic": "scenario.md#traffic", "slo": "scenario.md#slo", "engine": "scenario.md"}
ELSEWHERE |= {"handoff": "scenario.md#fleethandoff"}


def table() -> str:
    """Return a row per key, sections written out."""
    schema = PlanFile.model_json_schema()
    rows = ["| key | unit | default | meaning |", "|---|---|---|---|"]

    def walk(section: dict, prefix: str) -> None:
        for name, item in section["properties"].items():
            inner = _section(item, schema["$defs"]) if name not in ELSEWHERE else None
            told = split_unit(item.get("description", "") or (inner or {}).get("description", ""))
            default = item.get("default", "")
            shown = "" if isinstance(default, dict) else str(default).replace("None", "")
            text = told.text.replace("\n", " ")
            if name in ELSEWHERE:
                text = f"{text} See [{name}]({ELSEWHERE[name]})."
            required = name in section.get("required", ())
            shown = (
                "*required*" if required else f"`{shown}`" if shown not in ("", "()", "[]") else ""
            )
            rows.append(f"| `{prefix}{name}` | {told.unit} | {shown} | {text} |")
            if inner is not None:
                middle = ".*gpu*." if name == "gpus" else "[]." if name == "current" else "."
                walk(inner, f"{prefix}{name}{middle}")

    walk(schema, "")
    return "\n".join(rows)


def _section(item: dict, definitions: dict) -> dict | None:
    found = re.search(r"#/\$defs/(Offer|Configuration|Searched|Solving|Proving)'", str(item))
    return definitions[found.group(1)] if found else None


def page(text: str) -> str:
    """Return the page with its table made anew."""
    head, _, rest = text.partition("## Keys\n")
    return f"{head}## Keys\n\n{table()}\n\n## {rest.partition('## ')[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
