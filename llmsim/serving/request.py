"""A request in flight: the only live object per request, gone when it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llmsim.kvcache import Holder
from llmsim.policies.views import RequestView

if TYPE_CHECKING:
    from llmsim.serving.handoff import Lease
    from llmsim.serving.replica import Replica


class Request(Holder):
    """What the engine knows about a request.

    Attributes
    ----------
    view : RequestView
        What policies and routers may see.
    output : int [tokens]
        Output length; latent, known to the engine alone.
    generated : int [tokens]
        Output tokens scheduled so far; brought up to date when the request leaves a cohort.
    computed : int [tokens]
        Tokens whose KV is computed or being computed; stale while in a cohort.
    seat : int
        Rank in the running list: admissions count up.
    base, finish_tick, join_tick, window_tick : int
        Cohort bookkeeping, see `Cohort`.
    missed_gap_ns : int [ns]
        Gap before a token that was on the way when the client left; 0 if there is none.
    owed_token : bool
        Its KV has come to the replica that gives the first token, which has no seat for it yet.
    fetched_blocks : int [blocks]
        KV blocks that it holds while it waits, loaded from a tier.
    encoded_tokens : int [tokens]
        Up to where the latest step went that computed tokens of its images.
    lease : Lease or None
        Its KV on the replica that has computed its prompt, until it is pulled from there.
    """

    __slots__ = (
        "arrival_ns",
        "base",
        "cached_tokens",
        "computed",
        "encoded_tokens",
        "ended",
        "fetched_blocks",
        "finish_tick",
        "first_token_ns",
        "generated",
        "itl_max_ns",
        "itl_over",
        "itl_over_at_join",
        "join_tick",
        "last_token_ns",
        "lease",
        "missed_gap_ns",
        "output",
        "owed_token",
        "preemptions",
        "prompt",
        "queued_ns",
        "recomputed",
        "replica",
        "scheduled_ns",
        "seat",
        "state",
        "view",
        "window_tick",
    )

    def __init__(self, view: RequestView, output: int) -> None:
        super().__init__()
        self.view = view
        self.arrival_ns = view.arrival_ns
        self.prompt = view.prompt_tokens
        self.output = output
        self.generated = 0
        self.computed = self.encoded_tokens = 0
        self.fetched_blocks = 0
        self.seat = -1
        self.state = WAITING
        self.base = 0
        self.join_tick = 0
        self.finish_tick = -1
        self.window_tick = -1
        self.scheduled_ns = -1
        self.first_token_ns = -1
        self.last_token_ns = -1
        self.missed_gap_ns = 0
        self.owed_token = False
        self.cached_tokens = 0
        self.preemptions = 0
        self.recomputed = 0
        self.itl_max_ns = 0
        self.itl_over = 0
        self.itl_over_at_join = 0
        self.queued_ns = view.arrival_ns
        self.ended = False
        self.replica: Replica | None = None
        self.lease: Lease | None = None


# States of a request inside a replica.
WAITING: Final = 0
PREFILL: Final = 1
DECODE: Final = 2
PARKED: Final = 3
FINISHING: Final = 4
"""All tokens scheduled, the last one not yet delivered (lookahead 1)."""
HANDED: Final = 5
"""Its prompt is computed, its KV stays where it is until another replica pulls it."""
LOADING: Final = 6
"""Its KV is on the way, or has come and waits for a seat."""
SWAPPED: Final = 9
"""Its KV is in host memory, and comes back before anybody new gets in."""
FETCHING: Final = 7
"""Its KV, or that of a prefix of it, is on the way from a tier below the GPU."""
MOVING: Final = 8
"""It has left its replica in the middle of decoding, and the last of its KV is on the way."""

HELD: Final = 10
"""All its tokens are computed; its result leaves when those of others do."""

PROBE = RequestView(0, 0, 1, -1, -1, 0, None)
"""Nobody's request; asks a batching policy whether it ranks requests at all."""


def identity_of(request: Request) -> tuple[tuple[tuple[int, int], ...], int] | None:
    """Return prompt identity and the key of the output, which no prompt key can equal."""
    view = request.view
    if view.segments is None:
        return None
    return view.segments, -1 - view.index
