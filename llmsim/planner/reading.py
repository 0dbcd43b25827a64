"""From a plan file to what is asked for, or to all of its faults with their lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llmsim.core.errors import CardError, Fault, InputError, ScenarioError, nearest
from llmsim.core.paths import list_data
from llmsim.planner.columns import Choice, Space
from llmsim.planner.keys import Configuration, Offer, PlanFile
from llmsim.scenario import Scenario
from llmsim.scenario.checks import named_things
from llmsim.scenario.document import Keys, dump_yaml, parse_document, read_document
from llmsim.scenario.faults import faults_of
from llmsim.scenario.layers import Layers, anchor_paths, ordered, plain
from llmsim.scenario.loader import find_scenario
from llmsim.specs import price_of

POOL = "main"
"""Name of the one pool of the scenario that stands for every configuration."""

MODELS = "models"
"""Key of a plan file of several models."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A plan file that is right.

    Parameters
    ----------
    keys : PlanFile
    scenario : Scenario
        Its traffic, model, SLO and engine, with one pool `POOL` on the first GPU.
    usd_per_gpu_hour : mapping of str to float [USD/h]
        By GPU card.
    price_sources : mapping of str to str
        Where each price comes from.
    current : mapping of Choice to int [replicas]
    text : str
        The file with everything that was put on top of it, as YAML.
    places : mapping
        ``file:line`` of every key.
    source : str
        Name of the file, for faults.
    first_frac : float
        Share of ``slo.e2e_s`` that prompts may take where it stands alone and replicas may be
        apart.
    """

    keys: PlanFile
    scenario: Scenario
    usd_per_gpu_hour: Mapping[str, float]
    price_sources: Mapping[str, str]
    current: Mapping[Choice, int]
    text: str
    places: Mapping[Keys, str]
    source: str
    first_frac: float = 0.5

    @property
    def undivided(self) -> bool:
        """Whether the promise is of whole answers alone and halves of replicas may be bought."""
        slo = self.scenario.slo
        alone = slo.e2e_s is not None and slo.ttft_s is None and slo.tpot_s is None
        return alone and "prefill" in self.keys.search.roles

    def space(self, gpu: str) -> Space:
        """Return the configurations on one GPU card that may be bought.

        Parameters
        ----------
        gpu : str
        """
        search, engine = self.keys.search, self.keys.engine
        return Space(
            gpus=(gpu,),
            tp=search.tp,
            pp=search.pp,
            ep=search.ep,
            quantisations=tuple(each or "" for each in search.quantisation),
            max_num_seqs=search.max_num_seqs or (engine.max_num_seqs,),
            max_num_batched_tokens=search.max_num_batched_tokens
            or (engine.max_num_batched_tokens,),
            clock_fracs=search.clock_frac,
            dp=search.dp,
            roles=search.roles,
            most_gpus=search.most_gpus,
        )

    def limited(
        self, available_gpus: Mapping[str, int | None], budget_usd_per_hour: float | None
    ) -> Asked:
        """Return the same with other limits.

        Parameters
        ----------
        available_gpus : mapping of str to int or None [GPUs]
            By GPU card; None, and a card that is absent, for as many as wanted.
        budget_usd_per_hour : float or None [USD/h]
        """
        gpus = {
            gpu: offer.model_copy(update={"available": available_gpus.get(gpu)})
            for gpu, offer in self.keys.gpus.items()
        }
        limits = {"gpus": gpus, "budget_usd_per_hour": budget_usd_per_hour}
        data = parse_document(self.text).data
        for gpu in gpus:
            told = {**(data["gpus"][gpu] or {}), "available": available_gpus.get(gpu)}
            data["gpus"][gpu] = {key: each for key, each in told.items() if each is not None}
        data.pop("budget_usd_per_hour", None)
        if budget_usd_per_hour is not None:
            data["budget_usd_per_hour"] = budget_usd_per_hour
        return replace(self, keys=self.keys.model_copy(update=limits), text=dump_yaml(data))

    def located(self, faults: Iterator[Fault] | list[Fault] | tuple[Fault, ...]) -> InputError:
        """Return an error of this file, each fault with the line that it is about.

        Parameters
        ----------
        faults : iterable of Fault
            Without places.
        """
        found = []
        for fault in faults:
            where = fault.where or _place(self.places, tuple(fault.path.split("."))) or self.source
            found.append(Fault(where, fault.path, fault.message, fault.hint))
        return InputError(self.source, found)


def read_plan(
    source: str | Path | Mapping[str, Any], overrides: Mapping[str, object] | None = None
) -> Asked:
    """Read a plan file, a shipped plan by its bare name, or a mapping.

    Parameters
    ----------
    source : str, Path or mapping
    overrides : mapping of str to object, optional
        Values by dotted path, such as ``{"slo.ttft_s": 1.0}``.

    Raises
    ------
    ScenarioError
        With every fault, its line, and the nearest right word.
    """
    written, faults = write_plan(source, overrides)
    if MODELS in written.layers.data:
        place = written.layers.place((MODELS,)) or written.name
        message = "are planned together: llmsim.planner.several.plan_several, or `llmsim plan`"
        raise ScenarioError(written.title, [*faults, Fault(place, MODELS, message)])
    return read_written(written, faults)


@dataclass(frozen=True, slots=True)
class Written:
    """What a plan file and its overrides say, before it is known to be right.

    Parameters
    ----------
    layers : Layers
    title : str
        For errors.
    name : str
        Of the file, for faults; empty where there is none.
    folder : Path or None
        Where its paths begin.
    """

    layers: Layers
    title: str
    name: str
    folder: Path | None


def write_plan(
    source: str | Path | Mapping[str, Any], overrides: Mapping[str, object] | None = None
) -> tuple[Written, list[Fault]]:
    """Return what a plan file says with overrides on top, and what is wrong with these.

    Parameters
    ----------
    source, overrides
        As for `read_plan`.
    """
    written = _layers(source)
    faults: list[Fault] = []
    for dotted, value in ordered(overrides or {}):
        fault = written.layers.override(dotted, plain(value, (dotted,), faults))
        if fault is not None:
            faults.append(fault)
    _anchor(written.layers.data, Path.cwd())
    return written, faults


def read_written(written: Written, faults: list[Fault]) -> Asked:
    """Return a plan of one model.

    Parameters
    ----------
    written : Written
    faults : list of Fault
        Those that are known already.

    Raises
    ------
    ScenarioError
        With every fault.
    """
    layers, title, name = written.layers, written.title, written.name
    keys = None
    try:
        keys = PlanFile.model_validate_json(json.dumps(layers.data))
    except ValidationError as error:
        faults += faults_of(error.errors(include_url=False), layers, name, PlanFile)
    for path, message, hint in _named(layers.data):
        faults.append(Fault(layers.place(path) or name, ".".join(path), message, hint))
    if keys is not None:
        faults += list(_clashing(keys, layers, name))
    if faults or keys is None:
        raise ScenarioError(title, faults)
    scenario = _scenario(keys, written)
    prices = {gpu: _price(gpu, offer) for gpu, offer in keys.gpus.items()}
    return Asked(
        keys,
        scenario,
        {gpu: usd for gpu, (usd, _) in prices.items()},
        {gpu: told for gpu, (_, told) in prices.items()},
        {_choice(each, keys): each.replicas for each in keys.current},
        dump_yaml(layers.data),
        dict(layers.places),
        name or title,
    )


def find_plan(source: str | Path) -> Path:
    """Return the file behind a path or the bare name of a shipped plan.

    Raises
    ------
    ScenarioError
        If there is none; the message gives the nearest name.
    """
    text = str(source)
    if "/" in text or text.endswith((".yaml", ".yml")):
        return find_scenario(text)
    shipped = list_data("scenarios/plans", ".yaml")
    if text in shipped:
        return shipped[text]
    fault = Fault("", "", f"no shipped plan is called '{text}'.", nearest(text, shipped))
    raise ScenarioError(text, [fault])


def _layers(source: str | Path | Mapping[str, Any]) -> Written:
    layers = Layers()
    if isinstance(source, Mapping):
        faults: list[Fault] = []
        made = plain(source, (), faults)
        if faults:
            raise ScenarioError("plan", [Fault("", f.path, f.message, f.hint) for f in faults])
        layers.data.update(made)
        layers.data.setdefault("name", "plan")
        return Written(layers, "plan", "", None)
    path = find_plan(source)
    document = read_document(path)
    _anchor(document.data, path.parent)
    layers.put(document)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "plan"
    layers.data.setdefault("name", stem)
    return Written(layers, str(source), path.name, path.parent)


def _anchor(data: dict[str, Any], folder: Path) -> None:
    """Make file names absolute, those of several models, too."""
    anchor_paths(data, folder)
    models = data.get(MODELS)
    for own in models.values() if isinstance(models, dict) else ():
        if isinstance(own, dict):
            anchor_paths(own, folder)


def _named(data: Mapping[str, Any]) -> Iterator[tuple[Keys, str, str]]:
    """Yield what is wrong with cards, prices and files, by the keys of the plan."""
    gpus = data.get("gpus")
    offers = gpus if isinstance(gpus, Mapping) else {}
    pools = {
        gpu: {"gpu": gpu, "price": offer.get("price") if isinstance(offer, Mapping) else None}
        for gpu, offer in offers.items()
    }
    fleet = {"pools": pools, "handoff": data.get("handoff")}
    told = {key: data.get(key) for key in ("model", "traffic")} | {"fleet": fleet}
    unknown = set()
    for keys, message, hint in named_things(told):
        if keys[:2] == ("fleet", "pools"):
            gpu, last = keys[2], keys[-1]
            unknown.add(gpu)
            yield ("gpus", gpu, *(() if last == "gpu" else (last,))), message, _own_key(hint)
        else:
            yield keys[1:] if keys[0] == "fleet" else keys, message, hint
    for gpu, offer in offers.items():
        asked = offer if isinstance(offer, Mapping) else {}
        if gpu in unknown or asked.get("usd_per_hour") is not None:
            continue
        try:
            price_of(gpu, asked.get("price"))
        except CardError:
            yield ("gpus", gpu), "no price is known of it.", "Give usd_per_hour."


def _own_key(hint: str) -> str:
    return hint.replace("gpu_price_usd_per_hour", "usd_per_hour")


def _clashing(keys: PlanFile, layers: Layers, name: str) -> Iterator[Fault]:
    """Yield what is wrong between parts of the file that are right by themselves."""
    for number, each in enumerate(keys.current):
        if each.gpu not in keys.gpus:
            path: Keys = ("current", str(number), "gpu")
            message = f"'{each.gpu}' is not among gpus."
            hint = nearest(each.gpu, keys.gpus)
            yield Fault(layers.place(path) or name, ".".join(path), message, hint)
    for key in ("gpu", "replicas", "spare_replicas", "model", "role", "beside", "engine"):
        if key in keys.pool:
            path = ("pool", key)
            message = "is not set here: the plan finds it, or another key says it"
            yield Fault(layers.place(path) or name, ".".join(path), message)


def _scenario(keys: PlanFile, written: Written) -> Scenario:
    """Return the scenario that the simulations begin from.

    Raises
    ------
    ScenarioError
        With faults at the keys of the plan.
    """
    layers, title, name = written.layers, written.title, written.name
    taken = ("model", "slo", "traffic", "engine")
    told: dict[str, Any] = {key: layers.data[key] for key in taken if key in layers.data}
    gpu = next(iter(keys.gpus))
    pool = {**keys.pool, "gpu": gpu}
    fleet = {"routing": "least-loaded", "pools": {POOL: pool}}
    head = {"llmsim": 1, "name": keys.name, "description": keys.description, "seed": keys.seed}
    try:
        return Scenario.parse({**head, **told, "fleet": fleet}, written.folder)
    except ScenarioError as error:
        faults = []
        for fault in error.faults:
            path = fault.path.replace(f"fleet.pools.{POOL}.engine", "engine")
            path = path.replace(f"fleet.pools.{POOL}", "pool")
            where = layers.place(tuple(path.split("."))) or name
            faults.append(Fault(where, path, fault.message, fault.hint))
        raise ScenarioError(title, faults) from None


def _price(gpu: str, offer: Offer) -> tuple[float, str]:
    if offer.usd_per_hour is not None:
        return offer.usd_per_hour, "the plan file"
    card = price_of(gpu, offer.price)
    return card.usd_per_gpu_hour, f"{card.whose} {card.instance}, {card.date}, {card.source}"


def _choice(asked: Configuration, keys: PlanFile) -> Choice:
    return Choice(
        asked.gpu,
        asked.tp,
        asked.pp,
        asked.ep,
        asked.quantisation or "",
        asked.max_num_seqs or keys.engine.max_num_seqs,
        asked.max_num_batched_tokens or keys.engine.max_num_batched_tokens,
        dp=asked.dp,
        role=asked.role,
    )


def _place(places: Mapping[Keys, str], keys: Keys) -> str:
    for depth in range(len(keys), 0, -1):
        if keys[:depth] in places:
            return places[keys[:depth]]
    return ""
