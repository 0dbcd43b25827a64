"""Kubernetes takes the manifests, and they hold the fleet: its GPUs, replicas, nodes, labels."""

import jsonschema
import kubernetes_validate
import pytest
import yaml

from llmsim.core.errors import InputError
from llmsim.deployment import deploy
from llmsim.deployment.made import ADAPTER, KEDA, MARK
from llmsim.deployment.manifests import object_name
from llmsim.deployment.tables import load_facts
from llmsim.scenario import Scenario
from llmsim.specs import gpu_names, load_gpu

MAIN = "fleet.pools.main."
TWO_NODES = {
    "model": "llama-3.1-405b",
    MAIN + "tp": 8,
    MAIN + "pp": 2,
    MAIN + "engine.max_model_len": 8192,
}
FLEETS = [
    ("quickstart", {}),
    ("disaggregated", {}),
    ("two-models", {}),
    ("autoscale", {}),
    ("ranks", {MAIN + "dp": 16, MAIN + "ep": 16}),
    ("quickstart", TWO_NODES),
    ("quickstart", {MAIN + "gpu": "mi300x"}),
    ("quickstart", {MAIN + "gpu": "a40"}),
]


def check(thing):
    """Hold an object to its schema, unknown keys refused; groups of pods to that of their pods."""
    version = load_facts("kubernetes")["versions"]["value"]
    if thing["kind"] != "LeaderWorkerSet":
        kubernetes_validate.validate(thing, version, strict=True)
        return
    assert set(thing) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(thing["spec"]) == {"replicas", "leaderWorkerTemplate"}
    group = thing["spec"]["leaderWorkerTemplate"]
    assert set(group) == {"size", "restartPolicy", "leaderTemplate", "workerTemplate"}
    for name in ("leaderTemplate", "workerTemplate"):
        pod = {"apiVersion": "v1", "kind": "Pod", **group[name]}
        pod["metadata"] = {"name": "x", **pod["metadata"]}
        kubernetes_validate.validate(pod, version, strict=True)


def pods_of(thing):
    """Return (how many, template) of an object that keeps pods."""
    spec = thing.get("spec", {})
    if thing["kind"] == "Deployment":
        return [(spec["replicas"], spec["template"])]
    if thing["kind"] == "LeaderWorkerSet":
        group = spec["leaderWorkerTemplate"]
        return [
            (spec["replicas"], group["leaderTemplate"]),
            (spec["replicas"] * (group["size"] - 1), group["workerTemplate"]),
        ]
    return []


def pods(objects):
    return [pair for thing in objects for pair in pods_of(thing)]


@pytest.mark.parametrize("program", ["vllm", "sglang"])
@pytest.mark.parametrize(("name", "changes"), FLEETS)
@pytest.mark.many
def test_kubernetes_takes_every_object(name, changes, program):
    objects = deploy(name, changes, engine=program).manifests()
    assert len(objects) >= 7
    for thing in objects:
        check(thing)
    assert len({(thing["kind"], thing["metadata"]["name"]) for thing in objects}) == len(objects)


def test_the_schema_refuses_what_is_wrong():
    (first, *_) = deploy("quickstart").manifests()
    (container,) = first["spec"]["template"]["spec"]["containers"]
    container["ressources"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="ressources"):
        check(first)


@pytest.mark.parametrize(("name", "changes"), FLEETS)
def test_pods_ask_for_the_gpus_of_the_fleet(name, changes):
    scenario = Scenario.load(name, changes)
    wanted = sum(pool.gpus for pool in scenario.fleet.pools.values())
    asked = 0
    for count, template in pods(deploy(scenario).manifests()):
        (container,) = template["spec"]["containers"]
        limits = container.get("resources", {}).get("limits", {})
        asked += count * sum(int(each) for each in limits.values())
    assert asked == wanted


@pytest.mark.parametrize(("name", "changes"), FLEETS)
@pytest.mark.many
def test_services_and_routers_find_the_pods_that_serve(name, changes):
    objects = deploy(name, changes).manifests()
    templates = pods(objects)

    def found(selector, count):
        return (
            sum(
                number
                for number, template in templates
                if selector.items() <= template["metadata"]["labels"].items()
            )
            == count
        )

    replicas = {
        thing["metadata"]["name"]: thing["spec"]["replicas"] for thing in objects if pods_of(thing)
    }
    for thing in objects:
        if thing["kind"] == "Deployment":
            labels = thing["spec"]["template"]["metadata"]["labels"]
            assert thing["spec"]["selector"]["matchLabels"].items() <= labels.items()
        if thing["kind"] == "Service":
            selector = thing["spec"]["selector"]
            rank = selector.pop("leaderworkerset.sigs.k8s.io/worker-index", None)
            if rank is None:
                assert found(selector, replicas[thing["metadata"]["name"]])
    serving = [pair for pair in templates if "llmsim/role" in pair[1]["metadata"]["labels"]]
    pools = Scenario.load(name, changes).fleet.pools.values()
    assert sum(count for count, _ in serving) == sum(pool.replicas for pool in pools)
    for _, template in serving:
        (container,) = template["spec"]["containers"]
        (port,) = container["ports"]
        assert (
            container["args"][container["args"].index("--port") + 1] == str(port["containerPort"])
            if "--port" in container["args"]
            else f"--port {port['containerPort']}" in str(container)
        )


