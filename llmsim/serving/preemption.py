"""Whose KV is taken away when it runs out: the exact walk over who is running.

Rules are vLLM v1's; where releases differ, the difference is a field of `EngineRules`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmsim.serving.decisions import PREEMPT
from llmsim.serving.request import DECODE, FINISHING, PARKED, PREFILL, SWAPPED, WAITING, Request

if TYPE_CHECKING:
    from llmsim.serving.draft import Draft


def scan(draft: Draft) -> bool:
    """Walk the running list in order, preempting where KV runs out: the exact slow path."""
    cohort = draft.cohort
    ledger = draft.ledger
    size = draft.block_tokens
    scheduled = draft.scheduled
    scheduled.clear()
    fcfs = draft.fcfs
    draft.decoding = cohort.count > 0
    tick = cohort.tick
    for request in list(draft.running_set):
        if draft.budget_tokens <= 0:
            break
        state = request.state
        if state in (WAITING, FINISHING, SWAPPED):
            continue
        if state == PREFILL:
            past = request.computed
            tokens = request.prompt + request.generated - past
            if draft.limit_now:
                tokens = min(tokens, draft.limit_now)
            tokens = min(tokens, draft.budget_tokens)
        else:
            past = request.base + tick if state == DECODE else request.computed
            tokens = 1
        need = -(-(past + tokens) // size) + (-past // size)
        kept = True
        while need > ledger.free:
            if draft.retainer is not None and draft.retainer.make_room():
                continue
            victim = _victim(draft)
            if victim is request and draft.keeper is not None and draft.keeper.relieve(request):
                continue
            if victim is request and _pin_gives_way(draft):
                continue
            preempt(draft, victim)
            if victim is request:
                kept = False
                break
        if not kept:
            if fcfs or draft.config.rules.scan_ends_on_self_preemption:
                break
            continue
        if need:
            ledger.take(need)
        scheduled.add(request)
        if state == PREFILL:
            draft.compute(request, past, tokens)
        else:
            if state == PARKED:
                del draft.parked[request]
                request.state = DECODE
                cohort.join(request)
                draft.late.append(request)
            draft.budget_tokens -= 1
    _park_unscheduled(draft)
    draft.decoding = cohort.count > 0
    draft.first_need = -1  # already taken, request by request
    scheduled.clear()
    return not draft.preempted


def _pin_gives_way(draft: Draft) -> bool:
    """Whether a pin gave way to one who is alone, and let in chunk by chunk.

    It would lose its KV, fit again with its first chunk, and get as far as before, for ever.
    """
    if draft.retainer is None or draft.reserve_prompt:
        return False
    if draft.beside or len(draft.running_set) > 1:
        return False
    return draft.retainer.unblock()


def _park_unscheduled(draft: Draft) -> None:
    """Let decodes that the budget did not reach sit this step out."""
    for request in draft.running_set:
        if request.state == DECODE and request not in draft.scheduled:
            park(draft, request)


def park(draft: Draft, request: Request) -> None:
    """Let a decode sit this step out."""
    cohort = draft.cohort
    cohort.leave(request)
    draft.meter.left(request, cohort.tick, draft.tick_end_ns)
    if draft.late and request in draft.late:
        draft.late.remove(request)
    request.state = PARKED
    draft.parked[request] = None
    if draft.claims is not None:
        draft.claims.parked(request)


def _victim(draft: Draft) -> Request:
    if draft.fcfs:
        return next(reversed(draft.running_set))
    if draft.chooser is not None:
        running = draft.running_now()
        return list(draft.running_set)[draft.chooser.victim(running)]
    urgency = draft.policy.urgency
    return max(draft.running_set, key=lambda request: urgency(request.view) or ())


def displace(draft: Draft, place: int) -> bool:
    """Preempt the request at a place of the running list before a step; see `StepDraft`."""
    victim = list(draft.running_set)[place]
    # who is back from the host sits out until it is advanced; sent back before that, it would
    # come and go for ever where nobody gets in between
    seated = (PREFILL, DECODE, PARKED) if draft.swapper is None else (PREFILL, DECODE)
    if victim.state not in seated:
        return False
    draft.scheduled.clear()
    preempt(draft, victim)
    return True


def preempt(draft: Draft, victim: Request) -> None:
    """Take a request's KV away and put it back in line; its generated tokens stay."""
    size = draft.block_tokens
    scheduled = victim in draft.scheduled
    lookahead = draft.config.lookahead
    state = victim.state
    del draft.running_set[victim]
    if state == DECODE:
        draft.cohort.leave(victim)
        draft.meter.left(victim, draft.cohort.tick, draft.tick_end_ns)
        allocated = cached = victim.computed
        if scheduled:
            draft.scheduled.discard(victim)
            draft.budget_tokens += 1
            allocated = cached = victim.computed + 1
        cached -= lookahead
    elif state == PARKED:
        del draft.parked[victim]
        allocated = cached = victim.computed
    else:
        allocated = cached = victim.computed
        if state == FINISHING:
            cached -= lookahead
        else:
            del draft.prefilling[victim]
            if scheduled:
                draft.scheduled.discard(victim)
                _unschedule(draft, victim)
    if draft.late and victim in draft.late:
        draft.late.remove(victim)
    swapper = draft.swapper
    swaps = swapper is not None and state in (DECODE, PARKED) and swapper.take(victim)
    draft.ledger.release(victim, -(-allocated // size), cached)
    if not swaps:
        victim.recomputed += victim.computed
    victim.preemptions += 1
    victim.held_blocks = 0
    draft.preempted.append(victim)
    draft.preemptions += 1
    draft.decisions.extend((PREEMPT, victim.view.index, draft.now))
    if state == FINISHING:
        return  # its last token is on the way; it ends without its KV
    victim.queued_ns = draft.now
    if swaps:
        victim.state = SWAPPED
        return
    victim.computed = 0
    victim.state = WAITING
    draft.line.push_back(victim)


def _unschedule(draft: Draft, victim: Request) -> None:
    for at, (request, tokens, past) in enumerate(draft.chunks):
        if request is victim:
            draft.budget_tokens += tokens
            if past + tokens == victim.prompt + victim.generated:
                draft.logits -= 1
            victim.computed = past
            del draft.chunks[at]
            return


def take_loose(draft: Draft, loose: dict[Request, None]) -> None:
    """Bring those who are in no micro-batch into the one that is planned, in their places."""
    running = draft.running_set
    first = next(iter(loose)).seat
    mixed = bool(running) and next(reversed(running)).seat > first
    for request in loose:
        running[request] = None
        (draft.prefilling if request.state == PREFILL else draft.parked)[request] = None
    loose.clear()
    if mixed:
        ordered = sorted(running, key=seat_of)
        running.clear()
        running.update(dict.fromkeys(ordered))


def seat_of(request: Request) -> int:
    """Return a request's place among those who run."""
    return request.seat
