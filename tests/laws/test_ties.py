"""Ties: a client that leaves a line and one that a call sets free act at the same instant.

A client leaves the line of replica 1 at T and, in a closed loop without pause, sends the next
request to replica 0 at T. Both are client events: they come before all calls at T, whether
replica 0 is stepped or inside a merged stretch.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from prices import MS
from test_fast_forward import assert_same
from world_strategies import laws, worlds
from worlds import Job, World


def test_smallest_case():
    jobs = (
        Job(0, 10, 20),
        Job(0, 100, 20),
        Job(0, 10, 20),
        Job(0, 100, 5, abort_ns=20 * MS),
        Job(0, 10, 3),
    )
    assert_same(World(jobs, "flat", kv_blocks=10, replicas=2, in_flight=4))


@laws(100)
@given(world=worlds(cost="flat", clients_leave=True), slots=st.integers(2, 8))
def test_any(world, slots):
    assert_same(replace(world, replicas=3, in_flight=slots, think_ns=0, timeout_ns=20 * MS))
