"""Which configurations there are, what each sustains, and why one is not worth asking about."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llmsim.core.errors import InputError, ModelDoesNotFitError
from llmsim.planner.capacity import Capacity, Limits, Shape, capacity
from llmsim.planner.problem import Column, Role
from llmsim.scenario import Scenario
from llmsim.serving.build import build_pools


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
    """

    gpu: str
    tp: int = 1
    pp: int = 1
    ep: int = 1
    quantisation: str = ""
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    clock_frac: float = 1.0

    @property
    def gpus(self) -> int:
        """GPUs of one replica."""
        return self.tp * self.pp

    @property
    def name(self) -> str:
        """What differs from the defaults, in one word."""
        plan = [f"{key}{n}" for key in ("tp", "pp", "ep") if (n := getattr(self, key)) > 1]
        words = [self.gpu, *plan, self.quantisation]
        words += [f"seqs{self.max_num_seqs}"] * (self.max_num_seqs != 256)
        words += [f"tokens{self.max_num_batched_tokens}"] * (self.max_num_batched_tokens != 8192)
        words += [f"clock{self.clock_frac:g}"] * (self.clock_frac != 1.0)
        return "-".join(word for word in words if word)

    def overrides(self, pool: str) -> dict[str, object]:
        """Return what turns a pool of a scenario into replicas like this.

        Parameters
        ----------
        pool : str
            Its name.
        """
        own = f"fleet.pools.{pool}"
        return {
            f"{own}.gpu": self.gpu,
            f"{own}.tp": self.tp,
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
        )
        made = [Choice(*values) for values in each]
        return [
            choice
            for choice in made
            if choice.gpus <= self.most_gpus
            and choice.tp % choice.ep == 0
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


def search(
    scenario: Scenario,
    space: Space,
    shapes: Mapping[str, Shape],
    limits: Mapping[str, Limits] | Limits,
    role: Role = "mixed",
    prune: bool = True,
    late: bool = False,
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
    role : {"mixed", "prefill", "decode"}
    prune : bool
        Leave out what loses to another configuration.
    late : bool
        Ask also what is sustained of buckets that cannot be kept the promise.

    Raises
    ------
    ScenarioError
        If the space names what is not there, such as an unknown GPU.
    """
    pool = next(iter(scenario.fleet.pools))
    of = limits if isinstance(limits, Mapping) else dict.fromkeys(shapes, limits)
    scored: list[Scored] = []
    lost: list[Lost] = []
    for choice in space.choices():
        try:
            asked = scenario.override(choice.overrides(pool))
            plans, _ = build_pools(asked)
        except ModelDoesNotFitError as error:
            lost.append(Lost(choice, _first_line(error)))
            continue
        except InputError as error:
            if any(fault.path.endswith(".gpu") for fault in error.faults):
                raise
            lost.append(Lost(choice, "; ".join(fault.message for fault in error.faults)))
            continue
        plan = plans[0]
        found = {
            name: capacity(plan.cost, plan.config, shape, of[name], role)
            for name, shape in shapes.items()
        }
        rates = {name: each.rate_rps for name, each in found.items()}
        if not any(rates.values()) and not late:
            bounds = sorted({each.bound for each in found.values()})
            lost.append(Lost(choice, f"keeps the promise of no bucket: {', '.join(bounds)}"))
            continue
        cost = plan.facts.usd_per_gpu_hour * choice.gpus
        column = Column(choice.name, choice.gpu, choice.gpus, cost, rates)
        freely = {
            name: capacity(plan.cost, plan.config, shapes[name], Limits(), role)
            for name, rate in rates.items()
            if late and not rate
        }
        scored.append(Scored(choice, column, found, freely))
    if not prune:
        return Searched(tuple(scored), tuple(lost))
    kept, beaten = without_dominated(scored)
    return Searched(kept, (*lost, *beaten))


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
    if better.gpu != worse.gpu:
        return 0
    times = min(int(worse.usd_per_hour / better.usd_per_hour + 1e-9), worse.gpus // better.gpus)
    enough = all(
        times * better.throughput_rps.get(bucket, 0.0) >= rate
        for bucket, rate in worse.throughput_rps.items()
    )
    return times if enough else 0


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
