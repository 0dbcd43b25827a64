"""Forks of pipelines by hand: what is in flight comes out in a fork, too."""

from __future__ import annotations

from dataclasses import replace

from prices import MS
from test_forks import Asks
from worlds import Job, World, run

from llmsim.serving.fork_pipeline import PipelineFork
from llmsim.serving.rounds import Rounds

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


def test_a_fork_goes_no_further_than_to_what_is_asked(monkeypatch):
    """Others have hundreds of tokens to go when the newcomer has had its last one."""
    went = []
    ask = PipelineFork.token_ns

    def asked(fork, target, which, before_ns):
        answer = ask(fork, target, which, before_ns)
        went.append((fork.clock.now, answer))
        return answer

    monkeypatch.setattr(PipelineFork, "token_ns", asked)
    jobs = (Job(0, 10, 900), Job(0, 10, 700), Job(20 * MS, 10, 5))
    told(replace(STAGES, jobs=jobs, kv_blocks=200))
    assert len(went) == 2
    assert all(now <= answer for now, answer in went)


def test_decodes_go_round_without_being_visited_one_by_one(monkeypatch):
    """Two micro-batches of 300 tokens and one that comes in between, whose prompt ends a round."""
    entered = []
    run_rounds = Rounds.run

    def counted(rounds, *given):
        entered.append(run_rounds(rounds, *given))
        return entered[-1]

    monkeypatch.setattr(Rounds, "run", counted)
    jobs = (Job(0, 8, 300), Job(0, 8, 300), Job(500 * MS, 7, 2))
    run(replace(STAGES, jobs=jobs, budget_tokens=8, kv_blocks=200))
    assert sum(entered) > 550
    assert len(entered) < 10
