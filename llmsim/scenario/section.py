"""What every part of a scenario is made from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A part of a scenario: frozen, and a key it does not know is a fault."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
    )


def complain(wrong: Mapping[str, str]) -> None:
    """Raise one error that carries a message for each key that clashes with others."""
    if wrong:
        errors: list[dict[str, Any]] = [
            {"type": "cross", "loc": tuple(key.split(".")), "msg": text, "ctx": {}, "input": None}
            for key, text in wrong.items()
        ]
        told = "; ".join(f"{key} {text}" for key, text in wrong.items())
        raise PydanticCustomError("crossed", "{told}", {"told": told, "errors": errors})
