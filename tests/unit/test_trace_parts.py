"""A trace is read in parts: what only some of them name belongs to their rows, and to no others."""

import json
from dataclasses import replace

import numpy as np
import pytest

from llmsim.workload import TRACES
from llmsim.workload.rows import join, plain_rows


def rows(count, **columns):
    whole = np.arange(1, count + 1, dtype=np.int64)
    return replace(plain_rows(whole, whole, whole, whole), **columns)


def test_parts_without_segments_and_classes_are_rows_without():
    pieces = np.empty(2, dtype=np.object_)
    pieces[:] = [((7, 1),), ((8, 2),)]
    found = join([rows(1), rows(2, segments=pieces), rows(1, slo_class=np.array([3], np.int16))])
    assert found.segments.tolist() == [None, ((7, 1),), ((8, 2),), None]
    assert found.slo_class.tolist() == [-1, -1, -1, 3]
    neither = join([rows(1), rows(2)])
    assert neither.segments is None
    assert neither.slo_class is None


@pytest.mark.parametrize("first", [True, False])
def test_a_last_line_without_an_end_keeps_rows_and_prompts_together(tmp_path, first):
    named = {"arrival_s": 1, "prompt_tokens": 10, "output_tokens": 2, "segments": [[1, 10]]}
    plain = {"arrival_s": 2, "prompt_tokens": 20, "output_tokens": 3}
    if not first:
        named, plain = named | {"arrival_s": 2}, plain | {"arrival_s": 1}
    lines = [json.dumps(row) for row in ((named, plain) if first else (plain, named))]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(lines))  # read in two parts
    (chunk,) = TRACES.get("jsonl")(path=str(path)).open(0, None).chunks()
    told = dict(zip(chunk.prompt_tokens.tolist(), chunk.segments, strict=True))
    assert told == {10: ((1, 10),), 20: None}
