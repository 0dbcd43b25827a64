"""A fleet as a folder of files that an engineer applies."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import yaml

from llmsim.core.errors import Fault, InputError, InvariantError
from llmsim.deployment.keys import notes_of_fleet, notes_of_pool
from llmsim.deployment.line import CommandLine, Note, as_script
from llmsim.deployment.manifests import (
    POD_IP,
    Launch,
    gpu_faults,
    node_selector,
    object_name,
    service,
    workload,
)
from llmsim.deployment.router import (
    RouterPlan,
    addresses,
    plan_routers,
    router_faults,
    router_line,
    router_objects,
)
from llmsim.deployment.scaling import adapter_rule, autoscaler, notes_of_control, scaled_object
from llmsim.deployment.sglang import faults_for_sglang, sglang_line
from llmsim.deployment.site import Site, find_sites
from llmsim.deployment.stacks import (
    DYNAMO,
    LLM_D,
    dynamo_graph,
    llm_d_values,
    stack_notes,
    why_not,
)
from llmsim.deployment.vllm import faults_for_vllm, vllm_environment, vllm_line
from llmsim.deployment.weights import ROUTE, route, shared_notes, weight_faults, weight_notes
from llmsim.results.folder import new_folder
from llmsim.scenario import Scenario

_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one is ten times faster

MARK: Final = "deploy.json"
"""File by which a folder is known to be one of these, and may be replaced."""

ADAPTER: Final = "prometheus/adapter-values.yaml"
"""Where the rule for the autoscaler's metric is written."""

KEDA: Final = "keda/scaled-objects.yaml"
"""Where the same autoscaler is written for KEDA; apart from the objects that are applied, since two
autoscalers of one pool fight."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a scenario does not say of a deployment.

    Parameters
    ----------
    engine : str or None
        ``vllm`` or ``sglang`` for all pools; None for the engine that each pool simulates.
    checkpoints : mapping of str to str
        Repository or folder of a model's weights, by the model's name in the scenario.
    """

    engine: str | None = None
    checkpoints: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Deployment:
    """What is applied, file by file.

    Parameters
    ----------
    scenario : Scenario
    launches : tuple of Launch
        One per pool.
    routers : tuple of RouterPlan
        One per model.
    notes : tuple of Note
        What the scenario says and the files do not, or not exactly.
    """

    scenario: Scenario
    launches: tuple[Launch, ...]
    routers: tuple[RouterPlan, ...]
    notes: tuple[Note, ...]

    @cached_property
    def files(self) -> dict[str, str]:
        """Text of each file by its path in the folder."""
        found: dict[str, str] = {}
        for launch in self.launches:
            found |= self._pool_files(launch)
        for plan in self.routers:
            found[f"launch/{plan.name}.sh"] = _router_script(plan)
            line = router_line(plan, "cluster")
            objects = router_objects(self.scenario.name, plan, line.arguments)
            found[f"kubernetes/{plan.name}.yaml"] = dump_objects(objects)
            found |= self._stack_files(plan)
        if any(plan.alone for plan in self.routers):
            found[ROUTE] = dump_objects([route(self.scenario, self.routers)])
        rules = [adapter_rule(each.site) for each in self.launches if self._scaled(each.site)]
        if rules:
            found[ADAPTER] = dump_objects([{"rules": {"custom": rules}}])
            found[KEDA] = dump_objects(self._scaled_objects())
        found["README.md"] = self._readme(found)
        found[MARK] = self._record(found)
        return found

    def manifests(self) -> list[dict[str, Any]]:
        """Return all Kubernetes objects."""
        texts = [text for path, text in self.files.items() if path.startswith("kubernetes/")]
        return [each for text in texts for each in yaml.load_all(text, Loader=_LOADER)]

    def save(self, folder: str | Path, force: bool = False) -> Path:
        """Write all files into a folder, or none of them.

        Parameters
        ----------
        folder : str or Path
        force : bool
            Replace a folder that an earlier deployment was written into.

        Returns
        -------
        Path
            The folder.

        Raises
        ------
        OutputError
            If the folder is taken, or cannot be written.
        """
        target = Path(folder)
        with new_folder(target, force, MARK) as made:
            for path, text in self.files.items():
                file = made / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
                if path.endswith(".sh"):
                    file.chmod(0o755)
        return target

    def _scaled_objects(self) -> list[dict[str, Any]]:
        made = [scaled_object(self.scenario, each.site) for each in self.launches]
        return [each for each in made if each is not None]

    def _scaled(self, site: Site) -> bool:
        return autoscaler(self.scenario, site) is not None

    def _pool_files(self, launch: Launch) -> dict[str, str]:
        name, site = self.scenario.name, launch.site
        objects = [workload(name, launch), service(name, launch)]
        scaler = autoscaler(self.scenario, site)
        if scaler is not None:
            objects.append(scaler)
        stem = object_name("", site.name).removeprefix("-")
        return {
            f"launch/{stem}.sh": _launch_script(launch),
            f"kubernetes/{stem}.yaml": dump_objects(objects),
        }

    def _stack_files(self, plan: RouterPlan) -> dict[str, str]:
        """Return values of serving stacks for a model whose prompts and decoding are apart."""
        launches = [each for each in self.launches if each.site in plan.sites]
        refused = why_not(plan)
        found = {}
        tail = "" if len(self.routers) == 1 else plan.name.removeprefix("router")
        if LLM_D not in refused:
            values = llm_d_values(plan, launches)
            found[LLM_D.replace(".yaml", f"{tail}.yaml")] = dump_objects([values])
        if DYNAMO not in refused:
            graph = dynamo_graph(self.scenario.name, plan, launches)
            found[DYNAMO.replace(".yaml", f"{tail}.yaml")] = dump_objects([graph])
        return found

    def _readme(self, found: Mapping[str, str]) -> str:
        from llmsim.deployment.readme import render_readme

        return render_readme(self, tuple(found))

    def _record(self, found: Mapping[str, str]) -> str:
        """Return ``deploy.json``: what this was made from, and the notes."""
        resolved = self.scenario.resolved_yaml().encode()
        told = {
            "schema": 1,
            "llmsim_version": llmsim_version(),
            "scenario": self.scenario.name,
            "scenario_sha256": hashlib.sha256(resolved).hexdigest(),
            "pools": {
                each.site.name: {
                    "engine": f"{each.site.table.name} {each.site.release}",
                    "model": each.site.model,
                    "checkpoint": each.site.checkpoint,
                    "replicas": each.site.pool.replicas,
                    "nodes_per_replica": each.site.nodes,
                    "gpus_per_node": each.site.node_gpus,
                    "gpu": each.site.gpu.name,
                }
                for each in self.launches
            },
            "notes": [
                {"key": note.path, "value": note.value, "text": note.text} for note in self.notes
            ],
            "files": {
                path: hashlib.sha256(text.encode()).hexdigest() for path, text in found.items()
            },
        }
        return json.dumps(told, indent=1) + "\n"


