"""The router in front of the pools that serve one model: its command and its manifests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from llmsim.core.errors import Fault
from llmsim.deployment.line import Argument, CommandLine, Shell, as_script
from llmsim.deployment.manifests import object_name, serving_labels
from llmsim.deployment.sglang import BOOTSTRAP_PORT
from llmsim.deployment.site import Site
from llmsim.deployment.tables import FlagTable, load_table
from llmsim.scenario.component import Component
from llmsim.scenario.fleet import Fleet

_POLICIES: Final = {
    "round-robin": "round_robin",
    "power-of-two": "power_of_two",
    "prefix-affinity": "cache_aware",
}
"""Words of both routers for policies of ours."""

_STICKY: Final = {"vllm-router": "consistent_hash", "sglang-router": "manual"}
"""Their words for `session-sticky`."""


HALVES: Final = "apart"
"""In the name of the router of pools that compute prompts or outputs, beside routers of others."""


@dataclass(frozen=True, slots=True)
class RouterPlan:
    """One router.

    Parameters
    ----------
    scenario, model : str
        Which it is for.
    name : str
        Of its objects and its script.
    table : FlagTable
    sites : tuple of Site
        Pools behind it.
    fleet : Fleet
    alone : bool
        Whether its pool has a router to itself, because traffic is divided between pools.
    """

    scenario: str
    model: str
    name: str
    table: FlagTable
    sites: tuple[Site, ...]
    fleet: Fleet
    alone: bool = False

    @property
    def apart(self) -> bool:
        """Whether prompts and decoding are apart."""
        return any(site.pool.role != "mixed" for site in self.sites)

    @property
    def release(self) -> str:
        """Release of the router."""
        return self.table.releases[self.table.newest()]


def plan_routers(scenario: str, fleet: Fleet, sites: Sequence[Site]) -> list[RouterPlan]:
    """Return a router for each model.

    Parameters
    ----------
    scenario : str
        Its name.
    fleet : Fleet
    sites : sequence of Site
    """
    models = list(dict.fromkeys(site.model for site in sites))
    plans = []
    for model in models:
        own = tuple(site for site in sites if site.model == model)
        table = load_table(f"{own[0].table.program}-router")
        word = "" if len(models) == 1 else model.rsplit("/", 1)[-1]
        whole = tuple(site for site in own if site.pool.role == "mixed")
        halves = tuple(site for site in own if site.pool.role != "mixed")
        if not divides(fleet) or len(own) == 1 or not whole:
            name = object_name("router", word)
            plans.append(RouterPlan(scenario, model, name, table, own, fleet))
            continue
        for site in whole:
            name = object_name("router", site.name)
            plans.append(RouterPlan(scenario, model, name, table, (site,), fleet, alone=True))
        if halves:  # who computes prompts hands over by its router, so that one has them all
            name = object_name("router", HALVES)
            plans.append(RouterPlan(scenario, model, name, table, halves, fleet))
    return plans


def divides(fleet: Fleet) -> bool:
    """Return whether the fleet's router divides traffic between pools in given shares."""
    return fleet.routing.kind == "planned-split" and bool(fleet.routing.params["shares"])


def router_faults(fleet: Fleet, sites: Sequence[Site]) -> list[Fault]:
    """Return what keeps the pools of a model from being served by its router, or its routers."""
    found = []
    first: dict[str, Site] = {}
    roles: dict[str, set[str]] = {}
    mixes = len({site.pool.role == "mixed" for site in sites}) > 1
    for site in sites:
        at = f"fleet.pools.{site.name}"
        if mixes and object_name("", site.name) == object_name("", HALVES):
            message = "is how the router of prompts and outputs is called."
            found.append(Fault("", at, message, "Rename it."))
        if site.pool.role == "encode":
            message = "no flags are known of engines that encode images for others."
            found.append(Fault("", f"{at}.role", message, "Without it, others encode."))
            continue
        leader = first.setdefault(site.model, site)
        if leader.table.program != site.table.program:
            message = (
                f"serves {site.model} on {site.table.name}, {leader.name} on {leader.table.name}."
            )
            hint = "Give one engine for all: --engine."
            found.append(Fault("", f"{at}.engine.version", message, hint))
        kinds = roles.setdefault(site.model, set())
        kinds.add("mixed" if site.pool.role == "mixed" else "apart")
        if len(kinds) > 1 and not divides(fleet):
            message = f"{site.model} has pools of role mixed and others; a router does one of both."
            hint = "With planned-split, shares say what each gets."
            found.append(Fault("", f"{at}.role", message, hint))
    return found


def router_line(plan: RouterPlan, where: str) -> CommandLine:
    """Return a router's flags.

    Parameters
    ----------
    plan : RouterPlan
    where : str
        ``cluster`` where it finds replicas by labels; ``hosts`` where variables give addresses.
    """
    line = CommandLine(plan.table, plan.table.newest(), "")
    line.put("--host", "0.0.0.0")
    line.put("--port", plan.table.port)
    _policy(plan, line, "routing", plan.fleet.routing, "--policy")
    if plan.apart:
        _policy(plan, line, "handoff.routing", plan.fleet.handoff.routing, "--decode-policy")
        vllm = plan.table.program == "vllm-router"
        line.put("--vllm-pd-disaggregation" if vllm else "--pd-disaggregation", None)
        if vllm:
            line.put("--kv-connector", "nixl")
    _replicas(plan, line, where)
    return line


