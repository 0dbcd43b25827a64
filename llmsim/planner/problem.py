"""What is to be served, what it can be served by, and what is allowed."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from llmsim.core.errors import Fault, InputError, nearest

Role = Literal["mixed", "prefill", "decode"]
"""What replicas compute: whole requests, prompts with their first tokens, or the rest."""

PORT_USABLE_FRAC: Final = 0.6
"""How busy a port may be planned with KV that is handed over. Assumed: transfers come in bursts,
and wait for one another on a port that is busier."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Bucket:
    """Requests that are alike enough to be counted together.

    Parameters
    ----------
    name : str
        Names its rows of the program.
    rate_rps : float [requests/s]
        How many of them arrive.
    """

    name: str
    rate_rps: float


@dataclass(frozen=True, slots=True)
class Column:
    """A configuration of a replica: hardware, plan, engine settings.

    Parameters
    ----------
    name : str
        Names its variables.
    gpu : str
        GPU card; what an inventory counts.
    gpus : int [GPUs]
        Of one replica.
    usd_per_hour : float [USD/h]
        Of one replica.
    throughput_rps : mapping of str to float [requests/s]
        By bucket: most requests of that bucket alone that one replica serves within the SLO.
        Absent or 0: it does not meet the SLO at any rate.
    usable : tuple of float [replicas]
        Load that 1, 2, ... replicas together carry, for pools that gain by being large; each in
        units of what a single one carries in `throughput_rps`. Empty: a fixed share of them.
    usable_beyond : float [replicas]
        Load that each replica beyond those of `usable` adds; 0: pools have a largest size.
    role : {"mixed", "prefill", "decode"}
        A request is served by one mixed replica, or by one of each of the others.
    handed_bytes : mapping of str to float [bytes]
        By bucket: KV of a request that leaves a prefill replica, or comes to a decode replica.
    port_bytes_per_s : float [bytes/s]
        Of one replica to others, one direction.
    node_replicas : int [replicas]
        That share a node, and are lost with it.
    model : str
        Which it serves, where there are several: halves go with halves of the same, and a fleet
        that is known not to do rules out others of its own model alone.
    """

    name: str
    gpu: str
    gpus: int
    usd_per_hour: float
    throughput_rps: Mapping[str, float]
    usable: tuple[float, ...] = ()
    usable_beyond: float = 0.0
    role: Role = "mixed"
    handed_bytes: Mapping[str, float] = field(default_factory=dict)
    port_bytes_per_s: float = math.inf
    node_replicas: int = 1
    model: str = ""

    def load_per_rps(self, bucket: str) -> float:
        """Return the replicas that one request per second of a bucket keeps busy.

        Parameters
        ----------
        bucket : str

        Returns
        -------
        float [replicas s]
            Infinite where the SLO cannot be met.
        """
        rate = self.throughput_rps.get(bucket, 0.0)
        return 1.0 / rate if rate > 0 else math.inf

    def serves(self, bucket: str) -> bool:
        """Return whether a replica meets the SLO of a bucket, or its part of it, at some rate.

        Parameters
        ----------
        bucket : str
        """
        return self.throughput_rps.get(bucket, 0.0) > 0


