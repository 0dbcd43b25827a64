"""Every key of a scenario file, with its unit and its default.

The docstring under a field is its documentation: it feeds the JSON schema and docs/scenario.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Gt, Le, Len
from pydantic import PrivateAttr, Strict, StringConstraints, model_validator

from llmsim.scenario.component import Component, Seam
from llmsim.scenario.keeping import wrong_moves, wrong_promises, wrong_record
from llmsim.scenario.lanes import wrong_lanes, wrong_ranks
from llmsim.scenario.operations import Boot, Gateway, Migration, wrong_control
from llmsim.scenario.promises import Record, Slo
from llmsim.scenario.section import Section
from llmsim.scenario.section import complain as _complain
from llmsim.scenario.tiers import Kv
from llmsim.specs import EngineLimits, ModelSpec, ParallelPlan, requantise

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
"""Becomes part of a folder's name."""

PoolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=60)]
"""Becomes part of a dotted path, so it has no dot."""

Seconds = Annotated[float, Gt(0)]
Count = Annotated[int, Ge(1)]
Frac = Annotated[float, Gt(0), Le(1)]
KvDtype = Literal["bf16", "fp16", "fp8", "int8"]
EngineVersion = Literal[
    "vllm-0.33", "vllm-0.20", "vllm-0.14", "vllm-0.12", "trtllm-1.2", "trtllm-1.0"
]
"""Names of the cards in `profiles/engines`."""

Quantisation = Literal[
    "bf16", "fp8", "fp8_block", "nvfp4", "mxfp4", "int4_awq", "int4_gptq", "int8"
]


class Abort(Section):
    """Clients that go away before their answer is complete (closed tab, stopped generation)."""

    frac: Frac
    """[fraction] Share of requests whose client goes away, if the answer takes that long."""
    mean_s: Seconds
    """[s] Mean time from arrival until such a client goes away."""
    law: Literal["exponential", "fixed"] = "exponential"
    """How that time is distributed: `exponential` with this mean, or `fixed` at it."""


