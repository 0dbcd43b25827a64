"""Same seed, same run: in this process, in a fresh one, and next to things that do not matter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
from abilities import keeps_memory
from hypothesis import given
from prices import MS
from world_strategies import laws, worlds
from worlds import Job, World, run

import llmsim
from llmsim.core.rng import stream
from llmsim.policies import BATCHING, ROUTING

HERE = Path(__file__).parent
PACKAGE = Path(llmsim.__file__).parents[1]

FRESH = """
import json, sys
from worlds import Job, World, run
for line in sys.stdin:
    ran = run(eval(line))
    print(json.dumps([ran.facts.digest, [row.values for row in ran.rows]]))
"""


def busy(routing: str, **given) -> World:
    """A world with shared prompts, preemptions, leaving clients and several replicas."""
    rng = stream(3, "busy world", routing)
    jobs = []
    at = 0
    for index in range(60):
        at += int(rng.exponential(9 * MS))
        prompt, output = int(rng.integers(10, 200)), int(rng.integers(1, 60))
        shared = min(prompt, 96)
        parts = ((int(rng.integers(3)), shared), (100 + index, prompt - shared))
        jobs.append(
            Job(
                at,
                prompt,
                output,
                tuple(part for part in parts if part[1]),
                int(rng.integers(3)),
                int(rng.integers(40, 400)) * MS if index % 7 == 0 else -1,
                session=int(rng.integers(8)),
            )
        )
    plain = World(tuple(jobs), kv_blocks=40, prefix_caching=True, routing=routing, replicas=3)
    return replace(plain, order="priority", view_age_ns=20 * MS, **given)


@laws(40)
@given(world=worlds(turns=True, handoff=None))
def test_twice_in_one_process(world):
    one, other = run(world), run(world)
    assert one.facts.digest == other.facts.digest
    assert one.rows == other.rows
    assert one.facts.itl.counts == other.facts.itl.counts
    assert one.facts.events == other.facts.events


def test_in_a_fresh_process():
    cases = [busy(name) for name in ROUTING.names()]
    cases += [busy("power-of-two", batching=name, lookahead=1) for name in BATCHING.names()]
    told = subprocess.run(
        [sys.executable, "-c", FRESH],
        input="\n".join(map(repr, cases)),
        env=os.environ | {"PYTHONPATH": f"{HERE}{os.pathsep}{PACKAGE}", "PYTHONHASHSEED": "99"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = told.stdout.splitlines()
    assert len(lines) == len(cases)
    for world, line in zip(cases, lines, strict=True):
        ran = run(world)
        digest, rows = json.loads(line)
        assert ran.facts.digest == digest
        assert [list(row.values) for row in ran.rows] == rows
        # a rule that keeps memory for outputs is there so that nobody is preempted, and routers
        # that read what replicas hold happen to spread this load as well
        spared = keeps_memory(world.batching) or world.routing in ("precise", "min-ttft")
        assert spared or any(r.preemptions for r in ran.facts.replicas)


@pytest.mark.parametrize("routing", ROUTING.names())
def test_next_to_an_unrelated_component(routing, monkeypatch):
    before = run(busy(routing))
    monkeypatch.setattr(ROUTING, "_classes", dict(ROUTING._classes))
    monkeypatch.setattr(BATCHING, "_classes", dict(BATCHING._classes))

    @ROUTING.register("aardvark")
    @dataclass
    class Aardvark:
        def start(self, fleet, rng):
            rng.random(100)

        def choose(self, request):
            return 0

    @BATCHING.register("aardvark")
    @dataclass
    class AardvarkBatching:
        every_step: ClassVar[bool] = True

    assert "aardvark" in ROUTING.names()
    stream(5, "aardvark").random(1000)
    run(busy("aardvark"))
    after = run(busy(routing))
    assert after.facts.digest == before.facts.digest
    assert after.rows == before.rows


def test_another_seed_is_another_run():
    """The digest can tell runs apart, and the seed reaches the policy that draws."""
    world = busy("power-of-two")
    assert run(world, seed=5).facts.digest != run(world, seed=6).facts.digest
    world = busy("round-robin")
    assert run(world, seed=5).facts.digest == run(world, seed=6).facts.digest


def test_the_digest_sees_every_decision():
    world = busy("round-robin")
    digest = run(world).facts.digest
    for change in (
        {"kv_blocks": 39},
        {"order": "fcfs"},
        {"routing": "least-loaded"},
        {"cost": "fractions"},
        {"lookahead": 1},
        {"rules": "vllm-0.20"},
    ):
        assert run(replace(world, **change)).facts.digest != digest, change
