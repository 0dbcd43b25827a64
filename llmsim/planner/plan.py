"""A plan: what to buy, how traffic is split over it, what it costs, and what shows that it will do.

Plain values, frozen, with a JSON form (`Plan.as_json`, `Plan.from_json`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from llmsim.core.errors import Fault, InputError

Outcome = Literal["proven", "good enough", "simulated", "not proven", "not simulated"]


@dataclass(frozen=True, slots=True)
class Demanded:
    """A range of prompt lengths.

    Parameters
    ----------
    name : str
    low_tokens : int [tokens]
        Shortest prompt; the next range's is beyond the longest.
    rate_rps : float [requests/s]
    late_frac : float
        Share of its requests that no configuration keeps the promise.
    """

    name: str
    low_tokens: int
    rate_rps: float
    late_frac: float


@dataclass(frozen=True, slots=True)
class Spending:
    """What a replica's time and memory go into when it carries all it can.

    Parameters
    ----------
    prompts, outputs, whole : dict of str to float
        Share of time by resource (``compute``, ``bandwidth``, ``link``, ``host``, ``launches``): of
        what prompts add, of decode steps, of both. Empty where its role computes none.
    kv_frac, seats_frac : float
        Use of its KV blocks, and of `max_num_seqs`, by the mean batch.
    """

    prompts: dict[str, float]
    outputs: dict[str, float]
    whole: dict[str, float]
    kv_frac: float
    seats_frac: float


@dataclass(frozen=True, slots=True)
class Used:
    """Replicas of one configuration that are bought.

    Parameters
    ----------
    name : str
        Of the column, and of the pool in the fleet's scenario (with ``_`` for ``.``).
    gpu : str
    tp, pp, ep : int
    quantisation : str
        Empty for the model's own.
    max_num_seqs, max_num_batched_tokens : int
    clock_frac : float
    gpus : int [GPUs]
        Of one replica.
    usd_per_hour : float [USD/h]
        Of one replica.
    price_source : str
    replicas : int
    spare_replicas : int
        Of these, how many may be lost.
    utilisation_frac : float
        Load over all that the pool could carry if requests came evenly.
    in_flight : float [requests]
        That one replica has at a time at its capacity.
    bound : str
        What keeps it from more: ``tpot``, ``ttft``, ``e2e``, ``kv``, ``max_num_seqs``.
    share : dict of str to float
        By range: part of its requests that come here; of who decodes, of all of the range.
    role : str
        ``mixed``, ``prefill`` or ``decode``.
    dp : int
        Attention ranks.
    port_frac : float
        How busy the ports are with KV that is handed over, alone.
    spending : Spending or None
        None where its cost model does not say.
    """

    name: str
    gpu: str
    tp: int
    pp: int
    ep: int
    quantisation: str
    max_num_seqs: int
    max_num_batched_tokens: int
    clock_frac: float
    gpus: int
    usd_per_hour: float
    price_source: str
    replicas: int
    spare_replicas: int
    utilisation_frac: float
    in_flight: float
    bound: str
    share: dict[str, float]
    role: str = "mixed"
    dp: int = 1
    port_frac: float = 0.0
    spending: Spending | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """A stage of the waterfall from the naive fleet to the one that is proposed.

    Parameters
    ----------
    name : str
        ``naive``, ``pooled``, ``N+k`` or ``loss``, ``simulated``.
    meaning : str
    usd_per_hour : float [USD/h]
    replicas : dict of str to int
        By column.
    seconds : float [s]
        That it took to find.
    """

    name: str
    meaning: str
    usd_per_hour: float
    replicas: dict[str, int]
    seconds: float


@dataclass(frozen=True, slots=True)
class Bound:
    """What no fleet can be below, and on what assumption.

    Parameters
    ----------
    usd_per_hour : float [USD/h]
    gap_frac : float
        How far the plan's cost is above it, relative to the plan's cost.
    assumption : str
    """

    usd_per_hour: float
    gap_frac: float
    assumption: str


@dataclass(frozen=True, slots=True)
class Rival:
    """A cheap fleet of one GPU card alone.

    Parameters
    ----------
    gpu : str
    usd_per_hour : float or None [USD/h]
        None where there is none.
    replicas : dict of str to int
    reason : str
        Why there is none.
    shown : bool
        Whether it passed by simulation, and nothing can be taken from it; else it is what the
        program with room for bursts says.
    """

    gpu: str
    usd_per_hour: float | None
    replicas: dict[str, int]
    reason: str
    shown: bool


@dataclass(frozen=True, slots=True)
class Current:
    """What runs today.

    Parameters
    ----------
    replicas : dict of str to int
        By column.
    usd_per_hour : float [USD/h]
    utilisation_frac : float or None
        Load of the busiest pool over what it could carry if requests came evenly; None where some
        requests cannot be served in time at all.
    reason : str
        Why there is no utilisation.
    """

    replicas: dict[str, int]
    usd_per_hour: float
    utilisation_frac: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """A fleet that was simulated.

    Parameters
    ----------
    stage : str
        Why it was simulated: ``current``, ``naive``, ``pooled``, ``search``, ``bound``, ``trim``,
        ``confirm`` (under seeds that had no part in the search), ``recorded`` (the trace as it is).
    replicas : dict of str to int
        By column; what is left of the fleet where replicas were taken away for the test.
    lost : str
        Column of the replicas that were taken away, or ``zone``; empty where none were.
    usd_per_hour : float [USD/h]
        Of the whole fleet.
    seeds : tuple of int (n,)
    attained_frac : tuple of float (n,)
        Share of requests that kept every limit, by seed.
    overloaded : int
        Seeds in which the fleet did not keep up.
    low_frac, high_frac : float
        Lower and upper confidence bound of the mean.
    passed : bool
    reason : str
    digests : tuple of str (n,)
        Of the runs: what `llmsim run` of the same scenario and seed gives.
    ttft_p99_s, tpot_p99_s : float or None [s]
        Means over the seeds.
    """

    stage: str
    replicas: dict[str, int]
    lost: str
    usd_per_hour: float
    seeds: tuple[int, ...]
    attained_frac: tuple[float, ...]
    overloaded: int
    low_frac: float
    high_frac: float
    passed: bool
    reason: str
    digests: tuple[str, ...]
    ttft_p99_s: float | None
    tpot_p99_s: float | None


@dataclass(frozen=True, slots=True)
class Corrected:
    """One replica simulated on the mixed traffic, against its closed form.

    Parameters
    ----------
    column : str
    role : str
    closed_rps, simulated_rps : float [requests/s]
        Of the whole mix.
    factor : float
        The second over the first.
    runs : int
        Simulations that it took.
    """

    column: str
    role: str
    closed_rps: float
    simulated_rps: float
    factor: float
    runs: int


@dataclass(frozen=True, slots=True)
class Loser:
    """A configuration that is not bought.

    Parameters
    ----------
    name : str
    gpu : str
    usd_per_hour : float or None [USD/h]
    reason : str
    """

    name: str
    gpu: str
    usd_per_hour: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to buy, and why.

    Parameters
    ----------
    name : str
    model : str
    outcome : str
        ``proven``: no cheaper fleet passes, if more replicas never serve worse; ``good enough``:
        within the tolerance of the bound; ``simulated``: the fleet passes, and a cheaper one was
        not ruled out; ``not proven``: no fleet passed; ``not simulated``.
    reason : str
        One sentence.
    rate_rps : float [requests/s]
    dispersion : float
        Variance over mean of arrivals in windows of about a service time; 1 for Poisson.
    ranges : tuple of Demanded
    slo : dict of str to float
        Limits by name, and ``attained_frac``.
    used : tuple of Used
        The fleet.
    usd_per_hour : float [USD/h]
    bound : Bound
    waterfall : tuple of Step
    rivals : tuple of Rival
        By GPU card, cheapest first.
    current : Current or None
    evidence : tuple of Evidence
        In the order of simulation.
    corrected : tuple of Corrected
    losers : tuple of Loser
    notes : tuple of str
        What must be known about these numbers.
    scenario_yaml : str
        The fleet as a scenario that `llmsim run` takes.
    plan_yaml : str
        What was asked for.
    llmsim_version : str
    seconds : float [s]
    """

    name: str
    model: str
    outcome: Outcome
    reason: str
    rate_rps: float
    dispersion: float
    ranges: tuple[Demanded, ...]
    slo: dict[str, float]
    used: tuple[Used, ...]
    usd_per_hour: float
    bound: Bound
    waterfall: tuple[Step, ...]
    rivals: tuple[Rival, ...]
    current: Current | None
    evidence: tuple[Evidence, ...]
    corrected: tuple[Corrected, ...]
    losers: tuple[Loser, ...]
    notes: tuple[str, ...]
    scenario_yaml: str
    plan_yaml: str
    llmsim_version: str
    seconds: float

    @property
    def replicas(self) -> dict[str, int]:
        """The fleet by column."""
        return {each.name: each.replicas for each in self.used}

    @property
    def proof(self) -> Evidence | None:
        """The last simulation of the proposed fleet as a whole; None if there was none."""
        found = [each for each in self.evidence if each.replicas == self.replicas]
        return found[-1] if found else None

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        from pydantic import TypeAdapter

        told: dict[str, Any] = TypeAdapter(Plan).dump_python(self, mode="json")
        return told

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plan:
        """Return what `as_json` made plain values of.

        Raises
        ------
        InputError
            If it is no plan.
        """
        from pydantic import TypeAdapter, ValidationError

        try:
            return TypeAdapter(Plan).validate_python(data)
        except ValidationError as error:
            faults = [
                Fault("", ".".join(map(str, each["loc"])), each["msg"]) for each in error.errors()
            ]
            raise InputError("plan.json", faults) from None
