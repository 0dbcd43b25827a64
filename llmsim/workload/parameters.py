"""Checks the parameters that a class declares, for callers who bypass the scenario file."""

from __future__ import annotations

import dataclasses
import math
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import annotated_types as at

from llmsim.core.errors import Fault, InputError, nearest

_LIMITS: dict[type, tuple[str, str]] = {
    at.Gt: ("gt", "greater than"),
    at.Ge: ("ge", "at least"),
    at.Lt: ("lt", "less than"),
    at.Le: ("le", "at most"),
}
"""Limit marker -> (its attribute, how to say it)."""


def check_parameters(component: Any, label: str) -> None:
    """Check every field of a dataclass against its annotation.

    Parameters
    ----------
    component : dataclass instance
        A registered class whose fields are the YAML parameters.
    label : str
        What to call it in the error, such as ``arrivals 'gamma'``.

    Raises
    ------
    InputError
        With every field that has the wrong type or lies outside its limits.

    Notes
    -----
    A scenario file is checked by its schema already; this guards direct construction in Python,
    and its messages carry no line for that reason.
    """
    hints = get_type_hints(type(component), include_extras=True)
    faults = [
        Fault("", field.name, message)
        for field in dataclasses.fields(component)
        if (message := _complaint(hints[field.name], getattr(component, field.name)))
    ]
    if faults:
        raise InputError(label, faults)


def _complaint(hint: Any, value: Any) -> str:
    """Say what is wrong with a value, or return an empty string."""
    origin = get_origin(hint)
    if origin is Annotated:
        inner, *limits = get_args(hint)
        return _complaint(inner, value) or _beyond(limits, value)
    if origin in (Union, UnionType):
        messages = [_complaint(option, value) for option in get_args(hint)]
        return "" if "" in messages else messages[0]
    if origin is Literal:
        choices = get_args(hint)
        return "" if value in choices else f"got {value!r}. {nearest(str(value), choices)}"
    if origin is tuple:
        inner = get_args(hint)[0]
        if not isinstance(value, tuple | list):
            return f"expected a list, got {value!r}"
        return next((text for item in value if (text := _complaint(inner, item))), "")
    return "" if _is_a(hint, value) else f"expected {_name(hint)}, got {value!r}"


def _is_a(hint: Any, value: Any) -> bool:
    if hint in (None, NoneType):
        return value is None
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, hint) if isinstance(hint, type) else True


def _name(hint: Any) -> str:
    return {float: "a finite number", int: "an integer", str: "text", bool: "true or false"}.get(
        hint, getattr(hint, "__name__", str(hint))
    )


def _beyond(limits: list[Any], value: Any) -> str:
    if value is None:
        return ""
    for limit in limits:
        if type(limit) not in _LIMITS:
            continue
        attribute, words = _LIMITS[type(limit)]
        bound = getattr(limit, attribute)
        inside = {
            "gt": value > bound,
            "ge": value >= bound,
            "lt": value < bound,
            "le": value <= bound,
        }[attribute]
        if not inside:
            return f"must be {words} {bound} (got {value!r})"
    return ""
