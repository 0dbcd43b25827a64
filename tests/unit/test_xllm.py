"""xLLM's rule by hand: who is turned over when predicted times break a promise."""

from types import SimpleNamespace

import pytest

import llmsim as ls
from llmsim.policies.control import SetRole
from llmsim.policies.reports import ReplicaReport
from llmsim.systems.xllm import XllmRoles

# a prompt takes 0.1 ms a token and 1 us per hundred tokens squared, a step 10 ms, 0.1 ms a request
RULE = XllmRoles(
    ttft_s=2.0,
    tpot_s=0.03,
    prompt_token_s=1e-4,
    prompt_token2_s=1e-8,
    step_s=0.01,
    step_request_s=1e-4,
    step_block_s=1e-6,
)


def report(index, role, running=0, waiting=0, tokens=0, used=0, state="up"):
    return ReplicaReport(index, 0, 0, role, state, running, waiting, tokens, 0, 0, 10_000, used)


def asked(*reports):
    return RULE.act(SimpleNamespace(now_ns=0, replicas=list(reports)))


def prefill(index, tokens=0, waiting=1):
    return report(index, "prefill", waiting=waiting if tokens else 0, tokens=tokens)


def decode(index, running, used=0):
    return report(index, "decode", running=running, used=used)


def test_predicted_times():
    # four prompts of 2,500: 1 s by tokens, and 4 x 2,500^2 x 10 ns = 0.25 s by their squares
    assert RULE.prompts_s(prefill(0, 10_000, 4)) == pytest.approx(1.25)
    assert RULE.gap_s(decode(1, 99, 5_000)) == pytest.approx(0.01 + 0.01 + 0.005)


def test_decodes_too_slow_everywhere_get_the_least_busy_prefill():
    slow = decode(2, 300)
    assert asked(prefill(0, 5_000, 2), prefill(1, 500), slow) == [SetRole(1, "decode")]
    assert asked(prefill(0, 500), slow) == []  # the last one
    # one that keeps the promise is enough
    assert asked(prefill(0, 500), prefill(1, 500), slow, decode(3, 10)) == []


def test_prefills_that_are_busy_are_kept_unless_they_are_the_more():
    busy = [prefill(0, 12_000, 4), prefill(1, 12_000, 4)]  # 1.56 s each, of 2 s x 1/2
    assert asked(*busy, decode(2, 300), decode(3, 300)) == []
    assert asked(*busy, decode(2, 300)) == [SetRole(0, "decode")]


def test_prompts_too_slow_everywhere_get_the_least_busy_decode_if_the_rest_can_do_without():
    late = prefill(0, 18_000, 4)  # 2.6 s
    assert asked(late, decode(1, 40), decode(2, 20)) == [SetRole(2, "prefill")]
    assert asked(late, decode(1, 90), decode(2, 80)) == []  # 18.1 ms, more than 30 x 1/2
    assert asked(late, decode(1, 10)) == []


def test_a_decode_with_nothing_to_do_computes_prompts():
    assert asked(prefill(0), decode(1, 5), decode(2, 0)) == [SetRole(2, "prefill")]
    assert asked(prefill(0), decode(1, 0)) == []


def test_it_takes_a_fleet_whose_roles_may_change():
    with pytest.raises(ls.LlmsimError, match="flip: is missing"):
        ls.Scenario.load("scenarios/gallery/xllm/base.yaml").override({"fleet.flip": None})
