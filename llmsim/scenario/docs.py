"""docs/scenario.md, made from the schema, so that it cannot say anything else."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from llmsim.scenario.component import SEAMS, parameters_of, registry
from llmsim.scenario.document import dump_yaml
from llmsim.scenario.meanings import Meaning, first_line, meanings, split_unit
from llmsim.scenario.model import Scenario
from llmsim.scenario.schema import schema

HEAD: Final = """\
# Scenario files

*This page is made from the schema by `llmsim.scenario.docs`; edit the docstrings there.*

A scenario is one YAML file: a model, its traffic, the fleet that serves it, and what it promises.
`llmsim check FILE` says whether it is right, and everything that is wrong with it, with its line.
`llmsim show scenario FILE` prints it with every default filled in. Units stand in the names of
the keys; everything is in SI base units.

**Components.** Whatever has several kinds is written `kind:` with its parameters beside it:
`routing: {kind: prefix-affinity, max_imbalance: 8}`. A bare name, `routing: round-robin`, takes
all defaults.

**Building on another file.** `extends:` names one parent: a file, relative to this one, or a
shipped scenario. The file then says only what differs: mappings are merged key by key, a mapping
with a `kind` replaces the component whole, and `null` takes back what the parent said. Parents may
extend others. `name` and `description` are never inherited.

**Changing a value from outside.** `--set fleet.pools.main.replicas=4` (or
`Scenario.load(file, {"fleet.pools.main.replicas": 4})`) comes on top, by the same rules.

**File names** start from the folder of the file that mentions them, those in `--set` from the
current folder. A trace named without a folder may also be one that llmsim ships.

**The YAML that is read**: UTF-8; numbers as in YAML 1.2, so that `1e3` is a thousand and `010` is
ten; only `true` and `false` are booleans. Keys that stand twice, merge keys (`<<`), tags and
several documents in one file are faults.
"""

TITLES: Final = {
    "Scenario": "Top level",
    "Slo": "slo",
    "SloClass": "slo.classes.*name*",
    "Traffic": "traffic",
    "Abort": "traffic.abort",
    "Images": "traffic.images",
    "Engine": "engine, and fleet.pools.*name*.engine",
    "Fleet": "fleet",
    "Handoff": "fleet.handoff",
    "Gateway": "fleet.gateway",
    "Boot": "fleet.boot",
    "Flip": "fleet.flip",
    "Migration": "fleet.migration",
    "Pool": "fleet.pools.*name*",
    "Stop": "Stopping steps: `fleet.pools.*.stop`",
    "Estimators": "estimators",
    "Record": "record",
    "Kv": "KV below the GPUs: `fleet.pools.*.kv`",
    "KvSwap": "Swapping: `fleet.pools.*.kv.swap`",
    "SegmentReuse": "Segments that match anywhere: `fleet.pools.*.segments`",
    "KvTier": "Tiers: `fleet.pools.*.kv.tiers`",
}
"""Headings of the sections, in order of appearance."""


def scenario_page() -> str:
    """Return the text of docs/scenario.md."""
    whole = schema()
    sections = {"Scenario": whole, **whole["$defs"]}
    parts = [HEAD]
    for name, title in TITLES.items():
        section = sections[name]
        parts.append(f"## {title}\n\n{section['description']}\n")
        parts.append(_table(_section_rows(section, whole["$defs"])))
    parts.append("## Kinds\n")
    parts += [part for seam in SEAMS for part in _seam(seam)]
    return "\n".join(parts)


def _seam(seam: str) -> Iterator[str]:
    where = [f"`{path}`" for path in _places(seam)]
    yield f"### {seam}\n\nIn {' and '.join(where)}.\n"
    found = registry(seam)
    for kind in found.names():
        cls = found.get(kind)
        yield f"**`{kind}`**: {first_line(cls)}\n"
        told = meanings(cls)
        shape = parameters_of(cls).model_json_schema()
        required = shape.get("required", [])
        definitions = shape.get("$defs", {})
        rows = [
            _row(key, item, key in required, told.get(key, Meaning("", "")), definitions)
            for key, item in shape.get("properties", {}).items()
        ]
        if rows:
            yield _table(rows)


def _places(seam: str) -> list[str]:
    from llmsim.scenario.faults import all_keys

    found = [path for path in all_keys(Scenario) if path.rsplit(".", 1)[-1] == seam]
    return [path.replace("<pool>", "*name*") for path in found]


def _section_rows(section: Mapping[str, Any], definitions: Mapping[str, Any]) -> list[list[str]]:
    required = section.get("required", [])
    return [
        _row(key, item, key in required, split_unit(item.get("description", "")), definitions)
        for key, item in section["properties"].items()
    ]


def _row(
    key: str,
    item: Mapping[str, Any],
    required: bool,
    told: Meaning,
    definitions: Mapping[str, Any],
) -> list[str]:
    default = "*required*" if required else _default(item.get("default"))
    return [f"`{key}`", _value(item, definitions), told.unit, default, told.text]


def _default(value: Any) -> str:
    """Return a default as YAML; a section's own defaults stand in its own table."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return f"`{value['kind']}`" if "kind" in value else ""
    if isinstance(value, list):
        return f"{len(value)} values" if value else ""
    return f"`{dump_yaml([value])[2:].strip()}`" if value != "" else ""


def _value(item: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Say in words what may stand behind a key."""
    if "anyOf" in item:
        options = [each for each in item["anyOf"] if each.get("type") != "null"]
        return " or ".join(_value(each, definitions) for each in options)
    if "oneOf" in item:
        return "component"
    if "$ref" in item:
        name = item["$ref"].rsplit("/", 1)[-1]
        return "section" if name in TITLES else _value(definitions[name], definitions)
    if "const" in item:
        return f"`{item['const']}`"
    if "enum" in item:
        return ", ".join(f"`{each}`" for each in item["enum"])
    kind = item.get("type", "value")
    if kind == "array":
        return f"list of {_value(item.get('items', {}), definitions)}"
    if kind == "object":
        return "mapping of names to sections" if "additionalProperties" in item else "mapping"
    words = {"string": "text", "boolean": "`true`, `false`"}
    return f"{words.get(kind, kind)}{_limits(item)}"


def _limits(item: Mapping[str, Any]) -> str:
    signs = {
        "exclusiveMinimum": "> ",
        "minimum": "≥ ",
        "exclusiveMaximum": "< ",
        "maximum": "≤ ",
    }
    found = [f"{sign}{_figure(item[word])}" for word, sign in signs.items() if word in item]
    return f" {', '.join(found)}" if found else ""


def _figure(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _table(rows: list[list[str]]) -> str:
    lines = ["| key | value | unit | default | meaning |", "|---|---|---|---|---|"]
    lines += [
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    # python -m llmsim.scenario.docs docs/scenario.md
    Path(sys.argv[1]).write_text(scenario_page(), encoding="utf-8")
