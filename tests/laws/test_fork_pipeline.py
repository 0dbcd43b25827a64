"""Forks of pipelines: what is in flight, or waits for KV on its way, comes out in a fork, too."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from prices import COSTS, MS
from test_forks import Asks
from world_strategies import STAGES as STAGE_SHARES
from world_strategies import laws, tiers_below
from worlds import Job, World, run

STAGES = World((), stages=(0.5, 0.5), believed="oracle")


class AsksForTheLast(Asks):
    """Asks what would become of the last request of a world alone."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.last = len(world.jobs) - 1

    def choose(self, request):
        return super().choose(request) if request.index == self.last else 0


def told(world: World) -> tuple[int, int]:
    """Return what is foreseen of the last request; it happens."""
    asks = AsksForTheLast(world)
    last = run(world, router=asks).rows[-1]
    assert asks.told == [(last.first_token_ns, last.end_ns)]
    return asks.told[0]


def test_two_micro_batches_by_hand():
    """A step takes 5 ms, each stage half of it, and 8 tokens at most: each prompt has its own."""
    jobs = (Job(0, 8, 3), Job(0, 8, 4), Job(6 * MS, 7, 2))
    world = replace(STAGES, jobs=jobs, cost="flat", budget_tokens=8)
    # the first prompt comes out at 5 ms, the second behind it at 7.5; the third is seen then, while
    # the first is on its way, and goes with the second: it comes out at 12.5 and again at 17.5
    assert told(world) == (12.5 * MS, 17.5 * MS)


def test_who_comes_later_stands_behind_those_who_run():
    """Found by search: a budget of 8 tokens gives the newcomer's prompt what two others leave."""
    jobs = (Job(34 * MS, 50, 40), Job(39 * MS, 10, 40), Job(168 * MS, 150, 2))
    world = replace(STAGES, jobs=jobs, budget_tokens=8, chunk_limit_tokens=5, kv_blocks=15)
    told(replace(world, max_num_seqs=8, reserve_prompt=False))


def test_a_fork_goes_no_further_than_to_what_is_asked():
    """Others have hundreds of tokens to go when the newcomer has had its last one."""
    jobs = (Job(0, 10, 900), Job(0, 10, 700), Job(20 * MS, 10, 5))
    went = []

    class Looks(AsksForTheLast):
        def choose(self, request):
            chosen = super().choose(request)
            went.extend(fork.clock.now for fork in self.fleet._work if self.told)
            return chosen

    asks = Looks(replace(STAGES, jobs=jobs))
    run(replace(STAGES, jobs=jobs, kv_blocks=200), router=asks)
    assert len(went) == 1
    assert went[0] <= asks.told[0][1]


def test_decodes_go_round_without_being_visited_one_by_one():
    """Two micro-batches of 300 tokens, until somebody comes half a second later."""
    jobs = (Job(0, 8, 300), Job(0, 8, 300), Job(500 * MS, 7, 2))
    world = replace(STAGES, jobs=jobs, budget_tokens=8, kv_blocks=200)
    went = []

    class Looks(AsksForTheLast):
        def choose(self, request):
            went.append(self.fleet._doors[0]._rounds.in_flight_ns)
            return super().choose(request)

    run(world, router=Looks(world))
    assert went[2] > 400 * MS


@st.composite
def told_again(draw) -> World:
    """Two texts that come again and again, KV for few, and slow ways to a tier and to the host."""
    texts = [((number, draw(st.integers(20, 120))),) for number in (1, 2)]
    jobs = []
    at = 0
    for number in range(draw(st.integers(3, 12))):
        at += draw(st.sampled_from([0, 1, 3 * MS, 5 * MS, 17 * MS, 40 * MS]))
        segments = (*draw(st.sampled_from(texts)), (100 + number, draw(st.integers(1, 30))))
        prompt = sum(tokens for _, tokens in segments)
        jobs.append(Job(at, prompt, draw(st.integers(1, 25)), segments))
    block = draw(st.sampled_from([16, 4, 1]))
    most = max(-(-(job.prompt + job.output) // block) for job in jobs)
    world = World(
        tuple(jobs),
        cost=draw(st.sampled_from(sorted(COSTS))),
        block_tokens=block,
        kv_blocks=most + draw(st.integers(0, most)),
        max_num_seqs=draw(st.sampled_from([2, 3, 8])),
        budget_tokens=draw(st.sampled_from([30, 100, 4096])),
        reserve_prompt=draw(st.booleans()),
        stages=draw(st.sampled_from(STAGE_SHARES)),
        hop_ns=draw(st.sampled_from([0.0, 300_000.0])),
        stage_host_ns=draw(st.sampled_from([0, MS])),
        believed="oracle",
        view_age_ns=0,
    )
    world = replace(world, **draw(tiers_below()))
    return replace(
        world,
        tier_chunks=(1000,),
        tier_writes=("through",),
        tier_scopes=("replica",),
        loading="always",
        tier_bytes_per_s=draw(st.sampled_from([1e9, 1e8, 2e7])),
        port_bytes_per_s=draw(st.sampled_from([1e9, 1e8, 3e7])),
    )


@laws(40)
@given(data=st.data())
def test_what_waits_for_kv_on_its_way_comes_out(data):
    """In a tenth of these worlds some micro-batch waits when the last request is asked for."""
    decision_s = data.draw(st.sampled_from([0.0, 0.007]))
    world = replace(data.draw(told_again()), own_sends=decision_s > 0)
    asks = Asks(decision_s)
    last = run(world, data.draw(st.booleans()), router=asks).rows[-1]
    assert asks.told[-1] == (last.first_token_ns, last.end_ns)


def test_a_micro_batch_in_flight_waits_for_its_layers():
    """Its KV needs 64 ms by layer: who comes 5 ms later is foreseen behind it."""
    text = ((1, 64),)
    jobs = (Job(0, 64, 2, text), Job(100 * MS, 80, 4, (*text, (2, 16))), Job(105 * MS, 9, 3))
    tier = {"tier_chunks": (100,), "tier_bytes_per_s": 1e12, "port_bytes_per_s": 1e7}
    world = replace(STAGES, jobs=jobs, cost="flat", chunk_blocks=2, by_layer=True, **tier)
    waits = []

    class Looks(AsksForTheLast):
        def choose(self, request):
            waits.append(len(self.fleet._doors[0]._held))
            return super().choose(request)

    asks = Looks(world)
    last = run(world, router=asks).rows[-1]
    assert waits == [0, 0, 1]
    assert asks.told == [(last.first_token_ns, last.end_ns)]
