"""Steps that can be stopped inside and go on later: a replica that computes prompts for others.

A step computes prompts only. When somebody arrives who goes before those being computed, the step
stops at the next boundary (`llmsim.costmodel.boundaries`); what it has done stays where it is, and
it goes on from there when it is its turn again. Between arrivals and ends of steps nobody is asked
anything. A prompt takes all its KV blocks when it is begun, so that those begun can always go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from llmsim.core.errors import InvariantError
from llmsim.core.integers import rounded
from llmsim.costmodel.boundaries import StopPoints
from llmsim.policies.batching import StepDraft
from llmsim.policies.precedence import Precedence, Rank
from llmsim.policies.views import RequestView
from llmsim.results.stops import StopFacts
from llmsim.serving.admission import seat
from llmsim.serving.decisions import GO_ON, STOP
from llmsim.serving.replica import Replica
from llmsim.serving.request import Request
from llmsim.serving.turning import TurningQueue


@dataclass(frozen=True, slots=True)
class StopPlan:
    """How steps of a pool are stopped.

    Parameters
    ----------
    precedence : callable
        Returns a fresh policy; called once per replica.
    points : StopPoints or None
        Where a step can be stopped inside; None for nowhere.
    agree_ns : int [ns]
        Time from the boundary until all ranks have agreed that they stop there.
    """

    precedence: Callable[[], Precedence]
    points: StopPoints | None
    agree_ns: int = 0


class Planner:
    """The batching policy of such a replica: hands the draft to the replica itself."""

    every_step: ClassVar[bool] = False

    def __init__(self) -> None:
        self.fill: Callable[[], None] | None = None

    def urgency(self, request: RequestView) -> tuple[int, ...] | None:
        """No order of its own."""
        return None

    def plan(self, step: StepDraft) -> None:
        """Let the replica fill in its next step."""
        if self.fill is None:
            raise InvariantError("a planner was never given its replica")
        self.fill()


class Stopped:
    """A step that was begun, and what of it has run.

    Parameters
    ----------
    chunks : list of (Request, int, int)
        As in `Draft.chunks`.
    logits : int [rows]
    duration_ns : int [ns]
        The whole step without a stop.
    active_uj : int [uJ]
        Its energy above idle.

    Attributes
    ----------
    ran_ns : int [ns]
    spent_uj : int [uJ]
        Of the parts that have run.
    """

    __slots__ = ("active_uj", "chunks", "duration_ns", "logits", "ran_ns", "slices", "spent_uj")

    def __init__(
        self,
        chunks: list[tuple[Request, int, int]],
        logits: int,
        duration_ns: int,
        active_uj: int,
    ) -> None:
        self.chunks = chunks
        self.slices = [(tokens, past) for _, tokens, past in chunks]
        self.logits = logits
        self.duration_ns = duration_ns
        self.active_uj = active_uj
        self.ran_ns = 0
        self.spent_uj = 0


class Begun:
    """A prompt that has been admitted and is not computed yet.

    Attributes
    ----------
    done : int [tokens]
        Computed in steps that have ended.
    executed_ns : int [ns]
        What these took.
    stopped : Stopped or None
        The step that it is in, if that was stopped.
    """

    __slots__ = ("done", "executed_ns", "stopped")

    def __init__(self) -> None:
        self.done = 0
        self.executed_ns = 0
        self.stopped: Stopped | None = None


class Profile:
    """How long prompts take on this replica; implements `PrefillProfile`."""

    def __init__(self, replica: StoppingReplica) -> None:
        self._replica = replica
        self._known: dict[int, int] = {}

    @property
    def longest_tokens(self) -> int:
        """The longest prompt that it serves [tokens]."""
        return self._replica.config.max_model_len

    def prefill_ns(self, tokens: int) -> int:
        """Return the time of a prompt that is computed alone, step by step [ns]."""
        known = self._known.get(tokens)
        if known is None:
            known = past = 0
            while past < tokens:
                new = min(tokens - past, self._replica.config.max_num_batched_tokens)
                known += self._replica.alone_ns(new, past, past + new == tokens)
                past += new
            self._known[tokens] = known
        return known


class StoppingReplica(Replica):
    """A replica that computes prompts, in steps that can be stopped.

    Takes what `Replica` takes, with a `Planner` for its policy; gets its plan before the run.

    Attributes
    ----------
    stops : int
        Steps stopped inside so far.
    stop_wait_ns, longest_stop_ns : int [ns]
        From the arrival that stopped a step until the stop: in all, and the longest.
    """

    def prepare(self, plan: StopPlan) -> None:
        """Say who goes first, and where steps can be stopped."""
        policy = self._policy
        if self._lookahead or not isinstance(policy, Planner):
            raise InvariantError("a step that can be stopped is planned when the one before ends")
        policy.fill = self.fill
        self._points = plan.points
        self._agree_ns = plan.agree_ns
        self._checks_ns = 0 if plan.points is None else plan.points.checks_ns
        self.stops = self.stop_wait_ns = self.longest_stop_ns = 0
        self._begun: dict[Request, Begun] = {}
        self._under_way: Stopped | None = None
        self._going_on: Stopped | None = None  # what the draft takes up again
        self._stop_at = -1  # where the step under way will be stopped, from its start
        self._precedence = plan.precedence()
        self._precedence.start(Profile(self))
        self._waiting_line = TurningQueue(self._precedence, self.clock)
        self.line = self.draft.line = self._waiting_line
        self.draft.fcfs = False

    def alone_ns(self, new: int, past: int, last: bool) -> int:
        """Return what a step with one slice of a prompt takes [ns]."""
        return self._price_step([(new, past)], 0, 0, 0, int(last))

    def _price_step(
        self, slices: list[tuple[int, int]], decode: int, padded: int, windowed: int, rows: int
    ) -> int:
        return super()._price_step(slices, decode, padded, windowed, rows) + self._checks_ns

    # --- who arrives ------------------------------------------------------------------------

    def enqueue(self, request: Request, called_now: bool = False) -> None:
        """Take in a request; stop the step under way if this lets somebody go before it."""
        super().enqueue(request, called_now)
        step = self._under_way
        points = self._points
        now = self.clock.now
        if step is None or points is None or self._stop_at >= 0 or self._exec_end_ns <= now:
            return
        head = self.line.head()
        if head is None or not self._fits(head):
            return
        ran = step.ran_ns + now - self._front_ns
        if self._waiting_line.rank(head) >= self._rank_of_step(step, now, ran):
            return
        after = max(1, ran + called_now)
        at = points.next_ns(step.slices, step.logits, step.duration_ns, after)
        if at + self._agree_ns >= step.duration_ns:
            return
        self._stop_at = at
        wait = at + self._agree_ns - ran
        self.stops += 1
        self.stop_wait_ns += wait
        self.longest_stop_ns = max(self.longest_stop_ns, wait)
        self._exec_end_ns = now + wait
        self._call_at(self._exec_end_ns)

    def _fits(self, request: Request) -> bool:
        """Whether a request that waits could be begun now."""
        draft = self.draft
        if len(self.running_set) >= draft.max_seqs:
            return False
        room = self.ledger.free - (draft.watermark_blocks if self.running_set else 0)
        return -(-(request.prompt + request.generated) // draft.block_tokens) <= room

    def _rank_of_step(self, step: Stopped, now: int, ran_ns: int) -> Rank:
        """Return the rank of a step: that of its first prompt, with the tokens of all."""
        tokens = 0
        first: Request | None = None
        for request, _, _ in step.chunks:
            if not request.ended:
                first = first or request
                tokens += request.prompt + request.generated
        if first is None:
            return ()  # all have left: nobody waits for it, and nobody stops it
        executed = self._begun[first].executed_ns + ran_ns
        return self._precedence.rank(first.view, tokens, executed, now)

    # --- the call ---------------------------------------------------------------------------

    def fill(self) -> None:
        """Plan the next step: one that goes on, or prompts in order of their rank."""
        draft = self.draft
        begun = self._ranked(draft.now)
        at = tokens = 0
        lead: Request | None = None
        while draft.budget_tokens > 0:
            head = self.line.head()
            if head is not None and not self._fits(head):
                head = None
            if at < len(begun) and (head is None or begun[at][0] < self._waiting_line.rank(head)):
                request = begun[at][1]
                at += 1
                stopped = self._begun[request].stopped
                if stopped is not None:
                    if lead is None:
                        self._take_up(stopped)
                        return
                    continue  # it goes on alone
                waits = False
            elif head is not None:
                request = head
                waits = True
            else:
                return
            if lead is not None and not self._precedence.joins(
                lead.view, tokens, request.view, draft.now
            ):
                return
            if not self._advance(request, waits):
                return
            lead = lead or request
            tokens += request.prompt + request.generated

    def _ranked(self, now: int) -> list[tuple[Rank, Request]]:
        """Return the prompts that are begun, one of each stopped step, in order of rank."""
        if not self._begun:
            return []
        for request in [request for request in self._begun if request.ended]:
            del self._begun[request]
        found = []
        seen: list[Stopped] = []
        for request, begun in self._begun.items():
            step = begun.stopped
            if step is None:
                tokens = request.prompt + request.generated
                rank = self._precedence.rank(request.view, tokens, begun.executed_ns, now)
            elif step in seen:
                continue
            else:
                seen.append(step)
                rank = self._rank_of_step(step, now, step.ran_ns)
            found.append((rank, request))
        found.sort(key=_rank_of)
        return found

    def _advance(self, request: Request, waits: bool) -> bool:
        """Give a prompt tokens in this step; return whether it got some."""
        draft = self.draft
        known = request.prompt + request.generated
        done = 0 if waits else self._begun[request].done
        tokens = known - done
        if draft.limit_now:
            tokens = min(tokens, draft.limit_now)
        if tokens > draft.budget_tokens:
            if not draft.chunked:
                return False
            tokens = draft.budget_tokens
        if waits:
            draft.line.pop()
            self.ledger.take(-(-known // draft.block_tokens))
            seat(draft, request, 0)
            request.computed = known
            self._begun[request] = Begun()
        draft.budget_tokens -= tokens
        draft.chunks.append((request, tokens, done))
        if done + tokens == known:
            draft.logits += 1
        return True

    def _take_up(self, step: Stopped) -> None:
        """Let a stopped step go on."""
        draft = self.draft
        self._going_on = step
        draft.chunks = [chunk for chunk in step.chunks if not chunk[0].ended]
        draft.logits = sum(completes(chunk) for chunk in draft.chunks)
        draft.budget_tokens = 0
        draft.decisions.extend((GO_ON, draft.chunks[0][0].view.index, draft.now))

    def _launch_step(self, front: int) -> None:
        self._stop_at = -1
        step = self._going_on
        if step is None:
            super()._launch_step(front)
            draft = self.draft
            self._under_way = Stopped(draft.chunks, draft.logits, self._gap, self._active_uj)
            return
        self._going_on = None
        self._under_way = step
        self._stretch.anchored = False
        self._gap = step.duration_ns - step.ran_ns
        self._active_uj = step.active_uj - step.spent_uj
        self._ticks = 0
        self._chunked_step = True
        self._kv_used = self._kv_blocks - self.ledger.free
        self._end_step(front)

    def _emit(self, end: int) -> int:
        """Leave tokens to the end of the step, which may come later."""
        return 0

    def _account(self) -> None:
        step = self._under_way
        if step is not None:
            if self._stop_at >= 0:
                self._set_aside(step)
            else:
                self._complete(step)
            self._under_way = None
        super()._account()

    def _set_aside(self, step: Stopped) -> None:
        """Keep what has run of a step for later."""
        draft = self.draft
        step.ran_ns = self._stop_at
        spent = rounded(step.active_uj * (step.ran_ns / step.duration_ns))
        self._active_uj = spent - step.spent_uj
        step.spent_uj = spent
        draft.logits = 0  # of this part; the next draft counts anew
        for request, _, _ in step.chunks:
            if not request.ended:
                self._begun[request].stopped = step
        draft.decisions.extend((STOP, step.chunks[0][0].view.index, self._exec_end_ns))

    def _complete(self, step: Stopped) -> None:
        """Let prompts whose last tokens were in the step have their first token."""
        end = self._exec_end_ns
        for chunk in step.chunks:
            request, tokens, past = chunk
            if request.ended:
                continue  # its client has left meanwhile
            self._prefill_tokens += tokens
            if completes(chunk):
                self.delivery.emit_first(request, end)
                if self.tape is not None:
                    self.tape.alone(request, end)
                del self._begun[request]
                continue
            begun = self._begun[request]
            begun.done = past + tokens
            begun.executed_ns += step.duration_ns
            begun.stopped = None


def completes(chunk: tuple[Request, int, int]) -> bool:
    """Return whether a slice (request, new, past) is the last one of its prompt."""
    request, tokens, past = chunk
    return past + tokens == request.prompt + request.generated


def _rank_of(found: tuple[Rank, Request]) -> Rank:
    return found[0]


def allow_stops(plans: Sequence[StopPlan | None], replicas: Sequence[Replica]) -> None:
    """Give every replica whose steps can be stopped its plan.

    Parameters
    ----------
    plans : sequence of StopPlan or None
        By pool.
    replicas : sequence of Replica
        Of all pools; those of pools with a plan are `StoppingReplica`.
    """
    for replica in replicas:
        plan = plans[replica.pool]
        if plan is None:
            continue
        if not isinstance(replica, StoppingReplica):
            raise InvariantError(f"steps of replica {replica.index} cannot be stopped")
        replica.prepare(plan)


def stop_facts(names: Sequence[str], replicas: Sequence[Replica]) -> tuple[StopFacts, ...]:
    """Return what was stopped on replicas whose steps can be stopped.

    Parameters
    ----------
    names : sequence of str
        Of each replica's pool.
    replicas : sequence of Replica
    """
    return tuple(
        StopFacts(name, each.index, each.stops, each.stop_wait_ns, each.longest_stop_ns)
        for name, each in zip(names, replicas, strict=True)
        if isinstance(each, StoppingReplica)
    )
