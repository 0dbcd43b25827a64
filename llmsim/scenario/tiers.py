"""Keys of a scenario on where KV lies below the GPU."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le
from pydantic import Field, StringConstraints

from llmsim.scenario.component import Component, Seam
from llmsim.scenario.section import Section

Positive = Annotated[float, Gt(0)]


class KvTier(Section):
    """One tier below the GPU, such as host memory, a disk, or a server that replicas share."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=60)]
    """Names it in the results; pools that share a tier of the fleet use the same name."""
    scope: Literal["replica", "pool", "fleet"] = "replica"
    """Who has one of it: every replica (or attention rank), the replicas of the pool together, or
    the whole fleet."""
    capacity_bytes: Positive
    """[bytes] Of each such store."""
    chunk_tokens: Annotated[int, Ge(1)] = 256
    """[tokens] KV is kept in chunks of this many, a multiple of `block_tokens`; the rest of a text
    beyond its last whole chunk is not kept. 256 is LMCache's chunk."""
    read_bytes_per_s: Positive | None = None
    """[bytes/s] All reads of a store together; absent: the way to it is what limits."""
    write_bytes_per_s: Positive | None = None
    """[bytes/s] All writes of a store together; absent: the way to it is what limits."""
    port_bytes_per_s: Positive | None = None
    """[bytes/s] A replica's own way to a store that is elsewhere (its NIC), each direction;
    absent: it has none that limits. The way between GPU and host counts always."""
    format_frac: Annotated[float, Gt(0), Le(1)] = 1.0
    """[fraction] Bytes of a token here over its bytes on the GPU."""
    codec_bytes_per_s: Positive | None = None
    """[bytes/s] Bytes of this format that one transfer encodes or decodes; absent: no limit."""
    latency_s: Annotated[float, Ge(0)] = 0.0
    """[s] Before the first byte of a transfer."""
    message_s: Annotated[float, Ge(0)] = 10e-6
    """[s] Of one message, beside its bytes. Assumed: launching a copy."""
    messages: Literal["per-chunk", "per-block"] = "per-chunk"
    """One message a chunk that has been gathered, or one per layer, K or V, and KV block."""
    write: Literal["through", "finish", "evict"] = "through"
    """When KV comes here: `through` when its prompt is computed (and its output when it ends),
    `finish` when its request ends; below the first tier both mean once it has come to the tier
    above, and `evict` when the tier above forgets it."""
    eviction: Annotated[Component, Seam("eviction")] = Component("eviction", "lru")
    """What is forgotten when there is no room."""
    watermark_frac: Annotated[float, Ge(0), Le(0.9)] = 0.0
    """[fraction] Kept free, so that what comes finds room."""


class KvSwap(Section):
    """Host memory for the KV of preempted requests, which comes back instead of being recomputed.

    As in vLLM v0: nobody new gets in while anybody is swapped out, and a step waits for its copies;
    policies that rank requests (`fastswitch`, `shortest-first` with `preempts`) let go first who
    ranks first.
    """

    capacity_bytes: Positive = 4 * 2.0**30
    """[bytes] Of each replica; vLLM's swap_space. Victims that find no room are recomputed."""
    message_s: Annotated[float, Ge(0)] = 10e-6
    """[s] Of one copy, beside its bytes. Assumed: launching a copy."""
    run_blocks: Annotated[int, Ge(1)] = 1
    """[blocks] Neighbouring blocks that one copy takes, of one layer's K or V."""
    keeps_copies: bool = False
    """Keep on the host what has come back, while there is room, and copy only what is new."""
    overlaps: bool = False
    """Copies of requests that change places run beside the steps of others, else those wait; for
    batching policies that switch between requests. Not with `engine.prefix_caching`."""


class Kv(Section):
    """Where KV lies below a pool's GPUs, and how it gets there and back."""

    tiers: list[KvTier] = Field(default=[])
    """From the nearest to the farthest."""
    swap: KvSwap | None = None
    """Preempt by swapping; absent: what was preempted is computed again."""
    host_link: str | None = None
    """Link card between a GPU and its host; absent: that of the GPU card."""
    loading: Annotated[Component, Seam("loading")] = Component("loading", "always")
    """Whether KV that is found in a tier is loaded, or computed again."""
    gate: Literal["bulk", "layer"] = "bulk"
    """What a load holds up: with `bulk` its request waits aside until all has come; with `layer` it
    is computed at once, and each layer of the step waits for its own part."""
    shared_loads: Literal["wait", "repeat"] = "wait"
    """A prefix that is being loaded for another request is waited for, or loaded once more."""

    def clashes(self, block_tokens: int) -> dict[str, str]:
        """Return what does not go together, by key.

        Parameters
        ----------
        block_tokens : int [tokens]
            Of the pool's engine.
        """
        if not self.tiers:
            return {} if self.swap else {"tiers": "is empty, and there is no swap either"}
        names = [tier.name for tier in self.tiers]
        if len(set(names)) < len(names):
            return {"tiers": f"has two of one name: {', '.join(names)}"}
        if self.tiers[0].write == "evict":
            use = "use through or finish"
            return {"tiers": f"begins with {names[0]}, write: evict, but GPUs forget unread; {use}"}
        for tier in self.tiers:
            if tier.chunk_tokens % block_tokens:
                size = f"chunk_tokens {tier.chunk_tokens} of {tier.name}"
                return {"tiers": f"{size} is no multiple of block_tokens {block_tokens}"}
        return {}
