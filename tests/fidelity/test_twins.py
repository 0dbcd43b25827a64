"""Sources that measured the same, against each other."""

import pytest

from llmsim.fidelity.cases import Case
from llmsim.fidelity.tables import twins_rows, twins_words
from llmsim.fidelity.twins import find_twins


def cases(source, factor, slots=(1, 2, 4, 8, 16), stat="p50", **changed):
    fields = {
        "source": source,
        "model_key": "llama-3.1-8b",
        "gpu": "H100-80G-SXM",
        "engine": "vllm",
        "tp": "1",
        "isl": "1024",
        "osl": "1024",
        "arrival": "closed loop",
        **changed,
    }
    return [
        Case(
            f"{source}{count}",
            "A",
            {**fields, "concurrency": str(count)},
            {("tpot", stat): factor * count * 1e-3, ("ttft", stat): factor * 0.1},
        )
        for count in slots
    ]


def test_two_sources_that_differ_by_a_factor_are_told():
    (found,) = find_twins([*cases("a", 1.0), *cases("b", 3.0, osl="128")])
    assert (found.first, found.second, found.configurations) == ("b", "a", 5)
    assert found.ratios["tpot"] == pytest.approx((3.0, 3.0, 3.0))
    assert found.contradict
    assert "b has 3 times the TPOT and 3 times the TTFT of a in 5" in twins_words([found])
    assert twins_rows([found])[0][:3] == ("b / a", "5", "3.00 (3.00 to 3.00)")


def test_repeats_do_not_contradict():
    (found,) = find_twins([*cases("a", 1.0), *cases("b", 1.1, stat="mean")])
    assert not found.contradict
    assert "Both stay scored" not in twins_words([found])


@pytest.mark.parametrize(
    "changed", [{"tp": "2"}, {"isl": "8192"}, {"gpu": "B200"}, {"dp": "8"}, {"slots": (1, 2, 4)}]
)
def test_another_configuration_is_no_twin(changed):
    assert find_twins([*cases("a", 1.0), *cases("b", 3.0, **changed)]) == []
