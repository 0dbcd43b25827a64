"""Where a pool runs and what it serves: cards, memory, checkpoint, nodes of a replica."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from llmsim.core.errors import Fault, InputError, nearest
from llmsim.costmodel import plan_memory
from llmsim.costmodel.memory import MemoryPlan
from llmsim.deployment.tables import PROGRAMS, FlagTable, load_table
from llmsim.scenario import Scenario
from llmsim.scenario.costs import held_model
from llmsim.scenario.fleet import Pool
from llmsim.serving.build import placement
from llmsim.specs import GpuCard, ModelSpec, load_engine, load_model, requantise

_REPOSITORY = re.compile(r"huggingface\.co/([\w.-]+/[\w.-]*\w)")

ONLINE = ("fp8",)
"""Formats that the engines make of a 16-bit checkpoint while they load it."""


@dataclass(frozen=True, slots=True)
class Site:
    """One pool with all that its command and its manifests depend on.

    Parameters
    ----------
    name : str
        Of the pool.
    pool : Pool
    table : FlagTable
        Of the engine that it is deployed on.
    card : str
        Engine card whose release of that engine it is.
    model : str
        Model as requests name it: that of the scenario or of the pool.
    checkpoint : str
        Repository or folder of the weights.
    quantise : str
        Format that the engine makes of the checkpoint while loading; empty for none.
    max_model_len : int [tokens]
    memory : MemoryPlan
    gpu : GpuCard
    nodes : int
        Nodes of one replica.
    node_gpus : int [GPUs]
        GPUs that a replica takes of each.
    """

    name: str
    pool: Pool
    table: FlagTable
    card: str
    model: str
    checkpoint: str
    quantise: str
    max_model_len: int
    memory: MemoryPlan
    gpu: GpuCard
    nodes: int
    node_gpus: int

    @property
    def release(self) -> str:
        """Release of the engine."""
        return self.table.releases[self.card]

    @property
    def looks_ahead(self) -> bool:
        """Whether a step is scheduled while the one before runs."""
        asked = self.pool.engine.lookahead
        return bool(load_engine(self.pool.engine.version).lookahead if asked is None else asked)

    @property
    def most(self) -> int:
        """Replicas with those that control may add [replicas]."""
        return self.pool.replicas + self.pool.spare_replicas


def find_sites(
    scenario: Scenario, engine: str | None, checkpoints: Mapping[str, str]
) -> tuple[Site, ...]:
    """Return a site for each pool.

    Parameters
    ----------
    scenario : Scenario
    engine : str or None
        Engine of all pools, ``vllm`` or ``sglang``; None for what each pool's engine card says.
    checkpoints : mapping of str to str
        Repository or folder by model.

    Raises
    ------
    InputError
        With everything about the fleet that cannot be deployed.
    """
    faults = [_unknown(engine)] if engine is not None and engine not in PROGRAMS else []
    faults += [
        Fault("", f"--checkpoint {model}", "no pool serves this model.", nearest(model, known))
        for known in (scenario.models,)
        for model in checkpoints
        if model not in known
    ]
    sites: list[Site] = []
    if not faults:
        for name in scenario.fleet.pools:
            found = _site(scenario, name, engine, checkpoints)
            if isinstance(found, Site):
                sites.append(found)
            else:
                faults += found
    if faults:
        raise InputError(f"the fleet of {scenario.name}, which cannot be deployed", faults)
    return tuple(sites)


def _unknown(engine: str) -> Fault:
    return Fault("", "--engine", f"no table of flags for '{engine}'.", nearest(engine, PROGRAMS))


def _site(
    scenario: Scenario, name: str, engine: str | None, checkpoints: Mapping[str, str]
) -> Site | list[Fault]:
    pool = scenario.fleet.pools[name]
    at = f"fleet.pools.{name}"
    faults: list[Fault] = []
    version = pool.engine.version
    family = load_engine(version).family
    program = engine or family
    if program not in PROGRAMS:
        message = f"no table of flags for {version}."
        hint = f"Deploy it on another engine: --engine {' or --engine '.join(PROGRAMS)}."
        return [Fault("", f"{at}.engine.version", message, hint)]
    table = load_table(program)
    card = version if version in table.releases else table.newest()
    if pool.beside is not None:
        message = f"its replicas share GPUs with those of {pool.beside}, which no engine does."
        faults.append(Fault("", f"{at}.beside", message))
    named = scenario.model_of(pool)
    plain = load_model(named, scenario.folder)
    place = placement(pool, plain, scenario.folder)
    checkpoint, quantise, wrong = _checkpoint(pool, named, plain, checkpoints, at)
    nodes = -(-pool.plan.gpus // place.gpu.node_gpus)
    if pool.plan.gpus % nodes:
        message = f"{pool.plan.gpus} GPUs do not spread evenly over {nodes} nodes."
        faults.append(Fault("", f"{at}.tp", message))
    faults += wrong
    if faults:
        return faults
    settings = pool.engine
    memory = plan_memory(
        held_model(pool.cost.build(), place.model),
        place.gpu,
        place.plan,
        place.limits,
        settings.gpu_memory_utilization_frac,
        settings.kv_dtype,
        settings.kv_blocks,
    )
    return Site(
        name=name,
        pool=pool,
        table=table,
        card=card,
        model=named,
        checkpoint=checkpoint,
        quantise=quantise,
        max_model_len=place.limits.max_model_len,
        memory=memory,
        gpu=place.gpu,
        nodes=nodes,
        node_gpus=pool.plan.gpus // nodes,
    )


def _checkpoint(
    pool: Pool, named: str, model: ModelSpec, checkpoints: Mapping[str, str], at: str
) -> tuple[str, str, list[Fault]]:
    """Return the weights, the format that the engine makes of them, and what is missing."""
    wanted = pool.engine.quantisation
    if named in checkpoints:
        return checkpoints[named], "", []
    found = _REPOSITORY.search(model.source)
    hint = f"Say which: --checkpoint {named}=REPOSITORY."
    if found is None:
        message = f"{named} does not say where its weights lie."
        return "", "", [Fault("", f"{at}.model", message, hint)]
    repository = found.group(1)
    if wanted is None or _same(requantise(model, wanted), model):
        return repository, "", []
    if wanted in ONLINE and _same(requantise(model, "bf16"), model):
        return repository, wanted, []
    message = f"{repository} is no {wanted} checkpoint."
    return "", "", [Fault("", f"{at}.engine.quantisation", message, hint)]


def _same(one: ModelSpec, other: ModelSpec) -> bool:
    """Return whether two models have the same weights in the same formats."""
    kinds = "layers", "embedding_format", "head_format"
    return all(getattr(one, kind) == getattr(other, kind) for kind in kinds)
