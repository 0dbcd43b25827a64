"""No policy can see how long an output will be."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import pytest
from abilities import asks_lengths, foresees, together
from hypothesis import given
from hypothesis import strategies as st
from reference import TokenLog
from world_strategies import laws, worlds
from worlds import Job, World, run

from llmsim.policies import BATCHING, OUTPUT_LENGTH, ROUTING, FleetView, RequestView, StepDraft
from llmsim.policies.estimation import TRUTH
from llmsim.policies.routing import ForecastView

FINISH = 4
"""The one kind of decision with four numbers: kind, request, first token, end."""

SECRET = 31_337


def reachable(thing: object) -> list[tuple[str, object]]:
    """Walk everything that public attributes and containers lead to."""
    found: list[tuple[str, object]] = []
    line = deque([("", thing)])
    seen = set()
    while line:
        path, here = line.popleft()
        if id(here) in seen:
            continue
        seen.add(id(here))
        found.append((path, here))
        if isinstance(here, (int, float, str, bytes, type(None), type)) or callable(here):
            continue
        if isinstance(here, dict):
            line.extend((f"{path}[{key!r}]", key) for key in here)
            line.extend((f"{path}[{key!r}]", value) for key, value in here.items())
        elif isinstance(here, (list, tuple, set, frozenset, deque)):
            line.extend((f"{path}[{i}]", value) for i, value in enumerate(here))
        else:
            names = [name for name in dir(here) if not name.startswith("_")]
            line.extend((f"{path}.{name}", getattr(here, name, None)) for name in names)
    return found


def secrets_in(thing: object) -> list[str]:
    return [path for path, value in reachable(thing) if isinstance(value, int) and value == SECRET]


def test_the_walk_finds_what_is_there():
    assert secrets_in([{"a": (1, SECRET)}])
    assert secrets_in(Job(0, 1, SECRET)) == [".output"]


def public(kind: type) -> set[str]:
    return {name for name in (*dir(kind), *kind.__annotations__) if not name.startswith("_")}


def test_what_a_policy_is_promised():
    """The views have these names and no others: a new one has to be argued for here."""
    assert public(RequestView) == {
        "arrival_ns", "client", "index", "priority", "program", "prompt_tokens", "segments",
        "session", "believed_tokens", "model", "promise", "images",
    }  # fmt: skip
    # `images`: how many stand in the prompt is seen by whoever takes it in
    # `promise` is what the service has told its client, as a priority is
    # `believed_tokens` is what the scenario's estimator says, and -1 where there is none: an
    # estimator that looks at true lengths declares it, and the run tells its reader
    assert public(FleetView) == {"replicas", "outstanding", "least_outstanding"}
    assert public(ForecastView) - public(FleetView) == {"first_token_ns", "last_token_ns"}
    assert public(StepDraft) == {
        "budget_tokens", "running", "waiting", "admitted", "short_of_blocks",
        "advance_running", "admit_waiting", "advance_prefills", "ask_again", "free_seats",
        "decode_steps", "prefilling", "switch", "come_back", "displace",
    }  # fmt: skip
    # the last three are verbs: who leaves the GPU, returns to it, or gives way


SECRETIVE = World(tuple(Job(i * 1_000_000, 5, SECRET) for i in range(3)), max_model_len=10**6)
SECRETIVE = replace(SECRETIVE, kv_blocks=10**5, cost="flat", replicas=2)


def test_a_router_cannot_reach_an_output_length():
    class Spy:
        looks = 0

        def start(self, fleet, rng):
            self.fleet = fleet

        def choose(self, request):
            self.looks += 1
            assert not secrets_in([self.fleet, request])
            return 0

    spy = Spy()
    run(SECRETIVE, router=spy)
    assert spy.looks == 3


@pytest.mark.parametrize("believed", sorted(OUTPUT_LENGTH.names()))
def test_a_router_that_foresees_reaches_lengths_through_estimators_alone(believed):
    class Spy:
        forecasts = True
        looks = found = 0

        def start(self, fleet, rng):
            self.fleet = fleet

        def choose(self, request):
            self.looks += 1
            self.fleet.last_token_ns(0, request)
            self.found += len(secrets_in([self.fleet, request]))
            return 0

    spy = Spy()
    run(replace(SECRETIVE, believed=believed), router=spy)
    assert spy.looks == 3
    assert bool(spy.found) == (believed == "oracle")
    assert TRUTH in OUTPUT_LENGTH.get(believed).information or not spy.found


def test_an_urgency_cannot_reach_an_output_length():
    base = BATCHING.get("vllm")

    class Spy(base):
        looks = 0

        def urgency(self, request):
            Spy.looks += 1
            assert not secrets_in(request)
            return (request.index,)

    run(SECRETIVE, policy=Spy)
    assert Spy.looks >= 3


def test_a_plan_cannot_reach_an_output_length():
    base = BATCHING.get("vllm")

    class Spy(base):
        looks = 0

        def plan(self, step):
            Spy.looks += 1
            assert not secrets_in(step)
            super().plan(step)
            assert not secrets_in(step)

    run(SECRETIVE, policy=Spy)
    assert Spy.looks >= 3


def decided(ran, before_ns: int) -> list[tuple[int, ...]]:
    """All decisions of a run before a time, as (time, replica, kind, request)."""
    found = []
    for index, flat in enumerate(ran.decisions):
        at = 0
        while at < len(flat):
            size = 4 if flat[at] == FINISH else 3
            kind, request, *_, time = flat[at : at + size]
            if time < before_ns:
                found.append((time, index, kind, request))
            at += size
    return sorted(found)


@pytest.mark.parametrize("batching", BATCHING.names())
@pytest.mark.parametrize("routing", ROUTING.names())
@pytest.mark.parametrize("lookahead", [0, 1])
@laws(10)
@given(data=st.data())
def test_a_longer_output_changes_nothing_before_its_end(batching, routing, lookahead, data):
    """Two worlds that differ in one output length agree until the shorter one would end."""
    if together(batching) and foresees(routing):
        return  # refused
    world = data.draw(worlds(batching=batching, routing=routing, lookahead=lookahead, handoff=None))
    if asks_lengths(batching):  # worlds let it believe the truth with noise, which looks ahead
        world = replace(world, believed="mean")
    chosen = data.draw(st.integers(0, len(world.jobs) - 1))
    job = world.jobs[chosen]
    longer = replace(job, output=job.output + data.draw(st.integers(1, 30)))
    jobs = (*world.jobs[:chosen], longer, *world.jobs[chosen + 1 :])
    other = replace(world, jobs=jobs)
    room = -(-(longer.prompt + longer.output) // world.block_tokens) + world.watermark_blocks
    world, other = (replace(w, kv_blocks=max(w.kv_blocks, room)) for w in (world, other))
    log = TokenLog()
    short = run(world, False, log)
    row = short.rows[chosen]
    until = row.end_ns
    if world.together and log.accounts[chosen].tokens:  # it is computed before it is delivered
        until = min(until, log.accounts[chosen].tokens[-1])
    if lookahead:  # the engine knows of the last token one step ahead
        tokens = log.accounts[chosen].tokens
        until = tokens[-2] if len(tokens) > 1 else max(0, row.scheduled_ns)
    if world.sent_layers and job.output == 1:  # nobody is sent ahead who ends with a first token
        until = min(until, max(0, row.scheduled_ns))
    for ran in (run(other, False), run(other, True)):
        assert decided(ran, until) == decided(short, until)
        for one, two in zip(short.rows, ran.rows, strict=True):
            # where others decode, the replica recorded is chosen after the prompt is computed
            if not world.decoders and (one.arrival_ns < until or two.arrival_ns < until):
                assert one.replica == two.replica
