"""From a plan file of several models to a plan of each, from one inventory and one budget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from llmsim.core.errors import Fault, InputError, ScenarioError
from llmsim.planner.reading import MODELS, Asked, Written, read_written, write_plan
from llmsim.scenario.document import Document, Keys, dump_yaml
from llmsim.scenario.layers import Layers

OF_ALL_MODELS: Final = ("llmsim", "name", "description", "gpus", "budget_usd_per_hour", MODELS)
"""Keys that are said once, beside `models`."""


@dataclass(frozen=True, slots=True)
class Several:
    """A plan file of several models that is right.

    Parameters
    ----------
    name : str
    asked : mapping of str to Asked
        By model; without limits of their own.
    available_gpus : mapping of str to int [GPUs]
        By GPU card, for all models; a card that is absent is not limited.
    budget_usd_per_hour : float or None [USD/h]
        For all models.
    text : str
        The file with everything that was put on top of it, as YAML.
    source : str
        For errors.
    places : mapping
        ``file:line`` of every key of the whole file.
    own : mapping of str to frozenset of str
        By model: keys that its own section has.
    """

    name: str
    asked: Mapping[str, Asked]
    available_gpus: Mapping[str, int]
    budget_usd_per_hour: float | None
    text: str
    source: str
    places: Mapping[Keys, str]
    own: Mapping[str, frozenset[str]]

    def located(self, faults: Iterable[Fault]) -> InputError:
        """Return an error of the file, each fault with the line that it is about.

        Parameters
        ----------
        faults : iterable of Fault
            Without places.
        """
        found = []
        for fault in faults:
            keys = tuple(fault.path.split("."))
            above = (self.places.get(keys[:depth]) for depth in range(len(keys), 0, -1))
            where = fault.where or next(filter(None, above), "")
            found.append(replace(fault, where=where))
        return InputError(self.source, found)

    def of_model(self, model: str, faults: Iterable[Fault]) -> InputError:
        """Return an error of one model's plan, by the keys of the whole file.

        Parameters
        ----------
        model : str
        faults : iterable of Fault
        """
        found = []
        for fault in faults:
            if fault.path.partition(".")[0] in self.own[model]:
                found.append(replace(fault, path=f"{MODELS}.{model}.{fault.path}"))
            else:
                found.append(replace(fault, message=f"for {model}: {fault.message}"))
        return InputError(self.source, found)


def read_several(
    source: str | Path | Mapping[str, Any], overrides: Mapping[str, object] | None = None
) -> Several | None:
    """Read a plan file of several models; return None where it is one of a single model.

    What stands beside `models` holds for each of them, unless its own section says otherwise; a
    section may say all that a plan file may, but for what is shared.

    Parameters
    ----------
    source, overrides
        As for `read_plan`.

    Raises
    ------
    ScenarioError
        With every fault of every model, its line, and the nearest right word.
    """
    written, faults = write_plan(source, overrides)
    layers = written.layers
    if MODELS not in layers.data:
        return None
    text = dump_yaml(layers.data)
    models = layers.data[MODELS]
    faults += _faulty_sections(models, written)
    asked: dict[str, Asked] = {}
    sections = models if isinstance(models, Mapping) else {}
    for model in [model for model, own in sections.items() if isinstance(own, Mapping)]:
        try:
            asked[model] = read_written(_of_model(written, model), [])
        except ScenarioError as error:
            faults += [_whole_path(fault, model, layers.data) for fault in error.faults]
    if faults:  # what is said once is wrong once
        raise ScenarioError(written.title, list(dict.fromkeys(faults)))
    first = next(iter(asked.values())).keys
    available = {
        gpu: offer.available for gpu, offer in first.gpus.items() if offer.available is not None
    }
    return Several(
        name=str(layers.data["name"]),
        asked={model: each.limited({}, None) for model, each in asked.items()},
        available_gpus=available,
        budget_usd_per_hour=first.budget_usd_per_hour,
        text=text,
        source=written.name or written.title,
        places=dict(layers.places),
        own={model: frozenset(own) for model, own in models.items()},
    )


def _faulty_sections(models: object, written: Written) -> Iterator[Fault]:
    """Yield what is wrong with the sections before any is read."""

    def fault(keys: Keys, message: str, hint: str = "") -> Fault:
        return Fault(written.layers.place(keys) or written.name, ".".join(keys), message, hint)

    if not isinstance(models, Mapping) or not models:
        yield fault((MODELS,), "has a section for each model, by a name of yours.")
        return
    for model, own in models.items():
        if not isinstance(own, Mapping):
            hint = "Write its model, slo and traffic."
            yield fault((MODELS, str(model)), "is no section.", hint)
            continue
        for key in OF_ALL_MODELS:
            if key in own:
                yield fault((MODELS, model, key), "is one for all: it stands beside `models`.")


def _of_model(written: Written, model: str) -> Written:
    """Return what holds for one model: its own section on top of what stands beside `models`."""
    layers = Layers()
    whole = written.layers
    # layers change what they are given
    shared = {key: deepcopy(each) for key, each in whole.data.items() if key != MODELS}
    layers.put(Document(None, shared, whole.places))
    inside = (MODELS, model)
    places = {keys[2:]: place for keys, place in whole.places.items() if keys[:2] == inside}
    section = whole.data[MODELS][model].items()
    # what does not belong there is a fault of its own
    own = {key: deepcopy(each) for key, each in section if key not in OF_ALL_MODELS}
    layers.put(Document(None, own, places))
    layers.data["name"] = model
    return replace(written, layers=layers)


def _whole_path(fault: Fault, model: str, whole: Mapping[str, Any]) -> Fault:
    """Return a fault of a model's plan with its path in the whole file."""
    first = fault.path.partition(".")[0]
    if first == "name":  # a model is called as its section is
        return replace(fault, path=f"{MODELS}.{model}")
    if first in OF_ALL_MODELS:
        return fault
    if first and (first in whole[MODELS][model] or first not in whole):
        return replace(fault, path=f"{MODELS}.{model}.{fault.path}")
    return fault
