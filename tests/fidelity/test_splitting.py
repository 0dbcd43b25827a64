"""Records of prefill and decode workers as pools."""

from __future__ import annotations

import pytest

import llmsim as ls
from llmsim.fidelity.cases import Case
from llmsim.fidelity.scenarios import scenario_data
from llmsim.fidelity.splitting import Workers, split_fleet, workers_of

COUNTED = "prefill workers=1 tp=4 dp=1 ep=4 | decode workers=4 tp=8 dp=1 ep=8"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (COUNTED, (Workers(1, 4, 1, 4), Workers(4, 8, 1, 8))),
        ("1 prefill x TP2 + 3 decode x TP2 (NIXL)", (Workers(1, 2), Workers(3, 2))),
        (
            "prefill workers=8 tp=1 dp=1 ep=0 | decode workers=1 tp=1 dp=32 ep=32",
            (Workers(8, 1), Workers(1, 1, 32, 32)),
        ),
        ("prefill workers=? tp=1 dp=1 ep=1 | decode workers=? tp=1 dp=1 ep=1", None),
        ("yes", None),
    ],
)
def test_workers(words, expected):
    assert workers_of(words) == expected


def test_inside_a_node_kv_goes_over_its_own_link_between_nodes_over_the_card_s():
    near = split_fleet((Workers(1, 2), Workers(3, 2)), "h200-sxm", "vllm", {})
    far = split_fleet((Workers(2, 4), Workers(1, 8)), "h200-sxm", "vllm", {})
    assert near["handoff"]["link"] == "nvlink4"
    assert "link" not in far["handoff"]


def test_the_fleet_is_a_scenario_s():
    workers = workers_of(COUNTED)
    assert workers is not None
    scenario = ls.Scenario.parse(
        {
            "llmsim": 1,
            "name": "split",
            "model": "gpt-oss-120b",
            "traffic": {
                "arrivals": {"kind": "closed-loop", "in_flight": 4, "requests_per_slot": 2},
                "lengths": {"kind": "fixed", "prompt_tokens": 200, "output_tokens": 20},
            },
            "fleet": split_fleet(workers, "gb200", "vllm", {"cost": {"kind": "roofline"}}),
        }
    )
    rows = ls.run(scenario).requests
    assert (rows.outcome == "finished").all()
    assert set(rows.replica) <= {1, 2, 3, 4}


def pools_of(disagg, concurrency=2048, **fields):
    """Pools of a DeepSeek run of InferenceX on GB200."""
    told = {
        "source": "aic-silicon-inferencex",
        "model_key": "deepseek-v3",
        "gpu": "GB200",
        "quant": "fp4",
        "isl": "1024",
        "osl": "1024",
        "arrival": "closed loop",
        "concurrency": str(concurrency),
        "disagg": disagg,
    }
    return scenario_data(Case("x", "A", told | fields, {}))["fleet"]["pools"]


def test_sglang_has_copies_by_number():
    wide = "prefill workers=2 tp=1 dp=8 ep=8 | decode workers=1 tp=1 dp=32 ep=32"
    fp8 = pools_of(wide, engine="sglang", engine_version="0.5.8.post1", quant="fp8")
    assert [pool["spare_experts"] for pool in fp8.values()] == [32, 32]
    assert not any("expert_balancing" in pool for pool in fp8.values())
    fp4 = pools_of(wide, engine="sglang", engine_version="0.5.8")
    assert "spare_experts" not in fp4["prefill"]
    assert fp4["decode"]["spare_experts"] == 32


def test_tensorrt_llm_balances_where_its_recipe_does():
    disagg = "prefill workers=1 tp=1 dp=4 ep=4 | decode workers=1 tp=1 dp=32 ep=32"
    run = {"engine": "trtllm", "engine_version": "0.8.1.post2", "osl": "8192"}
    many = pools_of(disagg, 8192, **run)["decode"]
    assert (many["spare_experts"], many["expert_balancing"]) == (32, True)
    assert many["engine"] == {"max_num_seqs": 256}
    fewer = pools_of(disagg, 2048, **run)["decode"]
    assert "expert_balancing" not in fewer
    assert fewer["engine"] == {"max_num_seqs": 64}


def test_attention_is_spread_as_the_script_says_not_as_the_record():
    """InferenceX had ranks in its list, and a script that set tensor parallelism."""
    record = "prefill workers=1 tp=1 dp=4 ep=1 | decode workers=2 tp=1 dp=4 ep=1"
    old = pools_of(record, 32, engine="sglang", engine_version="0.5.5.post2")
    assert [(pool["tp"], pool.get("dp", 1)) for pool in old.values()] == [(4, 1), (4, 1)]
    kimi = "prefill workers=1 tp=4 dp=1 ep=4 | decode workers=1 tp=16 dp=1 ep=16"
    run = {"engine": "vllm", "engine_version": "0.18.0", "model_key": "kimi-k2.5"}
    pools = pools_of(kimi, 256, **run)
    assert [(pool["tp"], pool["dp"], pool["ep"]) for pool in pools.values()] == [
        (1, 4, 4),
        (1, 16, 16),
    ]
