"""``kind:`` and its parameters: the one shape every seam has in a scenario.

A scenario keeps the kind and the checked parameters, never a live policy: `Component.build`
makes a fresh instance for every run, so running a scenario twice cannot give two answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from importlib import import_module
from typing import Any, Final, get_type_hints

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError, create_model
from pydantic import Field as PydanticField
from pydantic.annotated_handlers import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from llmsim.core.errors import LlmsimError, RegistryError, nearest
from llmsim.core.registry import Registry
from llmsim.policies.answers import held

SEAMS: Final[Mapping[str, tuple[str, str]]] = {
    "trace": ("llmsim.workload", "TRACES"),
    "arrivals": ("llmsim.workload", "ARRIVALS"),
    "lengths": ("llmsim.workload", "LENGTHS"),
    "prompts": ("llmsim.workload", "PROMPTS"),
    "programs": ("llmsim.workload", "PROGRAMS"),
    "cost": ("llmsim.scenario.costs", "COST"),
    "batching": ("llmsim.policies", "BATCHING"),
    "allocation": ("llmsim.policies", "ALLOCATION"),
    "routing": ("llmsim.policies", "ROUTING"),
    "output_length": ("llmsim.policies", "OUTPUT_LENGTH"),
    "tool_time": ("llmsim.policies", "TOOL_TIME"),
    "loading": ("llmsim.policies", "LOADING"),
    "eviction": ("llmsim.policies", "EVICTION"),
    "retention": ("llmsim.policies", "RETENTION"),
    "control": ("llmsim.policies", "CONTROL"),
    "sharing": ("llmsim.policies", "SHARING"),
    "precedence": ("llmsim.policies", "PRECEDENCE"),
}
"""Where the registry of each seam lives; a room is imported when its seam is first used."""


def registry(seam: str) -> Registry[Any]:
    """Return the registry of a seam.

    Raises
    ------
    RegistryError
        If there is no such seam.
    """
    if seam not in SEAMS:
        raise RegistryError(f"unknown seam '{seam}'. {nearest(seam, SEAMS)}")
    import_module("llmsim.systems")
    room, name = SEAMS[seam]
    found: Registry[Any] = getattr(import_module(room), name)
    return found


@dataclass(frozen=True, slots=True)
class Component:
    """A kind with all of its parameters, checked and frozen.

    Parameters
    ----------
    seam : str
        Which registry the kind belongs to.
    kind : str
        Its name there.
    text : str
        The parameters as canonical JSON, every default filled in; empty until they are checked.
    """

    seam: str
    kind: str
    text: str = ""

    @property
    def params(self) -> dict[str, Any]:
        """The parameters by name, as YAML values; a fresh dictionary at every call."""
        if not self.text:
            return dict(_checked(self.seam, {"kind": self.kind}).params)
        found: dict[str, Any] = json.loads(self.text)
        return found

    def plain(self) -> dict[str, Any]:
        """Return what the YAML file says: the kind and its parameters."""
        return {"kind": self.kind, **self.params}

    @property
    def cls(self) -> type:
        """The class behind the kind."""
        found: type = registry(self.seam).get(self.kind)
        return found

    def build(self) -> Any:
        """Return a fresh instance of the class behind the kind, its answers checked.

        Raises
        ------
        RegistryError
            If the kind is no longer registered.
        PolicyError
            If the class lacks what its seam asks for.
        """
        cls = registry(self.seam).get(self.kind)
        values = parameters_of(cls).model_validate_json(self.text or "{}")
        made = cls(**{name: getattr(values, name) for name in type(values).model_fields})
        return held(self.seam, self.kind, made)

    def __str__(self) -> str:
        inner = ", ".join(f"{name}: {value}" for name, value in self.params.items())
        return f"{self.kind} ({inner})" if inner else self.kind


class Parameters(BaseModel):
    """What a policy's dataclass looks like to the checker; one subclass is made per class."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        protected_namespaces=(),
    )


_PARAMETERS: Final[dict[type, type[Parameters]]] = {}
"""Checkers made so far, one per policy class."""


