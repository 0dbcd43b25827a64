"""The autoscaler of a scenario as one of Kubernetes, and what does not go over."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llmsim.deployment.line import Note, plain_text
from llmsim.deployment.manifests import object_name
from llmsim.deployment.site import Site
from llmsim.deployment.tables import load_facts
from llmsim.scenario import Scenario

MOST_SECONDS = {"period": 1800, "window": 3600}
"""Longest period of a policy and longest window that Kubernetes takes [s]."""


def scaled_pools(scenario: Scenario) -> dict[str, dict[str, Any]]:
    """Return the parameters of the autoscaler of each pool that has one that goes over."""
    names = list(scenario.fleet.pools)
    found: dict[str, dict[str, Any]] = {}
    for each in scenario.fleet.control:
        if each.kind == "autoscale" and each.params["pool"] < len(names):
            found.setdefault(names[each.params["pool"]], each.params)
    return found


def notes_of_control(scenario: Scenario) -> list[Note]:
    """Return what controllers do that no manifest does."""
    found = []
    taken: set[int] = set()
    for at, each in enumerate(scenario.fleet.control):
        key = f"control[{at}]"
        if each.kind != "autoscale" or each.params["pool"] in taken:
            text = "no manifest does this; it needs a controller of its own"
            found.append(Note("", key, plain_text(each), text))
            continue
        taken.add(each.params["pool"])
        below = plain_text(each.params["below"])
        text = "Kubernetes drains by the same target that it adds by, not under a second one"
        found.append(Note("", f"{key}.below", below, text))
    scaled = scaled_pools(scenario)
    for name, pool in scenario.fleet.pools.items():
        if pool.spare_replicas and name not in scaled:
            text = "no autoscaler is written for this pool: nothing would add them"
            found.append(Note(name, "spare_replicas", str(pool.spare_replicas), text))
    return found


def autoscaler(scenario: Scenario, site: Site) -> dict[str, Any] | None:
    """Return a HorizontalPodAutoscaler by requests in a replica; None where none is asked for.

    Notes
    -----
    Kubernetes wants ``ceil(replicas x mean / target)`` of them and looks away within a tenth; a
    policy of one pod a period keeps it from adding more at a time than the scenario's rule does.
    """
    rule = scaled_pools(scenario).get(site.name)
    if rule is None:
        return None
    name = object_name(scenario.name, site.name)
    metric = load_facts("kubernetes")["autoscaling"]["metric"]["value"]
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name},
        "spec": {
            "scaleTargetRef": _target(scenario, site),
            "minReplicas": rule["least"],
            "maxReplicas": site.most,
            "metrics": [
                {
                    "type": "Pods",
                    "pods": {
                        "metric": {"name": metric},
                        "target": {
                            "type": "AverageValue",
                            "averageValue": _quantity(rule["above"]),
                        },
                    },
                }
            ],
            "behavior": _behaviour(rule),
        },
    }


def scaled_object(scenario: Scenario, site: Site) -> dict[str, Any] | None:
    """Return a ScaledObject of KEDA that does what `autoscaler` does; None where none is asked for.

    KEDA makes an autoscaler of its own, which divides the sum over the pool by the target of one
    replica, and asks Prometheus itself: no adapter is needed.
    """
    rule = scaled_pools(scenario).get(site.name)
    if rule is None:
        return None
    name = object_name(scenario.name, site.name)
    facts = load_facts("kubernetes")["autoscaling"]
    metrics = site.table.metrics
    # pods of a Deployment or a group are called after it
    pods = f'pod=~"{name}-.*"'
    query = " + ".join(f"sum({metrics[each].value}{{{pods}}})" for each in ("running", "waiting"))
    asked = {
        "serverAddress": facts["prometheus"]["value"],
        "query": query,
        "threshold": f"{rule['above']:g}",
    }
    return {
        "apiVersion": facts["keda"]["value"],
        "kind": "ScaledObject",
        "metadata": {"name": name},
        "spec": {
            "scaleTargetRef": _target(scenario, site),
            "pollingInterval": _period_s(rule),
            "minReplicaCount": rule["least"],
            "maxReplicaCount": site.most,
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behaviour(rule)}},
            "triggers": [{"type": "prometheus", "metadata": asked}],
        },
    }


def _target(scenario: Scenario, site: Site) -> dict[str, str]:
    """Return what is made larger and smaller."""
    group = load_facts("kubernetes")["group"]["api"]["value"]
    api, kind = ("apps/v1", "Deployment") if site.nodes == 1 else (group, "LeaderWorkerSet")
    return {"apiVersion": api, "kind": kind, "name": object_name(scenario.name, site.name)}


def _period_s(rule: Mapping[str, float]) -> int:
    return min(MOST_SECONDS["period"], max(1, math.ceil(rule["period_s"])))


def _behaviour(rule: Mapping[str, float]) -> dict[str, Any]:
    """Return how fast pods come and go: one a period, and not before patience has run out."""
    window_s = min(MOST_SECONDS["window"], math.ceil(rule["period_s"] * rule["patience"]))
    one = {"policies": [{"type": "Pods", "value": 1, "periodSeconds": _period_s(rule)}]}
    return {
        "scaleUp": {"stabilizationWindowSeconds": 0, **one},
        "scaleDown": {"stabilizationWindowSeconds": window_s, **one},
    }


def adapter_rule(site: Site) -> dict[str, Any]:
    """Return a rule of prometheus-adapter that makes the autoscaler's metric of the engine's."""
    metrics = site.table.metrics
    running, waiting = metrics["running"].value, metrics["waiting"].value
    query = " + ".join(
        f"sum({name}{{<<.LabelMatchers>>}}) by (<<.GroupBy>>)" for name in (running, waiting)
    )
    return {
        "seriesQuery": f'{running}{{namespace!="",pod!=""}}',
        "resources": {
            "overrides": {"namespace": {"resource": "namespace"}, "pod": {"resource": "pod"}}
        },
        "name": {"as": load_facts("kubernetes")["autoscaling"]["metric"]["value"]},
        "metricsQuery": query,
    }


def _quantity(value: float) -> str:
    """Return a number as Kubernetes writes quantities: whole, or in thousandths."""
    return str(int(value)) if float(value).is_integer() else f"{round(value * 1000)}m"
