"""Nonsense from policies of other packages: one error that names the policy and what it said."""

from copy import deepcopy
from dataclasses import dataclass, field
from math import inf, nan
from typing import ClassVar

import numpy as np
import pytest

import llmsim as ls
from llmsim.core.errors import PolicyError
from llmsim.policies.answers import NEEDED, QUESTIONS, Held, held
from llmsim.policies.control import Add, Drain, Fail, Migrate, SetRole
from llmsim.policies.estimation import TRUTH
from llmsim.policies.ordering import ChoosesVictims, GuardsAdmission, OrdersWaiting
from llmsim.policies.routing import Reroute
from llmsim.policies.views import RequestView
from llmsim.scenario.component import SEAMS, registry

NO_POLICIES = {"trace", "arrivals", "lengths", "prompts", "programs", "cost"}


@pytest.fixture
def publish():
    """Register a class for the time of a test, as a package of its own would."""
    taken = []

    def register(seam, cls, name="mine"):
        classes = registry(seam)._classes
        classes[name] = dataclass(cls)
        taken.append((classes, name))
        return name

    yield register
    for classes, name in taken:
        classes.pop(name, None)


def request(index=7):
    return RequestView(index, 0, 100, -1, -1, 0, None)


class Router:
    def start(self, fleet, rng):
        self.fleet = fleet

    def choose(self, request):
        return 0


class Batching:
    every_step: ClassVar[bool] = False

    def urgency(self, request):
        return None

    def plan(self, step):
        if step.advance_running() and step.waiting:
            step.admit_waiting()


class Line:
    def __init__(self):
        self.line = []

    def add(self, request, returned):
        self.line.append(request)

    def head(self):
        return self.line[0] if self.line else None

    def remove(self, request, admitted):
        self.line.remove(request)


class Claims:
    reserves: ClassVar[bool] = True
    grows: ClassVar[bool] = True

    def claim_tokens(self, request, known_tokens, most_tokens):
        return known_tokens

    def renewed_tokens(self, claimed_tokens):
        return 2 * claimed_tokens

    def wait_s(self, tokens):
        return 0.0


class Controller:
    scales: ClassVar[bool] = True
    period_s = 0.5
    view_age_s = 0.0

    def start(self, rng):
        pass

    def act(self, fleet):
        return []


class Pins:
    pins: ClassVar[bool] = True
    gives_way = "deadlock"

    def hold_s(self, call):
        return 1.0

    def rank(self, pin):
        return pin.ends_ns

    def returned(self, tool, pause_s):
        pass

    admitted = ended = lambda self, value: None


class Lengths:
    information: ClassVar[str] = "a wish"
    draws: ClassVar[bool] = False

    def foresee(self, prompt, output, rng):
        return np.full(len(prompt), 5)

    def guess(self, request):
        return 5

    def learn(self, request, output_tokens):
        pass


class Tools:
    information: ClassVar[str] = "a wish"

    def believe(self, tool, true_s, rng):
        return ()

    def learn(self, tool, time_s):
        pass


class Urgent:
    def start(self, profile):
        pass

    def declared(self):
        return ()

    def rank(self, request, tokens, executed_ns, now_ns):
        return (request.index,)

    def turns_ns(self, request):
        return 2**62 - 1

    def joins(self, head, tokens, more, now_ns):
        return True


class Rank:
    def rank(self, reads, used, stored):
        return used


class Loads:
    def loads(self, view):
        return True


class Shares:
    period_s = 0.5

    def shares(self, view):
        return 0.5, 0.5


SANE = {
    "routing": Router, "batching": Batching, "allocation": Claims, "control": Controller,
    "retention": Pins, "output_length": Lengths, "tool_time": Tools, "precedence": Urgent,
    "eviction": Rank, "loading": Loads, "sharing": Shares,
}  # fmt: skip


def policy_with(seam, **own):
    """Return a class of a seam in which something is nonsense."""
    return type("Own", (SANE[seam],), {"__module__": "mine", **own})


def saying(answer):
    return lambda self, *given: answer


