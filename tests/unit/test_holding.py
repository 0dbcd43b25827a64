"""Files that are read once while many things are made of them."""

import pytest

from llmsim.core.holding import held, holding
from llmsim.core.paths import list_data
from llmsim.specs import load_gpu


def test_what_was_read_is_kept_to_the_end_and_no_longer(tmp_path):
    path = tmp_path / "one.txt"
    reads = []

    @held
    def read(name, upper=False):
        reads.append(name)
        text = (tmp_path / name).read_text()
        return text.upper() if upper else text

    path.write_text("a")
    assert (read("one.txt"), read("one.txt")) == ("a", "a")
    assert len(reads) == 2
    with holding():
        assert read("one.txt") == "a"
        path.write_text("b")
        with holding():
            assert read("one.txt") == "a"
        assert read("one.txt") == "a"  # the inner one ends nothing
        assert read("one.txt", upper=True) == "B"
        for _ in range(2):
            with pytest.raises(FileNotFoundError):
                read("none.txt")
    assert read("one.txt") == "b"
    assert reads.count("none.txt") == 2


def test_cards_are_read_once_while_holding_and_anew_after_it(tmp_path, monkeypatch):
    with holding():
        assert load_gpu("h100-sxm") is load_gpu("h100-sxm")
        cards = list_data("profiles/gpus", ".yaml")
    assert load_gpu("h100-sxm") is not load_gpu("h100-sxm")
    assert load_gpu("h100-sxm") == load_gpu("h100-sxm")
    monkeypatch.setenv("LLMSIM_PATH", str(tmp_path))
    (tmp_path / "profiles" / "gpus").mkdir(parents=True)
    (tmp_path / "profiles" / "gpus" / "mine.yaml").write_text("")
    assert set(list_data("profiles/gpus", ".yaml")) == {*cards, "mine"}
