"""Token times, put together from ticks, are those of single steps, and add up to the rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from reference import TokenLog
from world_strategies import laws, worlds
from worlds import run


def delivered(ran):
    tokens = ran.facts.tokens
    found = {}
    for row in ran.rows:
        times = tokens.time_ns[tokens.request == row.request][: row.output_tokens]
        found[row.request] = times.tolist()
    return found


@laws(60)
@given(world=worlds(turns=True, handoff=None))
def test_every_token_has_its_time(world):
    merged, stepped = run(world, True, token_times=True), run(world, False, token_times=True)
    told = delivered(merged)
    assert told == delivered(stepped)
    assert merged.facts.digest == run(world).facts.digest
    for row in merged.rows:
        times = told[row.request]
        assert len(times) == row.output_tokens
        if not times:
            continue
        assert times == sorted(times)
        if not world.late_first_token and not world.together:  # computed before it is delivered
            assert times[0] == row.first_token_ns
            # a gap is rounded by itself, a boundary as a sum: one nanosecond apart at most
            assert abs(row.itl_max_ns - max(np.diff(times).tolist(), default=0)) <= 1
        if row.ended_as == "finished" and row.output_tokens > 1 and not world.together:
            assert times[-1] == row.end_ns


@laws(40)
@given(world=worlds(turns=True, clients_leave=False))
def test_they_are_what_the_calls_say(world):
    log = TokenLog()
    ran = run(world, False, log, token_times=True)
    for request, times in delivered(ran).items():
        assert times == log.accounts[request].tokens[: len(times)]
