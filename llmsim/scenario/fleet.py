"""Every key of a scenario's `fleet`, with its unit and its default; see `model`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic import Strict, StringConstraints, model_validator

from llmsim.scenario.component import Component, Seam
from llmsim.scenario.engine import Count, Engine
from llmsim.scenario.handing import wrong_handing
from llmsim.scenario.keeping import wrong_moves, wrong_promises
from llmsim.scenario.lanes import wrong_lanes, wrong_pipelines, wrong_ranks
from llmsim.scenario.operations import Boot, Flip, Gateway, Migration, wrong_control
from llmsim.scenario.section import Section
from llmsim.scenario.section import complain as _complain
from llmsim.scenario.stopping import Stop, wrong_layers, wrong_stops
from llmsim.scenario.tiers import Kv
from llmsim.specs import ParallelPlan

PoolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=60)]
"""Becomes part of a dotted path, so it has no dot."""


class SegmentReuse(Section):
    """Reuse of a segment's KV wherever it stands in a prompt, as CacheBlend, EPIC and KVShare do.

    It is copied, and a share of its tokens is computed anew against the whole prompt. Answers
    change; how much is not simulated.
    """

    recompute_frac: Annotated[float, Ge(0), Le(1)] = 0.15
    """[fraction] Of the reused tokens, computed anew (CacheBlend: 0.15)."""


class Pool(Section):
    """Identical replicas with one role."""

    role: Literal["mixed", "prefill", "decode", "encode"] = "mixed"
    """`mixed` computes whole requests, `prefill` prompts and first tokens, `decode` the rest;
    `encode` turns images into embeddings; where no pool does, they do so who compute prompts."""
    replicas: Count = 1
    """[replicas] How many."""
    spare_replicas: Annotated[int, Ge(0)] = 0
    """[replicas] How many more `fleet.control` may add; off, and not paid for, until then."""
    model: str | None = None
    """Model card of this pool; absent: that of the scenario."""
    gpu: str
    """GPU card, such as `h100-sxm`; a path that begins with `./` or `/` is a card of your own."""
    tp: Count = 1
    """[GPUs] Tensor-parallel GPUs per replica, or per attention rank of one."""
    dp: Count = 1
    """[ranks] Attention ranks per replica, each with requests and KV of its own on `tp` GPUs; they
    share the experts of a mixture and step together (vLLM: `--data-parallel-size`)."""
    ep: Count = 1
    """[GPUs] Groups that share out the experts of a mixture; a divisor of `tp` times `dp`."""
    spare_experts: Annotated[int, Ge(0)] = 0
    """[experts] Copies of experts in each layer, on all groups together; they take memory (SGLang:
    `--ep-num-redundant-experts`; TensorRT-LLM: `num_slots` less the experts)."""
    expert_balancing: bool = False
    """Copies and places of experts are chosen so that groups have equal loads, of a popularity that
    is known and stands still (vLLM, SGLang: `--enable-eplb`); else they come by number."""
    pp: Count = 1
    """[stages] Pipeline stages per replica, each with a part of the layers on `tp dp` GPUs of its
    own; up to as many micro-batches are in flight (vLLM: `--pipeline-parallel-size`)."""
    stage_link: str | None = None
    """Link card of each GPU to the next stage; absent: the node's, or what joins the nodes."""
    rank_routing: Literal["least-loaded", "round-robin"] = "least-loaded"
    """Which rank gets a request: by queues counted every 100 ms (vLLM), or in turn (SGLang)."""
    inter_node_link: str | None = None
    """Link card of each GPU to other nodes, for a plan beyond one; the GPU card's if absent."""
    node_gpus: Count | None = None
    """[GPUs] GPUs of one node, or of one virtual machine; absent: as the GPU's card says."""
    clock_frac: Annotated[float, Gt(0), Le(1)] = 1.0
    """[fraction] SM clock of the GPUs over their full one."""
    power_cap_w: Annotated[float, Gt(0)] | None = None
    """[W] Power cap of one GPU: compute-bound kernels clock down until they keep it."""
    price: str | None = None
    """Whose price per GPU-hour counts: a cloud of the price card, `cloud/spot`, `cloud/reserved`,
    or `spot`, `reserved`, `reserved-1y`, `reserved-3y` ... of whichever cloud; absent: the cheapest
    on demand."""
    gpu_price_usd_per_hour: Annotated[float, Ge(0)] | None = None
    """[USD/h] Price of one GPU; replaces the price card."""
    engine: Engine = Engine()
    """Settings of this pool's engines; what is absent comes from the scenario's `engine`."""
    batching: Annotated[Component, Seam("batching")] = Component("batching", "vllm")
    """Which requests a step computes, and how many tokens of each."""
    allocation: Annotated[Component, Seam("allocation")] = Component("allocation", "paged")
    """How much KV memory a request is promised at its admission."""
    eviction: Annotated[Component, Seam("eviction")] = Component("eviction", "lru")
    """Which cached KV is overwritten first on the GPU: what was used longest ago, as in vLLM, or as
    this says; never before what was computed from it."""
    retention: Annotated[Component, Seam("retention")] = Component("retention", "none")
    """How long the KV of a program's call is pinned for its next call."""
    segments: SegmentReuse | None = None
    """Reuse of KV that does not stand in front of a prompt; absent: only prefixes are reused."""
    cost: Annotated[Component, Seam("cost")] = Component("cost", "roofline")
    """How a step is priced."""
    kv: Kv | None = None
    """Tiers of KV below the GPUs; absent: what the GPUs forget is gone."""
    beside: PoolName | None = None
    """Prefill pool whose GPUs and KV blocks this decode pool shares, replica by replica."""
    share_frac: Annotated[float, Gt(0), Le(1)] = 1.0
    """[fraction] SMs that a lane may use, where pools share GPUs; the shares may exceed 1."""
    sharing: Annotated[Component, Seam("sharing")] = Component("sharing", "fixed")
    """How the shares change in the course of a run; said by the pool that has `beside`."""

    stop: Stop | None = None
    """How steps are stopped for a more urgent prompt; absent: each step runs to its end."""

    @property
    def gpus(self) -> int:
        """GPUs of the whole pool [GPUs]; 0 where it runs on those of another."""
        return 0 if self.beside else self.replicas * self.plan.gpus

    @model_validator(mode="after")
    def _settings_go_together(self) -> Self:
        if self.price is not None and self.gpu_price_usd_per_hour is not None:
            _complain({"price": "excludes gpu_price_usd_per_hour"})
        _complain(wrong_promises(self))
        return self

    @model_validator(mode="after")
    def _chunks_are_blocks(self) -> Self:
        if self.kv is not None:
            wrong = self.kv.clashes(self.engine.block_tokens)
            _complain({f"kv.{key}": text for key, text in wrong.items()})
        return self

    @model_validator(mode="after")
    def _experts_are_dealt_evenly(self) -> Self:
        gpus = self.tp * self.dp
        if gpus % self.ep:
            of = "tp and dp" if self.dp > 1 else "tp"
            _complain({"ep": f"{self.ep} does not divide the {gpus} GPUs of {of}"})
        for key in ("spare_experts", "expert_balancing"):
            if self.ep == 1 and getattr(self, key):
                _complain({key: "needs ep: one group has all experts anyway"})
        return self

    @property
    def plan(self) -> ParallelPlan:
        """How one replica is spread over GPUs."""
        copies, balancing = self.spare_experts, self.expert_balancing
        return ParallelPlan(self.tp, self.ep, self.dp, self.pp, copies, balancing)


