"""Answers kept between runs: as worked out, and anew when anything changed or is damaged."""

from __future__ import annotations

import numpy as np
import pytest
from measured_profiles import rows, write_profile

from llmsim.costmodel.measured import Context, load_profile
from llmsim.costmodel.measured.answers import Answer, Memory
from llmsim.specs import load_gpu

SHAPES = {"m": np.array([3.0, 17.0, 900.0]), "n": np.array([4096.0]), "k": np.array([4096.0])}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def files(cache):
    return [path for path in cache.rglob("*") if path.is_file()]


def answer(folder):
    profile = load_profile(folder, load_gpu("h100-sxm"))
    found = profile.latencies("gemm", SHAPES, Context())
    return profile, found


def test_a_second_run_reads_no_rows_and_answers_the_same(tmp_path, cache):
    folder = write_profile(tmp_path / "profile", rows())
    first, told = answer(folder)
    again, kept = answer(folder)
    assert "rows" in vars(first)
    assert "rows" not in vars(again)
    for name in ("seconds", "sigma", "source", "outside"):
        np.testing.assert_array_equal(getattr(told, name), getattr(kept, name))
    assert first.usage == again.usage
    assert first.terms("gemm", Context()) == again.terms("gemm", Context())
    assert first.covers("gemm", Context()) is again.covers("gemm", Context()) is True


def test_other_rows_are_another_question(tmp_path, cache):
    folder = write_profile(tmp_path / "profile", rows())
    _, told = answer(folder)
    write_profile(tmp_path / "profile", rows(factor=2.0))
    _, other = answer(folder)
    assert (other.seconds > 1.5 * told.seconds).all()


def test_a_damaged_file_is_worked_out_again(tmp_path, cache):
    folder = write_profile(tmp_path / "profile", rows())
    _, told = answer(folder)
    for path in files(cache):
        path.write_bytes(path.read_bytes()[:-3])
    _, again = answer(folder)
    np.testing.assert_array_equal(told.seconds, again.seconds)
    path = files(cache)[0]
    assert Memory.recall(path) is not None
    path.write_bytes(b"not json\n")
    assert Memory.recall(path) is None


def test_a_folder_that_cannot_be_written_is_no_fault(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    memory = Memory("x")
    path = memory.path("latencies", SHAPES["m"])
    memory.keep(path, Answer(np.arange(3.0)))
    assert memory.recall(path) is None
    assert path != memory.path("latencies", SHAPES["n"])
