"""Which configurations there are, what each sustains, and why one is not worth asking about."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from llmsim.core.errors import InputError, ModelDoesNotFitError
from llmsim.core.holding import holding
from llmsim.core.units import NS_PER_S
from llmsim.planner.capacity import Capacity, Limits, Shape, capacity
from llmsim.planner.problem import Column, Role
from llmsim.scenario import Scenario
from llmsim.scenario.fleet import Handoff
from llmsim.serving.build import build_pools
from llmsim.serving.handoff import TransferPrice
from llmsim.serving.simulate import PoolPlan
from llmsim.serving.transfers import port_bytes_per_s, transfer_price
from llmsim.specs import load_gpu, load_model
from llmsim.specs.layers import MoeMlp


@dataclass(frozen=True, slots=True, order=True)
class Choice:
    """How one replica is made.

    Parameters
    ----------
    gpu : str
        GPU card.
    tp, pp, ep : int
        Parallel plan.
    quantisation : str
        Weight format; empty for the model's own.
    max_num_seqs : int [requests]
    max_num_batched_tokens : int [tokens]
    clock_frac : float
        SM clock over the full one.
    dp : int [ranks]
        Attention ranks.
    role : {"mixed", "prefill", "decode"}
    """

    gpu: str
    tp: int = 1
    pp: int = 1
    ep: int = 1
    quantisation: str = ""
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    clock_frac: float = 1.0
    dp: int = 1
    role: Role = "mixed"

    @property
    def gpus(self) -> int:
        """GPUs of one replica."""
        return self.tp * self.dp * self.pp

    @property
    def name(self) -> str:
        """What differs from the defaults, in one word."""
        degrees = ("tp", "dp", "pp", "ep")
        plan = [f"{key}{n}" for key in degrees if (n := getattr(self, key)) > 1]
        words = [self.gpu, *plan, self.quantisation]
        words += [f"seqs{self.max_num_seqs}"] * (self.max_num_seqs != 256)
        words += [f"tokens{self.max_num_batched_tokens}"] * (self.max_num_batched_tokens != 8192)
        words += [f"clock{self.clock_frac:g}"] * (self.clock_frac != 1.0)
        words += [self.role] * (self.role != "mixed")
        return "-".join(word for word in words if word)

    def overrides(self, pool: str) -> dict[str, object]:
        """Return what turns a pool of a scenario into replicas like this, but for their role.

        Parameters
        ----------
        pool : str
            Its name.
        """
        own = f"fleet.pools.{pool}"
        return {
            f"{own}.gpu": self.gpu,
            f"{own}.tp": self.tp,
            f"{own}.dp": self.dp,
            f"{own}.pp": self.pp,
            f"{own}.ep": self.ep,
            f"{own}.clock_frac": self.clock_frac,
            f"{own}.engine.quantisation": self.quantisation or None,
            f"{own}.engine.max_num_seqs": self.max_num_seqs,
            f"{own}.engine.max_num_batched_tokens": self.max_num_batched_tokens,
        }


@dataclass(frozen=True, slots=True)
class Space:
    """What may be varied; every combination is a `Choice`.

    Parameters
    ----------
    gpus : tuple of str
        GPU cards.
    tp, pp, ep : tuple of int
    quantisations : tuple of str
    max_num_seqs, max_num_batched_tokens : tuple of int
    clock_fracs : tuple of float
    dp : tuple of int
    roles : tuple of {"mixed", "prefill", "decode"}
    most_gpus : int [GPUs]
        Of one replica.
    """

    gpus: tuple[str, ...]
    tp: tuple[int, ...] = (1, 2, 4, 8)
    pp: tuple[int, ...] = (1,)
    ep: tuple[int, ...] = (1,)
    quantisations: tuple[str, ...] = ("",)
    max_num_seqs: tuple[int, ...] = (256,)
    max_num_batched_tokens: tuple[int, ...] = (8192,)
    clock_fracs: tuple[float, ...] = (1.0,)
    most_gpus: int = 8
    dp: tuple[int, ...] = (1,)
    roles: tuple[Role, ...] = ("mixed",)

    def choices(self) -> list[Choice]:
        """Return every combination that makes sense, cheapest plan first within a GPU card."""
        each = itertools.product(
            self.gpus,
            self.tp,
            self.pp,
            self.ep,
            self.quantisations,
            self.max_num_seqs,
            self.max_num_batched_tokens,
            self.clock_fracs,
            self.dp,
            self.roles,
        )
        made = [Choice(*values) for values in each]
        return [
            choice
            for choice in made
            if choice.gpus <= self.most_gpus
            and choice.tp * choice.dp % choice.ep == 0
            and choice.max_num_seqs <= choice.max_num_batched_tokens
        ]


@dataclass(frozen=True, slots=True)
class Scored:
    """A configuration with what it sustains.

    Parameters
    ----------
    choice : Choice
    column : Column
    capacity : mapping of str to Capacity
        By bucket.
    late : mapping of str to Capacity
        Without any promise, of the buckets that cannot be kept one; empty unless asked for.
    """

    choice: Choice
    column: Column
    capacity: Mapping[str, Capacity]
    late: Mapping[str, Capacity] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lost:
    """A configuration that is out, and why.

    Parameters
    ----------
    choice : Choice
    reason : str
    """

    choice: Choice
    reason: str


@dataclass(frozen=True, slots=True)
class Searched:
    """All configurations of a space.

    Parameters
    ----------
    kept : tuple of Scored
        Those of which no other is at least as good at everything.
    lost : tuple of Lost
    """

    kept: tuple[Scored, ...]
    lost: tuple[Lost, ...]


@dataclass(frozen=True, slots=True)
class Hand:
    """How KV gets from one replica to another of the same make.

    Parameters
    ----------
    price : TransferPrice
    port_bytes_per_s : float [bytes/s]
        Of one attention rank.
    block_tokens : int [tokens]
    first_token_at_decode : bool
        Whether the client gets the first token when the KV has arrived.
    """

    price: TransferPrice
    port_bytes_per_s: float
    block_tokens: int
    first_token_at_decode: bool

    def size_bytes(self, shape: Shape) -> float:
        """Return the KV of a prompt."""
        return self.price.bytes_per_token * shape.prompt_tokens + self.price.fixed_bytes

    def seconds(self, shape: Shape) -> float:
        """Return how long it takes when nobody else uses the ports [s]."""
        blocks = -(-shape.prompt_tokens // self.block_tokens)
        lead_s = self.price.lead_ns(blocks) / NS_PER_S
        return lead_s + self.size_bytes(shape) / self.port_bytes_per_s

    def limits(self, whole: Limits, shape: Shape, role: Role) -> Limits | None:
        """Return what a role must keep; None where KV alone comes too late.

        Parameters
        ----------
        whole : Limits
            What the request is promised. Of the time to its last token, prompts may take all that
            `ttft_s` allows and outputs the rest; without it, outputs all that `tpot_s` allows;
            with neither, prompts may take `first_frac` of it.
        shape : Shape
        role : {"prefill", "decode"}
        """
        way_s, gaps = self.seconds(shape), shape.output_tokens - 1
        # the way of the KV lies before the first token, or between it and the second
        way_first_s = way_s if self.first_token_at_decode else 0.0
        way_next_s = 0.0 if self.first_token_at_decode or not gaps else way_s
        first_s = whole.ttft_s
        if first_s == whole.tpot_s == math.inf > whole.e2e_s and gaps:
            first_s = whole.first_frac * whole.e2e_s
        if role == "prefill":
            if first_s == math.inf and whole.e2e_s < math.inf:
                first_s = whole.e2e_s - (gaps * whole.tpot_s if gaps else 0.0)
            left_s = first_s - way_first_s
            return Limits(ttft_s=left_s) if left_s > 0 else None
        if not gaps:
            return Limits(tpot_s=whole.tpot_s)
        left_s = whole.tpot_s - way_next_s / gaps
        if first_s < math.inf:
            left_s = min(left_s, (whole.e2e_s - first_s - way_next_s) / gaps)
        return Limits(tpot_s=left_s) if left_s > 0 else None


def search(
    scenario: Scenario,
    space: Space,
    shapes: Mapping[str, Shape],
    limits: Mapping[str, Limits] | Limits,
    prune: bool = True,
    late: bool = False,
    handoff: Handoff | None = None,
) -> Searched:
    """Return what every configuration of a space sustains, without those that lose to another.

    Parameters
    ----------
    scenario : Scenario
        Gives the model and, by its first pool, everything that the space does not vary.
    space : Space
    shapes : mapping of str to Shape
        Lengths of each bucket.
    limits : mapping of str to Limits, or Limits
        What is promised, by bucket or to all.
    prune : bool
        Leave out what loses to another configuration.
    late : bool
        Ask also what is sustained of buckets that cannot be kept the promise.
    handoff : Handoff, optional
        How prompts are handed over, where the space has roles.

    Raises
    ------
    ScenarioError
        If the space names what is not there, such as an unknown GPU.
    """
    of = limits if isinstance(limits, Mapping) else dict.fromkeys(shapes, limits)
    with holding():
        scored, lost = _asked(scenario, space, shapes, of, late, handoff or Handoff())
    if not prune:
        return Searched(tuple(scored), tuple(lost))
    kept, beaten = without_dominated(scored)
    return Searched(kept, (*lost, *beaten))


def _asked(
    scenario: Scenario,
    space: Space,
    shapes: Mapping[str, Shape],
    limits: Mapping[str, Limits],
    late: bool,
    handoff: Handoff,
) -> tuple[list[Scored], list[Lost]]:
    """Return what every configuration sustains, and those that sustain nothing."""
    scored: list[Scored] = []
    lost: list[Lost] = []
    made: dict[Choice, Built | str] = {}
    for choice in space.choices():
        plain = replace(choice, role="mixed")
        if plain not in made:
            # roles differ in what is asked of a replica, not in how it is made
            made = {plain: _built(scenario, plain, handoff)}
        built = made[plain]
        found = built if isinstance(built, str) else _scored(choice, built, shapes, limits, late)
        if isinstance(found, str):
            lost.append(Lost(choice, found))
        else:
            scored.append(found)
    return scored, lost


@dataclass(frozen=True, slots=True)
class Built:
    """A replica that fits its GPUs.

    Parameters
    ----------
    plan : PoolPlan
    hand : Hand
    node_gpus : int [GPUs]
    """

    plan: PoolPlan
    hand: Hand
    node_gpus: int


def _built(scenario: Scenario, choice: Choice, handoff: Handoff) -> Built | str:
    """Return a replica of a configuration, or why there is none."""
    name = next(iter(scenario.fleet.pools))
    model = load_model(scenario.models[0], scenario.folder)
    if choice.dp > 1 and not any(isinstance(layer.mlp, MoeMlp) for layer in model.layers):
        return "attention ranks share nothing but experts, and the model has none"
    try:
        asked = scenario.override(choice.overrides(name))
        plans, _ = build_pools(asked)
    except ModelDoesNotFitError as error:
        return _first_line(error)
    except InputError as error:
        if any(fault.path.endswith(".gpu") for fault in error.faults):
            raise
        return "; ".join(fault.message.rstrip(".") for fault in error.faults)
    pool = asked.fleet.pools[name]
    hand = Hand(
        transfer_price(handoff, pool, model),
        port_bytes_per_s(handoff, pool, scenario.folder),
        pool.engine.block_tokens,
        handoff.first_token == "decode",
    )
    node_gpus = pool.node_gpus or load_gpu(choice.gpu, scenario.folder).node_gpus
    return Built(plans[0], hand, node_gpus)


def _scored(
    choice: Choice,
    built: Built,
    shapes: Mapping[str, Shape],
    limits: Mapping[str, Limits],
    late: bool,
) -> Scored | str:
    """Return what a configuration sustains, or that it keeps no promise."""
    plan, hand, role = built.plan, built.hand, choice.role

    def sustained(shape: Shape, limit: Limits | None) -> Capacity:
        if limit is None:
            return Capacity(0.0, 0, math.nan, math.nan, "link")
        return capacity(plan.cost, plan.config, shape, limit, role, plan.joint, choice.dp)

    found = {
        name: sustained(
            shape, limits[name] if role == "mixed" else hand.limits(limits[name], shape, role)
        )
        for name, shape in shapes.items()
    }
    rates = {name: each.rate_rps for name, each in found.items()}
    if not any(rates.values()) and not late:
        bounds = sorted({each.bound for each in found.values()})
        return f"keeps the promise of no bucket: {', '.join(bounds)}"
    apart = role != "mixed"
    handed = {name: hand.size_bytes(each) for name, each in shapes.items()} if apart else {}
    column = Column(
        choice.name,
        choice.gpu,
        choice.gpus,
        plan.facts.usd_per_gpu_hour * choice.gpus,
        rates,
        role=role,
        handed_bytes=handed,
        port_bytes_per_s=hand.port_bytes_per_s * choice.dp if apart else math.inf,
        node_replicas=max(built.node_gpus // choice.gpus, 1),
    )
    freely = {
        name: sustained(shapes[name], Limits()) for name, rate in rates.items() if late and not rate
    }
    return Scored(choice, column, found, freely)


def without_dominated(scored: Sequence[Scored]) -> tuple[tuple[Scored, ...], tuple[Lost, ...]]:
    """Split configurations into those that may be of use and those that never are.

    A configuration is of no use if a whole number of replicas of another one, on the same kind of
    GPU, costs no more, takes no more GPUs, and sustains at least as much of every bucket: in any
    fleet it can be exchanged for them. With limits on a replica count that would not hold; there
    are none.

    Parameters
    ----------
    scored : sequence of Scored
    """
    kept: list[Scored] = []
    lost: list[Lost] = []
    order = sorted(range(len(scored)), key=lambda k: (scored[k].column.usd_per_hour, k))
    for number in order:
        one = scored[number]
        better = next((other for other in kept if _replacing(other.column, one.column)), None)
        if better is None:
            kept.append(one)
            continue
        times = _replacing(better.column, one.column)
        lost.append(Lost(one.choice, f"{times} x {better.column.name} do as much for no more"))
    return tuple(kept), tuple(lost)


def _replacing(better: Column, worse: Column) -> int:
    """Return how many replicas of a column can always stand in for one of another; 0 if none."""
    if (better.gpu, better.role) != (worse.gpu, worse.role):
        return 0
    times = min(int(worse.usd_per_hour / better.usd_per_hour + 1e-9), worse.gpus // better.gpus)
    enough = all(
        times * better.throughput_rps.get(bucket, 0.0) >= rate
        for bucket, rate in worse.throughput_rps.items()
    )
    wide = worse.role == "mixed" or times * better.port_bytes_per_s >= worse.port_bytes_per_s
    return times if enough and wide else 0


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
