import numpy as np
import pytest
from example_runs import POOL, S, facts_of
from hypothesis import given
from hypothesis import strategies as st

from llmsim.core.errors import InputError, InvariantError
from llmsim.results.facts import ReplicaFacts
from llmsim.results.series import integrals, load_over_time
from llmsim.results.timeline import MAX_BINS, Timeline, Timelines

SPAN = st.tuples(
    st.integers(1, 40_000_000_000),
    st.integers(0, 256),
    st.integers(0, 1_000),
    st.integers(0, 10_000),
    st.integers(0, 10_000),
    st.integers(0, 8_192),
    st.integers(0, 256),
    st.booleans(),
)


@given(st.lists(SPAN, min_size=1, max_size=60), st.sampled_from([7, 10_000_000, 1_000_000_000]))
def test_integrals_are_conserved_however_often_bins_merge(spans, bin_ns):
    timeline = Timeline(bin_ns)
    at = 0
    wanted = dict.fromkeys(
        ("running", "waiting", "kv_blocks", "prefill_tokens", "output_tokens", "busy_ns"), 0.0
    )
    for width, running, waiting, kv_start, kv_end, prefill, output, busy in spans:
        timeline.span(at, at + width, running, waiting, kv_start, kv_end, prefill, output, busy)
        at += width
        wanted["running"] += running * width
        wanted["waiting"] += waiting * width
        wanted["kv_blocks"] += (kv_start + kv_end) / 2 * width
        wanted["prefill_tokens"] += prefill
        wanted["output_tokens"] += output
        wanted["busy_ns"] += width * busy
    data = timeline.finish()
    found = {**data.levels, **data.totals}
    assert len(found["running"]) <= MAX_BINS
    assert len(found["running"]) * data.bin_ns >= at
    for name, amount in wanted.items():
        assert found[name].sum() == pytest.approx(amount, rel=1e-9)


@pytest.mark.slow
@given(
    st.lists(st.tuples(st.integers(0, 60_000_000_000), SPAN), min_size=1, max_size=40),
    st.booleans(),
)
def test_many_spans_at_once_are_the_same_as_one_by_one(spans, busy):
    one, many = Timeline(), Timeline()
    rows = []
    for start, (width, running, waiting, kv_start, kv_end, prefill, output, some) in spans:
        # every other span has no length at all
        rows.append(
            (start, start + width * some, running, waiting, kv_start, kv_end, prefill, output)
        )
        one.span(*rows[-1], busy)
    many.spans(*np.array(rows, dtype=np.int64).T, busy)
    left, right = one.finish(), many.finish()
    assert left.bin_ns == right.bin_ns
    for name, values in {**left.levels, **left.totals}.items():
        found = {**right.levels, **right.totals}[name]
        assert found == pytest.approx(values, rel=1e-9, abs=1e-3), name


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 60_000_000_000), SPAN), min_size=1),
    st.integers(1, 3),
)
def test_timelines_recorded_together_are_those_recorded_alone(spans, batches):
    """Their bins become wide at different times, and some of them stay empty."""
    alone, together = [Timeline() for _ in range(5)], Timelines(5)
    rows = []
    for which, start, (width, running, _, kv_start, kv_end, prefill, output, some) in spans:
        rows.append(
            (which, start, start + width * some, running, kv_start, kv_end, prefill, output)
        )
    for part in np.array_split(np.array(rows, dtype=np.int64), batches):
        for which, start, end, running, kv_start, kv_end, *tokens in part.tolist():
            alone[which].span(start, end, running, 0, kv_start, kv_end, *tokens, True, tokens[0])
            alone[which].span(start, end, 0, 1, 0, 0, 0, 0, False)
        which, start, end, running, kv_start, kv_end, *tokens = part.T
        together.busy(which, start, end, running, (kv_start, kv_end), *tokens, tokens[0])
        together.waited(which, start, end)
    for left, right in zip(alone, together.parts, strict=True):
        one, other = left.finish(), right.finish()
        assert one.bin_ns == other.bin_ns
        for name, values in {**one.levels, **one.totals}.items():
            found = {**other.levels, **other.totals}[name]
            assert found == pytest.approx(values, rel=1e-9, abs=1e-3), name