def test_every_seam_of_policies_is_held():
    assert {*SEAMS} - NO_POLICIES == {*QUESTIONS} == {*NEEDED} == {*SANE}


@pytest.mark.parametrize("seam", sorted(SANE))
def test_what_ships_is_asked_directly_and_others_are_held(seam):
    for name in registry(seam).names():
        shipped = object.__new__(registry(seam).get(name))
        assert held(seam, name, shipped) is shipped
    assert type(held(seam, "mine", policy_with(seam)())) is Held


@pytest.mark.parametrize("seam", sorted(SANE))
def test_what_is_missing_is_said_before_the_run(seam):
    for name in NEEDED[seam]:
        lacking = type("Own", (), {k: v for k, v in vars(SANE[seam]).items() if k != name})
        with pytest.raises(PolicyError, match=rf"{seam} 'mine' \(.*Own\) has no {name}"):
            held(seam, "mine", lacking())


AUTOSCALE = {"traffic.requests": 60, "traffic.duration_s": None}
TIGHT = {
    "traffic.requests": 60, "traffic.arrivals.rate_rps": 100, "engine.kv_blocks": 300,
    "engine.max_model_len": 4000,
}  # fmt: skip
HOT = {"traffic.requests": 60, "traffic.arrivals.rate_rps": 100}
STOP = {"traffic.requests": 60}
LANES = {"traffic.duration_s": 4, "traffic.warmup_s": 0}
TIERS = {"traffic.requests": 40, "traffic.prompts.groups": 30, "engine.kv_blocks": 1500}
HOST = {"name": "host", "capacity_bytes": 4e9}

PLACES = {
    "routing": ("quickstart", HOT | {"fleet.pools.main.replicas": 3}, "fleet.routing"),
    "batching": ("quickstart", TIGHT, "fleet.pools.main.batching"),
    "allocation": (
        "quickstart", TIGHT | {"engine.prefix_caching": False}, "fleet.pools.main.allocation",
    ),
    "control": ("autoscale", AUTOSCALE, "fleet.control"),
    "retention": ("pinned", {"traffic.requests": 10}, "fleet.pools.main.retention"),
    "output_length": ("shortest-first", STOP, "estimators.output_length"),
    "tool_time": ("pinned", {"traffic.requests": 10}, "estimators.tool_time"),
    "precedence": ("urgent-prompts", STOP, "fleet.pools.prefill.stop.precedence"),
    "eviction": (
        "tiers", TIERS | {"fleet.pools.main.kv": None}, "fleet.pools.main.eviction",
    ),
    "loading": (
        "tiers", TIERS | {"fleet.pools.main.kv": {"tiers": [HOST]}}, "fleet.pools.main.kv.loading",
    ),
    "sharing": ("lanes", LANES, "fleet.pools.decode.sharing"),
}  # fmt: skip
"""A scenario in which policies of a seam are asked, and the key that names one."""

