"""Forks of pipelines by hand: what is in flight comes out in a fork, too."""

from __future__ import annotations

from dataclasses import replace

from prices import MS
from test_forks import Asks
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
