"""Every key of a plan file, with its unit and its default; docs/plan.md is made from it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic import Field, model_validator

from llmsim.planner.problem import PORT_USABLE_FRAC, Role
from llmsim.scenario.engine import Count, Engine, Frac, Quantisation
from llmsim.scenario.fleet import Handoff
from llmsim.scenario.model import Name, Traffic
from llmsim.scenario.promises import Slo
from llmsim.scenario.section import Section, complain

Usd = Annotated[float, Gt(0)]
Counts = Annotated[tuple[Count, ...], Len(1)]


class Offer(Section):
    """A GPU that may be bought, by the name of its card."""

    usd_per_hour: Usd | None = None
    """[USD/h] Price of one GPU; absent: the cheapest of the price card."""
    price: str | None = None
    """Whose price counts, as `price` of a pool; excludes `usd_per_hour`."""
    available: Annotated[int, Ge(0)] | None = None
    """[GPUs] How many there are; absent: as many as wanted."""

    @model_validator(mode="after")
    def _one_price(self) -> Self:
        if self.price is not None and self.usd_per_hour is not None:
            complain({"price": "excludes usd_per_hour"})
        return self


class Configuration(Section):
    """Replicas of one kind that run today."""

    gpu: str
    """GPU card; one of `gpus`."""
    replicas: Count
    """[replicas] How many."""
    tp: Count = 1
    """[GPUs] Tensor-parallel GPUs of each."""
    pp: Count = 1
    """[stages] Pipeline stages of each."""
    ep: Count = 1
    """[GPUs] Groups that share out the experts of a mixture."""
    dp: Count = 1
    """[ranks] Attention ranks of each, each on `tp` GPUs."""
    role: Role = "mixed"
    """What they compute: whole requests, prompts with first tokens, or the rest."""
    quantisation: Quantisation | None = None
    """Weight format; absent: the model's own."""
    max_num_seqs: Count | None = None
    """[requests] As in `engine`, which counts when absent."""
    max_num_batched_tokens: Count | None = None
    """[tokens] As in `engine`, which counts when absent."""


class Searched(Section):
    """What may be varied: every combination is a configuration of a replica."""

    tp: Counts = (1, 2, 4, 8)
    """[GPUs] Tensor-parallel GPUs."""
    pp: Counts = (1,)
    """[stages] Pipeline stages."""
    ep: Counts = (1,)
    """[GPUs] Groups that share out the experts of a mixture."""
    dp: Counts = (1,)
    """[ranks] Attention ranks that share the experts of a mixture, each on `tp` GPUs."""
    roles: Annotated[tuple[Role, ...], Len(1)] = ("mixed",)
    """What replicas may compute: `mixed` whole requests; `prefill` and `decode`, which go together,
    prompts with first tokens and the rest."""
    port_frac: Annotated[float, Gt(0), Le(1)] = PORT_USABLE_FRAC
    """[fraction] How busy programs plan a replica's port with KV that is handed over."""
    quantisation: Annotated[tuple[Quantisation | None, ...], Len(1)] = (None,)
    """Weight formats; null is the model's own."""
    max_num_seqs: Counts | None = None
    """[requests] Most requests in one step; absent: as `engine` says."""
    max_num_batched_tokens: Counts | None = None
    """[tokens] Most tokens computed in one step: the chunk; absent: as `engine` says."""
    clock_frac: Annotated[tuple[Frac, ...], Len(1)] = (1.0,)
    """[fraction] SM clocks over the full one."""
    most_gpus: Count = 8
    """[GPUs] Of one replica."""
    most_columns: Count = 24
    """[configurations] So many of each role are considered of those that nothing beats outright:
    the nearest to the cheapest per request; two of each card in any case."""

    @model_validator(mode="after")
    def _halves_go_together(self) -> Self:
        if ("prefill" in self.roles) != ("decode" in self.roles):
            complain({"roles": "prefill and decode go together: who computes prompts needs both"})
        return self


class Solving(Section):
    """How integer programs are solved."""

    solver: Literal["cbc", "highs"] = "cbc"
    """CBC comes with llmsim; HiGHS where it is installed."""
    gap_frac: Annotated[float, Ge(0), Lt(1)] = 0.005
    """[fraction] Relative distance from the proven bound at which a fleet is good enough."""
    time_limit_s: Annotated[float, Gt(0)] = 60.0
    """[s] For one program."""


