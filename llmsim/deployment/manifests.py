"""A pool as Kubernetes objects: its pods, their service, its autoscaler."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmsim.core.errors import Fault
from llmsim.deployment.line import Argument, as_script
from llmsim.deployment.sglang import BOOTSTRAP_PORT
from llmsim.deployment.site import Site
from llmsim.deployment.tables import load_facts

POD_IP = "status.podIP"
"""Field of a pod that variables may be set from."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What starts one pool's engine.

    Parameters
    ----------
    site : Site
    command : tuple of str
        First words, with the checkpoint where the engine takes it there.
    leader : tuple of Argument
        Flags on the first node of a replica; on its only one where there is one.
    worker : tuple of Argument
        Flags on the other nodes; empty where there is one node.
    environment : mapping of str to str
        Variables; `POD_IP` stands for the address of the pod.
    """

    site: Site
    command: tuple[str, ...]
    leader: tuple[Argument, ...]
    worker: tuple[Argument, ...]
    environment: Mapping[str, str]

    @property
    def image(self) -> str:
        """Container image of the release."""
        return self.site.table.image.value.format(release=self.site.release)


def object_name(scenario: str, part: str) -> str:
    """Return a name that Kubernetes takes: lower case, dashes, at most 52 characters.

    Notes
    -----
    A Deployment appends eleven characters to its name for a pod's, which has at most 63.
    """
    text = re.sub(r"[^a-z0-9]+", "-", f"{scenario}-{part}".lower()).strip("-")
    if not text[:1].isalpha():
        text = f"x{text}"
    if len(text) <= 52:
        return text
    return f"{text[:45].rstrip('-')}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def gpu_faults(site: Site) -> list[Fault]:
    """Return what keeps Kubernetes from handing out a pool's GPUs."""
    known = load_facts("kubernetes")["gpus"]
    if site.gpu.vendor in known:
        return []
    message = f"no Kubernetes resource is known for GPUs of {site.gpu.vendor}."
    return [Fault("", f"fleet.pools.{site.name}.gpu", message)]


def node_selector(site: Site) -> tuple[dict[str, str], bool]:
    """Return the labels of nodes that a pool runs on, and whether they are there by themselves."""
    facts = load_facts("kubernetes")
    label = facts["gpus"][site.gpu.vendor]["label"]
    product = facts["products"].get(site.gpu.name)
    if label and product:
        return {label: product}, True
    value = re.sub(r"[^A-Za-z0-9._-]+", "-", site.gpu.name).strip("-._")[:63]
    return {facts["own_label"]["value"]: value}, False


def labels(scenario: str, site: Site) -> dict[str, str]:
    """Return the labels of a pool's objects."""
    return {
        "app.kubernetes.io/name": object_name(scenario, site.name),
        "app.kubernetes.io/part-of": object_name(scenario, "fleet"),
    }


def serving_labels(model: str, role: str) -> dict[str, str]:
    """Return the labels by which a router finds the pods that take requests."""
    return {"llmsim/model": object_name(model.rsplit("/", 1)[-1], ""), "llmsim/role": role}


def workload(scenario: str, launch: Launch) -> dict[str, Any]:
    """Return the object that keeps a pool's replicas: a Deployment, or groups of pods."""
    site = launch.site
    name, marks = object_name(scenario, site.name), labels(scenario, site)
    selector = {"app.kubernetes.io/name": name}
    if site.nodes == 1:
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "labels": marks},
            "spec": {
                "replicas": site.pool.replicas,
                "selector": {"matchLabels": selector},
                "template": _pod(launch, launch.leader, marks, serves=True),
            },
        }
    return {
        "apiVersion": load_facts("kubernetes")["group"]["api"]["value"],
        "kind": "LeaderWorkerSet",
        "metadata": {"name": name, "labels": marks},
        "spec": {
            "replicas": site.pool.replicas,
            "leaderWorkerTemplate": {
                "size": site.nodes,
                "restartPolicy": "RecreateGroupOnPodRestart",
                "leaderTemplate": _pod(launch, launch.leader, marks, serves=True),
                "workerTemplate": _pod(launch, launch.worker, marks, serves=False),
            },
        },
    }


