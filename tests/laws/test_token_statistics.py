"""Gaps between tokens: what is kept in O(1) per stretch equals a count token by token."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prices import COSTS, MS
from reference import TokenLog, bins_apart
from test_fast_forward import spread_bins
from world_strategies import laws, worlds
from worlds import Job, World, run

from llmsim.policies import BATCHING

WHOLE = {"round", "flat", "steep", "tile 16", "knee", "window"}
"""Prices in whole nanoseconds: no rounding between a boundary and the sum of the gaps before it."""


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("batching", BATCHING.names())
@laws(60)
@given(data=st.data())
def test_rows_equal_a_count_token_by_token(batching, lookahead, data):
    world = data.draw(worlds(batching=batching, lookahead=lookahead, turns=True, handoff=None))
    check(replace(world, late_first_token=False))  # the log knows when tokens are computed


def check(world: World) -> None:
    """Compare rows, histogram and timeline with a count token by token."""
    log = TokenLog()
    ran = run(world, False, log)
    slack = 0 if world.cost in WHOLE else 1
    every, delivered = [], 0
    for row in ran.rows:
        # with lookahead a client may leave while a step computes its next token: it misses that
        tokens = [at for at in log.accounts[row.request].tokens if at <= row.end_ns]
        if world.together:  # all at once, or never
            tokens = [row.end_ns] * len(tokens) if row.ended_as == "finished" else []
        own = [b - a for a, b in pairwise(tokens)]
        assert row.output_tokens == len(tokens)
        assert row.first_token_ns == (tokens[0] if tokens else -1)
        assert abs(row.itl_max_ns - max(own, default=0)) <= slack
        most = sum(gap > world.slo_ns - slack for gap in own)
        least = sum(gap > world.slo_ns + slack for gap in own)
        assert least <= row.itl_over_slo <= most
        if row.ended_as == "finished":
            assert row.end_ns == tokens[-1]
        every += own
        delivered += len(tokens)
    assert bins_apart(ran, every) <= 1
    merged = run(world, True)
    assert bins_apart(merged, every) <= spread_bins(COSTS[world.cost], world)
    for either in (ran, merged):
        told = sum(part.timeline.totals["output_tokens"].sum() for part in either.facts.replicas)
        assert told == pytest.approx(delivered)


def test_a_token_after_the_client_has_left():
    """The client leaves at 5 ms, while the step of its first token runs: it got none."""
    row = run(World((Job(0, 1, 5), Job(1_000_000, 1, 5, abort_ns=5_000_000)), lookahead=1)).rows[1]
    assert (row.ended_as, row.output_tokens, row.first_token_ns) == ("aborted", 0, -1)


@pytest.mark.parametrize(
    "world",
    [
        World((Job(0, 9, 9, abort_ns=45 * MS),), budget_tokens=8, lookahead=1, slo_ns=3 * MS),
        World(
            (Job(0, 9, 16), Job(0, 9, 17, abort_ns=25 * MS)),
            cost="tiled",
            block_tokens=1,
            kv_blocks=48,
            lookahead=1,
        ),
        World((Job(0, 1, 14),), kv_blocks=1, lookahead=1, timeout_ns=60 * MS),
        World((Job(0, 1, 1, abort_ns=1),), decoders=1, sent_layers=1),
        World((Job(0, 1, 1),), cost="flat", timeout_ns=5 * MS, decoders=1, sent_layers=1),
    ],
    ids=[
        "last token on the way",
        "preempted with a token on the way",
        "any token on the way",
        "sent by layer before its only token is there",
        "sent by layer, leaves as its only token comes",
    ],
)
def test_a_client_that_leaves_while_its_token_is_computed(world):
    check(world)


def test_tokens_of_decodes_that_sat_out_a_prefill():
    """All five tokens are in the timeline, the ones of late members too."""
    jobs = (Job(0, 1, 3), Job(7_000_000, 1, 2))
    part = run(World(jobs, batching="prefill-first")).facts.replicas[0]
    assert part.timeline.totals["output_tokens"].sum() == pytest.approx(5)


def test_gaps_of_one_request_by_hand():
    """Two requests, the second one's prefill stretches one gap of the first.

    Steps last 5 ms + 0.02 ms per new token + 20 ns per token of the decodes' contexts, each with
    its new token. Request 0 (100 tokens) is prefilled from 0 to 7 ms. Request 1 (50 tokens) comes
    at 8 ms, inside the decode step from 7 ms at context 101, and is prefilled in the next step
    together with a decode at context 102. The last step decodes both, at 103 and 51.
    """
    world = World((Job(0, 100, 4), Job(8_000_000, 50, 2)), slo_ns=6_000_000)
    first, second = run(world).rows
    alone = 5_020_000 + 20 * 101
    mixed = 5_020_000 + 20_000 * 50 + 20 * 102
    both = 5_040_000 + 20 * (103 + 51)
    assert first.first_token_ns == 7_000_000
    assert second.first_token_ns == 7_000_000 + alone + mixed
    assert first.end_ns == second.end_ns == 7_000_000 + alone + mixed + both
    assert (first.itl_max_ns, second.itl_max_ns) == (mixed, both)
    assert (first.itl_over_slo, second.itl_over_slo) == (1, 0)