class Proving(Section):
    """How fleets are simulated before one is proposed."""

    seeds: Annotated[tuple[Annotated[int, Ge(2)], ...], Len(1)] = (3, 6, 12)
    """[seeds] Looks at a fleet: it is simulated under so many seeds, and under more where these do
    not decide. Fleets that are compared meet the same requests."""
    confidence_frac: Annotated[float, Gt(0.5), Lt(1)] = 0.95
    """[fraction] Confidence of the bound of attainment that must reach the target, over all looks
    together."""
    tolerance_frac: Annotated[float, Ge(0), Lt(1)] = 0.03
    """[fraction] A fleet so little above the bound is good enough."""
    most_fleets: Count = 40
    """[fleets] Fleets to simulate at most."""
    block_s: Annotated[float, Gt(0)] = 60.0
    """[s] A trace is resampled for other seeds in blocks of so long, drawn with replacement."""
    micro_columns: Annotated[int, Ge(0), Le(24)] = 24
    """[columns] Configurations of which one replica is simulated to correct its closed form."""


class PlanFile(Section):
    """What a fleet is wanted for, from what it may be made, and what it may cost."""

    llmsim: Literal[1]
    """Version of this file format."""
    name: Name
    """Names the plan; the file's name when absent."""
    description: str = ""
    """One line for the report."""
    seed: Annotated[int, Ge(0)] = 0
    """Seed of the first simulation; the others count up from it."""
    model: str
    """Model card, as in a scenario."""
    slo: Slo
    """What the service promises, as in a scenario: limits, and the share of requests that must keep
    them."""
    traffic: Traffic
    """Where requests come from, as in a scenario: a trace, or arrivals with lengths."""
    engine: Engine = Engine()
    """Engine settings, as in a scenario, of what `search` does not vary."""
    pool: dict[str, Any] = Field(default={})
    """Further settings of every pool, as in a scenario, such as `cost` or `batching`."""
    handoff: Handoff = Handoff()
    """How requests get from prefill to decode replicas, as in a scenario; the plan routes them."""
    gpus: Annotated[dict[str, Offer], Len(1)]
    """GPU cards that may be bought, each with price and number."""
    search: Searched = Searched()
    """Which configurations are tried."""
    budget_usd_per_hour: Usd | None = None
    """[USD/h] What the fleet may cost; absent: whatever it takes."""
    spare_replicas: Annotated[int, Ge(0)] = 0
    """[replicas] So many replicas of any one kind may be lost without breaking the promise."""
    spare_nodes: Annotated[int, Ge(0)] = 0
    """[nodes] So many nodes full of replicas of any one kind may be lost likewise."""
    zones: Annotated[int, Ge(0)] = 0
    """[zones] Every kind is spread evenly over so many zones, and any one of them may be lost with
    its part of all kinds; 0: no zone is lost."""
    current: tuple[Configuration, ...] = ()
    """What runs today."""
    change_usd_per_hour: Annotated[float, Ge(0)] = 0.0
    """[USD/h] What a replica more or less than today must save to be worth it."""
    solve: Solving = Solving()
    """How integer programs are solved."""
    prove: Proving = Proving()
    """How fleets are simulated."""

    @model_validator(mode="after")
    def _can_be_planned(self) -> Self:
        wrong: dict[str, str] = {}
        if not self.slo.objectives().is_set:
            wrong["slo"] = "sets no limit; without ttft_s, tpot_s, itl_s or e2e_s any fleet will do"
        if self.zones == 1:
            wrong["zones"] = "when the only zone is lost, nothing is left; 0 loses none"
        if self.handoff.routing != Handoff().routing:
            wrong["handoff.routing"] = "is not set here: the plan routes by prompt length"
        if self.traffic.images is not None:
            wrong["traffic.images"] = "is not planned for yet"
        if self.traffic.programs is not None:
            wrong["traffic.programs"] = "is not planned for yet; a trace of their calls is"
        if self.slo.classes is not None:
            wrong["slo.classes"] = "are not planned for yet: one promise to all requests"
        if self.traffic.models is not None or self.traffic.model_by_client is not None:
            wrong["traffic.models"] = "is not planned for yet: one model at a time"
        if self.traffic.arrivals is not None and self.traffic.arrivals.kind == "closed-loop":
            wrong["traffic.arrivals"] = "closed-loop has no rate: any fleet keeps up with it"
        complain(wrong)
        return self
