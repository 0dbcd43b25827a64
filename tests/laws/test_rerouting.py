"""Requests that change lines before they are begun: nothing is lost, nothing is computed twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from endings import assert_all_ended
from hypothesis import given
from hypothesis import strategies as st
from prices import MS
from test_life import restless
from world_strategies import laws, worlds
from worlds import Job, World, run

from llmsim.policies.routing import Reroute


@dataclass
class Restless:
    """A router that sends everybody to the first replica, and then about half of them elsewhere."""

    reads_caches: ClassVar[bool] = True
    seen: int = 0

    def start(self, fleet, rng):
        self.fleet, self.rng = fleet, rng

    def choose(self, request):
        return 0

    def moves(self):
        replicas = self.fleet.replicas
        todo = []
        for source in range(replicas):
            left = self.fleet.begun_tokens(source)
            assert left >= 0
            for request in self.fleet.waiting(source):
                if self.rng.integers(2):
                    target = int(self.rng.integers(replicas))
                    todo.append(Reroute(request.index, source, target))
        return todo


@laws(100)
@given(data=st.data())
def test_every_request_ends_once_and_every_block_comes_back(data):
    kind = data.draw(st.sampled_from(["plain", "ranks", "stages", "both", "life"]))
    if kind == "life":
        world = restless(data)  # nothing boots beside prefill pools; scenarios refuse that
    else:
        ranks, stages = kind in ("ranks", "both"), kind in ("stages", "both")
        world = data.draw(worlds(handoff=None, ranks=ranks, stages=stages))
    assert_all_ended(run(world, router=Restless()))


@laws(30)
@given(world=worlds(tiers=True, handoff=None))
def test_who_has_kv_loaded_for_it_stays_where_that_is(world):
    ran = run(world, router=Restless())
    assert [row.request for row in ran.rows] == list(range(len(world.jobs)))
    for replica in ran.replicas:
        writing = sum(keep.blocks for keep in replica.draft.keeper.writer.keeps)
        assert replica.config.kv_blocks - replica.ledger.free <= writing
        assert not replica.running
        assert not replica.waiting


@dataclass
class Settled:
    """A router that chooses by a hash of the request's index."""

    reads_caches: ClassVar[bool] = True

    def start(self, fleet, rng):
        self.replicas = fleet.replicas

    def wanted(self, index):
        return index * 7919 % 31 % self.replicas

    def choose(self, request):
        return self.wanted(request.index)


@dataclass
class Fickle(Settled):
    """The same, on second thoughts: first everybody goes one further."""

    def choose(self, request):
        wanted = self.wanted(request.index)
        first = (wanted + 1) % self.replicas
        self.todo = [Reroute(request.index, first, wanted)]
        return first

    def moves(self):
        return self.todo


@laws(60)
@given(data=st.data())
def test_to_change_at_once_is_to_choose_so_at_first(data):
    """Where one scheduler's call cannot come between; the line of a plain one keeps nothing."""
    world = data.draw(worlds(batching="vllm", handoff=None))
    settled, fickle = (run(world, router=router()) for router in (Settled, Fickle))
    assert fickle.rows == settled.rows
    assert fickle.decisions == settled.decisions


@dataclass
class Scripted:
    """A router that sends everybody to replica 0, and moves whom it is told to at arrivals."""

    script: dict
    reads_caches: ClassVar[bool] = True

    def start(self, fleet, rng):
        self.fleet = fleet

    def choose(self, request):
        self.now = request.index
        return 0

    def moves(self):
        return [Reroute(index, 0, 1) for index in self.script.get(self.now, ())]


def test_by_hand():
    """One seat: 0 runs, 1 and 2 wait; at the arrival of 3, 2 moves and runs at once.

    A step takes 10 ms whatever is in it; 0 has 20 tokens to say, and may not move for it runs.
    """
    jobs = tuple(Job(at * MS, 16, 20) for at in (0, 1, 2, 105))
    world = World(jobs, cost="flat", replicas=2, max_num_seqs=1, lookahead=0)
    stay = run(world, router=Scripted({}))
    assert [row.replica for row in stay.rows] == [0, 0, 0, 0]
    ran = run(world, router=Scripted({3: (0, 2, 99)}))
    assert [row.replica for row in ran.rows] == [0, 0, 1, 0]
    assert ran.rows[2].scheduled_ns == 105 * MS
    assert ran.rows[:2] == stay.rows[:2]
    assert ran.rows[3].scheduled_ns == stay.rows[2].scheduled_ns
    assert_all_ended(ran)