def make_deployment(scenario: Scenario, options: Options | None = None) -> Deployment:
    """Return what is applied for a scenario's fleet.

    Parameters
    ----------
    scenario : Scenario
    options : Options, optional

    Raises
    ------
    InputError
        With everything about the fleet that cannot be deployed.
    """
    options = options or Options()
    sites = find_sites(scenario, options.engine, options.checkpoints)
    faults = [fault for site in sites for fault in (*_layout_faults(site), *gpu_faults(site))]
    faults += router_faults(scenario.fleet, sites) + _same_names(sites) + weight_faults(scenario)
    if faults:
        raise InputError(f"the fleet of {scenario.name}, which cannot be deployed", faults)
    notes: list[Note] = []
    launches = []
    for site in sites:
        launch, line = _launch(site)
        launches.append(launch)
        notes += _notes(site, line)
    routers = plan_routers(scenario.name, scenario.fleet, sites)
    for plan in routers:
        notes += [note for note in router_line(plan, "cluster").notes if note not in notes]
        notes += stack_notes(plan)
    if any(plan.alone for plan in routers):
        notes += weight_notes(scenario)
    notes += [note for plan in routers for note in shared_notes(plan)]
    notes += notes_of_fleet(scenario.fleet) + notes_of_control(scenario)
    return Deployment(scenario, tuple(launches), tuple(routers), tuple(notes))


def pool_line(site: Site, worker: bool = False) -> CommandLine:
    """Return the flags of a pool's engine."""
    make = vllm_line if site.table.program == "vllm" else sglang_line
    return make(site, worker)