class Traffic(Section):
    """Where requests come from: a recorded trace, or synthetic arrivals with lengths."""

    trace: Annotated[Component, Seam("trace")] | None = None
    """A recorded trace to replay; excludes `arrivals`, `lengths`, `prompts` and `programs`."""
    arrivals: Annotated[Component, Seam("arrivals")] | None = None
    """When synthetic requests arrive."""
    lengths: Annotated[Component, Seam("lengths")] | None = None
    """How long synthetic prompts and outputs are."""
    prompts: Annotated[Component, Seam("prompts")] | None = None
    """Which synthetic prompts share a prefix; without it no two prompts share a token."""
    programs: Annotated[Component, Seam("programs")] | None = None
    """Clients that ask again when they have been answered: what arrives is the first call of a
    program, `prompts` names its text, and `lengths` gives the text and the output of every call;
    a prompt repeats its program's text and outputs so far."""
    requests: Count | None = None
    """[requests] How many synthetic requests, or programs, arrive; either this or `duration_s`."""
    duration_s: Seconds | None = None
    """[s] For how long synthetic requests, or programs, arrive."""
    warmup_s: Annotated[float, Ge(0)] = 0.0
    """[s] Requests that arrive earlier are simulated but left out of the metrics."""
    timeout_s: Seconds | None = None
    """[s] A client that has not got its last token by then gives up; absent: it never does."""
    abort: Abort | None = None
    """Clients that leave before the end, apart from any timeout."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        wrong: dict[str, str] = {}
        laws = ("arrivals", "lengths", "prompts", "programs")
        synthetic = [key for key in laws if getattr(self, key)]
        if self.trace is not None:
            wrong |= dict.fromkeys(synthetic, "excludes traffic.trace; set one of the two to null")
            wrong |= {
                key: "is for synthetic traffic; cut a trace by its own keys, such as limit or end_s"
                for key in ("requests", "duration_s")
                if getattr(self, key) is not None
            }
        elif not synthetic:
            wrong["arrivals"] = "is missing; traffic needs a trace, or arrivals and lengths"
        else:
            missing = [key for key in ("arrivals", "lengths") if getattr(self, key) is None]
            wrong |= dict.fromkeys(missing, "is missing; synthetic traffic needs it")
        if self.programs is not None and self.abort is not None:
            wrong["abort"] = "does not go with programs, which end when a call fails; use timeout_s"
        if self.duration_s is not None and self.warmup_s >= self.duration_s:
            wrong["warmup_s"] = f"leaves nothing to measure of {self.duration_s:g} s"
        _complain(wrong)
        return self


class Engine(Section):
    """One replica's serving engine; names follow vLLM where vLLM has the same setting."""

    version: EngineVersion = "vllm-0.33"
    """Engine and release, which stands for later ones up to the next: what its host does for a
    step, whether it schedules ahead, and whose scheduling rules hold where versions differ."""
    block_tokens: Count = 16
    """[tokens] Tokens per KV block."""
    kv_blocks: Count | None = None
    """[blocks] Pin the number of usable KV blocks per replica; absent: found from the memory."""
    gpu_memory_utilization_frac: Frac = 0.9
    """[fraction] Share of GPU memory that the engine may use."""
    max_num_seqs: Count = 256
    """[requests] Most requests in one step."""
    max_num_batched_tokens: Count = 8192
    """[tokens] Most tokens computed in one step."""
    max_model_len: Count | None = None
    """[tokens] Longest prompt plus output; absent: the model's own limit."""
    prefix_caching: bool = True
    """Keep the KV of finished requests for prompts that begin the same way."""
    chunked_prefill: bool = True
    """Split a prompt that does not fit the token budget of a step."""
    long_prefill_threshold_tokens: Annotated[int, Ge(0)] = 0
    """[tokens] Most tokens of one prompt in one step; 0: no such limit."""
    reserve_full_prompt: bool = True
    """Admit a prompt only if all of it fits the free KV blocks, not just its first chunk."""
    cuda_graphs: bool = True
    """Replay captured graphs for steps of captured sizes."""
    watermark_frac: Annotated[float, Ge(0), Le(1)] | None = None
    """[fraction] KV blocks kept free at admission; absent: as the version does."""
    lookahead: Literal[0, 1] | None = None
    """[steps] How many steps the scheduler runs ahead of the GPU: 1 for asynchronous scheduling;
    absent: as the version does."""
    fast_forward: bool = True
    """Price steps of unchanged composition together; false: one event per step, same results."""
    kv_dtype: KvDtype | None = None
    """Number format of the KV cache; absent: as the checkpoint asks for."""
    quantisation: Quantisation | None = None
    """Serve another checkpoint of the model's architecture; absent: as the model's card says."""

    @model_validator(mode="after")
    def _budget_suffices(self) -> Self:
        # vLLM's SchedulerConfig refuses this at start.
        if self.max_num_batched_tokens < self.max_num_seqs:
            _complain(
                {
                    "max_num_batched_tokens": f"{self.max_num_batched_tokens} is less than "
                    f"max_num_seqs {self.max_num_seqs}: every running request needs a token a step"
                }
            )
        return self

    def checkpoint(self, model: ModelSpec) -> ModelSpec:
        """Return the model as this engine loads it, in the format of `quantisation` if it has one.

        Parameters
        ----------
        model : ModelSpec
            As its card says.
        """
        return requantise(model, self.quantisation) if self.quantisation else model

    def limits(self, model: ModelSpec) -> EngineLimits:
        """Return the limits that memory and prices depend on, for one model.

        Parameters
        ----------
        model : ModelSpec
            Gives the longest context where the scenario does not.
        """
        return EngineLimits(
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_model_len=self.max_model_len or model.max_context_tokens,
            block_tokens=self.block_tokens,
            cuda_graphs=self.cuda_graphs,
        )

    def clashes(self, model: ModelSpec) -> dict[str, str]:
        """Return what does not go with a model, by key; vLLM refuses to start with each.

        Parameters
        ----------
        model : ModelSpec
        """
        longest, own = model.max_context_tokens, self.max_model_len
        if own is None and not longest:
            return {"max_model_len": f"is missing; {model.name} does not say how long it may get"}
        if own is not None and longest and own > longest:
            return {"max_model_len": f"{own} exceeds the {longest} tokens of {model.name}"}
        top = own or longest
        if not self.chunked_prefill and self.max_num_batched_tokens < top:
            budget = f"{self.max_num_batched_tokens} is less than max_model_len {top}"
            reason = "without chunked_prefill a prompt must fit one step"
            return {"max_num_batched_tokens": f"{budget}: {reason}"}
        return {}


