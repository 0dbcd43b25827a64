"""What the types of a scenario cannot say: cards that exist, files that exist, laws that fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmsim.core.errors import CardError, InputError, nearest
from llmsim.scenario.document import Keys

if TYPE_CHECKING:
    from llmsim.scenario.model import Scenario


class Complaint(NamedTuple):
    """One thing that is wrong with a scenario whose keys and types are right."""

    keys: Keys
    message: str
    hint: str = ""


def named_things(data: Mapping[str, Any]) -> list[Complaint]:
    """Return what is wrong with the cards and files that a scenario names.

    Parameters
    ----------
    data : mapping
        The scenario as plain values. Whatever has the wrong type is passed over: that is another
        fault, and the rest can be checked all the same.
    """
    from llmsim.specs import gpu_names, load_gpu, load_model, model_names

    found = list(_card(("model",), data.get("model"), "model", load_model, model_names))
    for name, pool in _mapping(_mapping(data.get("fleet")).get("pools")).items():
        at = ("fleet", "pools", name)
        wrong = list(_card((*at, "gpu"), _mapping(pool).get("gpu"), "gpu", load_gpu, gpu_names))
        found += wrong or _price(at, _mapping(pool))
        found += _files(at, _mapping(pool))
    return [*found, *_files(("traffic",), _mapping(data.get("traffic")))]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _price(at: Keys, pool: Mapping[str, Any]) -> list[Complaint]:
    from llmsim.specs import load_prices, price_of

    gpu, cloud = pool.get("gpu"), pool.get("price")
    if not isinstance(gpu, str) or not isinstance(cloud, str):
        return []
    try:
        price_of(gpu, cloud)
    except CardError:
        offers = {card.cloud for card in load_prices() if card.gpu == gpu}
        hint = nearest(cloud, offers) if offers else "Give gpu_price_usd_per_hour instead."
        return [Complaint((*at, "price"), f"no price of {gpu} from '{cloud}'.", hint)]
    return []


def _card(
    keys: Keys,
    name: Any,
    what: str,
    load: Callable[[str], Any],
    names: Callable[[], tuple[str, ...]],
) -> Iterator[Complaint]:
    """Check that a card exists and can be read."""
    from llmsim.specs.cards import is_path

    if not isinstance(name, str):
        return
    if is_path(name):
        if not Path(name).exists():
            yield Complaint(keys, f"no such file: '{name}'.")
            return
    elif name not in names():
        yield Complaint(keys, f"unknown {what} '{name}'.", nearest(name, names()))
        return
    try:
        load(name)
    except InputError as error:
        for fault in error.faults:
            yield Complaint(keys, f"the card is wrong: {fault}")


def _files(at: Keys, section: Mapping[str, Any]) -> Iterator[Complaint]:
    """Check the files that the components of a section read."""
    for key, component in section.items():
        path = _mapping(component).get("path")
        if not isinstance(path, str) or Path(path).is_file():
            continue
        what = "is a folder" if Path(path).is_dir() else "no such file"
        keys = (*at, key, "path")
        hint = f"Say where it is with --set {'.'.join(keys)}=FILE."
        yield Complaint(keys, f"{what}: '{path}'.", hint)


def layouts(scenario: Scenario) -> Iterator[Complaint]:
    """Yield the pools over whose GPUs the model does not split.

    Parameters
    ----------
    scenario : Scenario
        Its keys, types and cards are right.
    """
    from llmsim.costmodel import check_layout
    from llmsim.specs import ParallelPlan, load_gpu, load_model

    model = load_model(scenario.model)
    for name, pool in scenario.fleet.pools.items():
        try:
            check_layout(model, load_gpu(pool.gpu), ParallelPlan(pool.tp))
        except InputError as error:
            for fault in error.faults:
                yield Complaint(("fleet", "pools", name, "tp"), fault.message, fault.hint)


def traffic_laws(scenario: Scenario) -> Iterator[Complaint]:
    """Yield what is wrong with synthetic traffic as a whole, by asking the workload itself.

    Parameters
    ----------
    scenario : Scenario
        Its keys and types are right.
    """
    from llmsim.workload import SyntheticWorkload

    traffic = scenario.traffic
    if traffic.arrivals is None or traffic.lengths is None:
        return
    lengths = traffic.lengths.build()
    try:
        SyntheticWorkload(
            traffic.arrivals.build(),
            lengths,
            seed=scenario.seed,
            prompts=traffic.prompts.build() if traffic.prompts else None,
            requests=traffic.requests,
            duration_s=traffic.duration_s,
        )
    except InputError as error:
        for fault in error.faults:
            keys = fault.path.split(".") if fault.path else []
            yield Complaint(("traffic", *keys), fault.message, fault.hint)
    if "path" in traffic.lengths.params:
        return
    try:
        lengths.sampler(scenario.seed, None, "requests")
    except InputError as error:
        for fault in error.faults:
            yield Complaint(("traffic", "lengths", fault.path), fault.message, fault.hint)