class Handoff(Section):
    """How requests get from prefill to decode replicas, and their KV with them."""

    routing: Annotated[Component, Seam("routing")] = Component("routing", "least-loaded")
    """Which decode replica gets a request whose prompt has been computed."""
    view_age_s: Annotated[float, Ge(0)] = 0.0
    """[s] Age of what this router sees of the decode replicas."""
    link: str | None = None
    """Link card of a GPU's port to other replicas; absent: the link out of its GPU card's node."""
    messages: Literal["per-block", "per-layer"] = "per-block"
    """One message per layer, K or V, and KV block; or one per layer that has been gathered."""
    message_s: Annotated[float, Ge(0)] = 1e-6
    """[s] What a message costs beside its bytes. Assumed: posting an RDMA write."""
    gather_bytes_per_s: Annotated[float, Gt(0)] | None = None
    """[bytes/s] How fast a GPU gathers KV that it sends, and scatters what has come; absent: at
    once. With `messages: per-layer`."""
    transfer: Literal["bulk", "layer"] = "bulk"
    """With `bulk` KV is pulled when all of it has been computed; with `layer` the request is routed
    when the last step of its prompt begins, and a layer's KV goes while the next is computed."""
    when_full: Literal["wait", "refuse"] = "wait"
    """What a decode replica without room does: the request waits in its line, or is refused; then
    the others are asked in turn, and it is held with its KV where that is until one has room."""
    first_token: Literal["prefill", "decode"] = "prefill"
    """When the client gets the first token: as it is computed, or when the KV has arrived and the
    request may decode (`max_num_seqs`), as where decode workers answer."""


