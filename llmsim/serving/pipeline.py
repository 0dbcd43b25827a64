"""A pipeline: a replica whose layers lie on several stages, with a micro-batch in each.

There is one scheduler, one queue and one KV ledger, but several micro-batches in flight, as many as
there are stages. The scheduler is called when the oldest comes out; who is in flight in another one
is out of its reach, so each micro-batch keeps its decodes together, as a cohort of its own. A
micro-batch passes station after station (`StagedCost`), each of which serves one at a time and in
order; when a station waits for the one before, that is a bubble.

References
----------
vLLM v1, ``EngineCore.step_with_batch_queue`` (``vllm/v1/engine/core.py``): as long as fewer than
``pipeline_parallel_size`` batches are in flight, schedule another; when nobody can be scheduled or
there are enough, wait for the oldest. What arrives meanwhile is seen when that one is out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from llmsim.core.errors import InvariantError
from llmsim.costmodel.contract import StagedCost
from llmsim.costmodel.energy import ActiveEnergy
from llmsim.policies.answers import nothing_planned
from llmsim.policies.batching import BatchingPolicy
from llmsim.serving.admission import admit_waiting
from llmsim.serving.claims import ClaimLedger
from llmsim.serving.clock import Clock
from llmsim.serving.cohort import FOREVER
from llmsim.serving.config import EngineConfig
from llmsim.serving.equipment import merges_rounds
from llmsim.serving.gate import Gate
from llmsim.serving.microbatch import PipelineMeter, Slot, Way
from llmsim.serving.preemption import park, seat_of, take_loose
from llmsim.serving.queue import OrderedQueue
from llmsim.serving.replica import Replica
from llmsim.serving.request import DECODE, HANDED, WAITING, Request
from llmsim.serving.rounds import Rounds
from llmsim.serving.slots import make_slots
from llmsim.serving.slowed import SlowedStages
from llmsim.serving.staged_port import StagedPort


class Pipeline(Replica):
    """A replica with several stages.

    Parameters
    ----------
    clock, index, pool, config, policy, itl_slo_ns, on_end
        As for `Replica`; micro-batches in flight take the place of lookahead, which must be 0.
    cost : StagedCost
    energies : sequence of ActiveEnergy (stages,)
        Of each stage; empty to leave energy at zero.
    ledger : ClaimLedger or None
        Where requests are promised memory; None where they are not.

    Attributes
    ----------
    slots : list of Slot (stages,)
    loose : dict of Request
        Who runs, but is in no micro-batch: prompts in progress, and decodes that sat one out.
    station_names : tuple of str (stations,)
    busy_ns : list of int (stations,) [ns]
        How long each station has worked, for micro-batches that have been launched.
    in_flight_ns : int [ns]
        How long at least one of them was in flight.
    departing : list of Request
        Who goes on elsewhere when it is in flight no more.
    failing : bool
        What is in flight is the last, and lost.
    """

    def __init__(
        self,
        clock: Clock,
        index: int,
        pool: int,
        cost: StagedCost,
        config: EngineConfig,
        policy: BatchingPolicy,
        itl_slo_ns: int,
        on_end: Callable[[Request, str, int], None],
        energies: Sequence[ActiveEnergy] = (),
        ledger: ClaimLedger | None = None,
    ) -> None:
        if config.lookahead:
            raise InvariantError("a pipeline plans a micro-batch when one has come out")
        super().__init__(
            clock, index, pool, cost, config, policy, itl_slo_ns, on_end, ledger=ledger
        )
        self._staged: StagedCost = cost
        self._given = cost  # what it costs while nothing slows it down
        self._energies = tuple(energies)
        self._main = PipelineMeter(itl_slo_ns)
        self.meter = self._main
        self.port = StagedPort(self)
        self._most = cost.stages
        self._steady = self._steady and merges_rounds(policy)
        self._engine = self.line.engine if isinstance(self.line, OrderedQueue) else None
        self.slots = make_slots(self.draft, cost, self._main, on_end)
        self._flying: deque[Slot] = deque()
        self._free_ns = [0] * len(cost.names)  # when each station has served what is launched
        self.station_names = cost.names
        self.busy_ns = [0] * len(cost.names)
        self.in_flight_ns = 0
        self._rounds = Rounds(len(cost.names), config.block_tokens, quiet=False)
        self._seats = 0
        self._held: deque[Slot] = deque()  # those in flight whose way waits for KV
        self._stage_of = [
            int(name.split()[1]) if name.startswith("stage") else -1 for name in cost.names
        ]
        self.loose: dict[Request, None] = {}
        self._leaving: list[tuple[Request, str]] = []  # of all who run, in order of leaving
        self.departing: list[Request] = []
        self.failing = False
        self._changes = 0  # whatever may let the scheduler decide otherwise
        self.enter(self.slots[0])

    def _registrable(self, request: Request) -> int:
        """Tokens of a request with an output whose blocks may be registered during this call."""
        if request.state != DECODE:
            return request.computed
        for slot in self.slots:
            if request in slot.draft.running_set:
                # those in flight have been accounted for when their way was settled
                begun = (slot.end_ns < 0 or slot.end_ns == FOREVER) and slot.draft.decoding
                return request.base + slot.cohort.tick + (1 if begun else 0)
        raise InvariantError(f"request {request.view.index} decodes in no micro-batch")

    # --- from outside -----------------------------------------------------------------------

    @property
    def running(self) -> int:
        """Requests that hold KV now."""
        return sum(len(slot.draft.running_set) for slot in self.slots) + len(self.loose)

    def enqueue(self, request: Request, called_now: bool = False) -> None:
        """Take in a request; it is seen when the oldest micro-batch has come out."""
        self._changes += 1
        super().enqueue(request, called_now)

    def drop(self, request: Request, outcome: str, called_now: bool = False) -> None:
        """Let a request go because its client left.

        Who waits ends at once, who runs when its micro-batch has come out.
        """
        self._changes += 1
        if request.state == WAITING or request.state >= HANDED:
            super().drop(request, outcome, called_now)
            return
        self._leaving.append((request, outcome))

    def look_again(self, called_now: bool = False) -> None:
        """Have the scheduler called for what has just become possible, when it looks again."""
        self._changes += 1
        super().look_again(called_now)

    def cut(self, called_now: bool = False) -> None:
        """Have the scheduler called once more: what it has planned on has changed."""
        self._changes += 1

    def slow_down(self, drag_frac: float) -> None:
        """Let every micro-batch that is sent from now on take that much longer at each stage."""
        self._staged = SlowedStages(self._given, drag_frac) if drag_frac else self._given
        for slot in self.slots:
            slot.until_tokens = -1  # until they are priced anew

    # --- the call ---------------------------------------------------------------------------

    def enter(self, slot: Slot) -> None:
        """Make a micro-batch the one that is planned, together with who is in none."""
        draft = slot.draft
        self.draft, self.cohort = draft, slot.cohort
        if self._engine is not None:
            self._engine.follow(draft)
        self.delivery, self._stretch, self._step = slot.delivery, slot.stretch, slot.step
        self.running_set = running = draft.running_set
        draft.seats = self._seats
        draft.beside = self.running - len(running) - len(self.loose)
        draft.max_seqs = self.config.max_num_seqs - draft.beside
        if self.loose:
            take_loose(draft, self.loose)
        if self._leaving:
            slot.delivery.leaving += [one for one in self._leaving if one[0] in running]
            self._leaving = [one for one in self._leaving if one[0] not in running]
        if self.departing:
            slot.delivery.departing += [one for one in self.departing if one in running]
            self.departing = [one for one in self.departing if one not in running]

    def leave(self, slot: Slot) -> None:
        """Let go who is not in flight with a micro-batch: the next one may take them."""
        slot.seen = self._seen(slot)
        draft = slot.draft
        self._seats = draft.seats
        running = draft.running_set
        cohort = slot.cohort
        if cohort.count and (slot.end_ns < 0 or not draft.decoding):
            for request in list(running):
                if request.state == DECODE:
                    park(draft, request)
            slot.delivery.unticked.clear()
        loose = self.loose
        completing = slot.completing
        if len(draft.prefilling) > len(completing):
            done = dict.fromkeys(completing)
            for request in list(draft.prefilling):
                if request not in done:
                    del draft.prefilling[request]
                    del running[request]
                    loose[request] = None
        if draft.parked:
            for request in draft.parked:
                del running[request]
                loose[request] = None
            draft.parked.clear()
        if len(loose) > 1:
            self.loose = dict.fromkeys(sorted(loose, key=seat_of))
        if draft.together is not None:
            draft.together.look()

    def _call(self, now: int) -> None:
        """Take in the micro-batch that has come out, if one has, and launch as many as may be."""
        now = self._tick_on(now)
        if now < 0:
            return
        self.events += 1
        flying = self._flying
        if flying and flying[0].end_ns <= now:
            slot = flying.popleft()
            self.come_out(slot)
        else:
            slot = self._idle_slot()
        self.enter(slot)
        slot.delivery.failing = self.failing
        slot.delivery.settle(now, now)
        self.failing = self.failing and len(flying) > 0
        while not self.failing:
            planned = self.plan(slot, now)
            if planned:
                self._send(slot, now)
            again = not planned and len(slot.draft.preempted) > 0
            if again and self.recorder is not None:
                self._record(now)
            self.leave(slot)
            if not planned and not again:
                break
            if len(flying) == self._most:
                break
            if planned:
                slot = self._idle_slot()
            self.enter(slot)
            if again:  # seats that were lost may go to those whose KV has come
                slot.delivery.settle(now, now)
        if flying:
            self._call_ns = flying[0].end_ns
        else:
            self.rest()

    def rest(self) -> None:
        """Sleep: nothing was planned, and nothing is in flight."""
        if (self.running or self.port.somebody_waits()) and not self._expects():
            who = f"replica {self.index}"
            raise nothing_planned(self._policy, who, self.running, self.waiting)
        self._asleep = True

    def come_out(self, slot: Slot) -> None:
        """Note that a micro-batch has come out of the last stage."""
        slot.end_ns = -1
        if slot.delivery.completing or slot.cohort.due <= slot.cohort.tick:
            self._changes += 1

    def _seen(self, slot: Slot) -> int:
        """Return which changes the scheduler knows of, if it would plan the same again."""
        draft = slot.draft
        if draft.chunks or draft.preempted:
            self._changes += 1
        quiet = self._steady and 0 <= slot.end_ns < FOREVER
        if draft.blocked_on_writer or self.loose:
            quiet = False
        # of these ticks, the one that has been planned has run
        most = draft.most_ticks
        slot.until_tick = slot.cohort.tick + most - 1 if most < FOREVER else FOREVER
        if draft.chunks or draft.first_need < 0:
            quiet = False
        return self._changes if quiet else -1

    def _tick_on(self, now: int) -> int:
        """Let decodes go on for which the scheduler would plan the same again.

        Returns
        -------
        int [ns]
            When the scheduler must be called; -1 if something else in the world comes first.
        """
        flying, clock = self._flying, self.clock
        while flying:
            slot = flying[0]
            if self._held or not self.repeats(slot):
                return now
            due = clock.next_ns()
            if self._rounds.pays(flying, self._changes, due - now) and self._go_round(now, due):
                now = self._call_ns
                if now >= due:
                    return -1
                continue
            flying.popleft()
            end = self._pass_decodes(slot, now)
            self.repeat(slot, now, end, slot.active_uj())
            flying.append(slot)
            self._call_ns = now = flying[0].end_ns
            if due <= now:
                return -1
            clock.jump(now)
        return now

    def _go_round(self, now: int, until_ns: int) -> bool:
        """Let micro-batches enter one after another; return whether anyone could."""
        rounds, ledger = self._rounds, self.ledger
        rounds.now, rounds.out_ns, rounds.in_flight_ns = now, self._exec_end_ns, 0
        blocks = self._kv_blocks - ledger.free, ledger.free
        times = self._free_ns, self.busy_ns
        if not rounds.run(self._flying, self._changes, until_ns, blocks, times):
            return False
        if rounds.blocks:
            ledger.take(rounds.blocks)
        self.in_flight_ns += rounds.in_flight_ns
        self._exec_end_ns = rounds.out_ns
        self._call_ns = rounds.now
        self.clock.jump(rounds.now if rounds.now < until_ns else rounds.last_ns)
        return True

    def repeats(self, slot: Slot) -> bool:
        """Whether the scheduler would plan the decodes of a micro-batch again, and has room."""
        cohort = slot.cohort
        tick = cohort.tick
        if slot.seen != self._changes or not cohort.due > tick < slot.until_tick or self.loose:
            return False
        return cohort.block_ring[tick % self.config.block_tokens] <= self.ledger.free

    def repeat(self, slot: Slot, now: int, end: int, active_uj: int) -> None:
        """Let decodes enter again as they are, now, to come out at `end` [ns]."""
        cohort, draft = slot.cohort, slot.draft
        need = cohort.block_ring[cohort.tick % self.config.block_tokens]
        if need:
            self.ledger.take(need)
        slot.end_ns = end
        self._rounds.gap_ns = gap = end - now
        slot.tick(gap)
        cohort.padded_sum(1)
        cohort.advance(1, cohort.grown)
        draft.tick_end_ns = end
        front = self._exec_end_ns if self._exec_end_ns > now else now
        self.in_flight_ns += end - front
        self._exec_end_ns = end
        used = self._kv_blocks - self.ledger.free
        running = draft.beside + len(draft.running_set)
        slot.meter.log(front, end, 1, cohort.count, running, used, used, 0, 0, gap, gap, active_uj)

    def _idle_slot(self) -> Slot:
        for slot in self.slots:
            if slot.end_ns < 0:
                return slot
        raise InvariantError(f"replica {self.index} has no micro-batch left")

    def plan(self, slot: Slot, now: int) -> bool:
        """Let the policy fill a micro-batch; return whether there is anything in it."""
        draft = slot.draft
        draft.begin(now)
        if draft.swapper is not None and draft.swapper.swapped:
            draft.swapper.bring_back()
        if draft.claims is not None:
            draft.claims.renew(draft)
        if self.running_set or self.line.count:
            if not self._plain:
                self._policy.plan(slot.step)
            elif draft.advance_running() and self.line.count:
                admit_waiting(draft, False)  # as `VllmBatching.plan`, but not through Python
        return len(draft.chunks) > 0 or (draft.decoding and slot.cohort.count > 0)

    def _send(self, slot: Slot, now: int) -> None:
        """Send a micro-batch into the pipeline; its way is settled now, unless it waits for KV."""
        draft, cohort = slot.draft, slot.cohort
        if draft.chunks:
            count = cohort.count if draft.decoding else 0
            slices = [(tokens, past) for _, tokens, past in draft.chunks]
            rows = count + draft.logits
            padded = cohort.padded if count else 0
            windowed = cohort.windowed if count else 0
            times = self._staged.station_ns(slices, count, padded, windowed, rows)
            active_uj = 0
            for energy in self._energies:
                active_uj += energy.priced_step_uj(count, padded, windowed, rows)
        else:
            slot.price(self._staged, self._energies)
            # by the lines, unless that has to wait
            waits = self._held or draft.gates
            times = slot.station_ns(cohort.padded, cohort.windowed) if waits else []
            active_uj = slot.active_uj()
        way = self._way(slot, now, times, active_uj)
        if draft.gates:
            way.gates = tuple(draft.gates)
            draft.gates.clear()
        self._flying.append(slot)
        if self._held or way.waits():
            slot.end_ns = FOREVER
            self._held.append(slot)
        else:
            self._settle(slot, way)
        self._front_ns = now
        if self.recorder is not None:
            self._record(now)
        if slot.end_ns < FOREVER:
            slot.account()
            if slot.delivery.hands_early and draft.chunks:
                self.port.windows = slot.windows(self._free_ns, self._stage_of)
                slot.delivery.hand_early()

    def sent(self, slot: Slot, now: int, end: int, active_uj: int) -> None:
        """Account for a micro-batch that enters now and is known to come out at `end` [ns]."""
        self._settle_until(slot, self._way(slot, now, [], active_uj), end)
        self._front_ns = now
        if self.recorder is not None:
            self._record(now)
        slot.account()

    def _way(self, slot: Slot, now: int, times: list[int], active_uj: int) -> Way:
        """Begin the way of a micro-batch that has been planned."""
        draft = slot.draft
        count = slot.cohort.count if draft.decoding else 0
        used = self._kv_blocks - self.ledger.free
        running = draft.beside + len(draft.running_set)
        slot.way = Way(now, times, count, count + draft.logits, active_uj, used, running)
        return slot.way

    def _settle(self, slot: Slot, way: Way) -> None:
        """Settle when a micro-batch comes out, behind all others."""
        now, times = way.enters_ns, way.times
        end = self.pass_stations(now, times, way.gates) if times else self._pass_decodes(slot, now)
        self._settle_until(slot, way, end)

    def _settle_until(self, slot: Slot, way: Way, end: int) -> None:
        """Note when a micro-batch comes out."""
        slot.end_ns = end
        # it counts as in flight from when the one before it comes out
        way.front_ns = front = max(way.enters_ns, self._exec_end_ns)
        self.in_flight_ns += end - front
        self._exec_end_ns = end
        if slot.draft.chunks:
            slot.emit()

    def open_gate(self) -> None:
        """Settle the way of those that have waited for what has come now."""
        held, flying = self._held, self._flying
        while held and not held[0].way.waits():
            slot = held.popleft()
            self._settle(slot, slot.way)
            slot.account()
        if self._call_ns == FOREVER and flying and flying[0].end_ns < FOREVER:
            self._call_at(max(flying[0].end_ns, self.clock.now))

    def _pass_decodes(self, slot: Slot, now: int) -> int:
        """Return when decodes come out that enter now [ns]; see `pass_stations`."""
        cohort = slot.cohort
        if cohort.padded > slot.until_tokens:
            slot.price(self._staged, self._energies)
        return self.pass_stations(now, slot.station_ns(cohort.padded, cohort.windowed))

    def pass_stations(self, now: int, times: list[int], gates: tuple[Gate, ...] = ()) -> int:
        """Return when a micro-batch comes out that enters now, behind all others [ns]."""
        free, busy = self._free_ns, self.busy_ns
        time = now
        for station, takes in enumerate(times):
            if free[station] > time:
                time = free[station]
            begins = time
            time += takes
            if gates and self._stage_of[station] >= 0:
                for gate in gates:
                    time = max(time, gate.end_ns(begins, takes, self._stage_of[station]))
            free[station] = time
            busy[station] += takes
        return time