@dataclass(frozen=True, slots=True)
class Problem:
    """A fleet to be bought for one model.

    Parameters
    ----------
    buckets : tuple of Bucket
    columns : tuple of Column
    usable_frac : float
        Share of a column's capacity that may be used, for columns without `Column.usable`.
    slices : int
        Into how many equal slices a bucket is cut, each served by one kind of replica as in
        Mélange (arXiv 2404.14527); 0: a bucket may be split at will, which is never dearer.
    available_gpus : mapping of str to int [GPUs]
        By GPU card; a card that is absent is not limited.
    budget_usd_per_hour : float [USD/h]
    spare_replicas : int [replicas]
        How many replicas of any one kind may be lost without the rest of that kind being
        overloaded: 1 is N+1.
    current : mapping of str to int [replicas]
        What runs today, by column.
    change_usd_per_hour : float [USD/h]
        What a replica more or less than today must save to be worth it.
    failed : tuple of mapping of str to int [replicas]
        Fleets that are known not to do, by column: of some column there must be more than in each,
        since whatever is no larger anywhere does no better.
    port_usable_frac : float
        Share of a port's bandwidth that KV which is handed over may take.
    spare_nodes : int [nodes]
        How many nodes with replicas of any one kind may be lost likewise.
    zones : int [zones]
        Over so many zones every kind is spread evenly, and any one of them may be lost, with its
        part of all kinds at once; 0: no zone is lost.
    """

    buckets: tuple[Bucket, ...]
    columns: tuple[Column, ...]
    usable_frac: float = 1.0
    slices: int = 0
    available_gpus: Mapping[str, int] = field(default_factory=dict)
    budget_usd_per_hour: float = math.inf
    spare_replicas: int = 0
    current: Mapping[str, int] = field(default_factory=dict)
    change_usd_per_hour: float = 0.0
    failed: tuple[Mapping[str, int], ...] = ()
    port_usable_frac: float = PORT_USABLE_FRAC
    spare_nodes: int = 0
    zones: int = 0

    def spare(self, column: Column) -> int:
        """Return how many replicas of a column may be lost, beside a zone's.

        Parameters
        ----------
        column : Column
        """
        return max(self.spare_replicas, self.spare_nodes * column.node_replicas)

    @property
    def apart(self) -> bool:
        """Whether some columns compute prompts or outputs alone."""
        return any(column.role != "mixed" for column in self.columns)

    def served(self, bucket: str) -> bool:
        """Return whether a bucket can be served by some column, or by two after one another.

        Parameters
        ----------
        bucket : str
        """
        return served({c.role for c in self.columns if c.serves(bucket)})

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises
        ------
        InputError
            With every fault.
        """
        faults = [*self._faulty_buckets(), *self._faulty_columns(), *self._faulty_limits()]
        if faults:
            raise InputError("plan", faults)

    def most_replicas(self, column: Column) -> int:
        """Return how many replicas of a column can be of use at most.

        Parameters
        ----------
        column : Column
        """
        total = math.fsum(
            bucket.rate_rps * load
            for bucket in self.buckets
            if (load := column.load_per_rps(bucket.name)) < math.inf
        )
        if column.usable:
            carried = [n for n, most in enumerate(column.usable, 1) if most >= total - 1e-9]
            wanted = carried[0] if carried else len(column.usable)
            if not carried and column.usable_beyond > 0:
                short = total - column.usable[-1]
                wanted += math.ceil(short / column.usable_beyond - 1e-9)
        else:
            wanted = math.ceil(total / self.usable_frac - 1e-9)
        if not total > 0:
            return 0
        if column.usable_beyond > 0 or not column.usable:
            wanted = max(wanted, self._wanted_ports(column))
        # of what was too little, there may have to be one more
        more = max((fleet.get(column.name, 0) + 1 for fleet in self.failed), default=0)
        if self.zones:
            wanted = -(-wanted * self.zones // (self.zones - 1))
        return max(wanted + self.spare(column), more)

    def _wanted_ports(self, column: Column) -> int:
        """Return the replicas whose ports carry all that could be handed over."""
        sizes = ((b.rate_rps, column.handed_bytes.get(b.name, 0.0)) for b in self.buckets)
        handed = math.fsum(rate * size for rate, size in sizes)
        return math.ceil(handed / (self.port_usable_frac * column.port_bytes_per_s) - 1e-9)

    def _faulty_buckets(self) -> Iterator[Fault]:
        if not self.buckets:
            yield Fault("", "buckets", "there is no traffic to plan for")
        yield from _faulty_names("buckets", [bucket.name for bucket in self.buckets])
        for bucket in self.buckets:
            if not (0 < bucket.rate_rps < math.inf):
                message = f"{bucket.rate_rps:g} requests/s is no traffic"
                yield Fault("", f"buckets.{bucket.name}.rate_rps", message)

    def _faulty_columns(self) -> Iterator[Fault]:
        known = {bucket.name for bucket in self.buckets}
        if not self.columns:
            yield Fault("", "columns", "there is nothing to choose from")
        yield from _faulty_names("columns", [column.name for column in self.columns])
        for column in self.columns:
            where = f"columns.{column.name}"
            if column.node_replicas < 1:
                message = f"{column.node_replicas} is no number of replicas"
                yield Fault("", f"{where}.node_replicas", message)
            if column.gpus < 1:
                yield Fault("", f"{where}.gpus", f"{column.gpus} is no number of GPUs")
            if not (0 < column.usd_per_hour < math.inf):
                message = f"{column.usd_per_hour:g} USD/h is no price"
                yield Fault("", f"{where}.usd_per_hour", message)
            for bucket, rate in column.throughput_rps.items():
                if bucket not in known:
                    message = f"there is no bucket '{bucket}'."
                    yield Fault("", f"{where}.throughput_rps", message, nearest(bucket, known))
                elif not (0 <= rate < math.inf):
                    message = f"{rate:g} requests/s is no throughput"
                    yield Fault("", f"{where}.throughput_rps.{bucket}", message)
            if list(column.usable) != sorted(column.usable) or any(x < 0 for x in column.usable):
                yield Fault("", f"{where}.usable", "more replicas must not carry less")
            if not (0 <= column.usable_beyond < math.inf):
                message = f"{column.usable_beyond:g} is no load"
                yield Fault("", f"{where}.usable_beyond", message)
            yield from _faulty_hand_over(column, where, known)

    def _faulty_limits(self) -> Iterator[Fault]:
        if not (0 < self.usable_frac <= 1):
            yield Fault("", "usable_frac", f"{self.usable_frac:g} is not in (0, 1]")
        if self.slices < 0:
            yield Fault("", "slices", f"{self.slices} is negative")
        if self.slices and self.apart:
            message = "slices go to one replica each: not with columns of prompts or outputs alone"
            yield Fault("", "slices", message)
        if not (0 < self.port_usable_frac <= 1):
            yield Fault("", "port_usable_frac", f"{self.port_usable_frac:g} is not in (0, 1]")
        if self.spare_replicas < 0:
            yield Fault("", "spare_replicas", f"{self.spare_replicas} is negative")
        if self.spare_nodes < 0:
            yield Fault("", "spare_nodes", f"{self.spare_nodes} is negative")
        if self.zones < 0 or self.zones == 1:
            message = f"{self.zones} zones: when one is lost, another must be left"
            yield Fault("", "zones", message)
        if not self.budget_usd_per_hour > 0:
            yield Fault("", "budget_usd_per_hour", f"{self.budget_usd_per_hour:g} buys nothing")
        if not (0 <= self.change_usd_per_hour < math.inf):
            yield Fault("", "change_usd_per_hour", f"{self.change_usd_per_hour:g} is no price")
        gpus = {column.gpu for column in self.columns}
        for name, count in self.available_gpus.items():
            if name not in gpus:
                message = f"no column is on '{name}'."
                yield Fault("", f"available_gpus.{name}", message, nearest(name, gpus))
            if count < 0:
                yield Fault("", f"available_gpus.{name}", f"{count} is negative")
        names = {column.name for column in self.columns}
        fleets = {"current": self.current}
        fleets |= {f"failed.{number}": fleet for number, fleet in enumerate(self.failed)}
        for where, fleet in fleets.items():
            for name, count in fleet.items():
                if name not in names:
                    message = f"there is no column '{name}'."
                    yield Fault("", f"{where}.{name}", message, nearest(name, names))
                if count < 0:
                    yield Fault("", f"{where}.{name}", f"{count} is negative")


def served(roles: set[Role]) -> bool:
    """Return whether requests are served by replicas of some roles together.

    Parameters
    ----------
    roles : set of Role
    """
    return "mixed" in roles or {"prefill", "decode"} <= roles


def _faulty_hand_over(column: Column, where: str, buckets: set[str]) -> Iterator[Fault]:
    if column.role not in get_args(Role):
        message = f"'{column.role}' is no role."
        yield Fault("", f"{where}.role", message, nearest(column.role, get_args(Role)))
    if not column.port_bytes_per_s > 0:
        message = f"{column.port_bytes_per_s:g} bytes/s carry nothing"
        yield Fault("", f"{where}.port_bytes_per_s", message)
    for bucket, size in column.handed_bytes.items():
        if bucket not in buckets:
            message = f"there is no bucket '{bucket}'."
            yield Fault("", f"{where}.handed_bytes", message, nearest(bucket, buckets))
        elif not (0 <= size < math.inf):
            yield Fault("", f"{where}.handed_bytes.{bucket}", f"{size:g} bytes are no size")


def _faulty_names(kind: str, names: list[str]) -> Iterator[Fault]:
    for name, count in Counter(names).items():
        if count > 1:
            yield Fault("", f"{kind}.{name}", f"is there {count} times")
        if not _NAME.fullmatch(name):
            yield Fault("", f"{kind}.{name}", "is no name: letters, digits, '.', '_', '-'")
