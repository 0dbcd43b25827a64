"""Forks of a replica: they foresee what happens, and nothing happens because of them."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest
from abilities import keeps_line
from hypothesis import given
from hypothesis import strategies as st
from jobs import Job
from prices import MS
from test_tiers import SWAP
from world_strategies import laws, worlds
from worlds import World, run

from llmsim.policies import BATCHING
from llmsim.policies.routing import NEVER
from llmsim.serving.beliefs import BeliefPlan


class Asks:
    """Sends requests to replicas in turn, and asks for every one what would become of it."""

    forecasts: ClassVar[bool] = True

    def __init__(self, decision_s: float = 0.0) -> None:
        self.decision_s = decision_s
        self.told: list[tuple[int, int]] = []

    def start(self, fleet, rng):
        self.fleet = fleet

    def choose(self, request):
        chosen = request.index % self.fleet.replicas
        for replica in range(self.fleet.replicas):
            answer = (
                self.fleet.first_token_ns(replica, request),
                self.fleet.last_token_ns(replica, request),
            )
            if replica == chosen:
                self.told.append(answer)
        return chosen


class Silent(Asks):
    """The same, without asking."""

    def choose(self, request):
        return request.index % self.fleet.replicas


KINDS = {
    "alone": {},
    "ranks": {"ranks": True},
    "tiers": {"tiers": True},
    "tiers of ranks": {"tiers": True, "ranks": True},
    "lanes": {"lanes": True},
    "stages": {"stages": True},
    "tiers of stages": {"tiers": True, "stages": True},
    "stages of ranks": {"stages": True, "ranks": True},
    "tiers of stages of ranks": {"tiers": True, "stages": True, "ranks": True},
    "lines": {},
    "tiers of lines": {"tiers": True},
}
"""What may stand behind a door that is forked, as worlds are asked for it."""

KEEPERS = [name for name in sorted(BATCHING.names()) if keeps_line(name)]
"""Policies that keep a line, victims or room of their own."""


@st.composite
def alone(draw, believed: str, kind: str = "alone", **given) -> World:
    """A world in which a fork can know everything but what arrives later."""
    given = {"routing": "block", "batching": "vllm", **KINDS[kind], **given}
    if "lines" in kind:
        given["batching"] = draw(st.sampled_from(KEEPERS))
    world = draw(worlds(**given))
    if "lines" in kind:
        world = replace(world, swap_blocks=0)
    return replace(
        world, believed=believed, prefix_caching=False, routing="round-robin", in_flight=0
    )


@pytest.mark.parametrize("batching", ["vllm", "prefill-first"])
@pytest.mark.parametrize("kind", KINDS)
@laws(40)
@given(data=st.data())
def test_with_true_lengths_and_no_later_arrival_what_is_foreseen_happens(kind, batching, data):
    world = data.draw(alone("oracle", kind, batching=batching, clients_leave=False))
    decision_s = data.draw(st.sampled_from([0.0, 0.007, 0.1]))
    world = replace(world, view_age_ns=0, own_sends=decision_s > 0)
    if world.replicas > 1:  # else what others send shares its links
        world = replace(world, tier_scopes=("replica", "replica"))
    asks = Asks(decision_s)
    ran = run(world, data.draw(st.booleans()), router=asks)
    last = ran.rows[-1]
    assert asks.told[-1] == (last.first_token_ns, last.end_ns)


@pytest.mark.parametrize("kind", KINDS)
@laws(30)
@given(data=st.data())
def test_asking_changes_nothing(kind, data):
    """Whatever is believed, the run is the same, bit for bit, with forks and without them."""
    believed = data.draw(st.sampled_from(["oracle", "noisy", "mean", "constant"]))
    world = data.draw(alone(believed, kind))
    world = replace(
        world,
        prefix_caching=data.draw(st.booleans()),
        own_sends=data.draw(st.booleans()),
        allocation="paged",
    )
    decision_s = data.draw(st.sampled_from([0.0, 0.03]))
    quiet = run(world, router=Silent(decision_s))
    asked = run(world, router=Asks(decision_s))
    assert asked.facts.digest == quiet.facts.digest
    assert asked.rows == quiet.rows
    assert asked.facts.itl.counts == quiet.facts.itl.counts


@pytest.mark.parametrize("kind", KINDS)
@laws(40)
@given(data=st.data())
def test_merged_and_single_steps_say_the_same(kind, data):
    """Every answer, also where ranks of a fork on which nothing happens are not called."""
    believed = data.draw(st.sampled_from(["oracle", "noisy", "mean", "constant"]))
    world = data.draw(alone(believed, kind))
    world = replace(world, own_sends=data.draw(st.booleans()))
    decision_s = data.draw(st.sampled_from([0.0, 0.03]))
    merged, single = Asks(decision_s), Asks(decision_s)
    run(world, True, router=merged)
    run(world, False, router=single)
    assert merged.told == single.told


@pytest.mark.parametrize("kind", KINDS)
@laws(30)
@given(data=st.data())
def test_a_fork_cannot_tell_true_lengths_from_others(kind, data):
    """Of two worlds that differ in lengths yet to be reached, forks say the same."""
    world = data.draw(alone("constant", kind, clients_leave=False, lookahead=0))
    world = replace(world, prefix_caching=data.draw(st.booleans()))
    chosen = data.draw(st.integers(0, len(world.jobs) - 1))
    job = world.jobs[chosen]
    longer = replace(job, output=job.output + data.draw(st.integers(1, 30)))
    jobs = (*world.jobs[:chosen], longer, *world.jobs[chosen + 1 :])
    room = -(-(longer.prompt + longer.output) // world.block_tokens) + world.watermark_blocks
    world = replace(world, kv_blocks=max(world.kv_blocks, room))
    short, long = Asks(), Asks()
    until = run(world, router=short).rows[chosen].end_ns
    run(replace(world, jobs=jobs), router=long)
    known = sum(job.arrival_ns < until for job in world.jobs)
    assert short.told[:known] == long.told[:known]


def test_by_hand():
    """A step takes 5 ms; two decode, with 8 and 3 tokens believed; the third waits for a seat."""
    first, second, third = Job(0, 10, 8), Job(0, 10, 3), Job(6 * MS, 10, 2)
    world = World((first, second, third), cost="flat", max_num_seqs=2, believed="oracle")
    asks = Asks()
    ran = run(world, router=asks)
    # prompts until 5 ms, then two tokens each 5 ms: the second request ends at 15 ms, and the
    # third has its first token at 20 ms
    assert asks.told[2] == (20 * MS, 25 * MS)
    assert (ran.rows[2].first_token_ns, ran.rows[2].end_ns) == (20 * MS, 25 * MS)


def test_who_outlives_its_belief_is_believed_to_go_on():
    """Believed 3 tokens; at 31 ms it has had 6 and the step under way gives one more."""
    world = World((Job(0, 10, 50), Job(31 * MS, 10, 1)), cost="flat", max_num_seqs=1)
    world = replace(world, believed="constant", kv_blocks=100)
    asks = Asks()

    class Believes:
        draws = False
        information = "nothing"

        def guess(self, request):
            return 3

        def learn(self, request, output_tokens):
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(World, "estimates", lambda self: BeliefPlan(Believes(), 10))
        run(world, router=asks)
    # seven tokens at 35 ms, ten more by 85 ms, then a step for the newcomer's prompt
    assert asks.told[1] == (90 * MS, 100 * MS)


def test_no_further_than_asked():
    class Bounded(Asks):
        def choose(self, request):
            whole = self.fleet.last_token_ns(0, request)
            assert self.fleet.last_token_ns(0, request, whole) == whole
            assert self.fleet.last_token_ns(0, request, whole - 1) in (whole, NEVER)
            self.told.append(self.fleet.last_token_ns(0, request, request.arrival_ns))
            return 0

    asks = Bounded()
    run(World((Job(0, 10, 8), Job(0, 10, 30)), cost="flat", believed="oracle"), router=asks)
    assert asks.told == [NEVER, NEVER]


def test_whose_client_left_during_its_prompt_is_given_up_in_a_lane_too():
    """Found by a law: it is handed on in the call that hears of its client, and has no port."""
    jobs = (Job(0, 10, 8, abort_ns=2 * MS), Job(3 * MS, 10, 2))
    world = World(jobs, cost="flat", decoders=1, lanes=(0.5, 0.5), believed="oracle")
    asks = Asks()
    ran = run(world, router=asks)
    assert ran.rows[0].ended_as == "aborted"
    assert asks.told[1] == (ran.rows[1].first_token_ns, ran.rows[1].end_ns)


@pytest.mark.parametrize(("asked", "out", "kept"), [(7, 1, 0), (13, 0, 1), (17, 1, 1), (25, 0, 2)])
def test_who_is_swapped_out_comes_back_in_a_fork_too(asked, out, kept):
    """The last of some requests is asked for while others are out, or have copies on the host."""
    jobs = (*SWAP.jobs, *[Job(number * 20 * MS, 10, 6) for number in range(1, 25)])[:asked]
    world = replace(SWAP, jobs=jobs, keeps_copies=True, believed="oracle", prefix_caching=False)

    class Looks(Asks):
        def choose(self, request):
            swapper = self.fleet._doors[0].draft.swapper
            self.found = len(swapper.swapped), len(swapper.copies)
            return super().choose(request)

    asks = Looks()
    last = run(world, router=asks).rows[-1]
    assert asks.found == (out, kept)
    assert asks.told[-1] == (last.first_token_ns, last.end_ns)


def test_a_fork_has_shared_links_to_itself():
    """Ten kB a token, 100 MB/s for all: two loads are under way when a third request asks."""
    text = ((1, 160),)
    jobs = [Job(0, 160, 1, text), Job(0, 10, 1), Job(100 * MS, 160, 1, text)]
    jobs += [Job(101 * MS, 160, 1, text), Job(102 * MS, 160, 1, text)]
    tier = {"tier_chunks": (100,), "tier_scopes": ("pool",), "tier_writes": ("through",)}
    world = World(tuple(jobs), cost="flat", replicas=2, tier_bytes_per_s=1e8, **tier)
    asks = Asks()
    ran = run(replace(world, believed="oracle"), router=asks)
    # nine chunks of 16 tokens are 14.4 ms alone; the first load has had a millisecond alone and
    # one of half the link, so its last 12.9 ms take 25.8 beside the newcomer's, who then has
    # 1.5 ms to go and finds a step of 5 ms under way
    told = round((102 + 25.8 + 5 + 5) * MS)
    assert asks.told[4] == (told, told)
    assert ran.rows[4].first_token_ns > told  # for the other replica's load is there, too
