"""Controllers in time: when they look, what they see, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llmsim.core.rng import stream
from llmsim.core.units import seconds_to_ns
from llmsim.policies.control import Action, ControlPolicy
from llmsim.results.changes import FleetChange
from llmsim.serving.clock import ARRIVAL_PRIORITY, Clock
from llmsim.serving.migration import MigrationPlan, Migrations
from llmsim.serving.wake import Wake
from llmsim.serving.watch import FleetSnapshot

if TYPE_CHECKING:
    from llmsim.serving.fleet import Fleet
    from llmsim.serving.flows import Flows
    from llmsim.serving.replica import Replica

CONTROL_PRIORITY: Final = ARRIVAL_PRIORITY + 2
"""Controllers look after the arrivals of an instant, before transfers end and replicas call."""


@dataclass(frozen=True, slots=True)
class ControlPlan:
    """What is done about a fleet while it runs.

    Parameters
    ----------
    policies : tuple of ControlPolicy
        Fresh instances; started here.
    migration : MigrationPlan or None
        None where requests stay where they are.
    """

    policies: tuple[ControlPolicy, ...] = ()
    migration: MigrationPlan | None = None


class Controller:
    """One policy at its period.

    Parameters
    ----------
    clock : Clock
    policy : ControlPolicy
        Started by the caller.
    look : callable
        Returns what the fleet reports now; called with whether it is acted on at once.
    carry_out : callable
        Does what the policy asks for.
    """

    def __init__(
        self,
        clock: Clock,
        policy: ControlPolicy,
        look: Callable[[bool], FleetSnapshot],
        carry_out: Callable[[Action], None],
    ) -> None:
        self._clock = clock
        self._policy = policy
        self._look = look
        self._carry_out = carry_out
        self._period_ns = seconds_to_ns(policy.period_s)
        self._age_ns = seconds_to_ns(policy.view_age_s)
        self._wake = Wake(self._tick)
        clock.at(self._wake, CONTROL_PRIORITY, self._period_ns)

    def _tick(self, _: Wake) -> None:
        clock = self._clock
        age_ns = self._age_ns
        seen = self._look(not age_ns)
        if age_ns:
            clock.at(Wake(lambda _: self._act(seen)), CONTROL_PRIORITY, clock.now + age_ns)
        else:
            self._act(seen)
        clock.at(self._wake, CONTROL_PRIORITY, clock.now + self._period_ns)

    def _act(self, seen: FleetSnapshot) -> None:
        seen.now_ns = self._clock.now
        for action in self._policy.act(seen):
            self._carry_out(action)


class Controls:
    """All controllers of a run, and what they can have done.

    Parameters
    ----------
    clock : Clock
    plan : ControlPlan
    replicas : sequence of Replica
    roles : sequence of str
        Of each replica.
    fleet : Fleet
    flows : Flows
    seed : int
        For the policies' own streams.

    Attributes
    ----------
    log : list of FleetChange
    """

    def __init__(
        self,
        clock: Clock,
        plan: ControlPlan,
        replicas: Sequence[Replica],
        roles: Sequence[str],
        fleet: Fleet,
        flows: Flows,
        seed: int,
    ) -> None:
        self._replicas = replicas
        self._roles = list(roles)
        self._states = ["up"] * len(replicas)
        self.log: list[FleetChange] = []
        self._migrations: Migrations | None = None
        if plan.migration is not None:
            moves = Migrations(
                clock,
                plan.migration,
                flows,
                replicas,
                fleet.on_end,
                fleet.check_done,
                self.log.append,
            )
            self._migrations = moves
            fleet.under_way = moves.under_way
        for number, policy in enumerate(plan.policies):
            policy.start(stream(seed, f"control-{number}"))
            Controller(clock, policy, self._look, self._carry_out)

    def _look(self, at_once: bool) -> FleetSnapshot:
        return FleetSnapshot(self._replicas, self._roles, self._states, at_once)

    def _carry_out(self, action: Action) -> None:
        if self._migrations is not None:
            source = self._replicas[action.source]
            for request in source.running_set:
                if request.view.index == action.request:
                    self._migrations.start(request, source, self._replicas[action.target])
                    return
