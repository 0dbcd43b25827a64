"""Every registered controller: nobody is lost by what it does, merging steps changes nothing."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
from endings import assert_all_ended
from hypothesis import given
from hypothesis import strategies as st
from prices import MS
from test_fast_forward import assert_same
from test_life import restless
from test_roles import changeable
from world_strategies import laws, worlds
from worlds import Job, World, run

from llmsim.policies.control import CONTROL

EAGER: dict[str, dict[str, Any]] = {
    "autoscale": {"above": 2.0, "below": 1.5, "patience": 1},
    "schedule": {
        "drain_at_s": {0: 0.012, 1: 0.08},
        "fail_at_s": {1: 0.031},
        "add_at_s": [0.02, 0.05, 0.09],
    },
    "evacuate": {},
    "llumnix": {"source_below": 6.0, "target_above": 3.0},
    "balance-roles": {
        "prompts_above": 30.0,
        "prompts_below": 20.0,
        "kv_above": 0.5,
        "kv_below": 0.4,
        "patience": 1,
    },
    "xllm": {
        "ttft_s": 0.02,
        "tpot_s": 0.007,
        "prompt_token_s": 2e-5,
        "step_s": 0.005,
        "step_request_s": 1e-3,
        "step_block_s": 0.0,
    },
}
"""Parameters with which a controller acts in a world of a dozen requests; others have defaults."""

DOES = {
    "autoscale": {"booting", "draining"},
    "schedule": {"booting", "draining", "failed"},
    "evacuate": {"migrated"},
    "llumnix": {"migrated"},
    "balance-roles": {"decode", "prefill"},
    "xllm": {"decode", "prefill"},
}
"""What must happen in a burst; of others nothing is known."""


@dataclass(frozen=True, repr=False)
class Controlled(World):
    """A world with a controller that is registered, in place of one that draws."""

    controller: str = "autoscale"

    def control(self) -> Any:
        plan = super().control()
        asked = EAGER.get(self.controller, {})
        time = {"period_s": self.shuffle_ns / 1e9, "view_age_s": self.look_age_ns / 1e9}
        policies = [CONTROL.get(self.controller)(**asked, **time)]
        if self.controller == "evacuate":  # somebody must drain
            policies.insert(0, CONTROL.get("schedule")(**EAGER["schedule"], **time))
        return replace(plan, policies=tuple(policies))


def controlled(kind: str, world: World) -> Controlled:
    given = {item.name: getattr(world, item.name) for item in fields(World)}
    return Controlled(**given, controller=kind)


def drawn(kind: str, data: Any) -> Controlled:
    cls = CONTROL.get(kind)
    parts = {"ranks": data.draw(st.booleans()), "stages": data.draw(st.booleans())}
    if getattr(cls, "flips", False):
        return controlled(kind, changeable(data, **parts))
    if getattr(cls, "scales", False) or kind == "evacuate":
        return controlled(kind, restless(data, **parts))
    return controlled(kind, data.draw(worlds(moves=True, handoff=None, **parts)))


@pytest.mark.parametrize("kind", CONTROL.names())
@laws(25)
@given(data=st.data())
def test_every_request_ends_once_and_every_block_comes_back(kind, data):
    world = drawn(kind, data)
    ran = run(world)
    assert_all_ended(ran)
    assert ran.facts.digest == run(world).facts.digest


@pytest.mark.parametrize("kind", CONTROL.names())
@laws(25)
@given(data=st.data())
def test_merging_steps_changes_nothing(kind, data):
    assert_same(drawn(kind, data))


@pytest.mark.parametrize("parts", [{}, {"ranks": 2}, {"stages": (0.5, 0.5)}], ids=str)
@pytest.mark.parametrize("kind", CONTROL.names())
def test_it_acts_at_all(kind, parts):
    """So that the laws above say something: a burst in which every controller acts."""
    jobs = tuple(Job(each * MS, 60, 30) for each in range(12))
    life: dict[str, Any] = {"replicas": 2, "spare": 2, "shuffle_ns": 5 * MS, "kv_blocks": 40}
    if getattr(CONTROL.get(kind), "flips", False):
        life = {"replicas": 3, "decoders": 2, "flip_drains": True, "shuffle_ns": 5 * MS}
        life |= {"kv_blocks": 30}
    ran = run(controlled(kind, World(jobs, **life, **parts)))
    assert_all_ended(ran)
    assert DOES.get(kind, set()) <= {change.what for change in ran.facts.changes}