def parameters_of(cls: type) -> type[Parameters]:
    """Return the checker of a policy class: its init fields, with their types and limits.

    Parameters
    ----------
    cls : type
        A plain dataclass.

    Raises
    ------
    RegistryError
        If the class is not a dataclass.
    """
    if cls in _PARAMETERS:
        return _PARAMETERS[cls]
    if not is_dataclass(cls):
        raise RegistryError(f"{cls.__module__}.{cls.__qualname__} must be a dataclass")
    hints = get_type_hints(cls, include_extras=True)
    shape: dict[str, Any] = {
        item.name: (hints[item.name], _default(item)) for item in fields(cls) if item.init
    }
    made = create_model(cls.__name__, __base__=Parameters, __module__=cls.__module__, **shape)
    return _PARAMETERS.setdefault(cls, made)


def _default(item: Field[Any]) -> Any:
    if item.default_factory is not MISSING:
        return PydanticField(default_factory=item.default_factory)
    return ... if item.default is MISSING else item.default


def _checked(seam: str, value: Any) -> Component:
    """Return the component that a YAML value means, its parameters checked and filled in."""
    if isinstance(value, Component):
        return value if value.text else _checked(seam, {"kind": value.kind})
    kind, given = _split(seam, value)
    try:
        cls = registry(seam).get(kind)
    except RegistryError as error:
        raise _problem(str(error)) from error
    checker = parameters_of(cls)
    try:
        checked = checker.model_validate_json(json.dumps(given))
        cls(**{name: getattr(checked, name) for name in checker.model_fields})
    except ValidationError as error:
        context = {
            "told": f"{error.error_count()} wrong parameter(s) of {seam} '{kind}'",
            "errors": error.errors(include_url=False),
            "known": tuple(checker.model_fields),
        }
        raise PydanticCustomError("component_parameters", "{told}", context) from None
    except (ValueError, LlmsimError) as error:
        raise _problem(str(error)) from error
    return Component(seam, kind, json.dumps(checked.model_dump(mode="json")))


def _split(seam: str, value: Any) -> tuple[str, dict[str, Any]]:
    """Return kind and given parameters of a bare name or of a mapping with a kind."""
    known = registry(seam).names()
    if isinstance(value, str):
        return value, {}
    if not isinstance(value, Mapping):
        raise _problem(f"should be a name or a mapping with 'kind' (got {value!r}).", known)
    kind = value.get("kind")
    if kind is None:
        raise _problem(f"needs a 'kind': which {seam} is meant?", known)
    if not isinstance(kind, str):
        raise _problem(f"'kind' should be a name (got {kind!r}).", known)
    return kind, {name: each for name, each in value.items() if name != "kind"}


def _problem(text: str, known: tuple[str, ...] = ()) -> PydanticCustomError:
    hint = nearest("", known) if known else ""
    return PydanticCustomError("component", "{problem} {hint}", {"problem": text, "hint": hint})


@dataclass(frozen=True, slots=True)
class Seam:
    """Marks a field of the scenario as a component of this seam.

    Parameters
    ----------
    name : str
        A key of `SEAMS`.
    """

    name: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            lambda value: _checked(self.name, value),
            serialization=core_schema.plain_serializer_function_ser_schema(Component.plain),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return kinds_schema(self.name)


def kinds_schema(seam: str) -> dict[str, Any]:
    """Return the JSON schema of a seam: one alternative per registered kind, or a bare name.

    Parameters
    ----------
    seam : str
        A key of `SEAMS`.
    """
    found = registry(seam)
    shapes: list[dict[str, Any]] = [{"type": "string", "enum": list(found.names())}]
    for name in found.names():
        shape = parameters_of(found.get(name)).model_json_schema()
        shape = _whole(shape, shape.pop("$defs", {}))
        shape["properties"] = {"kind": {"const": name}, **shape.get("properties", {})}
        shape["required"] = ["kind", *shape.get("required", [])]
        shapes.append(shape)
    return {"oneOf": shapes}


def _whole(part: Any, definitions: Mapping[str, Any]) -> Any:
    """Return a schema with its references written out: inside another they would lead nowhere."""
    if isinstance(part, Mapping):
        if "$ref" in part:
            return _whole(definitions[part["$ref"].rsplit("/", 1)[-1]], definitions)
        return {key: _whole(value, definitions) for key, value in part.items()}
    return [_whole(each, definitions) for each in part] if isinstance(part, list) else part
