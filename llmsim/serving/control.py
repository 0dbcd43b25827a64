"""Controllers in time: when they look, what they see, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from llmsim.core.errors import InvariantError, PolicyError
from llmsim.core.rng import stream
from llmsim.core.units import seconds_to_ns
from llmsim.policies.answers import told
from llmsim.policies.control import Action, Add, ControlPolicy, Drain, Migrate, SetRole
from llmsim.results.changes import FleetChange
from llmsim.results.facts import RunFacts
from llmsim.serving.clock import ARRIVAL_PRIORITY, Clock
from llmsim.serving.life import BootPlan, Life
from llmsim.serving.migration import MigrationPlan, Migrations
from llmsim.serving.roles import FlipPlan, Roles
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
    boot : BootPlan or None
        None where no replica comes or goes.
    flip : FlipPlan or None
        None where every replica keeps its role.
    """

    policies: tuple[ControlPolicy, ...] = ()
    migration: MigrationPlan | None = None
    boot: BootPlan | None = None
    flip: FlipPlan | None = None


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
    places : sequence of (str, bool)
        Role of each replica, and whether it is off at first.
    fleet : Fleet
    flows : Flows
    seed : int
        For the policies' own streams.

    Attributes
    ----------
    log : list of FleetChange
    life : Life or None
    roles : Roles or None
    """

    def __init__(
        self,
        clock: Clock,
        plan: ControlPlan,
        replicas: Sequence[Replica],
        places: Sequence[tuple[str, bool]],
        fleet: Fleet,
        flows: Flows,
        seed: int,
    ) -> None:
        self._clock = clock
        self._replicas = replicas
        self._roles = [role for role, _ in places]
        spare = {index for index, (_, off) in enumerate(places) if off}
        self.log: list[FleetChange] = []
        self.life: Life | None = None
        self.roles: Roles | None = None
        self._migrations: Migrations | None = None
        tell = self.log.append
        if plan.boot is not None and fleet.gateway is not None:
            self.life = fleet.life = Life(
                clock, plan.boot, replicas, spare, fleet, fleet.gateway, flows, tell
            )
        if plan.migration is not None:
            moves = Migrations(
                clock, plan.migration, flows, replicas, fleet.on_end, fleet.check_done, tell
            )
            self._migrations = moves
            fleet.under_way = moves.under_way
            if self.life is not None:
                self.life.migrations = moves
                moves.strand, moves.freed = self.life.strand, self.life.look_soon
        if plan.flip is not None:
            self.roles = fleet.roles = _roles(
                clock, plan.flip, replicas, self._roles, fleet, flows, tell
            )
            self._roles = self.roles.roles
        for number, policy in enumerate(plan.policies):
            policy.start(stream(seed, f"control-{number}"))
            Controller(clock, policy, self._look, partial(self._carry_out, policy))

    def added_to(self, facts: RunFacts) -> RunFacts:
        """Return the facts of the run with what was done about its fleet."""
        replicas = facts.replicas
        if self.life is not None:
            billed = self.life.billed_ns(facts.end_ns)
            replicas = tuple(
                replace(replica, billed_ns=each)
                for replica, each in zip(replicas, billed, strict=True)
            )
        return replace(facts, replicas=replicas, changes=tuple(self.log))

    def _look(self, at_once: bool) -> FleetSnapshot:
        states = ["up"] * len(self._replicas) if self.life is None else self.life.states
        if self.roles is not None:
            states = self.roles.states(states)
        return FleetSnapshot(self._replicas, self._roles, states, at_once)

    def _carry_out(self, policy: ControlPolicy, action: Action) -> None:
        if isinstance(action, Migrate):
            if self._migrations is None:
                raise _impossible(policy, action, "nothing migrates: say fleet.migration")
            self._migrate(action, self._migrations)
            return
        if isinstance(action, SetRole):
            if self.roles is None:
                raise _impossible(policy, action, "replicas keep their roles: say fleet.flip")
            refusal = self.roles.set_role(action.replica, action.role)
            if refusal:
                what = f"to {action.role} refused: {refusal}"
                self.log.append(FleetChange(self._clock.now, what, action.replica))
            return
        if self.life is None:
            raise _impossible(policy, action, "no replica comes or goes: say fleet.boot")
        if isinstance(action, Add):
            what, at, refusal = "add", -1, self.life.add(action.pool)
        elif isinstance(action, Drain):
            what, at, refusal = "drain", action.replica, self.life.drain(action.replica)
        else:
            what, at, refusal = "fail", action.replica, self.life.fail(action.replica)
        if refusal:
            self.log.append(FleetChange(self._clock.now, f"{what} refused: {refusal}", at))

    def _migrate(self, action: Migrate, migrations: Migrations) -> None:
        if self.life is not None and self.life.states[action.target] != "up":
            return
        if self.roles is not None and self._replicas[action.target].turn in self.roles.changing:
            return
        source = self._replicas[action.source]
        for request in source.port.running_requests():
            if request.view.index == action.request:
                migrations.start(request, source, self._replicas[action.target])
                return


def _impossible(policy: ControlPolicy, action: Action, why: str) -> PolicyError:
    return PolicyError(f"{told(policy)}: act returned {action}, but {why}")


def _roles(
    clock: Clock,
    plan: FlipPlan,
    replicas: Sequence[Replica],
    roles: Sequence[str],
    fleet: Fleet,
    flows: Flows,
    tell: Callable[[FleetChange], None],
) -> Roles:
    gateway, handoff = fleet.gateway, fleet.handoff
    if gateway is None or handoff is None:
        raise InvariantError("roles change only between a gateway and a handoff")
    behind = fleet.doors, roles, fleet, gateway, handoff, handoff.view, flows, tell
    return Roles(clock, plan, replicas, *behind)
