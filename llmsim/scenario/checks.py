"""What the types of a scenario cannot say: cards that exist, files that exist, laws that fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmsim.core.errors import CardError, InputError, nearest
from llmsim.costmodel import check_layout
from llmsim.costmodel.memory import plan_memory
from llmsim.scenario.costs import held_model
from llmsim.scenario.document import Keys
from llmsim.specs import load_calibration, load_gpu, load_link, load_model, load_prices, price_of
from llmsim.specs.cards import find_card, is_path
from llmsim.workload import SyntheticWorkload

if TYPE_CHECKING:
    from llmsim.scenario.fleet import Pool
    from llmsim.scenario.model import Scenario
    from llmsim.specs import GpuCard


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
    found = list(_card(("model",), "model", data.get("model")))
    for name, pool in _mapping(_mapping(data.get("fleet")).get("pools")).items():
        at = ("fleet", "pools", name)
        wrong = list(_card((*at, "gpu"), "gpu", _mapping(pool).get("gpu")))
        found += wrong or _price(at, _mapping(pool))
        found += _card((*at, "model"), "model", _mapping(pool).get("model"))
        found += _calibration((*at, "cost", "calibration"), _mapping(_mapping(pool).get("cost")))
        for key in ("inter_node_link", "stage_link"):
            found += _card((*at, key), "link", _mapping(pool).get(key))
        found += _files(at, _mapping(pool))
    for part in ("handoff", "migration"):
        link = _mapping(_mapping(data.get("fleet")).get(part)).get("link")
        found += _card(("fleet", part, "link"), "link", link)
    return [*found, *_files(("traffic",), _mapping(data.get("traffic")))]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _price(at: Keys, pool: Mapping[str, Any]) -> list[Complaint]:
    gpu, cloud = pool.get("gpu"), pool.get("price")
    if not isinstance(gpu, str) or not isinstance(cloud, str):
        return []
    try:
        price_of(gpu, cloud)
    except CardError:
        offers = {card.whose for card in load_prices() if card.gpu == gpu}
        hint = nearest(cloud, offers) if offers else "Give gpu_price_usd_per_hour instead."
        return [Complaint((*at, "price"), f"no price of {gpu} from '{cloud}'.", hint)]
    return []


def _calibration(keys: Keys, cost: Mapping[str, Any]) -> Iterator[Complaint]:
    name = cost.get("calibration")
    if isinstance(name, str) and name:
        try:
            load_calibration(name)
        except CardError as error:
            told = "; ".join(fault.message for fault in error.faults)
            yield Complaint(keys, f"'{name}': {told}", error.faults[0].hint)


def _card(keys: Keys, what: str, name: Any) -> Iterator[Complaint]:
    """Check that a card exists and can be read."""
    if not isinstance(name, str):
        return
    try:
        path = Path(name) if is_path(name) else find_card(f"profiles/{what}s", name)
    except CardError as error:
        yield Complaint(keys, f"unknown {what} '{name}'.", error.faults[0].hint)
        return
    if not path.exists():
        yield Complaint(keys, f"no such file: '{name}'.")
    else:
        try:
            _load(what, name)
        except InputError as error:
            for fault in error.faults:
                yield Complaint(keys, f"the card is wrong: {fault}")


_LOADERS: Mapping[str, Callable[[str], Any]] = {
    "model": load_model,
    "gpu": load_gpu,
    "link": load_link,
}

_READ: dict[tuple[str, str, int], Any] = {}
"""Cards read so far, by file and time of change: a sweep checks hundreds of scenarios."""


def _load(what: str, name: str) -> Any:
    """Read a model, GPU or link card, or return it as it was read before."""
    path = Path(name) if is_path(name) else find_card(f"profiles/{what}s", name)
    key = (what, str(path), path.stat().st_mtime_ns)
    if key not in _READ:
        _READ[key] = _LOADERS[what](name)
    return _READ[key]


def _files(at: Keys, section: Mapping[str, Any]) -> Iterator[Complaint]:
    """Check the files that the components of a section read."""
    for key, component in section.items():
        for name in ("path", "tokenizer"):
            path = _mapping(component).get(name)
            if not isinstance(path, str) or Path(path).is_file():
                continue
            what = "is a folder" if Path(path).is_dir() else "no such file"
            keys = (*at, key, name)
            hint = f"Say where it is with --set {'.'.join(keys)}=FILE."
            yield Complaint(keys, f"{what}: '{path}'.", hint)


def layouts(scenario: Scenario) -> Iterator[Complaint]:
    """Yield the pools whose model does not split over their GPUs, or not into their engine.

    Parameters
    ----------
    scenario : Scenario
        Its keys, types and cards are right.
    """
    for name, pool in scenario.fleet.pools.items():
        model = _load("model", scenario.model_of(pool))
        at = ("fleet", "pools", name)
        if scenario.traffic.images is not None and model.encoder is None:
            message = f"{model.name} has no vision encoder that its card tells of."
            yield Complaint(("traffic", "images"), message, "Such as qwen3-vl-8b.")
            return
        if pool.role == "encode" and model.encoder is not None:
            model = model.encoder.as_model(model)
        try:
            check_layout(model, _gpu(pool), pool.plan)
        except InputError as error:
            for fault in error.faults:
                yield Complaint((*at, fault.path), fault.message, fault.hint)
        fleet = scenario.fleet
        apart = (pool.role != "mixed" or fleet.flip is not None) and not any(
            other.beside for other in fleet.pools.values()
        )
        parts = {"handoff": fleet.handoff if apart else None}
        for key, part in {**parts, "migration": fleet.migration}.items():
            if part is not None and part.link is None and not _gpu(pool).scale_out:
                message = f"is missing: the card of {pool.gpu} has no link out of its node."
                yield Complaint(("fleet", key, "link"), message, "Such as ib-ndr.")
        wrong = {} if pool.role == "encode" else pool.engine.clashes(model)
        for key, message in wrong.items():
            yield Complaint((*at, "engine", key), message)


def _gpu(pool: Pool) -> GpuCard:
    card: GpuCard = _load("gpu", pool.gpu)
    return card.joined_by(pool.inter_node_link, pool.node_gpus)


def prove(scenario: Scenario) -> None:
    """Check what takes a look at large files and at memory: more than loading a scenario does.

    Parameters
    ----------
    scenario : Scenario
        Its keys, types and cards are right.

    Raises
    ------
    TraceError
        If the first rows of the trace are damaged, or it is of another format.
    ModelDoesNotFitError
        If a pool's model or one longest request does not fit its GPUs.
    """
    trace = scenario.traffic.trace
    if trace is not None:
        next(iter(trace.build().open(scenario.seed, scenario.folder).chunks()), None)
    for pool in scenario.fleet.pools.values():
        if pool.role == "encode":
            continue
        model, engine = _load("model", scenario.model_of(pool)), pool.engine
        plan_memory(
            held_model(pool.cost.build(), engine.checkpoint(model)),
            _gpu(pool),
            pool.plan,
            engine.limits(model),
            engine.gpu_memory_utilization_frac,
            engine.kv_dtype,
            engine.kv_blocks,
        )


def traffic_laws(scenario: Scenario) -> Iterator[Complaint]:
    """Yield what is wrong with synthetic traffic as a whole, by asking the workload itself.

    Parameters
    ----------
    scenario : Scenario
        Its keys and types are right.
    """
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