def dump_objects(objects: list[dict[str, Any]]) -> str:
    """Return objects as a file of YAML documents."""
    text: str = yaml.dump_all(
        objects, Dumper=_Dumper, sort_keys=False, width=1000, explicit_start=len(objects) > 1
    )
    return text


def llmsim_version() -> str:
    """Return the version of the installed package; ``unknown`` in a bare checkout."""
    try:
        return version("llmsim")
    except PackageNotFoundError:
        return "unknown"


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and nothing as a reference to something before."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _as_block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _as_block)


def _layout_faults(site: Site) -> list[Fault]:
    make = faults_for_vllm if site.table.program == "vllm" else faults_for_sglang
    return make(site)


def _same_names(sites: tuple[Site, ...]) -> list[Fault]:
    """Return which pools would get the same name in Kubernetes."""
    met: dict[str, str] = {}
    found = []
    for site in sites:
        name = object_name("", site.name)
        if name in met:
            message = f"is the same name as {met[name]} in Kubernetes ({name})."
            found.append(Fault("", f"fleet.pools.{site.name}", message, "Rename one."))
        met.setdefault(name, site.name)
    return found


def _launch(site: Site) -> tuple[Launch, CommandLine]:
    line = pool_line(site)
    vllm = site.table.program == "vllm"
    command = (*site.table.command, site.checkpoint) if vllm else site.table.command
    environment = vllm_environment(site, POD_IP) if vllm else {}
    unknown = [name for name in environment if name not in site.table.environment]
    if unknown:
        raise InvariantError(f"{unknown} are in no table of {site.table.name}")
    worker = pool_line(site, worker=True).arguments if site.nodes > 1 else ()
    return Launch(site, command, line.arguments, worker, environment), line


def _notes(site: Site, line: CommandLine) -> list[Note]:
    """Return what a pool's engine and its manifests were not told."""
    found = [*line.notes, *notes_of_pool(site.name, site.pool, line.said)]
    version = site.pool.engine.version
    if version != site.card:
        text = f"deployed on {site.table.name} {site.release}; what was simulated is another engine"
        found.insert(0, Note(site.name, "engine.version", version, text))
    selector, labelled = node_selector(site)
    if not labelled:
        ((label, value),) = selector.items()
        text = f"no label of nodes is known for it: kubectl label nodes NODE {label}={value}"
        found.append(Note(site.name, "gpu", site.pool.gpu, text))
    if site.quantise:
        text = f"{site.table.name} makes it of the 16-bit weights of {site.checkpoint} at start"
        found.append(Note(site.name, "engine.quantisation", site.quantise, text))
    return found


def _launch_script(launch: Launch) -> str:
    """Return a script that starts one replica of a pool, or one node of it."""
    site = launch.site
    replicas = "replica" if site.pool.replicas == 1 else "replicas"
    gpus = f"{site.node_gpus} x {site.gpu.name}"
    head = [
        "#!/bin/sh",
        f"# Pool {site.name}: {site.pool.replicas} {replicas}, each on {gpus}"
        + (f" of each of {site.nodes} nodes." if site.nodes > 1 else "."),
        f"# {site.table.name} {site.release}: {launch.image}",
        "set -eu",
    ]
    for name, value in launch.environment.items():
        told = '"${POD_IP:-$(hostname -i)}"' if value == POD_IP else shlex.quote(value)
        head.append(f"export {name}={told}")
    first = f"exec {as_script(launch.command, launch.leader)}"
    if site.nodes == 1:
        return "\n".join([*head, first]) + "\n"
    head += [
        ': "${LEADER_ADDRESS:?address of the first node of this replica}"',
        f': "${{NODE_RANK:?number of this node, 0 to {site.nodes - 1}}}"',
        'if [ "$NODE_RANK" -eq 0 ]; then',
        f"  {first}",
        "fi",
        f"exec {as_script(launch.command, launch.worker)}",
    ]
    return "\n".join(head) + "\n"


def _router_script(plan: RouterPlan) -> str:
    """Return a script that starts a router in front of replicas whose addresses are given."""
    line = router_line(plan, "hosts")
    assert plan.table.install is not None
    package = plan.table.install.value.format(release=plan.release)
    head = ["#!/bin/sh", f"# Router for {plan.model}: pip install {package}", "set -eu"]
    head += [f': "${{{name}:?address of {what}}}"' for name, what in addresses(plan)]
    return "\n".join([*head, f"exec {as_script(plan.table.command, line.arguments)}"]) + "\n"
