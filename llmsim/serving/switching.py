"""Who runs changes by rank: requests that rank low lose their place to those that rank high."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from llmsim.policies.views import RequestView
from llmsim.serving.preemption import preempt
from llmsim.serving.request import DECODE, PARKED, Request

if TYPE_CHECKING:
    from llmsim.serving.draft import Draft


def switch(draft: Draft, rank: Callable[[RequestView], int]) -> None:
    """Let those run who rank first, at the beginning of a step.

    By rank, requests get blocks for what they have and their next token until one does not fit; of
    those after it who runs is preempted, if anybody before it is out. Who is in the middle of its
    prompt stays. Nobody is brought in here: that is done as ever, by rank.

    Parameters
    ----------
    draft : Draft
    rank : callable
        The least is the most important; of equals who has arrived first.
    """
    swapper = draft.swapper
    if swapper is not None:
        swapper.rank = rank
    outside = draft.line.requests()
    if swapper is not None:
        outside.extend(swapper.swapped)
    if not outside or not draft.running_set:
        return
    size, tick = draft.block_tokens, draft.cohort.tick
    room = draft.config.kv_blocks - draft.watermark_blocks
    seats = draft.max_seqs
    wanted: list[tuple[int, int, int, Request]] = []
    for request in draft.running_set:
        if request.state in (DECODE, PARKED):
            had = request.base + tick if request.state == DECODE else request.computed
            wanted.append((rank(request.view), request.view.index, had + 1, request))
        else:
            room -= -(-(request.prompt + request.generated) // size)
            seats -= 1
    for request in outside:
        had = request.prompt + request.generated if request.lease is None else request.lease.tokens
        wanted.append((rank(request.view), request.view.index, had, request))
    wanted.sort(key=_by_rank)
    contested = full = False
    losers: list[Request] = []
    for _, _, tokens, request in wanted:
        blocks = -(-tokens // size)
        full = full or not seats or blocks > room
        runs = request in draft.running_set
        if not full:
            room -= blocks
            seats -= 1
            contested = contested or not runs
        elif runs and contested:
            losers.append(request)
    for request in reversed(losers):
        _send_out(draft, request)


def _by_rank(wanted: tuple[int, int, int, Request]) -> tuple[int, int]:
    return wanted[0], wanted[1]


def _send_out(draft: Draft, request: Request) -> None:
    """Preempt a request; where copies run beside steps, its blocks are kept back until then."""
    swapper = draft.swapper
    if swapper is None or not swapper.plan.overlaps:
        preempt(draft, request)
        return
    before = draft.ledger.free
    swapper.aside = True
    preempt(draft, request)
    swapper.aside = False
    swapper.keep_back(request, draft.ledger.free - before)
