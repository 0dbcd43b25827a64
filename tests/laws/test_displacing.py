"""Who loses its seat while KV is swapped: everybody gets on, and nobody comes and goes for ever."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest
from endings import assert_all_ended
from hypothesis import given
from hypothesis import strategies as st
from prices import MS
from test_fast_forward import assert_same
from world_strategies import laws, worlds
from worlds import Job, World, run

from llmsim.policies import RequestView, StepDraft

SHORTER = World(
    (Job(0, 16, 20), Job(15 * MS, 16, 3)),
    max_num_seqs=1,
    kv_blocks=8,
    swap_blocks=100,
    port_bytes_per_s=1e8,
    batching="shortest-first",
    order="priority",  # with `preempts`
    believed="oracle",
)
PROMPT_NS = 5 * MS + 16 * 20_000
COPY_NS = 3_200_000  # two blocks of 160 kB at 100 MB/s


def decodes(contexts):
    """Steps of one decode: 5 ms + 20 us, and 20 ns a token of context."""
    return sum(5_020_000 + 20 * context for context in contexts)


@pytest.mark.parametrize("fast_forward", [True, False])
def test_by_hand(fast_forward):
    """The second comes when the first has three tokens: it has the seat till it ends."""
    first, second = run(SHORTER, fast_forward).rows
    out = PROMPT_NS + decodes([17, 18])
    assert second.first_token_ns == out + COPY_NS + PROMPT_NS
    assert second.end_ns == second.first_token_ns + decodes([17, 18])
    assert first.end_ns == second.end_ns + COPY_NS + decodes(range(19, 36))
    assert (first.preemptions, second.preemptions) == (1, 0)
    assert first.recomputed_tokens == 0


def test_who_is_out_comes_back_before_who_is_longer():
    jobs = (*SHORTER.jobs, Job(20 * MS, 16, 30), Job(21 * MS, 16, 4))
    world = replace(SHORTER, jobs=jobs)
    rows = run(world).rows
    assert [row.request for row in sorted(rows, key=lambda row: row.end_ns)] == [1, 3, 0, 2]
    assert [row.preemptions for row in rows] == [1, 0, 0, 0]


@dataclass
class Pushing:
    """Always gives the seat of who runs to who waits, and ranks nobody."""

    every_step: ClassVar[bool] = False
    displaces: ClassVar[bool] = True
    moved: list[bool] = field(default_factory=list)

    def urgency(self, request: RequestView) -> tuple[int, ...] | None:
        return None

    def plan(self, step: StepDraft) -> None:
        if step.waiting and step.running:
            self.moved.append(step.displace(0))
            step.ask_again(1)
        step.advance_running()
        if step.waiting:
            step.admit_waiting()


def test_who_is_back_gets_on_before_it_is_displaced_again():
    """Nobody new gets in while somebody is out: who waits gains nothing, yet all end."""
    policy = Pushing()
    first, second = run(SHORTER, policy=lambda: policy).rows
    assert first.end_ns == second.scheduled_ns
    assert first.preemptions == policy.moved.count(True) == 17  # at every token but the last ones
    assert policy.moved.count(False) > 0
    assert (first.output_tokens, second.output_tokens) == (20, 3)


def test_a_run_that_gets_nowhere_fails():
    """Computed again instead of swapped, who is first in line is displaced in every prompt step."""
    with pytest.raises(AssertionError, match="gets nowhere"):
        run(replace(SHORTER, swap_blocks=0, budget_tokens=8), policy=Pushing)


@laws(60)
@given(data=st.data())
def test_in_any_world(data):
    """Merging changes nothing, everybody ends, and no block is lost, on the GPU or beside it."""
    kind = "shortest-first"
    drawn = data.draw(worlds(batching=kind, tiers=True, handoff=None, turns=True))
    world = replace(
        drawn,
        order=data.draw(st.sampled_from(["priority", "deadline"])),
        swap_blocks=data.draw(st.sampled_from([5, 40, 1000])),
        tier_chunks=(),
    )
    ran = run(world)
    assert_all_ended(ran)
    for replica in ran.replicas:
        replica.draft.swapper.check()
    assert_same(world)
