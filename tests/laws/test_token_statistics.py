"""Gaps between tokens: what is kept in O(1) per stretch equals a count token by token."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import TokenLog, bins_apart
from test_fast_forward import spread_bins
from world_strategies import laws, worlds
from worlds import COSTS, Job, World, run

from llmsim.policies import BATCHING

WHOLE = {"round", "flat", "steep", "tile 16", "knee", "window"}
"""Prices in whole nanoseconds: no rounding between a boundary and the sum of the gaps before it."""


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("batching", BATCHING.names())
@laws(60)
@given(data=st.data())
def test_rows_equal_a_count_token_by_token(batching, lookahead, data):
    world = data.draw(worlds(batching=batching, lookahead=lookahead, turns=True))
    log = TokenLog()
    ran = run(world, False, log)
    gaps = log.gaps()
    slack = 0 if world.cost in WHOLE else 1
    complete = True
    for row in ran.rows:
        if lookahead and row.ended_as in ("aborted", "timed_out"):
            complete = False  # a token may be on the way; see pending_tokens_on_the_way.py
            continue
        own = gaps.get(row.request, [])
        tokens = log.accounts[row.request].tokens
        assert row.output_tokens == len(tokens)
        assert row.first_token_ns == (tokens[0] if tokens else -1)
        assert abs(row.itl_max_ns - max(own, default=0)) <= slack
        most = sum(gap > world.slo_ns - slack for gap in own)
        least = sum(gap > world.slo_ns + slack for gap in own)
        assert least <= row.itl_over_slo <= most
        if row.ended_as == "finished":
            assert row.end_ns == tokens[-1]
    if not complete:
        return
    every = [gap for own in gaps.values() for gap in own]
    assert bins_apart(ran, every) <= 1
    assert bins_apart(run(world, True), every) <= spread_bins(COSTS[world.cost], world)
    if batching == "prefill-first":
        return  # see pending_late_tokens.py
    outputs = sum(part.timeline.totals["output_tokens"].sum() for part in ran.facts.replicas)
    assert outputs == pytest.approx(sum(len(a.tokens) for a in log.accounts.values()))


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
