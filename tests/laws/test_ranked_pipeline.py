"""Attention ranks of a pipeline: timelines by hand, nothing lost, merged or not the same run."""

from __future__ import annotations

from dataclasses import replace

import pytest
from abilities import keeps_line, together
from endings import assert_all_ended, assert_tiers_back
from hypothesis import given
from hypothesis import strategies as st
from prices import COSTS, MS
from test_fast_forward import assert_same
from test_pipeline import in_whole_ns
from test_ranks import step_ns
from world_strategies import laws, worlds
from worlds import Job, World, run

from llmsim.policies import BATCHING
from llmsim.results.stations import station_metrics

BOTH = {"ranks": True, "stages": True}
BATCHINGS = list(BATCHING.names())


@pytest.mark.parametrize("cost", sorted(COSTS))
@laws(25)
@given(data=st.data())
def test_merging_changes_nothing(cost, data):
    assert_same(data.draw(worlds(cost=cost, turns=True, handoff=None, **BOTH)))


@pytest.mark.parametrize("batching", BATCHINGS)
@laws(12)
@given(data=st.data())
def test_nothing_is_lost(batching, data):
    ran = run(data.draw(worlds(batching=batching, most=20, handoff=None, **BOTH)))
    assert_all_ended(ran)
    for first in ran.replicas[:: ran.world.ranks]:
        assert first.busy_ns[-2] <= ran.facts.end_ns


@pytest.mark.parametrize("batching", [name for name in BATCHINGS if not together(name)])
@laws(6)
@given(data=st.data())
def test_with_tiers_below(batching, data):
    world = data.draw(worlds(batching=batching, most=20, turns=True, tiers=True, **BOTH))
    assert_tiers_back(run(world))
    assert_same(world)


@laws(40)
@given(data=st.data())
def test_one_stage_is_a_plain_group_of_ranks(data):
    """Bit for bit, decisions and rows, where nobody waits for an end to be sent.

    Not of policies that keep the line: steps that they may count pass for an idle rank, too, where
    all ranks take a stretch, but no micro-batch of decodes does.
    """
    cost = data.draw(st.sampled_from([name for name in sorted(COSTS) if in_whole_ns(COSTS[name])]))
    world = data.draw(worlds(cost=cost, ranks=True, lookahead=0))
    if keeps_line(world.batching):
        return
    world = replace(world, in_flight=0, per_expert_ns=3_000.0)
    plain, piped = run(world), run(replace(world, stages=(1.0,)))
    assert plain.decisions == piped.decisions
    assert [row.values for row in plain.rows] == [row.values for row in piped.rows]
    for one, other in zip(plain.facts.replicas, piped.facts.replicas, strict=True):
        assert one.preemptions == other.preemptions
        assert one.peak_kv_blocks == other.peak_kv_blocks
        assert (one.lookup_tokens, one.hit_tokens) == (other.lookup_tokens, other.hit_tokens)


@laws(30)
@given(data=st.data())
def test_one_stage_is_a_plain_group_of_ranks_with_tiers_below(data):
    """Bit for bit, decisions, rows, and what went to and from every tier that ranks do not share.

    Of one that they share, who comes first at an instant has it: here the rank in the lead is last.
    """
    cost = data.draw(st.sampled_from([name for name in sorted(COSTS) if in_whole_ns(COSTS[name])]))
    given = {"cost": cost, "batching": "vllm", "routing": "round-robin", "lookahead": 0}
    world = data.draw(worlds(ranks=True, tiers=True, **given))
    world = replace(world, in_flight=0, per_expert_ns=3_000.0, tier_scopes=("replica", "replica"))
    plain, piped = run(world), run(replace(world, stages=(1.0,)))
    assert plain.decisions == piped.decisions
    assert [row.values for row in plain.rows] == [row.values for row in piped.rows]
    assert plain.facts.tiers == piped.facts.tiers