class Fleet(Section):
    """The replicas, and who sends which request where."""

    routing: Annotated[Component, Seam("routing")] = Component("routing", "round-robin")
    """Which replica gets a request."""
    view_age_s: Annotated[float, Ge(0)] = 0.0
    """[s] Age of what the router sees of the replicas."""
    report_period_s: Annotated[float, Ge(0)] = 0.0
    """[s] Replicas report their load so often, each at its own phase; 0: every change is told."""
    report_lost_frac: Annotated[float, Ge(0), Lt(1)] = 0.0
    """[fraction] Reports that never arrive."""
    handoff: Handoff = Handoff()
    """From prefill to decode replicas, where there are such."""
    count_own_sends: bool = False
    """The router knows at once of what it sends itself; only ends reach it late."""
    gateway: Gateway | None = None
    """Replicas may refuse, requests be held; absent: the router's choice is final."""
    boot: Boot | None = None
    """How replicas come, where `control` adds, drains or fails some."""
    flip: Flip | None = None
    """How replicas change their role, where `control` has some do so; absent: they keep it."""
    migration: Migration | None = None
    """How running requests change replicas; absent: they stay where they are."""
    control: Annotated[tuple[Annotated[Component, Seam("control")], ...], Strict(False)] = ()
    """Who looks at the fleet now and then, and acts: a list."""
    pools: Annotated[dict[PoolName, Pool], Len(1)]
    """The pools by name."""

    @model_validator(mode="after")
    def _roles_go_together(self) -> Self:
        roles = {pool.role for pool in self.pools.values()}
        if ("prefill" in roles) != ("decode" in roles):
            has, lacks = ("prefill", "decode") if "prefill" in roles else ("decode", "prefill")
            _complain({"pools": f"a pool has role {has}, none has role {lacks}"})
        return self

    @model_validator(mode="after")
    def _control_has_what_it_needs(self) -> Self:
        _complain(wrong_control(self))
        if self.report_lost_frac and not self.report_period_s:
            _complain({"report_lost_frac": "needs report_period_s: no reports are sent"})
        _complain(wrong_moves(self))
        return self

    @model_validator(mode="after")
    def _lanes_go_together(self) -> Self:
        wrong = wrong_lanes(self.pools) | wrong_ranks(self) | wrong_pipelines(self)
        wrong |= wrong_stops(self) | wrong_layers(self)
        _complain({f"pools.{name}": message for name, message in wrong.items()})
        return self

    @model_validator(mode="after")
    def _handing_over_fits_the_pools(self) -> Self:
        _complain(wrong_handing(self))
        return self

    @property
    def hands_over(self) -> bool:
        """Whether some replicas compute prompts for others."""
        return any(pool.role == "prefill" for pool in self.pools.values())

    def spares(self, pool: Pool) -> int:
        """Return how many replicas a pool may get: none where nothing adds any."""
        return pool.spare_replicas if self.control and self.boot is not None else 0
