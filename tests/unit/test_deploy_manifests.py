"""Kubernetes takes the manifests, and they hold the fleet: its GPUs, replicas, nodes, labels."""

import kubernetes_validate
import pytest
import yaml

from llmsim.deployment import deploy
from llmsim.deployment.made import ADAPTER, MARK
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
