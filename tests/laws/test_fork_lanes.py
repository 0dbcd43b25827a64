"""Forks of lanes by hand: what a lane remembers between two of its calls goes into a fork."""

from __future__ import annotations

from dataclasses import replace

from prices import MS
from test_forks import Asks
from worlds import Job, World, run

LANES = World((), decoders=1, lanes=(1.0, 1.0), believed="oracle", lookahead=0)
"""A prompt takes 5 ms and 20 us a token, a decode step 5.02 ms and 20 ns a token of context."""


def told(world: World, decision_s: float = 0.0) -> tuple[int, int]:
    """Return what is foreseen of the last request; it happens."""
    asks = Asks(decision_s)
    last = run(world, router=asks).rows[-1]
    assert asks.told[-1] == (last.first_token_ns, last.end_ns)
    return asks.told[-1]


def test_a_step_whose_end_has_moved_ends_there():
    """A decode step is slowed down by a prompt, goes on alone, and is slowed down by another."""
    jobs = (Job(0, 100, 3), Job(9 * MS, 100, 1), Job(18 * MS, 100, 1))
    # as in `test_lanes.test_by_hand`: a prompt keeps 100/120 of the SMs busy, decodes 40% of them
    pace = 1 / (100 / 120 + 0.4)
    first = 7 * MS + 5_020_000 + 101 * 20
    first = 9 * MS + round((first - 9 * MS) / pace)
    second = first + round((5_020_000 + 102 * 20) / pace)
    computed = 9 * MS + round(7 * MS / pace)
    second = computed + round((second - computed) * pace)
    assert computed < 18 * MS < second
    second = 18 * MS + round((second - 18 * MS) / pace)  # both are slow until this step ends
    third = 18 * MS + round(7 * MS / pace)
    third = second + round((third - second) * pace)
    assert told(replace(LANES, jobs=jobs)) == (third, third)


def test_a_share_that_is_due_is_taken():
    """At 500 ms steps of 10 ms are too long: from its next step on prefill has 40% of the SMs."""
    jobs = (Job(0, 100, 80), Job(490 * MS, 200, 1), Job(502 * MS, 100, 1))
    world = replace(LANES, jobs=jobs, lanes=(0.5, 0.5), sharing="tpot-feedback")
    first = round(490 * MS + 9 * MS / 0.5 + 7 * MS / 0.4)
    assert told(world) == (first, first)


def test_who_waits_for_room_is_looked_at_when_there_is_some():
    """Requests are under way for 100 ms; in those of the third the first one makes room."""
    jobs = (Job(0, 100, 8), Job(MS, 100, 1), Job(120 * MS, 100, 1))
    world = replace(LANES, jobs=jobs, kv_blocks=10, own_sends=True)
    first = 227 * MS  # the second was computed before: else it would be 234
    assert told(world, 0.1) == (first, first)


def test_who_waits_for_a_prompt_of_the_other_lane_is_looked_at_when_it_has_its_blocks():
    """Found by search: two requests have taken KV from each other, and one computes its own again.

    The third asks while that owes blocks; then the first chunk of a prompt may come in.
    """
    jobs = (Job(0, 50, 30), Job(0, 50, 30), Job(254 * MS, 60, 2))
    world = replace(LANES, jobs=jobs, kv_blocks=8, budget_tokens=16, max_num_seqs=1)
    told(replace(world, reserve_prompt=False))
