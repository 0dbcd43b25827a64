"""Stale reports, the router's own sends, and refusal: how many first tokens come in time."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from prices import MS
from worlds import Job, World, run

from llmsim.policies.routing import LeastLoaded

SLOTS, LOAD, MEAN_MS, SLO_NS = 16, 0.85, 250, 1500 * MS


@cache
def jobs(seed: int, cv: float, load: float) -> tuple[Job, ...]:
    """Prompts that take a quarter of a second on average, for one slot each."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(MEAN_MS * MS / SLOTS / load, 4000)).astype(int)
    sigma2 = np.log1p(cv**2)
    lengths = rng.lognormal(np.log(MEAN_MS) - sigma2 / 2, np.sqrt(sigma2), 4000).clip(1, 4000)
    return tuple(Job(int(at), int(length), 1) for at, length in zip(arrivals, lengths, strict=True))


def in_time(
    seed: int, cv: float = 1.2, load: float = LOAD, router: object = None, **changes: object
) -> float:
    """Share of requests whose first token comes within 1.5 s."""
    world = World(
        jobs(seed, cv, load),
        cost="a millisecond a token",
        max_num_seqs=1,
        kv_blocks=1000,
        max_model_len=8192,
        replicas=SLOTS,
    )
    rows = run(replace(world, **changes), router=router).rows
    return float(np.mean([0 <= row.first_token_ns - row.arrival_ns <= SLO_NS for row in rows]))


LEAST = {"routing": "least-loaded", "view_age_ns": 500 * MS}
TWO = {"routing": "power-of-two", "view_age_ns": 500 * MS}
REFUSE = {"refuse_at": 1}


@pytest.mark.parametrize("seed", [1, *(pytest.param(i, marks=pytest.mark.slow) for i in (2, 3))])
def test_refusal_beats_stale_reports(seed):
    """Seeds 1 to 3 gave: in turn 0.77, 0.71, 0.75; by reports half a second old the better of two
    0.88, 0.82, 0.86 and the least loaded 0.28, 0.26, 0.26, as all that arrive between two reports
    go to the same replica; with its own sends counted 0.95, 0.92, 0.94; refused 0.99.
    """
    turns, two, least = in_time(seed), in_time(seed, **TWO), in_time(seed, **LEAST)
    corrected, refused = in_time(seed, **LEAST, own_sends=True), in_time(seed, **REFUSE)
    assert least < turns < two < corrected < refused
    assert refused >= 0.97
    assert corrected >= 0.9
    assert turns < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_reports_now_and_then_spread_what_a_constant_delay_heaps_up(seed):
    """Reports every half second at each replica's own phase, equals drawn: 0.78, 0.66, 0.71.

    That is the setting in which a coarse model had 0.74 (expected: 0.70 to 0.85): two seeds of
    three are in, the mean is 0.71. Told of every change half a second late it is 0.59, 0.51, 0.55,
    and the first of equals makes 0.28 of that (above): the herd is one of ties and of age. With a
    third of the reports lost: 0.55, 0.47, 0.54. With the router's own sends: 0.96, 0.94, 0.95.
    """

    def drawn(**changes: object) -> float:
        return in_time(seed, router=LeastLoaded(ties="random"), **changes)

    late, now_and_then = drawn(view_age_ns=500 * MS), drawn(report_ns=500 * MS)
    lossy = drawn(report_ns=500 * MS, lost_frac=0.3)
    assert in_time(seed, **LEAST) < late < now_and_then
    assert lossy < now_and_then - 0.1
    assert 0.65 < now_and_then < 0.85
    assert drawn(report_ns=500 * MS, own_sends=True) > 0.9


def test_equal_prompts_at_light_load_do_without():
    """Null: nothing to choose between."""
    for changes in ({}, TWO, LEAST | {"own_sends": True}, REFUSE):
        assert in_time(1, cv=0.01, load=0.6, **changes) >= 0.99


def test_fresh_reports_are_nearly_as_good():
    """Null: the router knows as much as the replicas themselves."""
    fresh = in_time(1, routing="least-loaded")
    assert in_time(1, **REFUSE) - fresh < 0.05


def test_who_is_held_too_long_is_given_up():
    world = World(
        (Job(0, 100, 1), Job(0, 100, 1)),
        cost="a millisecond a token",
        max_num_seqs=1,
        refuse_at=1,
        hold_ns=50 * MS,
    )
    served, held = run(world).rows
    assert (served.ended_as, served.end_ns) == ("finished", 100 * MS)
    assert (held.ended_as, held.end_ns, held.replica) == ("timed_out", 50 * MS, -1)
    patient = run(replace(world, hold_ns=0)).rows[1]
    assert (patient.ended_as, patient.first_token_ns) == ("finished", 200 * MS)
