"""Which configurations are worth a program and a simulation."""

from llmsim.planner.problem import Column
from llmsim.planner.shortlist import shortlist

COLUMNS = [
    Column("a", "h100-sxm", 1, 4.0, {"short": 8.0, "long": 2.0}),
    Column("b", "h100-sxm", 2, 8.0, {"short": 12.0, "long": 3.9}),
    Column("c", "h100-sxm", 4, 16.0, {"short": 20.0, "long": 6.0}),
    Column("d", "l4", 1, 1.0, {"short": 4.0}),
    Column("e", "l4", 2, 2.0, {"short": 3.0}),
    Column("f", "l4", 4, 4.0, {"short": 2.0, "long": 0.0}),
]


def test_all_of_a_short_list_stay():
    assert shortlist(COLUMNS, 6) == (tuple(COLUMNS), {})


def test_the_nearest_stay_and_two_of_each_card():
    kept, far = shortlist(COLUMNS, 4)
    assert [column.name for column in kept] == ["a", "b", "d", "e"]
    # c costs 16/6 per long request, a 4/2
    assert far["c"].startswith("1.33 times the cost per request of a for long")
    assert far["f"].startswith("8.00 times the cost per request of d for short")


def test_what_is_added_is_nearest_of_all():
    kept, far = shortlist(COLUMNS, 5)
    assert set(far) == {"f"}
    assert len(kept) == 5
