"""What becomes of every key of a scenario that no flag says: elsewhere, or in a note."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, get_args

from pydantic import BaseModel

from llmsim.core.errors import InvariantError
from llmsim.deployment.line import Note, plain_text
from llmsim.scenario import Scenario
from llmsim.scenario.component import Component
from llmsim.scenario.faults import all_keys
from llmsim.scenario.fleet import Fleet, Pool

POOL_ELSEWHERE: Final[Mapping[str, str]] = {
    "replicas": "in the manifests",
    "spare_replicas": "in the manifests, where control adds replicas",
    "gpu": "in the manifests: label and resource of the nodes",
    "node_gpus": "in the manifests: GPUs of each pod",
    "price": "what it costs",
    "gpu_price_usd_per_hour": "what it costs",
    "cost": "how the simulation prices a step",
    "engine.version": "the image",
    "engine.fast_forward": "how the simulation runs",
    "kv.gate": "how the simulation loads KV",
}
"""Keys of a pool that no engine is told, by who is told instead."""

POOL_NOTES: Final[Mapping[str, str]] = {
    "stage_link": "the network of the cluster is what it is; compare it with this link",
    "inter_node_link": "the network of the cluster is what it is; compare it with this link",
    "clock_frac": "set on the nodes: nvidia-smi --lock-gpu-clocks, this share of the full clock",
    "power_cap_w": "set on the nodes: nvidia-smi --power-limit",
    "kv.swap": "neither engine swaps out what it preempts; it computes it again",
    "kv.host_link": "the host's link is what it is; compare it with this one",
    "kv.loading": "the engine's own store decides what is loaded",
    "kv.shared_loads": "the engine's own store decides who waits",
    "beside": "no engine shares GPUs between pools",
    "share_frac": "no engine shares GPUs between pools",
    "sharing": "no engine shares GPUs between pools",
    "segments": "neither engine reuses KV away from the front by itself; LMCache's blending does",
    "stop": "neither engine stops a step under way",
}
"""Keys of a pool that nothing here says, by what the reader must know, where they are set."""

FLEET_ELSEWHERE: Final[Mapping[str, str]] = {
    "routing": "the router's policy",
    "handoff.routing": "the router's policy for decoding",
    "handoff.message_s": "how the simulation prices a transfer",
    "handoff.messages": "how the simulation prices a transfer",
    "handoff.gather_bytes_per_s": "how the simulation prices a transfer",
    "control": "the autoscaler, or a note for each",
    "pools": "everything else here",
}
"""Keys of a fleet that no pool is told, by who is told instead."""

FLEET_NOTES: Final[Mapping[str, str]] = {
    "view_age_s": "how old the router's view is depends on the cluster",
    "report_period_s": "how often replicas report depends on the router",
    "report_lost_frac": "assumed of the network",
    "count_own_sends": "depends on the router",
    "handoff.view_age_s": "how old the router's view is depends on the cluster",
    "handoff.link": "the network of the cluster is what it is; compare it with this link",
    "handoff.first_token": "depends on the engine and its router",
    "handoff.transfer": "whether KV goes layer by layer depends on the engine's KV connector",
    "handoff.when_full": "no router here holds what decode replicas refuse",
    "gateway": "no router here makes replicas refuse requests and holds these meanwhile",
    "boot": "assumed of the cluster; measure how long a pod takes until it is ready",
    "flip": "no manifest here turns replicas over to another role",
    "migration": "neither engine moves running requests to other replicas",
}
"""Keys of a fleet that nothing here says, by what the reader must know, where they are set."""

SCENARIO_ELSEWHERE: Final = frozenset(
    {"llmsim", "name", "description", "seed", "model", "slo", "traffic", "engine", "fleet"}
    | {"estimators", "record"}
)
"""Keys of a scenario: who is served, what is promised, what is believed and written down."""


def notes_of_pool(name: str, pool: Pool, said: frozenset[str]) -> list[Note]:
    """Return a note for every key of a pool that is set, and said by nobody.

    Parameters
    ----------
    name : str
    pool : Pool
    said : frozenset of str
        Keys that flags or notes have said already.

    Raises
    ------
    InvariantError
        If a key is known to nobody: it would be dropped in silence.
    """
    return _notes(name, pool, said, POOL_ELSEWHERE, POOL_NOTES)


def notes_of_fleet(fleet: Fleet) -> list[Note]:
    """Return a note for every key of a fleet, beside its pools, that is set and said by nobody."""
    return _notes("", fleet, frozenset(), FLEET_ELSEWHERE, FLEET_NOTES)


def unknown_keys(said: frozenset[str]) -> list[str]:
    """Return the keys of a scenario that are said by nobody here.

    Parameters
    ----------
    said : frozenset of str
        Keys of a pool that the flags of an engine say.
    """
    pool = set(said) | set(POOL_ELSEWHERE) | set(POOL_NOTES)
    fleet = set(FLEET_ELSEWHERE) | set(FLEET_NOTES)
    found = [f"fleet.pools.<pool>.{key}" for key, _ in leaves(Pool) if not _covered(key, pool)]
    found += [f"fleet.{key}" for key, _ in leaves(Fleet) if not _covered(key, fleet)]
    return found + [key for key in Scenario.model_fields if key not in SCENARIO_ELSEWHERE]


def leaves(model: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    """Yield each key of a part of a scenario with its default, keys of parts by dotted path."""
    keys = all_keys(model)
    for key in keys:
        if not any(other.startswith(f"{key}.") for other in keys):
            yield key, _default(model, key.split("."))


def _default(model: type[BaseModel], parts: list[str]) -> Any:
    """Return the default of a key; None where the part that it is in is absent by default."""
    item = model.model_fields.get(parts[0])
    if item is None:
        return None
    if len(parts) == 1:
        return item.get_default(call_default_factory=True)
    for inner in (item.annotation, *get_args(item.annotation)):
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return _default(inner, parts[1:])
    return None


def _covered(key: str, known: set[str] | frozenset[str]) -> bool:
    """Return whether a key, or a part that it belongs to, is known."""
    parts = key.split(".")
    return any(".".join(parts[:depth]) in known for depth in range(1, len(parts) + 1))


def _notes(
    pool: str,
    section: Pool | Fleet,
    said: frozenset[str],
    elsewhere: Mapping[str, str],
    texts: Mapping[str, str],
) -> list[Note]:
    known = said | set(elsewhere)
    found: dict[str, Note] = {}
    for key, usual in leaves(type(section)):
        if _covered(key, known):
            continue
        head = next((part for part in _heads(key) if part in texts), None)
        if head is None:
            raise InvariantError(f"nothing becomes of {key}: it stands in no table")
        value = _value(section, head)
        # a part that may be absent says something by being there
        there = head != key and value is not None
        if there or (head == key and value is not None and not _same(value, usual)):
            found.setdefault(head, Note(pool, head, plain_text(value), texts[head]))
    return list(found.values())


def _heads(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def _value(section: BaseModel, key: str) -> Any:
    found: Any = section
    for part in key.split("."):
        found = None if found is None else getattr(found, part)
    return found


def _same(value: Any, usual: Any) -> bool:
    """Return whether two values are the same; of components, with all parameters filled in."""
    if isinstance(value, Component) and isinstance(usual, Component):
        return value.plain() == usual.plain()
    return bool(value == usual)
