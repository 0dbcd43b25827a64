"""Little's law without an average: areas under the curves are sums of times, to rounding."""

from __future__ import annotations

import pytest
from abilities import together
from hypothesis import given
from hypothesis import strategies as st
from world_strategies import laws, worlds
from worlds import Job, World, run

from llmsim.policies import BATCHING


@pytest.mark.parametrize("fast_forward", [True, False])
@pytest.mark.parametrize("batching", [name for name in BATCHING.names() if not together(name)])
@laws(60)
@given(data=st.data())
def test_area_under_requests_is_the_sum_of_sojourns(batching, fast_forward, data):
    """Holds with lookahead off, where a request ends when its last step does."""
    world = data.draw(worlds(batching=batching, lookahead=0, turns=True))
    assert_areas(run(world, fast_forward))


def test_waiting_for_granules_is_time_here_too():
    """A step that waits for memory to be mapped begins when it starts to wait."""
    jobs = (Job(0, 1, 2), Job(0, 1, 2))
    assert_areas(run(World(jobs, lookahead=0, batching="orca", allocation="granules")))


def assert_areas(ran):
    for part in ran.facts.replicas:
        rows = [row for row in ran.rows if row.replica == part.index]
        here = sum(part.timeline.levels[name].sum() for name in ("running", "waiting"))
        assert here == pytest.approx(sum(row.end_ns - row.arrival_ns for row in rows), abs=1)
        queued = part.timeline.levels["waiting"].sum()
        least = sum(max(row.scheduled_ns, row.arrival_ns) - row.arrival_ns for row in rows)
        if part.preemptions == 0 and all(row.scheduled_ns >= 0 for row in rows):
            assert queued == pytest.approx(least, abs=1)
        else:
            assert queued >= least - 1


@laws(60)
@given(world=worlds(turns=True, clients_leave=False))
def test_tokens_in_the_timeline_are_tokens_in_the_rows(world):
    ran = run(world)
    for part in ran.facts.replicas:
        rows = [row for row in ran.rows if row.replica == part.index]
        totals = part.timeline.totals
        assert totals["output_tokens"].sum() == pytest.approx(sum(r.output_tokens for r in rows))
        # prompts, less what was found cached, and what was lost to preemptions once more, with
        # the token whose turn it was; less where an equal prompt has it cached by then
        computed = totals["prefill_tokens"].sum()
        fresh = sum(r.prompt_tokens - r.cached_tokens for r in rows)
        again = sum(r.recomputed_tokens + r.preemptions for r in rows)
        assert computed <= fresh + again + 1e-6
        if not part.preemptions:
            assert computed == pytest.approx(fresh)
        elif not world.prefix_caching:
            assert computed >= fresh - 1e-6
        held = part.timeline.levels["kv_blocks"].sum()
        assert 0 <= held <= world.kv_blocks * ran.facts.end_ns