NONSENSE = [
    ("routing", {"choose": saying(None)}, "choose returned None, not the index of a replica, 0 to"),
    ("routing", {"choose": saying(-1)}, "choose returned -1, not the index of a replica, 0 to 2"),
    ("routing", {"choose": saying(3)}, "choose returned 3, not the index of a replica, 0 to 2"),
    ("routing", {"decision_s": -1.0}, "decision_s is -1.0, not a time of at least 0"),
    (
        "routing",
        {"reads_caches": True, "moves": saying([Reroute(5, 0, -1)])},
        "moves returned .*target=-1.*, not the index of a replica",
    ),
    ("batching", {"plan": saying(None)}, "planned nothing, though replica 0 has 0 running and 1"),
    ("batching", {"urgency": saying((nan,))}, "urgency returned .*nan.*, not a tuple of whole"),
    ("batching", {"victim": saying(-1)}, "victim returned -1, not a place among who is running"),
    ("batching", {"victim": saying(None)}, "victim returned None, not a place among who"),
    ("batching", {"admits": saying(None)}, "admits returned None, not True or False"),
    ("batching", {"waiting_order": saying(None)}, "waiting_order returned None, not a line with"),
    ("allocation", {"claim_tokens": saying(nan)}, "claim_tokens returned nan, not a whole number"),
    ("allocation", {"wait_s": saying(-1.0)}, "wait_s returned -1.0, not a time of at least 0"),
    ("control", {"act": saying(None)}, "act returned None, not a list of actions"),
    ("control", {"act": saying([Drain(-1)])}, "act returned .*, not .* of a replica, 0 to 7"),
    ("control", {"act": saying([Migrate(1, 0, 1)])}, "nothing migrates: say fleet.migration"),
    ("control", {"period_s": 0.0}, "period_s is 0.0, not a time above 0"),
    ("retention", {"hold_s": saying(nan)}, "hold_s returned nan, not a time of at least 0, maybe"),
    ("output_length", {"guess": saying(-5)}, "guess returned -5, not a whole number of tokens"),
    (
        "output_length",
        {"draws": True, "foresee": lambda self, prompt, output, rng: np.full(len(prompt), nan)},
        "foresee returned .*, not an array of .* whole numbers",
    ),
    ("tool_time", {"believe": saying((nan,))}, r"believe returned \(nan,\), not times in ascend"),
    ("precedence", {"rank": saying(3)}, "rank returned 3, not a tuple of whole numbers that ends"),
    ("eviction", {"rank": saying(nan)}, "rank returned nan, not a whole number"),
    ("loading", {"loads": saying(None)}, "loads returned None, not True or False"),
    ("sharing", {"shares": saying((0.5, nan))}, "shares returned .*nan.*, not the shares of"),
]


@pytest.mark.many
@pytest.mark.parametrize(("seam", "own", "told"), NONSENSE)
def test_nonsense_ends_a_run_with_one_error_that_names_the_policy(publish, seam, own, told):
    base, sets, key = PLACES[seam]
    name = publish(seam, policy_with(seam, **own))
    said = [{"kind": name}] if seam == "control" else name
    with pytest.raises(PolicyError, match=rf"^{seam} 'mine' \(mine\.Own\):? .*{told}"):
        ls.run(base, sets | {key: said})


@pytest.mark.many
@pytest.mark.parametrize("seam", sorted(SANE))
def test_who_answers_well_is_served(publish, seam):
    base, sets, key = PLACES[seam]
    name = publish(seam, policy_with(seam))
    result = ls.run(base, sets | {key: [{"kind": name}] if seam == "control" else name})
    assert result.metrics["requests"] > 0


class Fleet:
    replicas = (type("Report", (), {"pool": 0}), type("Report", (), {"pool": 1}))


@pytest.mark.parametrize(
    "asked", ["Drain", [None], [Add(2)], [Fail(nan)], [Migrate(None, 0, 1)], [SetRole(0, "x")]]
)
def test_actions_that_cannot_be(asked):
    policy = held("control", "mine", policy_with("control", act=saying(asked))())
    with pytest.raises(PolicyError, match=r"\(mine\.Own\): act returned .*, not a list of "):
        policy.act(Fleet)


def test_numbers_of_numpy_are_numbers():
    router = held("routing", "mine", policy_with("routing", choose=saying(np.int64(1)))())
    router.start(type("Fleet", (), {"replicas": 2}), None)
    assert type(router.choose(request())) is int


def test_ranks_are_for_all_or_for_nobody_and_none_are_equal():
    def sometimes(self, request):
        return (request.index,) if request.index % 2 else None

    policy = held("batching", "mine", policy_with("batching", urgency=sometimes)())
    assert policy.urgency(request(1)) == (1,)
    with pytest.raises(PolicyError, match="urgency returned None, not a rank as for requests bef"):
        policy.urgency(request(2))
    equal = held("batching", "mine", policy_with("batching", urgency=saying((3,)))())
    with pytest.raises(PolicyError, match="that ends in the request's index"):
        equal.urgency(request(2))


