"""Model cards: a shipped name, or a path to any HuggingFace ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmsim.core.errors import CardError, Fault
from llmsim.core.files import parse_json
from llmsim.core.holding import held
from llmsim.core.paths import list_data
from llmsim.specs.cards import CardRow, Sheet, find_card, is_path, resolve_path
from llmsim.specs.huggingface import parse_config
from llmsim.specs.model import ModelSpec


def model_names() -> tuple[str, ...]:
    """Return the names of all model cards, sorted."""
    return tuple(sorted(list_data("profiles/models", ".yaml")))


@held
def load_model(name_or_path: str, near: Path | None = None) -> ModelSpec:
    """Read a model card.

    Parameters
    ----------
    name_or_path : str
        Card name such as ``llama-3.1-8b`` or an alias of it; or a path (it starts with ``./``,
        ``../`` or ``/``, or ends in ``.json`` or ``.yaml``) to a card, to a HuggingFace
        ``config.json``, or to the folder that holds one. ``hf_quant_config.json`` beside it is
        read too.
    near : Path or None
        Folder that a relative path starts from.

    Raises
    ------
    CardError
        With every fault of the file, or the nearest name when there is no card of this name.
    """
    if not is_path(name_or_path):
        return _from_card(find_card("profiles/models", name_or_path))
    path = resolve_path(name_or_path, near)
    return _from_json(path) if path.suffix == ".json" else _from_card(path)


def _from_card(path: Path) -> ModelSpec:
    sheet = Sheet(path)
    name = sheet.text("name", path.stem)
    source = sheet.text("source")
    sheet.words("aliases")
    for field in ("total_parameters", "active_parameters"):
        if sheet.has(f"published.{field}"):
            sheet.number(f"published.{field}", "1", 1)
    config = sheet.facts("config", source)
    if not config:
        sheet.fault("config", "missing: the keys of the model's config.json.")
    rows = sheet.finish()
    return parse_config(config, name, source, str(path), rows=rows)


def _from_json(path: Path) -> ModelSpec:
    config = _read_json(path)
    beside = path.with_name(path.name.removesuffix("config.json") + "hf_quant_config.json")
    extra = _read_json(beside) if beside.is_file() else None
    rows = tuple(
        CardRow(key, value if isinstance(value, int | float) else str(value), "", str(path))
        for key, value in {**config, **(config.get("text_config") or {})}.items()
        if isinstance(value, str | int | float)
    )
    return parse_config(config, str(path), str(path), str(path), extra, rows)


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CardError(path.name, [Fault(str(path), "", f"not JSON: {error}")]) from None
    if not isinstance(content, dict):
        raise CardError(path.name, [Fault(str(path), "", "a config is a JSON object.")])
    return content
