"""Lines that a policy keeps, and rules that keep memory for outputs: numbers by hand."""

import pytest

from llmsim.policies.lines import ALWAYS, ArrivalLine, CounterLine, PrefixLine, Trie
from llmsim.policies.ordering import Running
from llmsim.policies.room import PeakOfAll, ShareOfOutput
from llmsim.policies.views import RequestView


def view(index, client=-1, prompt=100, segments=None):
    return RequestView(index, 0, prompt, -1, client, 0, segments)


class Engine:
    """A replica whose cache is given."""

    caches = True

    def __init__(self, cached=None):
        self.cached = cached or {}

    def cached_tokens(self, request):
        return self.cached.get(request.index, 0)

    def generated(self, request):
        return 0


def order(line):
    found = []
    while (head := line.head()) is not None:
        found.append(head.index)
        line.remove(head, True)
    return found


def test_who_comes_back_goes_to_the_end():
    line = ArrivalLine()
    views = [view(i) for i in range(5)]
    for each in views:
        line.add(each, False)
    line.remove(views[0], True)
    line.remove(views[3], False)
    line.add(views[0], True)
    assert order(line) == [1, 2, 4, 0]


def test_the_longest_prefix_goes_first_and_equals_keep_their_order():
    line = PrefixLine(Engine({1: 50, 3: 80, 4: 50}), longest=128, apart_tokens=32)
    for index in range(5):
        line.add(view(index, segments=((index, 100),)), False)
    line.arrange([])
    assert order(line) == [3, 1, 4, 0, 2]


def test_of_those_that_share_what_is_not_cached_one_goes_first():
    """0, 2 and 4 begin with the same 60 tokens; 3 shares as much but has it cached."""
    line = PrefixLine(Engine({3: 60}), longest=128, apart_tokens=32)
    shared = [((7, 60), (index, 40)) for index in range(5)]
    shared[1] = ((8, 100),)
    for index in range(5):
        line.add(view(index, segments=shared[index]), False)
    line.arrange([])
    assert order(line) == [3, 0, 1, 2, 4]


def test_a_long_line_stays_as_it_is():
    line = PrefixLine(Engine({2: 90}), longest=2, apart_tokens=32)
    for index in range(3):
        line.add(view(index), False)
    line.arrange([])
    assert line.head().index == 0
    line.remove(line.head(), True)
    line.arrange([])
    assert order(line) == [2, 1]


def test_prompts_share_what_their_segments_share():
    seen = Trie()
    seen.enter(((1, 10), (2, 30)))
    assert seen.shared_tokens(((1, 10), (2, 5), (3, 9))) == 15
    assert seen.shared_tokens(((1, 10), (2, 40))) == 40
    assert seen.shared_tokens(((1, 9), (2, 30))) == 9
    assert seen.shared_tokens(((2, 30),)) == 0


def test_the_client_served_least_is_next():
    """Prompts of 100 tokens weigh 100, outputs twice their tokens."""
    line = CounterLine(Engine(), 1.0, 2.0)
    for index in range(6):
        line.add(view(index, client=index % 2), False)
    assert line.head().index == 0
    line.remove(line.head(), True)
    assert line.head().index == 1
    line.remove(line.head(), True)  # 100 for both: the smaller index is next
    assert line.head().index == 2
    line.arrange([Running(view(0, 0), 3, False), Running(view(1, 1), 1, False)])
    assert line.head().index == 3  # 106 against 102
    # client 0 decodes once a step as client 1 does: nobody catches up
    assert line.steady_steps() == ALWAYS


def test_a_slower_client_catches_up_after_the_steps_that_it_takes():
    line = CounterLine(Engine(), 1.0, 2.0)
    for index in range(3):
        line.add(view(index, client=0), False)
    line.arrange([])
    for _ in range(2):
        line.remove(line.head(), True)  # client 0: 200, two of its requests decode
    line.add(view(8, client=1, prompt=210), False)
    line.add(view(9, client=1), False)
    line.arrange([])
    line.remove(line._lines[1][0], True)  # lifted to 200, then 410
    running = [Running(view(0, 0), 0, False), Running(view(1, 0), 0, False)]
    line.arrange([*running, Running(view(8, 1, 210), 0, False)])
    assert line.head().client == 0
    # 200 + 4 n against 410 + 2 n: equal after 105 steps
    assert line.steady_steps() == 105


def test_idle_time_cannot_be_saved_up():
    line = CounterLine(Engine(), 1.0, 2.0)
    for index in range(4):
        line.add(view(index, client=0), False)
    line.arrange([])
    for _ in range(3):
        line.remove(line.head(), True)
    line.add(view(8, client=1), False)  # lifted from 0 to 300
    line.add(view(9, client=1), False)
    line.arrange([])
    assert order(line) == [3, 8, 9]


def test_who_is_due_twice_as_much_is_charged_half():
    line = CounterLine(Engine(), 1.0, 2.0, weights=(2.0,))
    for index in range(9):
        line.add(view(index, client=index % 2), False)
    served = [each % 2 for each in order(line)[:6]]
    assert served.count(0) == 4


def test_what_an_ended_request_has_had_is_counted_once():
    line = CounterLine(Engine(), 1.0, 2.0)
    line.add(view(0, client=0), False)
    line.add(view(1, client=1), False)
    line.remove(line.head(), True)
    line.arrange([Running(view(0, 0), 4, False)])
    line.ended(view(0, 0), 10)
    assert line.served(0) == 100 + 2 * 10
    line.ended(view(0, 0), 10)
    assert line.served(0) == 120


# --- memory -------------------------------------------------------------------------------------


def hundred_left(request, generated):
    return 100 - generated


def test_the_share_falls_by_equal_steps_to_its_least():
    room = ShareOfOutput(hundred_left, 1, 1.0)
    assert room.share(0) == pytest.approx(0.7)
    assert room.share(300) == pytest.approx((0.7 + 0.098) / 2)
    assert room.share(600) == room.share(9_999) == pytest.approx(0.098)


def test_prompt_whole_output_and_a_block_must_fit_beside_what_is_kept():
    """One runs with 60 tokens left, of which 42 are kept: 200 + 100 + 1 need more than 301 + 42."""
    room = ShareOfOutput(hundred_left, 1, 1.0)
    room.open([Running(view(0), 40, False)], 0, False)
    assert not room.admits(view(1), 0, 200, True, 343)
    assert room.admits(view(1), 0, 200, True, 344)
    # 144 free now; 42, a block and the output of the first are kept: nothing is left
    assert not room.admits(view(2), 90, 1, True, 144)


def test_after_a_retraction_the_share_is_what_was_written():
    """Two have written 30 of 200 tokens; with 20 more for each, 70 of 201."""
    room = ShareOfOutput(hundred_left, 1, 1.0)
    room.retracted([Running(view(0), 10, False), Running(view(1), 20, False)], 700)
    assert room.share(700) == pytest.approx(70 / 201)
    room.idle()
    assert room.share(700) == pytest.approx(0.7)


def test_the_peak_is_when_the_shorter_one_ends():
    """Holding 50 and 101 tokens with 60 and 99 left: 101 + 50 + 2 x 60 = 271 when the first ends,
    101 + 99 = 200 when the other does."""
    for memory, fits in ((271, False), (272, True)):
        room = PeakOfAll(hundred_left, memory)
        room.open([Running(view(0, prompt=10), 40, False)], 0, False)
        assert room.admits(view(1), 0, 100, True, 0) is fits