def test_nodes_are_chosen_by_their_gpu():
    def selector(gpu):
        first, *_ = deploy("quickstart", {MAIN + "gpu": gpu}).manifests()
        return first["spec"]["template"]["spec"]["nodeSelector"]

    assert selector("h100-sxm") == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert selector("mi300x") == {"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM"}
    assert selector("a40") == {"llmsim/gpu": "a40"}
    noted = [n.text for n in deploy("quickstart", {MAIN + "gpu": "a40"}).notes if n.key == "gpu"]
    assert noted == ["no label of nodes is known for it: kubectl label nodes NODE llmsim/gpu=a40"]


def test_products_are_of_gpus_that_there_are():
    facts = load_facts("kubernetes")
    assert set(facts["products"]) <= set(gpu_names())
    for name in facts["products"]:
        assert facts["gpus"][load_gpu(name).vendor]["label"]


def test_the_autoscaler_follows_the_rule_of_the_scenario():
    made = deploy("autoscale")
    (scaler,) = [each for each in made.manifests() if each["kind"] == "HorizontalPodAutoscaler"]
    spec = scaler["spec"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 8)
    (metric,) = spec["metrics"]
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "64"}
    assert spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 15
    (rule,) = yaml.safe_load(made.files[ADAPTER])["rules"]["custom"]
    assert rule["name"]["as"] == metric["pods"]["metric"]["name"]
    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting"):
        assert name in rule["metricsQuery"]
    fixed = deploy("quickstart", {MAIN + "spare_replicas": 2, "fleet.boot": {}})
    assert "HorizontalPodAutoscaler" not in {each["kind"] for each in fixed.manifests()}
    assert [note.key for note in fixed.notes if note.key == "spare_replicas"]


