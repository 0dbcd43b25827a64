"""Synthetic traffic that several clients send."""

import numpy as np
import pytest

import llmsim as ls
from llmsim.scenario import build_workload

BASE = {
    "llmsim": 1,
    "name": "shared",
    "model": "llama-3.1-8b",
    "traffic": {
        "arrivals": {"kind": "poisson", "rate_rps": 5},
        "lengths": {"kind": "fixed", "prompt_tokens": 100, "output_tokens": 4},
        "prompts": {"kind": "shared-prefix", "prefix_tokens": 200, "groups": 3},
        "requests": 3000,
        "clients": {"many": 3, "few": 1},
    },
    "fleet": {"pools": {"main": {"gpu": "h100-sxm"}}},
}


def chunk_of(**changes):
    changes = {f"traffic.{key}": value for key, value in changes.items()}
    (chunk,) = build_workload(ls.Scenario.parse(BASE).override(changes)).chunks()
    return chunk


def test_clients_send_their_shares():
    chunk = chunk_of()
    assert np.bincount(chunk.client)[0] == pytest.approx(2250, abs=3 * np.sqrt(3000 * 3 / 16))
    assert set(chunk.client.tolist()) == {0, 1}


def test_the_requests_are_those_of_the_same_traffic_without_clients():
    with_clients, without = chunk_of(), chunk_of(clients=None)
    assert (with_clients.arrival_ns == without.arrival_ns).all()
    assert with_clients.segments == without.segments
    assert set(without.client.tolist()) == {-1}


def test_prompts_of_their_own_share_nothing():
    chunk = chunk_of(own_prompts=True)
    heads = [
        {
            prompt[0][0]
            for prompt, client in zip(chunk.segments, chunk.client, strict=True)
            if client == wanted
        }
        for wanted in (0, 1)
    ]
    assert len(heads[0]) == len(heads[1]) == 3
    assert not heads[0] & heads[1]


def test_results_name_them():
    result = ls.run(ls.Scenario.parse(BASE).override({"traffic.requests": 40}))
    assert set(result.requests["client"]) == {"many", "few"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"clients": None, "own_prompts": True}, "needs traffic.clients"),
        ({"clients": {"a": 0}}, "greater than 0"),
        ({"clients": {}}, "at least 1"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, told):
    with pytest.raises(ls.ScenarioError, match=told):
        ls.Scenario.parse({**BASE, "traffic": {**BASE["traffic"], **changes}})
