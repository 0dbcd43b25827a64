"""What one call of the scheduler gave whom, and whose blocks are whose then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmsim.serving.layered import LayeredReplica
from llmsim.serving.record import CallRecord
from llmsim.serving.replica import Replica
from llmsim.serving.request import DECODE, WAITING, Request


@dataclass(frozen=True)
class Work:
    """What one scheduler call gave one request: new tokens, and how many it had before."""

    request: Request
    new: int
    past: int


def works(replica: Replica, call: CallRecord) -> list[Work]:
    """Return who computes what in a step, prefill chunks first, decodes in running order.

    Prompts that go through the model in groups of layers count in the step of the last group.
    Only right inside a recorder and with fast-forward off.
    """
    tick = replica.cohort.tick
    chunked = {request for request, _, _ in call.chunks}
    between = isinstance(replica, LayeredReplica) and replica.group < replica.groups - 1
    chunks = () if between else call.chunks
    found = [Work(request, new, past) for request, new, past in chunks]
    if call.decoding:
        found += [
            Work(request, 1, request.base + tick)
            for request in call.running
            if request.state == DECODE and request not in chunked
        ]
    return found


def blocks_in_use(replica: Replica, call: CallRecord) -> int:
    """Count the KV blocks of everybody who holds some, each shared block once."""
    size = replica.config.block_tokens
    tick = replica.cohort.tick + call.decoding
    extents: dict[int, int] = {}
    private = 0

    def held_here(holder: Any) -> None:
        for piece, _, hi in holder.held or ():
            part = piece
            while part is not None and part.lo < hi:
                if part.refs > 0:  # the rest of a split may have been overwritten since
                    extents[id(part)] = part.hi - part.lo
                part = part.rest

    for request in call.running:
        assert request.state != WAITING
        computed = request.base + tick if request.state == DECODE else request.computed
        private += -(-computed // size) - request.held_blocks
        held_here(request)
    keeper, swapper = replica.draft.keeper, replica.draft.swapper
    if swapper is not None:
        private += swapper.blocks_aside()
    if keeper is not None:  # on their way in, waiting with what has come, on their way out
        holders = [(each.request, each.request.computed // size) for each in keeper.loads]
        holders = [pair for pair in holders if pair[0] not in replica.running_set]
        holders += [(each, each.fetched_blocks) for each in replica.line.requests()]
        holders += [(keep, keep.blocks) for keep in keeper.writer.keeps]
        for holder, blocks in holders:
            private += blocks - holder.held_blocks
            held_here(holder)
    return private + sum(extents.values())
