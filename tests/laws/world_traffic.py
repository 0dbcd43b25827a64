"""The jobs of a world as a workload."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from llmsim.workload.chunk import ClosedLoop, RequestChunk
from llmsim.workload.programs import CallEnd, NextCall, grown

if TYPE_CHECKING:
    from worlds import World


class Traffic:
    """The jobs of a world as a workload, in chunks of a few rows."""

    clients: tuple[str, ...] = ("a", "b", "c")
    slo_classes: tuple[str, ...] = ("soon", "late")
    skipped_rows = 0
    tools = ()

    def __init__(self, world: World) -> None:
        self._world = world
        self.programs = self if world.turns else None
        self.total: int | None = len(world.jobs)
        self.closed_loop: ClosedLoop | None = None
        if world.in_flight:
            each = -(-len(world.jobs) // world.in_flight)
            self.closed_loop = ClosedLoop(world.in_flight, each, world.think_ns)

    def chunks(self) -> Iterator[RequestChunk]:
        jobs, rows = self._world.jobs, self._world.chunk_rows
        for at in range(0, len(jobs), rows):
            part = jobs[at : at + rows]
            yield RequestChunk(
                arrival_ns=np.array([j.arrival_ns for j in part], dtype=np.int64),
                prompt_tokens=np.array([j.prompt for j in part], dtype=np.int32),
                output_tokens=np.array([j.output for j in part], dtype=np.int32),
                session=np.array(
                    [at + i if self.programs else j.session for i, j in enumerate(part)],
                    dtype=np.int64,
                ),
                client=np.array([min(j.session, 2) for j in part], dtype=np.int32),
                priority=np.array([j.priority for j in part], dtype=np.int32),
                failed=np.array([j.failed for j in part], dtype=np.bool_),
                abort_ns=np.array([j.abort_ns for j in part], dtype=np.int64),
                segments=[j.segments for j in part],
                slo_class=np.array([j.priority - 1 for j in part], dtype=np.int16),
                images=np.array([j.images for j in part], dtype=np.int32),
            )

    def next_calls(self, ended: CallEnd) -> list[NextCall]:
        if not ended.served or self.is_final(ended.program, ended.turn):
            return []
        turn = self._world.turns[ended.program][ended.turn]
        key = 50_000 + 100 * ended.program + ended.turn
        segments = None if ended.segments is None else grown(ended, key, turn.own)
        prompt = ended.prompt_tokens + ended.output_tokens + turn.own
        place = (ended.program, ended.turn + 1)
        labels = (ended.client, ended.priority)
        return [NextCall(turn.after_ns, *place, prompt, turn.output, segments, *labels)]

    def tool(self, program: int, turn: int) -> int:
        return -1

    def pause_s(self, program: int, turn: int) -> float:
        turns = self._world.turns[program]
        return turns[turn].after_ns / 1e9 if turn < len(turns) else 0.0  # nothing after the last

    def is_final(self, program: int, turn: int) -> bool:
        return turn >= len(self._world.turns[program])
