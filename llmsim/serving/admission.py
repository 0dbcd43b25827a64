"""Who gets in: the mechanisms of admission, from the head of a replica's queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmsim.kvcache import NO_MATCH, Match, PrefixLedger
from llmsim.serving.decisions import ADMIT, RESUME
from llmsim.serving.keeper import ASIDE, COMPUTE, GATED, STUCK
from llmsim.serving.request import PREFILL, Request

if TYPE_CHECKING:
    from llmsim.serving.draft import Draft


def admit_waiting(draft: Draft, whole_prompts: bool = False) -> None:
    """Admit from the head of the queue until one does not fit."""
    ledger = draft.ledger
    size = draft.block_tokens
    chunked = draft.chunked and not whole_prompts
    caches = ledger.caches
    keeper = draft.keeper
    out = draft.swapper if draft.swapper is not None and draft.swapper.swapped else None
    while draft.budget_tokens > 0 and len(draft.running_set) < draft.max_seqs:
        request = draft.line.head()
        if request is None or (out is not None and not out.outranked_by(request)):
            return
        if request.lease is not None:
            if _make_room(draft, request, request.lease.tokens):
                continue
            return
        known = request.prompt + request.generated
        match = NO_MATCH
        fetched = request.fetched_blocks
        if caches and not fetched and (request.view.segments is not None or request.preemptions):
            match = ledger.match(request, known)
        hit = (match.blocks + fetched) * size
        found = COMPUTE
        if keeper is not None and not fetched:
            found = keeper.fetch(request, match, known)
            if found == ASIDE:
                continue
            if found == GATED:
                hit = keeper.offered_tokens
        spare = 0 if draft.reuse is None else _offered(draft, request, match, known)
        hit += spare
        tokens = known - hit
        if draft.limit_now and tokens > draft.limit_now:
            tokens = draft.limit_now
        fits = found != STUCK
        too_long = tokens > draft.budget_tokens and not chunked
        if tokens > draft.budget_tokens:
            fits = fits and chunked
            tokens = draft.budget_tokens
        spared = match.unreferenced - match.blocks - fetched
        occupied = draft.running_set or draft.beside
        room = ledger.free - (draft.watermark_blocks if occupied else 0)
        blocks = -(-(hit + tokens) // size)
        if draft.reserve_prompt or draft.owed_blocks:
            fits = fits and -(-known // size) + spared + draft.owed_blocks <= room
        if not fits or blocks + spared > room:
            if _room_made(draft, request, match, known, too_long):
                continue
            return
        if draft.guarded and not _welcome(draft, request, known, hit, tokens, spared):
            return
        draft.line.pop()
        _take(draft, request, match, blocks - match.blocks - fetched, spare)
        request.fetched_blocks = 0
        seat(draft, request, hit)
        draft.compute(request, hit, tokens)
        if keeper is not None and found == GATED:
            keeper.begin(request)


def _offered(draft: Draft, request: Request, match: Match, known: int) -> int:
    """Return how many tokens behind the cached prefix need no computation [tokens]."""
    if draft.reuse is None or request.view.segments is None:
        return 0
    return draft.reuse.offer(request, match, known)


def _take(draft: Draft, request: Request, match: Match, blocks: int, spare: int) -> None:
    """Take what was found and what is needed besides; what is copied lasts until then."""
    ledger, reuse = draft.ledger, draft.reuse
    if match.blocks:
        ledger.hold(request, match)
    if reuse is None or not spare:
        ledger.take(blocks)
        return
    source = reuse.hold()
    ledger.take(blocks)
    reuse.release(source)


def _welcome(
    draft: Draft, request: Request, known: int, hit: int, tokens: int, spared: int
) -> bool:
    """Whether a request that fits now is also promised its claim and let in by the policy."""
    claims, guard = draft.claims, draft.guard
    if claims is not None and not claims.fits(request, known):
        return False
    if guard is None:
        return True
    free = (draft.ledger.free - spared) * draft.block_tokens
    return guard.admits(request.view, known - hit, tokens, free)


def _make_room(draft: Draft, request: Request, tokens: int) -> bool:
    """Take blocks for KV that another replica has computed, and have it pulled, if it fits."""
    ledger = draft.ledger
    size = draft.block_tokens
    match = NO_MATCH
    if ledger.caches and request.view.segments is not None:
        match = ledger.match(request, tokens + 1)
    blocks = -(-tokens // size)
    occupied = draft.running_set or draft.beside
    room = ledger.free - (draft.watermark_blocks if occupied else 0)
    if blocks + match.unreferenced - match.blocks > room:
        _note_blocked(draft, request, match)
        return False
    draft.line.pop()
    if match.blocks:
        ledger.hold(request, match)
    ledger.take(blocks - match.blocks)
    request.computed = tokens
    if request.queued_ns < draft.now:
        draft.meter.waited(request.queued_ns, draft.now)
    draft.decisions.extend((ADMIT, request.view.index, draft.now))
    draft.pull(request, match.blocks * size, blocks - match.blocks)
    return True


def _room_made(draft: Draft, request: Request, match: Match, known: int, too_long: bool) -> bool:
    """Note why the head of the queue does not get in; return whether room was made meanwhile."""
    _note_blocked(draft, request, match)
    if too_long:
        return False  # for this step: memory that others gave up would not help
    if draft.keeper is not None and draft.keeper.relieve(request):
        return True
    blocks = -(-known // draft.block_tokens)
    return draft.retainer is not None and draft.retainer.relieve(blocks, match)


def _note_blocked(draft: Draft, request: Request, match: Match) -> None:
    """Note what may let the head of the queue in that did not fit."""
    ledger = draft.ledger
    if isinstance(ledger, PrefixLedger) and ledger.may_grow(request, match):
        draft.blocked_on_writer = True
    if draft.keeper is not None and not draft.reserve_prompt:
        draft.blocked_on_writer = True  # what comes to a tier may change how much it needs


def seat(draft: Draft, request: Request, hit: int) -> None:
    """Let a request run that was at the head of the queue; `hit` tokens have their KV [tokens]."""
    now = draft.now
    if draft.retainer is not None:
        draft.retainer.admitted(request)
    draft.admitted += 1
    request.seat = draft.seats
    draft.seats += 1
    request.state = PREFILL
    draft.running_set[request] = None
    draft.prefilling[request] = None
    if draft.claims is not None:
        draft.claims.open(request, request.prompt + request.generated)
    if request.queued_ns < now:
        draft.meter.waited(request.queued_ns, now)
    if request.scheduled_ns < 0:
        request.scheduled_ns = now
        request.cached_tokens = hit
        draft.lookup_tokens += request.prompt
        draft.hit_tokens += hit
        draft.decisions.extend((ADMIT, request.view.index, now))
    else:
        draft.decisions.extend((RESUME, request.view.index, now))
