"""Tables of a validation in a terminal."""

from __future__ import annotations

from llmsim.fidelity.tables import HEAD, tall_rows


def test_a_metric_per_row_says_the_same_in_80_columns():
    rows = [
        ("fitted: launching layer by layer", "828", "800", "6.1 / 21 / 211 (-1.3)", "-", "-", "-"),
        ("empty", "3", "0", "-", "-", "-", "-"),
    ]
    rows.append(("both", "5", "5", "1.0 / 2 / 3 (+0.5)", "17.3 / 63 / 1695 (-6.8)", "-", "-"))
    head, *told = tall_rows(HEAD, rows)
    assert head == ("", "cases", "metric", "median", "P90", "worst", "signed")
    assert told == [
        ("fitted: launching layer by layer", "800 of 828", "tpot", "6.1", "21", "211", "-1.3"),
        ("empty", "0 of 3", "-", "", "", "", ""),
        ("both", "5", "tpot", "1.0", "2", "3", "+0.5"),
        ("", "", "ttft", "17.3", "63", "1695", "-6.8"),
    ]
    widths = [max(len(row[column]) for row in (head, *told)) for column in range(len(head))]
    assert sum(widths) + 2 * (len(widths) - 1) <= 80
