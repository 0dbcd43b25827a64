"""What a replica is fitted out with: the waiting line and the KV ledger of its policies."""

from __future__ import annotations

from collections.abc import Callable

from llmsim.core.errors import InvariantError
from llmsim.kvcache import CountLedger, PrefixLedger, RankedLedger
from llmsim.kvcache.segments import SegmentReuse
from llmsim.policies.allocation import Allocator
from llmsim.policies.batching import BatchingPolicy
from llmsim.policies.ordering import (
    ChoosesVictims,
    GuardsAdmission,
    HearsOfEnds,
    OrdersWaiting,
)
from llmsim.serving.claims import ClaimLedger, SeveralClaims
from llmsim.serving.clock import Clock
from llmsim.serving.config import EngineConfig
from llmsim.serving.draft import Draft
from llmsim.serving.queue import FcfsQueue, OrderedQueue, UrgencyQueue
from llmsim.serving.request import PROBE, Request, identity_of
from llmsim.serving.shelf import Shelf
from llmsim.serving.step import Engine
from llmsim.serving.together import Together


def make_line(policy: BatchingPolicy) -> FcfsQueue | OrderedQueue | UrgencyQueue:
    """Return the waiting line that a batching policy asks for."""
    if isinstance(policy, OrdersWaiting):
        return OrderedQueue()
    return FcfsQueue() if policy.urgency(PROBE) is None else UrgencyQueue(policy.urgency)


def empty_line(
    like: FcfsQueue | OrderedQueue | UrgencyQueue, policy: BatchingPolicy
) -> FcfsQueue | OrderedQueue | UrgencyQueue:
    """Return a line as `make_line` does, of the kind of another one: no policy is looked at."""
    if isinstance(like, FcfsQueue):
        return FcfsQueue()
    return UrgencyQueue(policy.urgency) if isinstance(like, UrgencyQueue) else make_line(policy)


def claim_ledger(
    config: EngineConfig, allocator: Allocator, clock: Clock, cohorts: int = 1
) -> ClaimLedger | None:
    """Return the KV ledger of a replica whose requests claim memory; None if they do not."""
    if not allocator.reserves:
        return None
    if config.prefix_caching:
        raise InvariantError("claims on KV memory do not go with prefix caching")
    longest = config.max_model_len
    kind = ClaimLedger if cohorts == 1 else SeveralClaims
    return kind(config.kv_blocks, config.block_tokens, allocator, longest, clock)


def make_ledger(
    config: EngineConfig, registrable: Callable[[Request], int]
) -> CountLedger | PrefixLedger:
    """Return an empty ledger: a count, or blocks with content where prefixes are cached.

    Parameters
    ----------
    config : EngineConfig
    registrable : callable
        Returns how many tokens of a request may be registered during a call.
    """
    if not config.prefix_caching:
        return CountLedger(config.kv_blocks, config.block_tokens)
    size, fresh_first = config.block_tokens, config.rules.unfilled_blocks_first
    if config.evict_rank is not None:
        rank = config.evict_rank
        return RankedLedger(config.kv_blocks, size, fresh_first, identity_of, registrable, rank)
    return PrefixLedger(config.kv_blocks, size, fresh_first, identity_of, registrable)


def fit_out(
    draft: Draft, policy: BatchingPolicy, on_end: Callable[[Request, str, int], None]
) -> Callable[[Request, str, int], None]:
    """Tie a draft to what its policy keeps itself; return who is to hear of ends."""
    line, ledger = draft.line, draft.ledger
    if draft.config.recompute_frac is not None and isinstance(ledger, PrefixLedger):
        draft.reuse = SegmentReuse(ledger, draft.config.recompute_frac)
    if isinstance(line, OrderedQueue) and isinstance(policy, OrdersWaiting):
        engine = Engine(draft)
        line.kept_by(policy.waiting_order(engine), engine)
    equip(draft, policy)
    on_end = told_of_ends(policy, on_end)
    if not getattr(policy, "releases_together", False):
        return on_end
    draft.together = Together(draft, on_end)
    return draft.together.ended


def equip(draft: Draft, policy: BatchingPolicy) -> None:
    """Give a draft what its ledger and its policy need for admission, each of several its own."""
    ledger = draft.ledger
    if isinstance(ledger, ClaimLedger):
        draft.claims = ledger
    if ledger.caches and getattr(policy, "publishes_results", False):
        draft.shelf = Shelf(draft.config.lookahead)
    draft.guarded = draft.guard is not None or draft.claims is not None


def merges_rounds(policy: BatchingPolicy) -> bool:
    """Whether micro-batches may go round without a policy: it keeps nothing but the next one."""
    keeps = isinstance(policy, OrdersWaiting | ChoosesVictims | GuardsAdmission | HearsOfEnds)
    return not (keeps or getattr(policy, "publishes_results", False))


def told_of_ends(
    policy: BatchingPolicy, on_end: Callable[[Request, str, int], None]
) -> Callable[[Request, str, int], None]:
    """Return who is to hear of ends: the policy too, if it wants to."""
    if not isinstance(policy, HearsOfEnds):
        return on_end
    hears: HearsOfEnds = policy

    def ended(request: Request, outcome: str, time_ns: int) -> None:
        hears.ended(request.view, request.generated)
        on_end(request, outcome, time_ns)

    return ended