class Pool(Section):
    """Identical replicas with one role."""

    role: Literal["mixed", "prefill", "decode"] = "mixed"
    """`mixed` computes whole requests, `prefill` prompts and first tokens, `decode` the rest."""
    replicas: Count = 1
    """[replicas] How many."""
    spare_replicas: Annotated[int, Ge(0)] = 0
    """[replicas] How many more `fleet.control` may add; off, and not paid for, until then."""
    gpu: str
    """GPU card, such as `h100-sxm`; a path that begins with `./` or `/` is a card of your own."""
    tp: Count = 1
    """[GPUs] Tensor-parallel GPUs per replica, or per attention rank of one."""
    dp: Count = 1
    """[ranks] Attention ranks per replica, each with requests and KV of its own on `tp` GPUs; they
    share the experts of a mixture and step together (vLLM: `--data-parallel-size`)."""
    ep: Count = 1
    """[GPUs] Groups that share out the experts of a mixture; a divisor of `tp` times `dp`."""
    rank_routing: Literal["least-loaded", "round-robin"] = "least-loaded"
    """Which rank gets a request: by queues counted every 100 ms (vLLM), or in turn (SGLang)."""
    inter_node_link: str | None = None
    """Link card of each GPU to other nodes, for a plan beyond one; the GPU card's if absent."""
    clock_frac: Annotated[float, Gt(0), Le(1)] = 1.0
    """[fraction] SM clock of the GPUs over their full one."""
    power_cap_w: Annotated[float, Gt(0)] | None = None
    """[W] Power cap of one GPU: compute-bound kernels clock down until they keep it."""
    price: str | None = None
    """Whose price per GPU-hour counts, where the price card knows more than one."""
    gpu_price_usd_per_hour: Annotated[float, Ge(0)] | None = None
    """[USD/h] Price of one GPU; replaces the price card."""
    engine: Engine = Engine()
    """Settings of this pool's engines; what is absent comes from the scenario's `engine`."""
    batching: Annotated[Component, Seam("batching")] = Component("batching", "vllm")
    """Which requests a step computes, and how many tokens of each."""
    allocation: Annotated[Component, Seam("allocation")] = Component("allocation", "paged")
    """How much KV memory a request is promised at its admission."""
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
        return self

    @property
    def plan(self) -> ParallelPlan:
        """How one replica is spread over GPUs."""
        return ParallelPlan(self.tp, self.ep, self.dp)


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
    first_token: Literal["prefill", "decode"] = "prefill"
    """When the client gets the first token: as it is computed, or when the KV has arrived."""


class Fleet(Section):
    """The replicas, and who sends which request where."""

    routing: Annotated[Component, Seam("routing")] = Component("routing", "round-robin")
    """Which replica gets a request."""
    view_age_s: Annotated[float, Ge(0)] = 0.0
    """[s] Age of what the router sees of the replicas."""
    handoff: Handoff = Handoff()
    """From prefill to decode replicas, where there are such."""
    count_own_sends: bool = False
    """The router knows at once of what it sends itself; only ends reach it late."""
    gateway: Gateway | None = None
    """Replicas may refuse, requests be held; absent: the router's choice is final."""
    boot: Boot | None = None
    """How replicas come, where `control` adds, drains or fails some."""
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
        _complain(wrong_moves(self))
        return self

    @model_validator(mode="after")
    def _lanes_go_together(self) -> Self:
        for name, message in (wrong_lanes(self.pools) | wrong_ranks(self)).items():
            _complain({f"pools.{name}": message})
        return self

    @property
    def hands_over(self) -> bool:
        """Whether some replicas compute prompts for others."""
        return any(pool.role == "prefill" for pool in self.pools.values())