@pytest.mark.parametrize(
    ("verb", "given", "told"),
    [
        ("displace", 2, "displaces 2, not a place among who is running, 0 to 1"),
        ("displace", -1, "displaces -1, not a place"),
        ("displace", None, "displaces None, not a place"),
        ("ask_again", 0, "asks again after 0, not a whole number of steps, at least 1"),
        ("switch", saying(nan), "ranks a request nan, not a whole number"),
        ("come_back", lambda request: nan, "ranks a request nan, not a number"),
    ],
)
def test_what_is_done_to_a_step_is_checked_too(verb, given, told):
    class Step:
        running = 2
        advance_prefills = advance_running = admit_waiting = displace = ask_again = None

        def switch(self, rank):
            rank(request())

        come_back = switch

    def plan(self, step):
        getattr(step, verb)((lambda request: nan) if verb == "switch" else given)

    policy = held("batching", "mine", policy_with("batching", plan=plan)())
    with pytest.raises(PolicyError, match=told):
        policy.plan(Step())


@pytest.mark.parametrize(
    ("head", "told"), [(5, "returned 5, not a RequestView"), (request(99), "99, which does not")]
)
def test_nobody_is_next_who_does_not_wait(head, told):
    line = type("Own", (Line,), {"head": saying(head)})
    order = policy_with("batching", waiting_order=lambda self, engine: line())
    kept = held("batching", "mine", order()).waiting_order(None)
    kept.add(request(1), False)
    with pytest.raises(PolicyError, match=told):
        kept.head()


def test_whoever_was_next_is_admitted_though_the_order_has_changed_meanwhile(publish):
    class Turning(Line):
        asked = 0

        def head(self):
            self.asked += 1
            return self.line[self.asked % len(self.line)] if self.line else None

    publish("batching", policy_with("batching", waiting_order=lambda self, engine: Turning()))
    result = ls.run("quickstart", HOT | {"fleet.pools.main.batching": "mine"})
    assert (result.requests["outcome"] == "finished").all()


def test_a_policy_that_only_chooses_victims_is_asked(publish):
    """Its line is first come, first served: the first admitted loses, not the last."""
    asked = []

    def victim(self, running):
        asked.append(len(running))
        return 0

    publish("batching", policy_with("batching", victim=victim))
    result = ls.run("quickstart", TIGHT | {"fleet.pools.main.batching": "mine"})
    assert len(asked) == result.metrics["preemptions"] > 0


def test_truth_is_shown_to_those_alone_who_say_so():
    shown = {}

    def foresee(self, prompt, output, rng):
        shown[self.information] = output.tolist()
        return np.full(len(prompt), 5)

    for information in ("a wish", TRUTH):
        own = {"draws": True, "foresee": foresee, "information": information}
        policy = held("output_length", "mine", policy_with("output_length", **own)())
        policy.foresee(np.array([10, 20]), np.array([3, 4]), None)
    assert shown == {"a wish": [-1, -1], TRUTH: [3, 4]}

    def believe(self, tool, true_s, rng):
        return () if true_s != true_s else (true_s,)

    policy = held("tool_time", "mine", policy_with("tool_time", believe=believe)())
    assert policy.believe("shell", 3.0, None) == ()


def test_abilities_are_those_of_the_policy_and_copies_learn_for_themselves():
    own = {"victim": saying(0), "admits": saying(True), "waiting_order": saying(Line())}
    able = held("batching", "mine", policy_with("batching", **own)())
    plain = held("batching", "mine", policy_with("batching")())
    for ability in (ChoosesVictims, GuardsAdmission, OrdersWaiting):
        assert isinstance(able, ability)
        assert not isinstance(plain, ability)

    class Counting(SANE["sharing"]):
        asked: int = field(default=0, init=False)

        def shares(self, view):
            self.asked += 1
            return 0.1 * self.asked, 0.5

    first = held("sharing", "mine", dataclass(Counting)())
    first.shares(None)
    second = deepcopy(first)
    assert second.shares(None)[0] == pytest.approx(0.2)
    assert first.shares(None)[0] == pytest.approx(0.2)
    assert held("retention", "mine", Pins()).hold_s(None) < inf


def test_shares_that_nobody_would_look_at_are_refused():
    with pytest.raises(ls.ScenarioError, match="sharing: is said by the pool that has `beside`"):
        ls.run("lanes", LANES | {"fleet.pools.prefill.sharing": "tpot-feedback"})