def test_bins_hold_what_happened_in_them():
    timeline = Timeline(10)
    timeline.span(5, 25, 2, 1, 0, 20, 40, 8, True)
    data = timeline.finish()
    assert data.levels["running"].tolist() == [10, 20, 10]
    assert data.levels["waiting"].tolist() == [5, 10, 5]
    # KV grows by one block per ns: means 2.5, 10 and 17.5 blocks over 5, 10 and 5 ns
    assert data.levels["kv_blocks"].tolist() == [12.5, 100, 87.5]
    assert data.totals["prefill_tokens"].tolist() == [10, 20, 10]
    assert data.totals["output_tokens"].tolist() == [2, 4, 2]
    assert data.totals["busy_ns"].tolist() == [5, 10, 5]


def test_a_step_of_no_length_keeps_its_tokens():
    timeline = Timeline(10)
    timeline.span(5, 5, 9, 9, 9, 9, 3, 2, True)
    data = timeline.finish()
    assert data.totals["prefill_tokens"].sum() == 3
    assert data.totals["output_tokens"].sum() == 2
    assert data.levels["running"].sum() == 0


def test_a_span_that_runs_backwards_is_a_bug():
    with pytest.raises(InvariantError, match="2 ns before"):
        Timeline().span(10, 8, 0, 0, 0, 0, 0, 0, False)


def replica(index, pool, timeline):
    return ReplicaFacts(pool, index, timeline.finish(), 0, 0, 0, 0, 0, 0, 0)


def two_replicas():
    fine, coarse = Timeline(S), Timeline(2 * S)
    fine.span(0, 4 * S, 3, 1, 50, 50, 400, 80, True)
    coarse.span(0, 2 * S, 1, 0, 20, 20, 0, 40, True)
    coarse.span(2 * S, 5 * S, 0, 0, 0, 0, 0, 0, False)
    other = type(POOL)("spare", 1, "h100-sxm", 1, 300, 16, 3.0, "")
    return facts_of(
        0,
        5 * S,
        pools=(POOL, other),
        replicas=(replica(0, "main", fine), replica(1, "spare", coarse)),
    )


def test_replicas_with_different_bins_add_up():
    load = load_over_time(two_replicas())
    assert load["t_s"].tolist() == [0, 2, 4]
    assert load["running"].tolist() == [4, 3, 0]
    assert load["waiting"].tolist() == [1, 1, 0]
    assert load["kv_used_frac"].tolist() == [70 / 400, 50 / 400, 0]
    assert load["prefill_tokens_per_s"].tolist() == [100, 100, 0]
    assert load["output_tokens_per_s"].tolist() == [40, 20, 0]
    assert load["busy_frac"].tolist() == [1, 0.5, 0]


def test_one_pool_or_one_replica():
    facts = two_replicas()
    assert load_over_time(facts, pool="spare")["running"].tolist() == [1, 0, 0]
    main = load_over_time(facts, replica=0)
    assert main["t_s"].tolist() == [0, 1, 2, 3, 4]
    assert main["kv_used_frac"].tolist() == [0.5, 0.5, 0.5, 0.5, 0]


def test_a_pool_or_replica_that_is_not_there():
    with pytest.raises(InputError, match="Did you mean 'spare'"):
        load_over_time(two_replicas(), pool="spaer")
    with pytest.raises(InputError, match="no replica 7"):
        load_over_time(two_replicas(), replica=7)
    with pytest.raises(InputError, match="no replica 0 in pool 'spare'"):
        load_over_time(two_replicas(), pool="spare", replica=0)


def test_the_last_bin_is_averaged_over_what_the_run_covered():
    timeline = Timeline(4 * S)
    timeline.span(0, 5 * S, 2, 0, 10, 10, 0, 0, True)
    facts = facts_of(0, 5 * S, timeline)
    assert load_over_time(facts)["running"].tolist() == [2, 2]
    assert load_over_time(facts)["busy_frac"].tolist() == [1, 1]
    inside = integrals(facts.replicas[0], "running", np.array([4.5, 5.0]) * S, 5 * S)
    assert inside.tolist() == [pytest.approx(1 * S)]
