"""PENDING: fails at present; run with ``pytest tests/laws/pending_leaving.py``.

Clients that leave while a step computes their next token (lookahead 1):

1. who leaves while its *last* token is on the way ends as finished, rightly, but its gaps above
   the objective are counted twice;
2. who has been preempted with a token on the way and then leaves from the line keeps that token
   in `output_tokens`, though its row ends before the token comes;
3. the timeline's `output_tokens` ("delivered") count the token that a leaving client misses.
"""

from __future__ import annotations

from hypothesis import given
from test_token_statistics import check
from world_strategies import laws, worlds
from worlds import MS, Job, World, run


def test_gaps_counted_twice():
    jobs = (Job(0, 9, 9, abort_ns=45 * MS),)
    world = World(jobs, budget_tokens=8, kv_blocks=2, lookahead=1, slo_ns=3 * MS)
    row = run(world).rows[0]
    assert (row.ended_as, row.output_tokens) == ("finished", 9)
    assert row.itl_over_slo == 8


def test_left_from_the_line_with_a_token_on_the_way():
    jobs = (Job(0, 9, 16), Job(0, 9, 17, abort_ns=25 * MS))
    check(World(jobs, "tiled", block_tokens=1, kv_blocks=48, lookahead=1))


def test_timeline_counts_what_was_delivered():
    check(World((Job(0, 1, 14),), kv_blocks=1, lookahead=1, timeout_ns=60 * MS))


@laws(200)
@given(world=worlds(lookahead=1, clients_leave=True, most=6))
def test_any(world):
    check(world)
