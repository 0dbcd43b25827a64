"""Records of prefill and decode workers as pools."""

from __future__ import annotations

import pytest

import llmsim as ls
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