# two stages, half of a joint step on each; the price "round" as in `test_ranks`
PAIR = World(
    (Job(0, 100, 3), Job(0, 80, 3), Job(0, 60, 3)),
    cost="round",
    ranks=2,
    ranks_in_turn=True,
    stages=(0.5, 0.5),
    budget_tokens=100,
)


def half(largest: int, total: int, attention_ns: float) -> int:
    return round(step_ns(largest, total, attention_ns) / 2)


@pytest.mark.parametrize("fast_forward", [True, False])
def test_two_ranks_on_two_stages_by_hand(fast_forward):
    """Rank 0 has two prompts, in one micro-batch each; rank 1 has one, and a dummy batch beside."""
    ran = run(PAIR, fast_forward)
    one, two, three = ran.rows
    assert [row.replica for row in ran.rows] == [0, 1, 0]
    # the first has 100 and 80 tokens and is as long as 100 take, the experts as 180
    first, second = half(100, 180, 20_000 * 100), half(60, 61, 20_000 * 60)
    # stage 0: the first, then the second; stage 1: the same behind it, without a pause
    assert one.first_token_ns == two.first_token_ns == 2 * first
    assert three.first_token_ns == 2 * first + second
    # 101 and 81 tokens of context decode together, 61 beside a dummy batch
    pair = {n: half(1, 2, 7 + 20 * n) for n in (101, 102)}
    lone = {n: half(1, 2, 7 + 20 * n) for n in (61, 62)}
    # at 2 * first the pair enters stage 0, which has nothing since; stage 1 has the second prompt
    out = max(2 * first + pair[101], 2 * first + second) + pair[101]
    # at 2 * first + second the lone one enters stage 0
    enters = max(2 * first + second, 2 * first + pair[101])
    other = max(enters + lone[61], out) + lone[61]
    # and so on: each enters when it is out, and waits for what is before it
    enters = max(out, enters + lone[61])
    end = max(enters + pair[102], other) + pair[102]
    assert one.end_ns == two.end_ns == end
    enters = max(other, enters + pair[102])
    assert three.end_ns == max(enters + lone[62], end) + lone[62]
    # what all ranks pass is told once, by the first
    works = first + second + sum(pair.values()) + sum(lone.values())
    assert ran.replicas[0].busy_ns[1] == ran.replicas[0].busy_ns[3] == works
    assert [each.busy_ns for each in ran.facts.stations if "stage" in each.name] == [works] * 2
    told = station_metrics(ran.facts.stations)
    assert told["bubble_frac"] == pytest.approx(1 - works / three.end_ns)


def test_a_prompt_on_one_rank_holds_up_the_stage_of_all():
    """The decodes of rank 1 come out with the prompt of rank 0 that is in their micro-batch."""
    alone = replace(PAIR, jobs=(Job(0, 10, 1), Job(0, 10, 30)))
    late = replace(alone, jobs=(*alone.jobs, Job(40 * MS, 90, 1)))
    before, after = run(alone).rows[1], run(late).rows[1]
    prompt, token = step_ns(90, 91, 20_000 * 90), step_ns(1, 2, 7 + 20 * 18)
    assert run(late).rows[2].replica == 0
    assert after.end_ns - before.end_ns == pytest.approx(prompt - token, abs=4)


def test_micro_batches_go_round_without_a_call():
    """Shares of all ranks, and the empty ones: 400 tokens each in a few calls."""
    world = replace(PAIR, jobs=(Job(0, 100, 400), Job(0, 80, 400), Job(0, 60, 400)))
    merged, stepped = run(world, True), run(world, False)
    assert merged.facts.digest == stepped.facts.digest
    assert all(each.events > 700 for each in stepped.facts.replicas)
    assert all(each.events < 12 for each in merged.facts.replicas)


def test_requests_are_handed_over_to_ranks_of_a_pipeline():
    world = replace(PAIR, decoders=1, stages=(0.5, 0.5), message_ns=1)
    ran = run(world)
    assert_all_ended(ran)
    assert [row.output_tokens for row in ran.rows] == [3, 3, 3]