def service(scenario: str, launch: Launch) -> dict[str, Any]:
    """Return the service in front of a pool's replicas: of the first node of each."""
    site = launch.site
    name = object_name(scenario, site.name)
    selector = {"app.kubernetes.io/name": name}
    if site.nodes > 1:
        selector[load_facts("kubernetes")["group"]["index_label"]["value"]] = "0"
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels(scenario, site)},
        "spec": {
            "selector": selector,
            "ports": [{"name": "http", "port": site.table.port, "targetPort": "http"}],
        },
    }


def _pod(
    launch: Launch, arguments: Sequence[Argument], marks: Mapping[str, str], serves: bool
) -> dict[str, Any]:
    """Return a template of pods.

    Parameters
    ----------
    launch : Launch
    arguments : sequence of Argument
    marks : mapping of str to str
        Labels.
    serves : bool
        Whether requests come here.
    """
    site, facts = launch.site, load_facts("kubernetes")
    selector, _ = node_selector(site)
    container: dict[str, Any] = {
        "name": site.table.program,
        "image": launch.image,
        **_command(launch, arguments),
        "env": variables(launch),
        "resources": {
            "limits": {facts["gpus"][site.gpu.vendor]["resource"]: str(site.node_gpus)},
        },
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    if serves:
        container["ports"] = [{"name": "http", "containerPort": site.table.port}]
        container |= _probes(site)
        marks = {**marks, **serving_labels(site.model, site.pool.role)}
    size = facts["shared_memory"]["value"]
    meta: dict[str, Any] = {"labels": dict(marks)}
    if serves and site.table.program == "sglang" and site.pool.role == "prefill":
        meta["annotations"] = {"sglang.ai/bootstrap-port": str(BOOTSTRAP_PORT)}
    return {
        "metadata": meta,
        "spec": {
            "nodeSelector": selector,
            "containers": [container],
            "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": size}}],
        },
    }


def _command(launch: Launch, arguments: Sequence[Argument]) -> dict[str, Any]:
    """Return a container's command; a shell's where the number of its node goes into it."""
    if launch.site.nodes == 1:
        words = [word for argument in arguments for word in argument.words]
        return {"command": list(launch.command), "args": words}
    group = load_facts("kubernetes")["group"]
    script = [
        f'LEADER_ADDRESS="${group["leader"]["value"]}"',
        f'NODE_RANK="${group["rank"]["value"]}"',
        f"exec {as_script(launch.command, arguments)}",
    ]
    return {"command": ["/bin/sh", "-c"], "args": ["\n".join(script) + "\n"]}


def variables(launch: Launch) -> list[dict[str, Any]]:
    """Return the variables of a pool's containers: the token for weights, and the engine's."""
    secret = load_facts("kubernetes")["token_secret"]["value"]
    reference = {"name": secret, "key": "token", "optional": True}
    token = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": reference}}
    return [token, *(_variable(name, value) for name, value in launch.environment.items())]


def _variable(name: str, value: str) -> dict[str, Any]:
    if value == POD_IP:
        return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": POD_IP}}}
    return {"name": name, "value": value}


def _probes(site: Site) -> dict[str, Any]:
    """Return probes of the health check: an hour to start, then every few seconds."""
    facts = load_facts("kubernetes")["probes"]
    check = {"httpGet": {"path": site.table.health.value, "port": "http"}}
    found = {}
    for kind in ("startup", "liveness", "readiness"):
        row = facts[kind]
        times = {"periodSeconds": row["period_s"], "failureThreshold": row["failures"]}
        if "timeout_s" in row:
            times["timeoutSeconds"] = row["timeout_s"]
        found[f"{kind}Probe"] = {**check, **times}
    return found
