"""Values of serving stacks for pools with prompts and decoding apart: llm-d, NVIDIA Dynamo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llmsim.deployment.line import Argument, Note
from llmsim.deployment.manifests import Launch, node_selector, object_name, variables
from llmsim.deployment.router import RouterPlan
from llmsim.deployment.tables import load_facts
from llmsim.deployment.vllm import vllm_line

LLM_D, DYNAMO = "llm-d/values.yaml", "dynamo/graph.yaml"
"""Where the values are written; with the model's name in it where there are several."""


def llm_d_values(plan: RouterPlan, launches: Sequence[Launch]) -> dict[str, Any]:
    """Return values for the chart llm-d-modelservice.

    Parameters
    ----------
    plan : RouterPlan
        Of a model whose prompts and decoding are apart, one pool each; see `why_not`.
    launches : sequence of Launch
        Of its pools.
    """
    facts = load_facts("stacks")["llm-d"]
    by_role = {each.site.pool.role: each for each in launches}
    prefill, decode = by_role["prefill"], by_role["decode"]
    return {
        "modelArtifacts": {
            "name": plan.model,
            "uri": f"hf://{prefill.site.checkpoint}",
            "labels": {"llm-d.ai/model": object_name(plan.model.rsplit("/", 1)[-1], "")},
        },
        "multinode": False,
        "accelerator": {"type": facts["accelerators"][prefill.site.gpu.vendor]},
        "routing": {
            "servicePort": facts["service_port"]["value"],
            "proxy": {
                "enabled": True,
                "targetPort": facts["target_port"]["value"],
                "connector": facts["connector"]["value"],
            },
        },
        "decode": _llm_d_role(decode, facts["target_port"]["value"]),
        "prefill": _llm_d_role(prefill, facts["service_port"]["value"]),
    }


def _llm_d_role(launch: Launch, port: int) -> dict[str, Any]:
    site, cluster = launch.site, load_facts("kubernetes")
    selector, _ = node_selector(site)
    resource = cluster["gpus"][site.gpu.vendor]["resource"]
    size = cluster["shared_memory"]["value"]
    container = {
        "name": "vllm",
        "image": launch.image,
        # the chart's own `vllmServe` would choose flags that the scenario did not
        "modelCommand": "custom",
        "command": list(launch.command),
        "args": _words(_on_port(launch.leader, port)),
        "env": variables(launch),
        "ports": [{"name": "metrics", "containerPort": port}],
        "resources": {"limits": {resource: str(site.node_gpus)}},
        "mountModelVolume": False,
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    return {
        "create": True,
        "replicas": site.pool.replicas,
        "nodeSelector": selector,
        "parallelism": {"tensor": site.pool.tp, "data": site.pool.dp, "dataLocal": site.pool.dp},
        "containers": [container],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": size}}],
    }


def dynamo_graph(scenario: str, plan: RouterPlan, launches: Sequence[Launch]) -> dict[str, Any]:
    """Return a graph for Dynamo's operator: a frontend that routes, and a component for each pool.

    Parameters
    ----------
    scenario : str
        Its name.
    plan : RouterPlan
    launches : sequence of Launch
        Of the model's pools.
    """
    facts = load_facts("stacks")["dynamo"]
    container = facts["container"]["value"]
    mode = facts["policies"].get(plan.fleet.routing.kind)
    frontend: dict[str, Any] = {"name": container, "image": facts["image"]["value"]}
    if mode is not None:
        frontend["env"] = [{"name": facts["router"]["value"], "value": mode}]
    return {
        "apiVersion": facts["api"]["value"],
        "kind": "DynamoGraphDeployment",
        "metadata": {"name": object_name(scenario, plan.name)},
        "spec": {
            "backendFramework": "vllm",
            "components": [
                {
                    "name": "Frontend",
                    "type": "frontend",
                    "replicas": 1,
                    "podTemplate": {"spec": {"containers": [frontend]}},
                },
                *(_dynamo_component(launch) for launch in launches),
            ],
        },
    }


def _dynamo_component(launch: Launch) -> dict[str, Any]:
    facts, cluster, site = load_facts("stacks")["dynamo"], load_facts("kubernetes"), launch.site
    selector, _ = node_selector(site)
    resource = cluster["gpus"][site.gpu.vendor]["resource"]
    # the operator adds what joins nodes; the worker takes no HTTP requests itself
    one_node = replace(site, card=facts["flags_of"]["value"], nodes=1)
    arguments = [
        argument
        for argument in vllm_line(one_node).arguments
        if argument.flag not in ("--host", "--port")
    ]
    role = site.pool.role
    container = {
        "name": facts["container"]["value"],
        "image": facts["image"]["value"],
        "command": list(facts["command"]["value"]),
        "args": [
            "--model",
            site.checkpoint,
            facts["mode"]["value"],
            "agg" if role == "mixed" else role,
            *_words(arguments),
        ],
        "env": variables(launch),
        "resources": {"limits": {resource: str(site.node_gpus)}},
    }
    component: dict[str, Any] = {
        "name": object_name("", site.name).removeprefix("-"),
        "type": "worker" if role == "mixed" else role,
        "replicas": site.pool.replicas,
        "sharedMemorySize": cluster["shared_memory"]["value"],
        "podTemplate": {"spec": {"nodeSelector": selector, "containers": [container]}},
    }
    if site.nodes > 1:
        component["multinode"] = {"nodeCount": site.nodes}
    return component


def why_not(plan: RouterPlan) -> dict[str, str]:
    """Return why values of a stack cannot be written for a model, by stack; empty where they can.

    Notes
    -----
    They are written where prompts and decoding are apart; for other pools the plain manifests do.
    """
    if not plan.apart:
        return {LLM_D: "", DYNAMO: ""}
    found = {}
    program = plan.sites[0].table
    if program.program != "vllm":
        text = f"its values are written for vLLM alone, not for {program.name}"
        return {LLM_D: text, DYNAMO: text}
    roles = [site.pool.role for site in plan.sites]
    if sorted(roles) != ["decode", "prefill"]:
        found[LLM_D] = "its chart has one pool of prefill engines and one of decode engines"
    elif any(site.nodes > 1 for site in plan.sites):
        found[LLM_D] = "its values are written for replicas on one node alone"
    elif len({site.checkpoint for site in plan.sites}) > 1:
        found[LLM_D] = "its chart has one checkpoint for both pools"
    return found


def stack_notes(plan: RouterPlan) -> list[Note]:
    """Return a note for each stack that a model's pools are not written for."""
    pools = ", ".join(site.name for site in plan.sites)
    found = [
        Note("", f"pools ({stack})", pools, f"not written: {text}")
        for stack, text in why_not(plan).items()
        if text
    ]
    facts = load_facts("stacks")["dynamo"]
    if plan.apart and DYNAMO not in why_not(plan):
        kind = plan.fleet.routing.kind
        if kind not in facts["policies"]:
            text = "Dynamo's router has no such policy; the graph has its default, round-robin"
            found.append(Note("", f"routing ({DYNAMO})", kind, text))
        engine = f"the graph runs {facts['engine']['value']}, told in the flags of an older release"
        found.append(Note("", f"pools ({DYNAMO})", pools, engine))
    return found


def _on_port(arguments: Sequence[Argument], port: int) -> list[Argument]:
    return [
        Argument(each.flag, (str(port),)) if each.flag == "--port" else each for each in arguments
    ]


def _words(arguments: Sequence[Argument]) -> list[str]:
    return [word for argument in arguments for word in argument.words]
