"""The cohort's closed-form sums against lists of members walked token by token."""

from __future__ import annotations

from dataclasses import dataclass

from drawing import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsim.costmodel import overhang_of
from llmsim.policies.views import RequestView
from llmsim.serving.cohort import FOREVER, Cohort
from llmsim.serving.overhang import OverhangCohort
from llmsim.serving.request import Request

LAWS = settings(max_examples=examples(150), deadline=None)


def up(tokens: int, tile: int) -> int:
    return -(-tokens // tile) * tile


@dataclass
class Shape:
    tile: int
    block: int
    window: int


shapes = st.builds(
    Shape,
    st.sampled_from([1, 2, 5, 16, 128]),
    st.sampled_from([1, 4, 16]),
    st.sampled_from([0, 1, 7, 16, 100]),
)
member = st.tuples(st.integers(1, 300), st.integers(2, 60))


def made(index: int, computed: int, left: int) -> Request:
    """A decoding request with `left` more tokens to give."""
    request = Request(RequestView(index, 0, computed, -1, -1, 0, None), left + 1)
    request.computed = computed
    request.generated = 1
    request.seat = index
    return request


class Walked:
    """Every member by itself."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.members: dict[Request, list[int]] = {}

    def padded(self, ahead: int) -> int:
        return sum(up(c + 1 + ahead, self.shape.tile) for c, _ in self.members.values())

    def windowed(self, ahead: int) -> int:
        tile, clip = self.shape.tile, up(self.shape.window, self.shape.tile)
        return sum(min(up(c + 1 + ahead, tile), clip) for c, _ in self.members.values())

    def blocks(self, ticks: int) -> int:
        size = self.shape.block
        return sum(-(-(c + ticks) // size) - -(-c // size) for c, _ in self.members.values())

    def soonest(self) -> int:
        return min((left for _, left in self.members.values()), default=FOREVER)

    def saturation(self) -> int:
        """Ticks until the next member's padded context reaches the padded window."""
        tile, clip = self.shape.tile, up(self.shape.window, self.shape.tile)
        waits = []
        for computed, _ in self.members.values():
            wait = 0
            while up(computed + 1 + wait, tile) < clip:
                wait += 1
            if wait:
                waits.append(wait)
        return min(waits, default=FOREVER)


def agree(cohort: OverhangCohort, walked: Walked) -> None:
    shape = walked.shape
    assert cohort.count == len(walked.members)
    assert cohort.context == sum(c for c, _ in walked.members.values())
    assert cohort.padded == walked.padded(0)
    assert cohort.overhang() == overhang_of([c + 1 for c, _ in walked.members.values()])
    assert cohort.due - cohort.tick == walked.soonest() or not cohort.count
    for ticks in (1, 2, 3, shape.tile - 1, shape.tile, shape.tile + 1, 3 * shape.tile + 2, 67):
        if ticks < 1:
            continue
        assert cohort.padded_sum(ticks) == sum(walked.padded(i) for i in range(ticks))
        assert cohort.grown == walked.padded(ticks) - walked.padded(0)
        assert cohort.grown_last == walked.padded(ticks - 1) - walked.padded(0)
        assert cohort.growth(ticks) == cohort.grown
        assert cohort.blocks_needed(ticks) == walked.blocks(ticks)
    if shape.window:
        assert cohort.windowed == walked.windowed(0)
        until = cohort.next_saturation() - cohort.tick
        assert until == walked.saturation() or until > 10**6 < walked.saturation()
        for ticks in {1, 2, min(until, 40)}:
            if ticks <= until:
                expected = sum(walked.windowed(i) for i in range(ticks))
                assert cohort.windowed_sum(ticks) == expected


@LAWS
@given(shape=shapes, data=st.data())
def test_sums_are_sums(shape: Shape, data: st.DataObject) -> None:
    """Members join, advance, finish and leave at random; every sum stays right."""
    cohort = OverhangCohort(shape.tile, shape.block, shape.window)
    walked = Walked(shape)
    agree(cohort, walked)
    for index in range(data.draw(st.integers(1, 12))):
        action = data.draw(st.sampled_from(["join", "join", "advance", "advance", "leave"]))
        if action == "join":
            computed, left = data.draw(member)
            request = made(index, computed, left)
            cohort.join(request)
            walked.members[request] = [computed, left]
        elif action == "advance" and walked.members:
            most = walked.soonest()
            if shape.window:
                most = min(most, walked.saturation())
            ticks = data.draw(st.integers(1, most))
            cohort.padded_sum(ticks)
            cohort.advance(ticks, cohort.grown)
            for entry in walked.members.values():
                entry[0] += ticks
                entry[1] -= ticks
            finished = {r for r, (_, left) in walked.members.items() if not left}
            popped = []
            while cohort.due <= cohort.tick:
                popped.append(cohort.pop_finished())
            assert set(popped) == finished
            assert [r.seat for r in popped] == sorted(r.seat for r in popped)
            for request in finished:
                assert request.computed == walked.members.pop(request)[0]
                assert request.generated == request.output
        elif action == "leave" and walked.members:
            request = data.draw(st.sampled_from(sorted(walked.members, key=lambda r: r.seat)))
            computed, left = walked.members.pop(request)
            assert cohort.computed(request) == computed
            cohort.leave(request)
            assert (request.computed, request.generated) == (computed, request.output - left)
        agree(cohort, walked)


@LAWS
@given(shape=shapes, members=st.lists(member, min_size=1, max_size=6), free=st.integers(0, 60),
       limit=st.integers(1, 120))  # fmt: skip
def test_ticks_within_a_number_of_blocks(shape, members, free, limit):
    cohort = Cohort(shape.tile, shape.block, shape.window)
    walked = Walked(shape)
    for index, (computed, left) in enumerate(members):
        request = made(index, computed, left)
        cohort.join(request)
        walked.members[request] = [computed, left]
    expected = max(t for t in range(limit + 1) if walked.blocks(t) <= free)
    assert cohort.ticks_within(free, limit) == expected


def test_an_empty_cohort_has_no_due_tick():
    cohort = Cohort(128, 16, 0)
    assert (cohort.due, cohort.count, cohort.padded) == (FOREVER, 0, 0)
    request = made(0, 100, 5)
    cohort.join(request)
    assert cohort.due == 5
    cohort.leave(request)
    assert (cohort.due, cohort.count, cohort.padded, cohort.top_seat) == (FOREVER, 0, 0, -1)


def test_a_member_may_leave_and_come_back():
    """Its old entry in the heap of finishes is not taken for the new one."""
    cohort = Cohort(1, 16, 0)
    stays, comes_back = made(0, 10, 30), made(1, 10, 20)
    cohort.join(stays)
    cohort.join(comes_back)
    cohort.padded_sum(5)
    cohort.advance(5, cohort.grown)
    cohort.leave(comes_back)
    assert (comes_back.generated, comes_back.computed, cohort.due) == (6, 15, 30)
    cohort.join(comes_back)
    assert cohort.due == 20
    cohort.leave(comes_back)
    assert cohort.due == 30


def test_the_longest_is_found_among_hundreds_that_have_left():
    """Entries of who has left go now and then; the overhang of 900 over 100 and 300 is 700."""
    cohort = OverhangCohort(16, 16, 0)
    for index, computed in enumerate((899, 99, 299)):
        cohort.join(made(index, computed, 1000))
    for index in range(3, 500):
        passing = made(index, 3000 + index, 50)
        cohort.join(passing)
        assert cohort.overhang() > 700
        cohort.leave(passing)
        assert cohort.overhang() == 700
    assert len(cohort._longest) < 80


def test_sums_of_hundreds_by_hand():
    """Two members at 126 and 200 tokens, tile 128: 127 -> 128, 201 -> 256; the first jumps at 129.

    Ticks pad to 128 + 256, 128 + 256, 256 + 256.
    """
    cohort = Cohort(128, 16, 0)
    cohort.join(made(0, 126, 50))
    cohort.join(made(1, 200, 50))
    assert cohort.padded_sum(3) == 384 + 384 + 512
    assert (cohort.grown, cohort.grown_last) == (128, 128)
    assert cohort.blocks_needed(3) == 1  # 126 + 3 crosses 128; 200 + 3 stays under 208
