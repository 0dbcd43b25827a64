"""Programs drawn from laws: what is drawn, and that it does not depend on who asks when."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from llmsim.core.errors import InputError, ScenarioError
from llmsim.scenario import Scenario, build_workload
from llmsim.workload import PROGRAMS, CallEnd, ProgramWorkload, SyntheticWorkload
from llmsim.workload.agents import Agents, Sessions, Tool
from llmsim.workload.arrivals import ARRIVALS
from llmsim.workload.lengths import LENGTHS
from llmsim.workload.prompts import PROMPTS

LENGTHS_OF_CALLS = {
    "prompt_mean_tokens": 100.0,
    "prompt_cv": 0.5,
    "output_mean_tokens": 30.0,
    "output_cv": 0.5,
}


def workload(law, requests=200, chunk_rows=65_536, prompts=None):
    lengths = LENGTHS.get("lognormal")(**LENGTHS_OF_CALLS)
    opening = SyntheticWorkload(
        ARRIVALS.get("poisson")(rate_rps=1.0),
        lengths,
        seed=4,
        prompts=prompts,
        requests=requests,
        chunk_rows=chunk_rows,
    )
    return ProgramWorkload(opening, law, lengths, 4)


def told(made):
    """Play all programs through, every call served in full; one tuple per call."""
    found = []
    request = 0
    for chunk in made.chunks():
        for at in range(len(chunk)):
            program, turn = int(chunk.session[at]), 0
            prompt, output = int(chunk.prompt_tokens[at]), int(chunk.output_tokens[at])
            segments = chunk.segments[at]
            after = int(chunk.arrival_ns[at])
            while True:
                assert sum(length for _, length in segments) == prompt
                final, tool = made.is_final(program, turn), made.tool(program, turn)
                found.append((program, turn, after, prompt, output, tool, final))
                end = CallEnd(request, program, turn, prompt, output, segments, -1, 0, True)
                request += 1
                calls = made.next_calls(end)
                assert bool(calls) != final
                if not calls:
                    break
                (call,) = calls
                assert call.segments[: len(segments)] == segments
                assert call.segments[len(segments)] == (end.output_key, output)
                turn, after = call.turn, call.after_ns
                prompt, output, segments = call.prompt_tokens, call.output_tokens, call.segments
    return found


AGENTS = Agents(
    turns_mean=6,
    opening_tokens=50,
    tools={"shell": Tool(1.0, 3.0), "tests": Tool(20.0, 1.0, "fixed")},
)


def test_draws_do_not_depend_on_where_chunks_end():
    assert told(workload(AGENTS)) == told(workload(AGENTS, chunk_rows=7))
    again = workload(AGENTS)
    assert told(again) == told(again)


def test_more_programs_leave_the_first_ones_as_they_were():
    """Turn counts of later programs do not shift the calls of earlier ones within a chunk."""
    few, many = told(workload(AGENTS, 50)), told(workload(AGENTS, 80))
    assert few == many[: len(few)]


def test_the_laws_have_the_means_they_are_given():
    calls = told(workload(AGENTS, 4000))
    turns = np.bincount([program for program, *_ in calls])
    assert turns.min() == 1
    assert turns.mean() == pytest.approx(6, rel=0.05)
    pauses = [(tool, after) for (*_, tool, _), (_, turn, after, *_) in pairwise(calls) if turn]
    shell = np.array([after for tool, after in pauses if tool == 0]) / 1e9
    tests = np.array([after for tool, after in pauses if tool == 1]) / 1e9
    assert len(shell) / len(tests) == pytest.approx(3, rel=0.1)
    assert shell.mean() == pytest.approx(1.0, rel=0.05)
    assert shell.std() == pytest.approx(1.0, rel=0.2)
    assert set(tests) == {20.0}


def test_sessions_think_and_call_no_tools():
    law = Sessions(turns_mean=3, turns_law="fixed", think_mean_s=4.0, think_cv=0.0)
    calls = told(workload(law, 5))
    assert [turn for _, turn, *_ in calls] == [0, 1, 2] * 5
    assert {after for _, turn, after, *_ in calls if turn} == {4_000_000_000}
    assert {tool for *_, tool, _ in calls} == {-1}


def test_first_calls_share_what_the_prompt_law_says():
    prompts = PROMPTS.get("shared-prefix")(prefix_tokens=64)
    made = workload(AGENTS, 3, prompts=prompts)
    (chunk,) = made.chunks()
    heads = {segments[0] for segments in chunk.segments}
    tails = {segments[-1][0] for segments in chunk.segments}
    assert heads == {(0, 64)}
    assert len(tails) == 3
    assert all(
        sum(n for _, n in s) == p for s, p in zip(chunk.segments, chunk.prompt_tokens, strict=True)
    )


def test_nobody_goes_on_after_a_failure():
    made = workload(Sessions(turns_mean=5, turns_law="fixed"), 1)
    (chunk,) = made.chunks()
    assert made.next_calls(CallEnd(0, 0, 0, 10, 0, chunk.segments[0], -1, 0, False)) == ()


def test_wrong_parameters_are_told():
    with pytest.raises(InputError, match="mean_s"):
        workload(Agents(turns_mean=2, tools={"shell": Tool(-1.0)}))
    with pytest.raises(InputError, match="turns_mean"):
        workload(Sessions(turns_mean=0.5))


def scenario(**traffic):
    base = {
        "programs": {"kind": "agents", "turns_mean": 4, "tools": {"shell": {"mean_s": 1}}},
        "arrivals": {"kind": "poisson", "rate_rps": 1},
        "lengths": {"kind": "fixed", "prompt_tokens": 100, "output_tokens": 10},
        "requests": 20,
    }
    return Scenario.parse(
        {
            "llmsim": 1,
            "name": "programs",
            "model": "llama-3.1-8b",
            "traffic": base | traffic,
            "fleet": {"pools": {"main": {"gpu": "h100-sxm"}}},
        }
    )


def test_a_scenario_says_it_all_and_survives_its_own_yaml():
    made = scenario()
    assert made.traffic.programs.build() == Agents(turns_mean=4, tools={"shell": Tool(1.0)})
    assert Scenario.parse(made.resolved()) == made
    assert build_workload(made).programs is not None
    assert "agents" in PROGRAMS.names()


@pytest.mark.parametrize(
    ("traffic", "told"),
    [
        ({"abort": {"frac": 0.1, "mean_s": 1}}, "does not go with programs"),
        ({"programs": {"kind": "agents", "turns_mean": 4, "tools": {}}}, "tools"),
        (
            {"programs": {"kind": "agents", "turns_mean": 4, "tools": {"a": {"maen_s": 1}}}},
            "mean_s",
        ),
        ({"programs": {"kind": "agent", "turns_mean": 4}}, "agents"),
        ({"trace": {"kind": "burstgpt", "path": "x.csv"}}, "excludes traffic.trace"),
    ],
)
def test_what_is_wrong_in_a_scenario_is_told(traffic, told):
    with pytest.raises(ScenarioError, match=told):
        scenario(**traffic)