def addresses(plan: RouterPlan) -> list[tuple[str, str]]:
    """Return the variables of a router's script, each with what it is the address of."""
    return [
        (_variable(site, index), f"replica {index} of pool {site.name}")
        for site in plan.sites
        for index in range(site.pool.replicas)
    ]


def router_objects(scenario: str, plan: RouterPlan, arguments: Sequence[Argument]) -> list[Any]:
    """Return the objects of a router: who it is, what it may see, its pod, its service."""
    name = object_name(scenario, plan.name)
    marks = {
        "app.kubernetes.io/name": name,
        "app.kubernetes.io/part-of": object_name(scenario, "fleet"),
    }
    meta = {"name": name, "labels": marks}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]
    rbac = "rbac.authorization.k8s.io"
    role = {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": meta, "rules": rules}
    binding = {
        "apiVersion": f"{rbac}/v1",
        "kind": "RoleBinding",
        "metadata": meta,
        "subjects": [{"kind": "ServiceAccount", "name": name}],
        "roleRef": {"apiGroup": rbac, "kind": "Role", "name": name},
    }
    port = plan.table.port
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta,
        "spec": {
            "selector": {"app.kubernetes.io/name": name},
            "ports": [{"name": "http", "port": port, "targetPort": "http"}],
        },
    }
    return [account, role, binding, _deployment(plan, meta, arguments), service]


def _deployment(plan: RouterPlan, meta: dict[str, Any], arguments: Sequence[Argument]) -> Any:
    name, marks = meta["name"], meta["labels"]
    assert plan.table.install is not None
    package = plan.table.install.value.format(release=plan.release)
    script = f"pip install --quiet {package}\nexec {as_script(plan.table.command, arguments)}\n"
    container = {
        "name": "router",
        "image": plan.table.image.value,
        "command": ["/bin/sh", "-ec"],
        "args": [script],
        "env": [
            {
                "name": "NAMESPACE",
                "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}},
            }
        ],
        "ports": [{"name": "http", "containerPort": plan.table.port}],
        "readinessProbe": {"tcpSocket": {"port": "http"}, "periodSeconds": 5},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta,
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app.kubernetes.io/name": name}},
            "template": {
                "metadata": {"labels": marks},
                "spec": {"serviceAccountName": name, "containers": [container]},
            },
        },
    }


def _policy(plan: RouterPlan, line: CommandLine, key: str, asked: Component, flag: str) -> None:
    """Say a routing policy; the nearest one, with a note, where the router has none such."""
    kind = asked.kind
    if kind in _POLICIES:
        line.put(flag, _POLICIES[kind], key)
        if kind == "prefix-affinity" and flag == "--policy":
            _affinity(line, asked)
        return
    if kind == "session-sticky":
        word = _STICKY[plan.table.program]
        line.put(flag, word, key)
        if word == "manual" and flag == "--policy":
            line.put("--assignment-mode", "min_load")
        line.note(key, kind, f"{word}: needs a session's key in each request's headers")
        return
    line.put(flag, "power_of_two", key)
    text = f"{plan.table.name} has no such policy; power_of_two looks at two replicas, not all"
    if divides(plan.fleet):
        text = "no router here looks at the length of a prompt; within a pool: power_of_two"
    line.note(key, kind if divides(plan.fleet) else asked, text)


def _affinity(line: CommandLine, asked: Component) -> None:
    rules = asked.params
    line.put("--cache-threshold", rules["min_match_frac"])
    line.put("--balance-abs-threshold", rules["max_imbalance"])
    line.put("--balance-rel-threshold", 1.0)
    text = "looks at the most and the least loaded replica, not at the one that matches"
    line.note("routing.max_imbalance", rules["max_imbalance"], f"the router {text}")


def _replicas(plan: RouterPlan, line: CommandLine, where: str) -> None:
    """Say where the replicas are."""
    if where == "cluster":
        line.put("--service-discovery", None)
        line.put("--service-discovery-port", plan.sites[0].table.port)
        line.put("--service-discovery-namespace", Shell("$NAMESPACE"))
        roles = {"prefill": "--prefill-selector", "decode": "--decode-selector"}
        if not plan.apart:
            roles = {"mixed": "--selector"}
        for role, flag in roles.items():
            marks = serving_labels(plan.model, role)
            if plan.alone:
                marks["app.kubernetes.io/name"] = object_name(plan.scenario, plan.sites[0].name)
            line.put(flag, [f"{key}={value}" for key, value in marks.items()])
        return
    places: dict[str, list[Shell]] = {"mixed": [], "prefill": [], "decode": []}
    for site in plan.sites:
        for index in range(site.pool.replicas):
            address = Shell(f"http://${_variable(site, index)}:{site.table.port}")
            places[site.pool.role].append(address)
    if not plan.apart:
        line.put("--worker-urls", places["mixed"])
        return
    bootstrap = "none" if plan.table.program == "vllm-router" else str(BOOTSTRAP_PORT)
    for address in places["prefill"]:
        line.put("--prefill", [address, bootstrap])
    for address in places["decode"]:
        line.put("--decode", [address])


def _variable(site: Site, index: int) -> str:
    text = "".join(each if each.isalnum() and each.isascii() else "_" for each in site.name).upper()
    return f"POOL_{text}_{index}"
