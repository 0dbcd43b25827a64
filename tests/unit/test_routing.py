"""Each router's choices, and what a router sees of loads that are reported late."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsim.core.errors import RegistryError
from llmsim.core.rng import stream
from llmsim.policies import ROUTING, RequestView
from llmsim.serving.board import LoadBoard
from llmsim.serving.clock import Clock
from llmsim.serving.wake import Wake


class Loads:
    """A fleet view with loads set by hand."""

    def __init__(self, *loads: int) -> None:
        self.loads = list(loads)
        self.replicas = len(loads)

    def outstanding(self, replica: int) -> int:
        return self.loads[replica]

    def least_outstanding(self) -> int:
        return self.loads.index(min(self.loads))

    def last_token_ns(self, replica, request, before_ns=0):
        return 1_000 * self.loads[replica] + replica

    first_token_ns = last_token_ns

    def cached_tokens(self, replica, request):
        return 0

    def waiting(self, replica):
        return []

    def begun_tokens(self, replica):
        return 0


def ask(index=0, session=-1, segments=None, prompt=None) -> RequestView:
    tokens = prompt or sum(length for _, length in segments or ((0, 10),))
    return RequestView(index, 0, tokens, session, -1, 0, segments)


def started(name: str, fleet: Loads, seed: int = 0, **given):
    router = ROUTING.get(name)(**given)
    router.start(fleet, stream(seed, "routing"))
    return router


def test_the_five_are_registered():
    assert set(ROUTING.names()) >= {
        "round-robin", "least-loaded", "power-of-two", "session-sticky", "prefix-affinity",
    }  # fmt: skip
    with pytest.raises(RegistryError, match="Did you mean 'round-robin'"):
        ROUTING.get("round-robbin")


@pytest.mark.parametrize("name", ROUTING.names())
@pytest.mark.parametrize("replicas", [1, 2, 7])
def test_choices_are_replicas_and_repeat(name, replicas):
    def choices(seed):
        fleet = Loads(*[0] * replicas)
        router = started(name, fleet, seed)
        found = []
        for i in range(200):
            chosen = router.choose(ask(i, i % 11, ((i % 5, 30), (100 + i % 13, 20))))
            assert 0 <= chosen < replicas
            fleet.loads[chosen] += 1
            found.append(chosen)
        return found

    assert choices(3) == choices(3)
    assert len(set(choices(3))) == replicas


def test_round_robin_goes_round():
    router = started("round-robin", Loads(9, 0, 0))
    assert [router.choose(ask(i)) for i in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_least_loaded_takes_the_lowest_of_equals():
    fleet = Loads(3, 1, 2, 1)
    router = started("least-loaded", fleet)
    assert router.choose(ask()) == 1
    fleet.loads[1] = 5
    assert router.choose(ask()) == 3


def test_power_of_two_never_takes_the_fullest_and_draws_evenly():
    fleet = Loads(5, 5, 5, 9)
    router = started("power-of-two", fleet)
    chosen = Counter(router.choose(ask(i)) for i in range(6_000))
    assert chosen[3] == 0  # whoever it is paired with has less
    # replica i of the equals is first of an equal pair in 2 of 12 draws, and wins both draws with 3
    for replica in range(3):
        assert abs(chosen[replica] - 2_000) < 5 * np.sqrt(6_000 * (1 / 3) * (2 / 3))
    fleet.loads = [0, 9, 9, 9]
    share = sum(router.choose(ask(i)) == 0 for i in range(6_000)) / 6_000
    assert share == pytest.approx(0.5, abs=0.035)  # in 6 of 12 pairs


def test_power_of_two_uses_its_own_stream():
    fleet = Loads(1, 1, 1, 1)
    one, other = started("power-of-two", fleet, 1), started("power-of-two", fleet, 2)
    assert [one.choose(ask()) for _ in range(50)] != [other.choose(ask()) for _ in range(50)]


def test_sessions_stick_even_to_a_full_replica():
    fleet = Loads(4, 0)
    router = started("session-sticky", fleet)
    assert router.choose(ask(session=7)) == 1
    fleet.loads = [0, 99]
    assert router.choose(ask(session=7)) == 1
    assert router.choose(ask(session=8)) == 0
    assert router.choose(ask(session=-1)) == 0  # outside any session: wherever there is room
    fleet.loads = [99, 0]
    assert router.choose(ask(session=-1)) == 1
    assert router.choose(ask(session=8)) == 0


def test_prefix_affinity_follows_the_longest_prefix():
    fleet = Loads(0, 0, 0)
    router = started("prefix-affinity", fleet)
    long, other = ((1, 100), (2, 50), (3, 10)), ((9, 100),)
    assert router.choose(ask(segments=long)) == 0
    fleet.loads = [1, 0, 0]
    assert router.choose(ask(segments=other)) == 1
    fleet.loads = [1, 1, 0]
    assert router.choose(ask(segments=((1, 100), (2, 50), (8, 40)))) == 0
    assert router.choose(ask(segments=((9, 100), (8, 40)))) == 1
    assert router.choose(ask(segments=((2, 50),))) == 2  # the same piece elsewhere is no prefix
    assert router.choose(ask(segments=None)) == 2


def test_prefix_affinity_wants_enough_of_the_prompt():
    fleet = Loads(0, 0)
    router = started("prefix-affinity", fleet, min_match_frac=0.5)
    router.choose(ask(segments=((1, 40), (2, 10))))
    fleet.loads = [1, 0]
    assert router.choose(ask(segments=((1, 40), (3, 41)))) == 1  # 40 of 81
    assert router.choose(ask(segments=((1, 40), (4, 40)))) == 1  # replica 1 has served key 1 since
    fleet.loads = [0, 1]
    assert router.choose(ask(segments=((1, 40), (5, 40)))) == 1  # 40 of 80


def test_prefix_affinity_leaves_a_swamped_replica():
    fleet = Loads(0, 0)
    router = started("prefix-affinity", fleet, max_imbalance=3)
    shared = ((1, 100),)
    router.choose(ask(segments=shared))
    fleet.loads = [3, 0]
    assert router.choose(ask(segments=shared)) == 0
    fleet.loads = [4, 0]
    assert router.choose(ask(segments=shared)) == 1
    fleet.loads = [0, 3]
    assert router.choose(ask(segments=shared)) == 1  # its home has moved


def test_prefix_affinity_forgets_the_oldest():
    fleet = Loads(0, 0)
    router = started("prefix-affinity", fleet, max_nodes=2)
    for key in (1, 2, 3):
        router.choose(ask(segments=((key, 10),)))
    fleet.loads = [1, 0]
    assert router.choose(ask(segments=((3, 10),))) == 0
    assert router.choose(ask(segments=((1, 10),))) == 1


def test_load_reports_arrive_late_and_in_order():
    clock = Clock()
    board = LoadBoard(clock, 2, 100)
    seen = []

    def look(_):
        seen.append((board.outstanding(0), board.outstanding(1), board.least_outstanding()))

    board.change(0, 1, 0)
    board.change(0, 1, 10)
    board.change(1, 1, 50)
    board.change(0, -1, 150)
    for time in (5, 99, 100, 110, 149, 150, 249, 250):
        clock.at(Wake(look), 0, time)
    clock.run()
    assert seen == [
        (0, 0, 0), (0, 0, 0), (1, 0, 1), (2, 0, 1), (2, 0, 1), (2, 1, 1), (2, 1, 1), (1, 1, 0),
    ]  # fmt: skip


def test_load_reports_without_age_are_there_at_once():
    board = LoadBoard(Clock(), 3, 0)
    board.change(0, 1, 0)
    board.change(1, 2, 0)
    assert [board.outstanding(i) for i in range(3)] == [1, 2, 0]
    assert board.least_outstanding() == 2
    board.change(1, -2, 0)
    assert board.least_outstanding() == 1


@given(st.integers(1, 9), st.data())
def test_the_least_loaded_of_a_board_is_what_a_search_finds(replicas, data):
    board = LoadBoard(Clock(), replicas, 0)
    changes = st.tuples(st.integers(0, replicas - 1), st.integers(-3, 3), st.booleans())
    closed = set()
    for replica, delta, gate in data.draw(st.lists(changes, max_size=40)):
        if not gate:
            board.change(replica, delta, 0)
        elif replica in closed:
            closed.discard(replica)
            board.open(replica)
        else:
            closed.add(replica)
            board.close(replica)
        loads = [board.outstanding(replica) for replica in range(replicas)]
        if data.draw(st.booleans()):
            assert board.least_outstanding() == loads.index(min(loads))