def keda_schema(known):
    """Return the JSON schema of a ScaledObject's spec: no field that KEDA does not know."""

    def part(name, **inner):
        fields = {field: {"type": kind} for field, kind in known[name].items()} | inner
        needed = known["needed"].get(name, [])
        strict = {"type": "object", "additionalProperties": False}
        return {**strict, "properties": fields, "required": needed}

    texts = {"type": "object", "additionalProperties": {"type": "string"}}
    advanced = part("advanced", horizontalPodAutoscalerConfig=part("config"))
    triggers = {"type": "array", "minItems": 1, "items": part("trigger", metadata=texts)}
    return part("spec", scaleTargetRef=part("target"), advanced=advanced, triggers=triggers)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("maxReplicas",), 8),  # an autoscaler's own name of it
        (("minReplicaCount",), "2"),
        (("triggers", 0, "metadata", "threshold"), 64),
        (("advanced", "behavior"), {}),
        (("scaleTargetRef", "name"), None),
    ],
)
def test_the_schema_of_keda_refuses_what_keda_does(path, value):
    (scaled,) = yaml.safe_load_all(deploy("autoscale").files[KEDA])
    *way, last = path
    at = scaled["spec"]
    for step in way:
        at = at[step]
    at[last] = value
    known = load_facts("kubernetes")["autoscaling"]["keda"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(scaled["spec"], keda_schema(known))


@pytest.mark.parametrize("program", ["vllm", "sglang"])
def test_keda_gets_the_same_autoscaler(program):
    made = deploy("autoscale", engine=program)
    (scaler,) = [each for each in made.manifests() if each["kind"] == "HorizontalPodAutoscaler"]
    (scaled,) = yaml.safe_load_all(made.files[KEDA])
    known = load_facts("kubernetes")["autoscaling"]["keda"]
    spec, hpa = scaled["spec"], scaler["spec"]
    assert (scaled["apiVersion"], scaled["kind"]) == (known["value"], "ScaledObject")
    jsonschema.validate(spec, keda_schema(known))
    assert spec["scaleTargetRef"] == hpa["scaleTargetRef"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (2, 8)
    assert spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == hpa["behavior"]
    (trigger,) = spec["triggers"]
    asked = trigger["metadata"]
    assert set(asked) == set(known["prometheus"])
    assert asked["threshold"] == hpa["metrics"][0]["pods"]["target"]["averageValue"]
    (rule,) = yaml.safe_load(made.files[ADAPTER])["rules"]["custom"]
    for part in rule["metricsQuery"].split(" + "):
        assert part.partition("{")[0] in asked["query"]
    assert f'pod=~"{hpa["scaleTargetRef"]["name"]}-.*"' in asked["query"]
    assert not any(each["kind"] == "ScaledObject" for each in made.manifests())
    assert KEDA not in deploy("quickstart").files
    assert "two autoscalers of" in made.files["README.md"]


def test_a_group_of_nodes_is_as_large_as_its_replica():
    first, *_ = deploy("quickstart", TWO_NODES).manifests()
    assert first["apiVersion"] == "leaderworkerset.x-k8s.io/v1"
    group = first["spec"]["leaderWorkerTemplate"]
    assert group["size"] == 2
    for name in ("leaderTemplate", "workerTemplate"):
        (container,) = group[name]["spec"]["containers"]
        assert container["resources"]["limits"] == {"nvidia.com/gpu": "8"}
        assert "$LWS_LEADER_ADDRESS" in container["args"][0]


def test_names_are_what_kubernetes_takes():
    assert object_name("My_Run", "Main_2") == "my-run-main-2"
    assert object_name("7b", "x").startswith("x")
    long = object_name("a" * 60, "b")
    assert len(long) == 52
    assert long != object_name("a" * 60, "c")


def test_the_readme_lists_files_notes_and_flags():
    made = deploy("disaggregated", {"fleet.pools.decode.clock_frac": 0.9})
    text = made.files["README.md"]
    for path in made.files:
        if path != "README.md":
            assert f"`{path}`" in text
    for note in made.notes:
        assert f"`{note.path}`" in text
    for launch in made.launches:
        for argument in launch.leader:
            name = argument.flag
            assert f"`{name}`" in text or f"`--{name.removeprefix('--no-')}`" in text
    assert "{" not in text.split("## Flags")[1]
    assert MARK in made.files


def hold_pod(template, name="x"):
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": template}
    check(pod)


def test_llm_d_gets_values_for_one_pool_of_each_role():
    made = deploy("disaggregated")
    values = yaml.safe_load(made.files["llm-d/values.yaml"])
    assert set(values) == {
        "modelArtifacts", "multinode", "accelerator", "routing", "decode", "prefill",
    }  # fmt: skip
    assert values["modelArtifacts"]["uri"] == "hf://meta-llama/Llama-3.1-8B"
    for role, port in (("prefill", "8000"), ("decode", "8200")):
        part = values[role]
        (container,) = part["containers"]
        words = container["args"]
        assert words[words.index("--port") + 1] == port
        assert container["modelCommand"] == "custom"
        own = {key: container[key] for key in container if not key.startswith("mo")}
        assert "kv_producer" in str(words) if role == "prefill" else "kv_consumer" in str(words)
        own["volumeMounts"] = container["volumeMounts"]
        hold_pod({"containers": [own], "volumes": part["volumes"]})
    assert values["decode"]["replicas"] == 2
    # a model of its own has a file of its own; pools of a mixed role have none
    many = deploy("two-models").files
    assert [path for path in many if path.startswith("llm-d/")] == [
        "llm-d/values-llama-3-1-70b.yaml"
    ]
    assert not [path for path in deploy("quickstart").files if "llm-d" in path or "dynamo" in path]


def test_dynamo_gets_a_graph_with_a_component_for_each_pool():
    changes = {"fleet.routing": "prefix-affinity"}
    (graph,) = yaml.safe_load_all(deploy("disaggregated", changes).files["dynamo/graph.yaml"])
    assert graph["kind"] == "DynamoGraphDeployment"
    parts = graph["spec"]["components"]
    assert [part["type"] for part in parts] == ["frontend", "prefill", "decode"]
    assert parts[0]["podTemplate"]["spec"]["containers"][0]["env"] == [
        {"name": "DYN_ROUTER_MODE", "value": "kv"}
    ]
    for part in parts:
        hold_pod(part["podTemplate"]["spec"])
    for part in parts[1:]:
        (container,) = part["podTemplate"]["spec"]["containers"]
        assert container["name"] == "main"
        words = container["args"]
        assert words[words.index("--disaggregation-mode") + 1] == part["type"]
        assert "--port" not in words
        assert "--watermark" not in words


def test_stacks_that_do_not_fit_are_noted():
    made = deploy("disaggregated", engine="sglang")
    assert not [path for path in made.files if "llm-d" in path or "dynamo" in path]
    texts = [note.text for note in made.notes if note.key.startswith("pools (")]
    assert len(texts) == 2
    two = deploy("disaggregated", {"fleet.pools.more": {"role": "decode", "gpu": "h200-sxm"}})
    assert "dynamo/graph.yaml" in two.files
    assert "llm-d/values.yaml" not in two.files
    assert any("one pool of prefill engines" in note.text for note in two.notes)


def test_unlike_pools_get_the_weights_of_the_plan():
    shares = {"big": [0.25, None], "small": [0.75, 1.0]}
    changes = {
        "fleet.pools": {"big": {"gpu": "h100-sxm"}, "small": {"gpu": "l40s", "replicas": 3}},
        "fleet.pools.main": None,
        "fleet.routing": {"kind": "planned-split", "edges_tokens": [500], "shares": shares},
    }
    scenario = Scenario.load("quickstart", changes)
    made = deploy(scenario)
    (route,) = yaml.safe_load_all(made.files["gateway/route.yaml"])
    (rule,) = route["spec"]["rules"]
    weights = {each["name"]: each["weight"] for each in rule["backendRefs"]}
    assert sum(weights.values()) == 1000
    from llmsim.scenario import build_workload

    prompts = [n for chunk in build_workload(scenario).chunks() for n in chunk.prompt_tokens]
    short = sum(n < 500 for n in prompts) / len(prompts)
    assert 0.2 < short < 0.8
    assert abs(weights["quickstart-router-big"] - 250 * short) <= 1
    services = {each["metadata"]["name"] for each in made.manifests() if each["kind"] == "Service"}
    assert set(weights) <= services
    for name in ("big", "small"):
        (pod,) = [
            each["spec"]["template"]["spec"]["containers"][0]
            for each in made.manifests()
            if each["kind"] == "Deployment" and each["metadata"]["name"].endswith(f"router-{name}")
        ]
        assert f"app.kubernetes.io/name=quickstart-{name}" in pod["args"][0]
    assert {"routing", "routing.edges_tokens"} <= {note.key for note in made.notes}


HALVES = {
    "whole": {"gpu": "h100-sxm", "replicas": 2},
    "first": {"gpu": "h100-sxm", "role": "prefill"},
    "next": {"gpu": "h200-sxm", "role": "prefill"},
    "rest": {"gpu": "h100-sxm", "role": "decode", "replicas": 2},
}
DIVIDED = {
    "fleet.pools": HALVES,
    "fleet.pools.main": None,
    "fleet.routing": {
        "kind": "planned-split",
        "shares": {"whole": [0.2], "first": [0.3], "next": [0.5]},
    },
    "fleet.handoff.routing": {"kind": "planned-split", "shares": {"rest": [1.0]}},
}


@pytest.mark.parametrize("program", ["vllm", "sglang"])
def test_halves_beside_whole_replicas_get_a_router_and_their_weight(program):
    made = deploy("quickstart", DIVIDED, engine=program)
    for thing in made.manifests():
        check(thing)
    (route,) = yaml.safe_load_all(made.files["gateway/route.yaml"])
    (rule,) = route["spec"]["rules"]
    weights = {each["name"]: each["weight"] for each in rule["backendRefs"]}
    assert weights == {"quickstart-router-whole": 200, "quickstart-router-apart": 800}
    apart, whole = made.files["launch/router-apart.sh"], made.files["launch/router-whole.sh"]
    assert "pd-disaggregation" in apart
    assert "pd-disaggregation" not in whole
    for name, count in (("FIRST", 1), ("NEXT", 1), ("REST", 2)):
        assert f"POOL_{name}_{count - 1}" in apart
        assert f"POOL_{name}_" not in whole
    assert "POOL_WHOLE_" not in apart
    told = {note.key: note.value for note in made.notes}
    assert told["routing.shares"] == "first, next"
    assert "handoff.routing.shares" not in told
    if program == "vllm":
        graph = yaml.safe_load(made.files["dynamo/graph-apart.yaml"])
        assert "whole" not in str(graph)


def test_halves_alone_need_no_route():
    pools = {name: pool for name, pool in HALVES.items() if name != "whole"}
    shares = {"kind": "planned-split", "shares": {"first": [0.4], "next": [0.6]}}
    made = deploy("quickstart", DIVIDED | {"fleet.pools": pools, "fleet.routing": shares})
    assert "gateway/route.yaml" not in made.files
    assert "launch/router.sh" in made.files
    assert {"routing.shares"} <= {note.key for note in made.notes}


def test_halves_beside_whole_replicas_need_shares():
    with pytest.raises(InputError, match="a router does one of both"):
        deploy("quickstart", DIVIDED | {"fleet.routing": "least-loaded"})
