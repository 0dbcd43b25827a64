"""FlowPrefill's order by hand, and what does not go together with steps that can be stopped."""

from __future__ import annotations

import pytest

import llmsim as ls
from llmsim.core.errors import ScenarioError
from llmsim.policies.precedence import PRECEDENCE
from llmsim.policies.views import RequestView
from llmsim.scenario import Scenario
from llmsim.systems.flowprefill import SlackDeadline

MS = 1_000_000


class Straight:
    """A profile: a millisecond per token and 5 ms."""

    longest_tokens = 4096

    def prefill_ns(self, tokens):
        return 5 * MS + tokens * MS


def asked(index, arrival_ms, prompt):
    return RequestView(index, arrival_ms * MS, prompt, -1, -1, 0, None)


@pytest.fixture(params=["cubic", "oracle"])
def order(request):
    made = SlackDeadline(ttft_s=0.1, ttft_per_prompt_token_s=0.002, estimate=request.param)
    made.start(Straight())
    return made


def test_a_cubic_knows_a_straight_line(order):
    for tokens in (1, 100, 4096):
        assert order.prefill_ns(tokens) == pytest.approx(5 * MS + tokens * MS, rel=1e-6)


def test_who_can_keep_the_deadline_goes_by_it(order):
    early, late = asked(0, 0, 10), asked(1, 50, 10)  # due at 120 and 170 ms
    assert order.rank(early, 10, 0, 60 * MS) < order.rank(late, 10, 0, 60 * MS)
    # at 110 ms the first has 10 ms left and takes 15: too late
    assert order.rank(early, 10, 0, 110 * MS) > order.rank(late, 10, 0, 110 * MS)
    # unless it has run for 6 ms already
    assert order.rank(early, 10, 6 * MS, 110 * MS) < order.rank(late, 10, 0, 110 * MS)


def test_of_those_too_late_the_latest_deadline_goes_first(order):
    first, second = asked(0, 0, 10), asked(1, 50, 10)
    assert order.rank(second, 10, 0, 900 * MS) < order.rank(first, 10, 0, 900 * MS)


def test_a_rank_turns_once_and_when_it_says(order):
    request = asked(0, 20, 100)  # due at 320 ms, takes 105
    turn = order.turns_ns(request)
    assert turn == pytest.approx(215 * MS, abs=10)
    before = {order.rank(request, 100, 0, now) for now in range(0, turn, turn // 7)}
    after = {order.rank(request, 100, 0, turn + k * MS) for k in (0, 1, 100)}
    assert (len(before), len(after)) == (1, 1)
    assert before != after


def test_others_go_along_while_there_is_slack(order):
    head, more = asked(0, 0, 50), asked(1, 0, 40)  # promised: 200 ms
    assert order.joins(head, 50, more, 0)
    # both take 95 ms: at 95 ms, 105 are left, and a tenth of these must be
    assert not order.joins(head, 50, more, 95 * MS)
    assert not order.joins(head, 50, asked(2, 0, 2000), 0)  # more than batch_tokens
    assert not order.joins(head, 50, asked(2, 0, 1), 181 * MS)  # less than a tenth of 200


def test_every_order_ranks_everybody_differently():
    for name in PRECEDENCE.names():
        kind = PRECEDENCE.get(name)
        made = kind(**({"ttft_s": 0.1} if hasattr(kind, "deadline_ns") else {}))
        made.start(Straight())
        ranks = {made.rank(asked(index, 0, 10), 10, 0, 7 * MS) for index in range(5)}
        assert len(ranks) == 5


def test_an_oracle_is_declared():
    few = {"traffic.requests": 20, "fleet.pools.prefill.stop.precedence.estimate": "oracle"}
    told = [text for text in ls.run("urgent-prompts", few).evaluate().warnings if "oracle" in text]
    assert told == ["s-edf knows the true time of every prompt (oracle)"]
    del few["fleet.pools.prefill.stop.precedence.estimate"]
    assert not any("oracle" in text for text in ls.run("urgent-prompts", few).evaluate().warnings)


WRONG = {
    "fleet.pools.prefill.role": ("mixed", "a pool has role"),
    "engine.lookahead": (1, "lookahead: must be 0 with `stop`"),
    "engine.prefix_caching": (True, "prefix_caching: must be false with `stop`"),
    "fleet.pools.prefill.allocation": ("contiguous-max", "allocation contiguous-max"),
    "fleet.pools.prefill.spare_replicas": (1, "stop: does not go together with spare_replicas yet"),
    "fleet.pools.prefill.batching": ("orca", "order is a matter of `stop.precedence`"),
    "fleet.gateway": ({"most_per_replica": 3}, "fleet.gateway"),
    "fleet.pools.prefill.stop.at": ("operators", "operator"),
    "fleet.pools.prefill.stop.precedence": ("dead-line", "deadline"),
    "slo.ttft_s": (None, "ttft_per_prompt_token_s: is added to ttft_s, which is missing"),
}


@pytest.mark.parametrize("key", WRONG)
def test_what_does_not_go_together_is_refused(key):
    value, said = WRONG[key]
    with pytest.raises(ScenarioError) as told:
        Scenario.load("urgent-prompts", {key: value})
    assert said in str(told.value)


def test_stops_are_for_prefill_pools():
    with pytest.raises(ScenarioError, match="is for role prefill"):
        Scenario.load("urgent-prompts", {"fleet.pools.decode.stop": {"at": "layer"}})