class Scenario(Section):
    """One simulation: a model, its traffic, the fleet that serves it, what it promises."""

    llmsim: Literal[1]
    """Version of this file format."""
    name: Name
    """Names the run; the file's name when absent."""
    description: str = ""
    """One line for the report."""
    seed: Annotated[int, Ge(0)] = 0
    """Seed of every random stream."""
    model: str
    """Model card, such as `llama-3.1-8b`, or a path to a HuggingFace config.json (`./...`)."""
    slo: Slo = Slo()
    """What the service promises."""
    traffic: Traffic
    """Where requests come from."""
    engine: Engine = Engine()
    """Engine settings of every pool that does not say otherwise."""
    fleet: Fleet
    """What serves them."""
    record: Record = Record()
    """What is written down besides."""

    _folder: Path | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _tokens_have_times(self) -> Self:
        if self.record.tokens and any(pool.beside for pool in self.fleet.pools.values()):
            _complain({"record": "tokens cannot be taken down where pools share GPUs as lanes"})
        if self.record.tokens:
            _complain(wrong_record(self.fleet))
        return self

    @model_validator(mode="before")
    @classmethod
    def _inherit_engine(cls, data: Any) -> Any:
        """Give every pool the engine settings that it does not set itself."""
        engine = data.get("engine") if isinstance(data, dict) else None
        fleet = data.get("fleet") if isinstance(data, dict) else None
        pools = fleet.get("pools") if isinstance(fleet, dict) else None
        if not (isinstance(engine, dict) and isinstance(fleet, dict) and isinstance(pools, dict)):
            return data
        full = {}
        for name, pool in pools.items():
            own = pool.get("engine", {}) if isinstance(pool, dict) else None
            full[name] = pool if not isinstance(own, dict) else {**pool, "engine": engine | own}
        return {**data, "fleet": {**fleet, "pools": full}}

    def __eq__(self, other: object) -> bool:
        """Compare what is simulated; where it was read from does not count."""
        return isinstance(other, Scenario) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(self.resolved_yaml())

    @classmethod
    def load(
        cls, path_or_name: str | Path, overrides: Mapping[str, object] | None = None
    ) -> Scenario:
        """Read a scenario file, or a shipped scenario by its bare name.

        Parameters
        ----------
        path_or_name : str or Path
        overrides : mapping of str to object, optional
            Values by dotted path; they come on top of the file.

        Raises
        ------
        ScenarioError
            With every fault of the file, its parents and the overrides.
        """
        from llmsim.scenario.loader import load_scenario

        return load_scenario(path_or_name, overrides)

    @classmethod
    def parse(cls, data: Mapping[str, Any], folder: Path | None = None) -> Scenario:
        """Check a scenario given as a mapping; see `load`.

        Parameters
        ----------
        data : mapping
            What a file would say, without ``extends``.
        folder : Path, optional
            Where relative file names start from; the current directory when absent.
        """
        from llmsim.scenario.loader import build_scenario

        return build_scenario(data, folder=folder)

    def override(self, overrides: Mapping[str, object]) -> Scenario:
        """Return a scenario in which some values differ.

        Parameters
        ----------
        overrides : mapping of str to object
            Values by dotted path. A mapping is merged key by key; one with a ``kind`` replaces
            the component; None takes a value back to its default.

        Raises
        ------
        ScenarioError
            With every fault.
        """
        from llmsim.scenario.loader import build_scenario

        return build_scenario(self.resolved(), overrides, self._folder)

    def resolved(self) -> dict[str, Any]:
        """Return the scenario as plain values with every default filled in.

        Notes
        -----
        A pool's ``engine`` holds only what differs from the scenario's, so that overriding
        ``engine.*`` still reaches every pool.
        """
        data = self.model_dump(mode="json")
        for pool in data["fleet"]["pools"].values():
            own = {k: v for k, v in pool.pop("engine").items() if v != data["engine"][k]}
            if own:
                pool["engine"] = own
        return data

    def resolved_yaml(self) -> str:
        """Return YAML text with every default filled in; it loads back to an equal scenario."""
        from llmsim.scenario.document import dump_yaml

        return dump_yaml(self.resolved())

    @property
    def folder(self) -> Path | None:
        """Folder of the file it was read from; None if it came from Python.

        File names inside the scenario are absolute, so nothing needs it to find them.
        """
        return self._folder

    def located(self, folder: Path | None) -> Scenario:
        """Return this scenario with another `folder`."""
        found = self.model_copy()
        found._folder = folder
        return found
