"""Every kind of fault: its place, its path, what was read, the nearest right word."""

from dataclasses import dataclass
from typing import Annotated

import pytest
from annotated_types import Ge
from scenario_files import GOOD, spoil, write

from llmsim.core.errors import ScenarioError
from llmsim.policies import ROUTING
from llmsim.scenario import Scenario, load_scenario, parse_assignments


def faults(folder, text, overrides=None):
    with pytest.raises(ScenarioError) as caught:
        load_scenario(write(folder, text), overrides)
    return [str(fault) for fault in caught.value.faults]


def test_the_good_one_is_good(tmp_path):
    scenario = load_scenario(write(tmp_path))
    assert scenario.fleet.pools["main"].engine.max_num_seqs == 128
    assert scenario.folder == tmp_path.resolve()


GAMMA = "{kind: gamma, rate_rps: 8, cv: 2.0}"
ROUTE = "{kind: prefix-affinity, max_imbalance: 4}"

CASES = {
    "missing key": (
        ("model: llama-3.1-8b\n", ""),
        "bad.yaml  model: is missing",
    ),
    "a router that foresees nothing": (
        (ROUTE, "block"),
        "bad.yaml:13  fleet.routing: block foresees nothing without estimators.output_length",
    ),
    "a fleet that cannot be forked": (
        (
            "  routing: " + ROUTE,
            "  routing: block\n  control: [{kind: llumnix}]\n  migration: {link: ethernet-64g}",
        ),
        "bad.yaml:13  fleet.routing: block foresees nothing without estimators.output_length; it "
        "cannot foresee yet with fleet.migration, fleet.control",
    ),
    "missing key in a section": (
        ("      gpu: h100-sxm\n", ""),
        "bad.yaml:15  fleet.pools.main.gpu: is missing",
    ),
    "unknown key": (
        ("  requests: 50", "  request: 50\n  requests: 50"),
        "bad.yaml:9  traffic.request: unknown key. Did you mean 'requests'?",
    ),
    "unknown key at the top": (
        ("seed: 3", "sed: 3"),
        "bad.yaml:3  sed: unknown key. Did you mean 'seed'?",
    ),
    "key without its unit": (
        ("  requests: 50", "  duration: 60\n  requests: 50"),
        "bad.yaml:9  traffic.duration: unknown key. Did you mean 'duration_s'?",
    ),
    "key in the wrong place": (
        ("seed: 3", "seed: 3\nmax_num_batched_tokens: 4096"),
        "bad.yaml:4  max_num_batched_tokens: unknown key. It belongs under "
        "engine.max_num_batched_tokens or fleet.pools.<pool>.engine.max_num_batched_tokens.",
    ),
    "key in the wrong place, though another is spelled alike": (
        ("  max_num_seqs: 128", "  batching: vllm"),
        "bad.yaml:11  engine.batching: unknown key. It belongs under fleet.pools.<pool>.batching.",
    ),
    "a policy named by its file": (
        (ROUTE, "./mine.py:BestOf"),
        "bad.yaml:13  fleet.routing: unknown routing './mine.py:BestOf'. Known: ",
    ),
    "value out of range": (
        ("replicas: 2", "replicas: 0"),
        "bad.yaml:16  fleet.pools.main.replicas: "
        "Input should be greater than or equal to 1 (got 0)",
    ),
    "value of another type": (
        ("replicas: 2", "replicas: two"),
        "bad.yaml:16  fleet.pools.main.replicas: Input should be a valid integer (got 'two')",
    ),
    "a number in quotes": (
        ("replicas: 2", "replicas: '2'"),
        "bad.yaml:16  fleet.pools.main.replicas: Input should be a valid integer (got '2')",
    ),
    "a boolean for a number": (
        ("replicas: 2", "replicas: true"),
        "bad.yaml:16  fleet.pools.main.replicas: Input should be a valid integer (got true)",
    ),
    "a fraction for a count": (
        ("replicas: 2", "replicas: 2.5"),
        "bad.yaml:16  fleet.pools.main.replicas: Input should be a valid integer (got 2.5)",
    ),
    "nothing for a number": (
        ("seed: 3", "seed:"),
        "bad.yaml:3  seed: Input should be a valid integer (got nothing)",
    ),
    "infinite": (
        ("slo: {ttft_s: 1.0}", "slo: {ttft_s: .inf}"),
        "bad.yaml:5  slo.ttft_s: Input should be a finite number (got inf)",
    ),
    "not a number": (
        ("rate_rps: 8", "rate_rps: .nan"),
        "bad.yaml:7  traffic.arrivals.rate_rps: Input should be a finite number (got nan)",
    ),
    "unknown word": (
        ("      replicas: 2", "      role: mixd\n      replicas: 2"),
        "bad.yaml:16  fleet.pools.main.role: Input should be 'mixed', 'prefill', 'decode' "
        "or 'encode' (got 'mixd'). Did you mean 'mixed'?",
    ),
    "a section that is text": (
        ("slo: {ttft_s: 1.0}", "slo: fast"),
        "bad.yaml:5  slo: Input should be an object (got 'fast')",
    ),
    "unknown kind": (
        ("kind: gamma", "kind: gama"),
        "bad.yaml:7  traffic.arrivals: unknown arrivals 'gama'. Did you mean 'gamma'?",
    ),
    "unknown bare kind": (
        (ROUTE, "round-robbin"),
        "bad.yaml:13  fleet.routing: unknown routing 'round-robbin'. Did you mean 'round-robin'?",
    ),
    "component without a kind": (
        (ROUTE, "{max_imbalance: 4}"),
        "bad.yaml:13  fleet.routing: needs a 'kind': which routing is meant? Known:",
    ),
    "component that is a number": (
        (ROUTE, "3"),
        "bad.yaml:13  fleet.routing: should be a name or a mapping with 'kind' (got 3). Known:",
    ),
    "kind that is a list": (
        ("kind: gamma", "kind: [gamma]"),
        "bad.yaml:7  traffic.arrivals: 'kind' should be a name (got ['gamma']). Known:",
    ),
    "parameter out of range": (
        ("rate_rps: 8", "rate_rps: -3"),
        "bad.yaml:7  traffic.arrivals.rate_rps: Input should be greater than 0 (got -3)",
    ),
    "unknown parameter": (
        ("max_imbalance: 4", "max_inbalance: 4"),
        "bad.yaml:13  fleet.routing.max_inbalance: unknown key. Did you mean 'max_imbalance'?",
    ),
    "missing parameter": (
        ("rate_rps: 8, ", ""),
        "bad.yaml:7  traffic.arrivals.rate_rps: is missing",
    ),
    "parameter of another type": (
        ("cv: 2.0", "cv: high"),
        "bad.yaml:7  traffic.arrivals.cv: Input should be a valid number (got 'high')",
    ),
    "unknown model": (
        ("llama-3.1-8b", "llama-3.1-8bb"),
        "bad.yaml:4  model: unknown model 'llama-3.1-8bb'. Did you mean 'llama-3.1-8b'?",
    ),
    "model file that is not there": (
        ("llama-3.1-8b", "./nowhere/config.json"),
        "bad.yaml:4  model: no such file: '",
    ),
    "unknown GPU": (
        ("h100-sxm", "h100sxm"),
        "bad.yaml:17  fleet.pools.main.gpu: unknown gpu 'h100sxm'. Did you mean 'h100-sxm'?",
    ),
    "unknown cloud": (
        ("      gpu: h100-sxm", "      gpu: h100-sxm\n      price: awss"),
        "bad.yaml:18  fleet.pools.main.price: no price of h100-sxm from 'awss'. "
        "Did you mean 'aws'?",
    ),
    "two prices": (
        (
            "      gpu: h100-sxm",
            "      gpu: h100-sxm\n      price: aws\n      gpu_price_usd_per_hour: 2",
        ),
        "bad.yaml:18  fleet.pools.main.price: excludes gpu_price_usd_per_hour",
    ),
    "GPUs that do not divide the model": (
        ("      gpu: h100-sxm", "      gpu: h100-sxm\n      tp: 3"),
        "bad.yaml:18  fleet.pools.main.tp: 3 does not divide the 32 attention heads",
    ),
    "pool name with a dot": (
        ("    main:", "    main.1:"),
        "bad.yaml:15  fleet.pools.main.1: String should match pattern",
    ),
    "no pool": (
        ("    main:\n      replicas: 2\n      gpu: h100-sxm\n", ""),
        "bad.yaml:14  fleet.pools: Input should be an object (got nothing)",
    ),
    "name that is no folder name": (
        ("name: good", "name: a/b"),
        "bad.yaml:2  name: String should match pattern",
    ),
    "another version of the format": (
        ("llmsim: 1", "llmsim: 2"),
        "bad.yaml:1  llmsim: Input should be 1 (got 2)",
    ),
    "trace and synthetic": (
        ("  requests: 50", "  trace: {kind: burstgpt, path: burstgpt-like.csv.gz}"),
        "bad.yaml:7  traffic.arrivals: excludes traffic.trace; set one of the two to null",
    ),
    "trace that is not there": (
        (
            f"  arrivals: {GAMMA}\n  lengths: {{kind: fixed, prompt_tokens: 100, "
            "output_tokens: 10}\n  requests: 50",
            "  trace: {kind: burstgpt, path: nowhere.csv}",
        ),
        "bad.yaml:7  traffic.trace.path: no such file: '",
    ),
    "arrivals without lengths": (
        ("  lengths: {kind: fixed, prompt_tokens: 100, output_tokens: 10}\n", ""),
        "bad.yaml:6  traffic.lengths: is missing; synthetic traffic needs it",
    ),
    "no end": (
        ("  requests: 50\n", ""),
        "bad.yaml:6  traffic.requests: give either requests or duration_s, got neither",
    ),
    "two ends": (
        ("  requests: 50", "  requests: 50\n  duration_s: 60"),
        "bad.yaml:9  traffic.requests: give either requests or duration_s, got both",
    ),
    "warm-up that leaves nothing": (
        ("  requests: 50", "  duration_s: 60\n  warmup_s: 60"),
        "bad.yaml:10  traffic.warmup_s: leaves nothing to measure of 60 s",
    ),
    "laws that contradict themselves": (
        (
            "{kind: fixed, prompt_tokens: 100, output_tokens: 10}",
            "{kind: uniform, prompt_min_tokens: 9, prompt_max_tokens: 5, "
            "output_min_tokens: 1, output_max_tokens: 5}",
        ),
        "bad.yaml:8  traffic.lengths.prompt_min_tokens: 9 exceeds prompt_max_tokens 5",
    ),
    "budget below the sequences": (
        ("max_num_seqs: 128", "max_num_seqs: 128\n  max_num_batched_tokens: 64"),
        "bad.yaml:12  engine.max_num_batched_tokens: 64 is less than max_num_seqs 128",
    ),
    "context beyond the model": (
        ("max_num_seqs: 128", "max_num_seqs: 128\n  max_model_len: 200000"),
        "bad.yaml:12  fleet.pools.main.engine.max_model_len: 200000 exceeds the 131072 tokens",
    ),
    "prompt beyond the budget": (
        ("max_num_seqs: 128", "max_num_seqs: 128\n  chunked_prefill: false"),
        "bad.yaml:16  fleet.pools.main.engine.max_num_batched_tokens: 8192 is less than",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_fault(case, tmp_path):
    change, expected = CASES[case]
    found = faults(tmp_path, spoil(change))
    assert any(text.startswith(expected) for text in found), found


def test_who_names_a_policy_by_its_file_hears_how_one_is_published(tmp_path):
    (fault,) = faults(tmp_path, spoil((ROUTE, "./mine.py:BestOf")))
    assert fault.endswith("an entry point of llmsim.routing (docs/bring-your-own.md).")
    (fault,) = faults(tmp_path, spoil((ROUTE, "best-of")))
    assert "entry point" not in fault


@pytest.mark.parametrize(
    "case", sorted(set(CASES) - {"trace and synthetic", "GPUs that do not divide the model"})
)
def test_one_mistake_is_one_fault(case, tmp_path):
    """A mistake must not drag others along; a misspelt key may leave the right one missing."""
    found = faults(tmp_path, spoil(CASES[case][0]))
    rest = [text for text in found if not text.startswith(CASES[case][1])]
    assert all(text.endswith("is missing") for text in rest), found


def test_all_faults_come_at_once_in_the_order_of_the_file(tmp_path):
    text = spoil(
        ("seed: 3", "sed: 3"),
        ("llama-3.1-8b", "lama-3.1-8b"),
        ("rate_rps: 8", "rate_rps: -3"),
        (ROUTE, "least-loadedd"),
        ("replicas: 2", "replicas: 0"),
        ("h100-sxm", "h100-xsm"),
    )
    found = faults(tmp_path, text, {"engine.max_num_seq": 3, "nonsense": 1})
    places = [text.split("  ")[0] for text in found]
    assert places == ["--set", "--set"] + [f"bad.yaml:{line}" for line in (3, 4, 7, 13, 16, 17)]
    with pytest.raises(ScenarioError, match="8 problems in "):
        load_scenario(write(tmp_path, text), {"engine.max_num_seq": 3, "nonsense": 1})


def test_an_inherited_engine_fault_is_told_once(tmp_path):
    found = faults(tmp_path, spoil(("max_num_seqs: 128", "max_num_seqs: 0")))
    assert found == [
        "bad.yaml:11  engine.max_num_seqs: Input should be greater than or equal to 1 (got 0)"
    ]


def test_what_an_inherited_setting_does_not_go_with_is_told_where_it_is_written(tmp_path):
    text = spoil(
        ("max_num_seqs: 128", "lookahead: 1"),
        ("      gpu: h100-sxm", "      gpu: h100-sxm\n      pp: 2"),
    )
    own = text + "    other: {gpu: h100-sxm, pp: 2, engine: {lookahead: 1}}\n"
    told = "must be 0 or absent with pp: micro-batches in flight take its place"
    assert faults(tmp_path, text) == [f"bad.yaml:11  engine.lookahead: {told}"]
    assert faults(tmp_path, own) == [
        f"bad.yaml:11  engine.lookahead: {told}",
        f"bad.yaml:19  fleet.pools.other.engine.lookahead: {told}",
    ]


def test_a_clash_between_the_two_engines_is_a_fault_of_the_pool(tmp_path):
    text = spoil(
        ("max_num_seqs: 128", "max_num_batched_tokens: 300"),
        ("      gpu: h100-sxm", "      gpu: h100-sxm\n      engine: {max_num_seqs: 512}"),
    )
    assert faults(tmp_path, text) == [
        "bad.yaml:11  fleet.pools.main.engine.max_num_batched_tokens: 300 is less than "
        "max_num_seqs 512: every running request needs a token a step"
    ]


def test_faults_of_overrides_name_set_as_their_place(tmp_path):
    found = faults(
        tmp_path,
        GOOD,
        {
            "fleet.pools.main.replicas": -1,
            "fleet.pools.mian.replicas": 3,
            "traffic.arrivals.rate_rpss": 3,
            "model": "llama",
            "a..b": 1,
            "seed": object(),
        },
    )
    assert all(text.startswith("--set  ") for text in found), found
    joined = "\n".join(found)
    for words in (
        "fleet.pools.main.replicas: Input should be greater than or equal to 1 (got -1)",
        "fleet.pools.mian.replicas: unknown pool 'mian'. Did you mean 'main'?",
        "traffic.arrivals.rate_rpss: unknown key. Did you mean 'rate_rps'?",
        "model: unknown model 'llama'.",
        "a..b: is no dotted path.",
        "seed: is no YAML value",
    ):
        assert words in joined, joined


def test_texts_of_set():
    found = parse_assignments(["a.b=3", "c={kind: x, y: [1, 2]}", "d=", "e=p=q", "f=1e3"])
    assert found == {"a.b": 3, "c": {"kind": "x", "y": [1, 2]}, "d": None, "e": "p=q", "f": 1000.0}
    with pytest.raises(ScenarioError) as caught:
        parse_assignments(["seed", "=3", "a=1", "a=2", "b={x"])
    assert [fault.where for fault in caught.value.faults] == ["--set"] * 4
    assert "'seed' has no value" in str(caught.value)
    assert "is set twice" in str(caught.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("quickstrt", "no shipped scenario is called 'quickstrt'. Did you mean 'quickstart'?"),
        ("nowhere/x.yaml", "no such file."),
        ("quickstart.yaml", "A shipped scenario has this name: write 'quickstart'."),
    ],
)
def test_a_file_that_is_not_there(source, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ScenarioError) as caught:
        Scenario.load(source)
    assert words in str(caught.value)


def test_a_folder_and_a_neighbour(tmp_path):
    write(tmp_path, GOOD, "chat.yaml")
    with pytest.raises(ScenarioError, match="is a folder"):
        Scenario.load(tmp_path)
    with pytest.raises(ScenarioError, match=r"Did you mean 'chat\.yaml'"):
        Scenario.load(tmp_path / "chatt.yaml")


def test_a_broken_model_file_names_the_key(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    found = faults(tmp_path, spoil(("llama-3.1-8b", "./config.json")))
    assert all(text.startswith("bad.yaml:4  model: the card is wrong: ") for text in found)


def test_a_policy_that_refuses_its_parameters(tmp_path):
    @ROUTING.register("picky-for-tests")
    @dataclass
    class Picky:
        """Refuses pairs."""

        low: Annotated[int, Ge(0)] = 1
        high: Annotated[int, Ge(0)] = 2

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError(f"low {self.low} exceeds high {self.high}")

    try:
        found = faults(tmp_path, spoil((ROUTE, "{kind: picky-for-tests, low: 5}")))
    finally:
        del ROUTING._classes["picky-for-tests"]
    assert found == ["bad.yaml:13  fleet.routing: low 5 exceeds high 2"]


def test_parsing_a_mapping_gives_paths_without_places():
    with pytest.raises(ScenarioError) as caught:
        Scenario.parse({"llmsim": 1, "name": "x", "model": "llama-3.1-8b", "fleet": {}})
    assert [str(fault) for fault in caught.value.faults] == [
        "traffic: is missing",
        "fleet.pools: is missing",
    ]


@pytest.mark.parametrize("key", ["gateway", "boot"])
def test_what_would_move_requests_is_named_itself(key):
    """There is no `fleet.control` here that could be wrong."""
    asked = {f"fleet.{key}": {}, "engine.prefix_caching": False}
    asked["fleet.pools.main.allocation"] = "contiguous-max"
    with pytest.raises(ScenarioError, match=rf"fleet\.{key}: does not go with allocation cont"):
        load_scenario("quickstart", asked)
