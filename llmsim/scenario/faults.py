"""From what pydantic found to what a user reads: place, path, value, nearest right word."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, get_args

from pydantic import BaseModel

from llmsim.core.errors import Fault, nearest
from llmsim.scenario.document import Keys, shown
from llmsim.scenario.layers import Layers

MOST_FAULTS = 200
"""Faults of one file: who has made more has not written a scenario."""


def faults_of(
    errors: Iterable[Mapping[str, Any]], layers: Layers, source: str, root: type[BaseModel]
) -> list[Fault]:
    """Return one fault per wrong key.

    Parameters
    ----------
    errors : iterable of mapping
        As `pydantic.ValidationError.errors` gives them.
    layers : Layers
        What was checked, and where it was written.
    source : str
        Name of the file, for faults that have no line.
    root : type
        The model that checked it.
    """
    found: dict[Keys, tuple[list[str], str]] = {}
    for error in _flat(errors):
        if _inherited(error, layers.data):
            continue
        keys = _keys(error, layers.data)
        if len(found) >= MOST_FAULTS:
            found[()] = ([f"more than {MOST_FAULTS} faults; the rest is not told"], "")
            break
        message, hint = _words(error, keys, root)
        messages, _ = found.setdefault(keys, ([], hint))
        if message not in messages:
            messages.append(message)
    return [
        Fault(layers.place(keys) or source, ".".join(keys), " or ".join(messages), hint)
        for keys, (messages, hint) in found.items()
    ]


def _flat(errors: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """Unpack the faults that a component or a cross-check carries."""
    for error in errors:
        context = error.get("ctx", {})
        if "errors" not in context:
            yield error
            continue
        for inner in context["errors"]:
            known = context.get("known", ())
            place = (*error["loc"], *inner["loc"])
            yield {"known": known, **inner, "loc": place, "found_at": error["loc"]}


def _keys(error: Mapping[str, Any], data: Any) -> Keys:
    """Return the path as the file has it, without pydantic's own marks."""
    path = [str(part) for part in error["loc"] if part != "[key]"]
    if _between(error) and len(path) > 4:
        own = data["fleet"]["pools"][path[2]].get("engine") or {}
        if path[4] not in own and path[4] in (data.get("engine") or {}):
            path = path[3:]  # said once, for all pools
    kept: list[str] = []
    for part in path:
        if isinstance(data, dict) and part in data:
            data = data[part]
        elif isinstance(data, list) and part.isdigit() and int(part) < len(data):
            data = data[int(part)]
        else:
            return (*kept, part) if error["type"] in ("missing", "cross") else tuple(kept)
        kept.append(part)
    return tuple(kept)


def _inherited(error: Mapping[str, Any], data: Any) -> bool:
    """Say whether this is a fault of the top-level engine, met again in a pool."""
    path = [str(part) for part in error["loc"]]
    if not _in_an_engine(path) or "engine" not in data or _between(error):
        return False
    own = data["fleet"]["pools"][path[2]].get("engine")
    if own is None:
        return True
    # Keys that clash may stand one here and one there: that is no repetition.
    inside = isinstance(own, dict) and len(path) > 4
    return error["type"] != "cross" and inside and path[4] not in own


def _between(error: Mapping[str, Any]) -> bool:
    """Say whether a pool's engine clashes with something outside of it."""
    return (
        "found_at" in error and _in_an_engine(error["loc"]) and not _in_an_engine(error["found_at"])
    )


def _in_an_engine(path: Sequence[str]) -> bool:
    return tuple(path[:2]) == ("fleet", "pools") and tuple(path[3:4]) == ("engine",)


def _words(error: Mapping[str, Any], keys: Keys, root: type[BaseModel]) -> tuple[str, str]:
    """Return the message and the hint of one error."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "missing":
        return "is missing", ""
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        known = error.get("known") or fields_at(root, keys[:-1])
        return "unknown key.", _where_it_belongs(keys, known, root)
    if kind == "literal_error":
        words = str(context["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        guess = _guess(error["input"], words)
        return f"{_got(error)}{'.' if guess else ''}", guess
    if kind.startswith("component") or kind == "cross":
        return str(context.get("problem", error["msg"])), str(context.get("hint", ""))
    return _got(error), ""


def _got(error: Mapping[str, Any]) -> str:
    return f"{error['msg']} (got {shown(error['input'])})"


def _guess(word: Any, known: Sequence[str]) -> str:
    hint = nearest(str(word), known)
    return hint[: hint.index(" Known:")] if hint.startswith("Did") else ""


def _where_it_belongs(keys: Keys, known: Sequence[str], root: type[BaseModel]) -> str:
    hint = nearest(keys[-1], known)
    elsewhere = [path for path in all_keys(root) if path.rsplit(".", 1)[-1] == keys[-1]]
    # The very word in another place is a better guess than another word in this one.
    if elsewhere and (len(elsewhere) <= 3 or not hint.startswith("Did")):
        return f"It belongs under {' or '.join(elsewhere)}."
    return hint


def fields_at(root: type[BaseModel], keys: Keys) -> tuple[str, ...]:
    """Return the keys that may stand below a path; empty where anything may.

    Parameters
    ----------
    root : type
        The scenario model.
    keys : tuple of str
        Path of a section.
    """
    here: Any = root
    for key in keys:
        if isinstance(here, type) and issubclass(here, BaseModel):
            here = _inner(here.model_fields[key].annotation) if key in here.model_fields else None
        elif isinstance(here, Mapping):
            here = here["value"]
    if isinstance(here, type) and issubclass(here, BaseModel):
        return tuple(here.model_fields)
    return ()


def _inner(annotation: Any) -> Any:
    """Return the section behind an annotation: itself, or a mapping of names to sections."""
    options = [annotation, *get_args(annotation)]
    for option in options:
        if isinstance(option, type) and issubclass(option, BaseModel):
            named = annotation is not option and getattr(annotation, "__origin__", None) is dict
            return {"value": option} if named else option
    return None


@lru_cache(maxsize=4)
def all_keys(root: type[BaseModel]) -> tuple[str, ...]:
    """Return the dotted path of every key of a scenario, with ``<pool>`` for a pool's name."""
    found: list[str] = []

    def walk(model: type[BaseModel], prefix: str) -> None:
        for name, item in model.model_fields.items():
            found.append(f"{prefix}{name}")
            inner = _inner(item.annotation)
            if isinstance(inner, dict):
                walk(inner["value"], f"{prefix}{name}.<pool>.")
            elif inner is not None:
                walk(inner, f"{prefix}{name}.")

    walk(root, "")
    return tuple(found)
