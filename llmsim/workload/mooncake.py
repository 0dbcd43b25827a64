"""Mooncake traces (kvcache-ai/Mooncake, FAST'25 release): requests with prefix hash ids."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmsim.core.errors import Fault, TraceError
from llmsim.core.files import json_fault
from llmsim.workload.chunk import Segments, Workload
from llmsim.workload.classcolumn import ClassColumn
from llmsim.workload.headers import MOONCAKE, wrong_format
from llmsim.workload.parameters import check_parameters
from llmsim.workload.replay import Damage, ReplayWorkload, TraceFile, spread_ticks
from llmsim.workload.rows import MOST_TOKENS, Rows, plain_rows
from llmsim.workload.tracefile import Block, find_trace, first_lines, line_blocks

BLOCK_TOKENS = 512
"""Tokens behind one hash id [tokens] (README of the Mooncake traces)."""

_NS_PER_MS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Mooncake(TraceFile):
    """A JSONL file of the Mooncake traces.

    Parameters
    ----------
    spread_ticks : bool
        Spread requests that share a time stamp evenly over the gap to the next stamp. The
        conversation trace is stamped every 3 s or so, with ten requests on each stamp: replayed
        as it stands it is a train of batches, which no TTFT should be read from.

    Notes
    -----
    A hash id names 512 tokens, the last one of a prompt what is left, and a line must have
    ceil(input_length / 512) of them. An output of 0 tokens is replayed with one.
    """

    spread_ticks: bool = False

    def open(self, seed: int, near: Path | None) -> Workload:
        """Return the workload in the file; the seed is not used.

        Raises
        ------
        InputError
            If a parameter is out of its limits.
        TraceError
            If the file is missing or its first line is not Mooncake's.
        """
        check_parameters(self, "trace 'mooncake'")
        path = find_trace(self.path, near)
        top = first_lines(path, 1)
        if not top or not top[0].lstrip().startswith("{"):
            expected = f"JSON lines with the keys {', '.join(MOONCAKE)}"
            raise TraceError(str(path), [wrong_format(path, expected, top[0] if top else "")])
        classes = ClassColumn(path, self.slo_class_column)
        return ReplayWorkload(
            path,
            self,
            lambda: _read(path, classes),
            classes=lambda: tuple(classes.names),
            retime=spread_ticks if self.spread_ticks else None,
        )


def _read(path: Path, classes: ClassColumn) -> Iterator[tuple[Rows, Damage]]:
    for block in line_blocks(path):
        yield _rows(path, block, classes)


def _rows(path: Path, block: Block, classes: ClassColumn) -> tuple[Rows, Damage]:
    codes: list[int] = []
    numbers: list[tuple[int, int, int, int]] = []
    pieces: list[Segments] = []
    damage: Damage = []
    for offset, raw in enumerate(block.data.split(b"\n")):
        if not raw.strip():
            continue
        line = block.first_line + offset
        try:
            time_ns, prompt, output, hash_ids, named = _row(raw, classes.name)
        except ValueError as error:
            damage.append((line, Fault(f"{path}:{line}", "", str(error))))
            continue
        numbers.append((time_ns, prompt, output, line))
        codes.append(classes.code(named))
        last = prompt - BLOCK_TOKENS * (len(hash_ids) - 1)
        pieces.append((*((key, BLOCK_TOKENS) for key in hash_ids[:-1]), (hash_ids[-1], last)))
    table = np.array(numbers, dtype=np.int64).reshape(-1, 4)
    rows = plain_rows(table[:, 0], table[:, 1], table[:, 2], table[:, 3])
    segments = np.fromiter(pieces, dtype=np.object_, count=len(pieces))
    return Rows(
        time_ns=rows.time_ns,
        prompt_tokens=rows.prompt_tokens,
        output_tokens=rows.output_tokens,
        line=rows.line,
        session=rows.session,
        client=rows.client,
        failed=rows.failed,
        segments=segments,
        slo_class=None if classes.name is None else np.array(codes, dtype=np.int16),
    ), damage


def _row(raw: bytes, class_key: str | None) -> tuple[int, int, int, list[int], str]:
    """Read one line; a ValueError says what is wrong with it.

    Returns
    -------
    time [ns], prompt [tokens], output [tokens], hash ids, SLO class
    """
    try:
        row = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a line of JSON ({json_fault(error)}): {_short(raw)}") from error
    missing = [key for key in MOONCAKE if not isinstance(row, dict) or key not in row]
    if missing:
        raise ValueError(f"no {', '.join(missing)} in {_short(raw)}")
    time_ms, prompt, output, hash_ids = (row[key] for key in MOONCAKE)
    wrong = []
    if not _number(time_ms) or not 0 <= time_ms < 9.2e12:
        wrong.append(f"timestamp: expected milliseconds of at least 0, read {time_ms!r}")
    if type(prompt) is not int or not 1 <= prompt <= MOST_TOKENS:
        wrong.append(f"input_length: expected a whole number of at least 1, read {prompt!r}")
    if type(output) is not int or not 0 <= output <= MOST_TOKENS:
        wrong.append(f"output_length: expected a whole number of at least 0, read {output!r}")
    if not isinstance(hash_ids, list) or any(type(k) is not int or k < 0 for k in hash_ids):
        wrong.append(f"hash_ids: expected whole numbers of at least 0, read {_short(hash_ids)}")
    elif not wrong and len(hash_ids) != -(-prompt // BLOCK_TOKENS):
        need = -(-prompt // BLOCK_TOKENS)
        wrong.append(
            f"hash_ids: expected {need} ids of {BLOCK_TOKENS} tokens for an input_length of "
            f"{prompt}, read {len(hash_ids)}"
        )
    named = "" if class_key is None else row.get(class_key, "")
    if not isinstance(named, str):
        wrong.append(f"{class_key}: expected the name of an SLO class, read {_short(named)}")
    if wrong:
        raise ValueError("; ".join(wrong))
    return round(time_ms * _NS_PER_MS), prompt, output, hash_ids, named


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
