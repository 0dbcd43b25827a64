"""Images become embeddings: on replicas that do nothing else, or at the start of a prompt's step.

Where some replicas have the role ``encode``, a request with images goes to one of them first, and
to the router of arrivals when all its images are encoded. Its embeddings then go to the replica
that the router has chosen, over the ports of both, and it joins the line there as they arrive.
Where there is no such replica, a step that begins with the tokens of an image encodes it first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmsim.core.errors import InvariantError
from llmsim.costmodel.energy import ActiveEnergy
from llmsim.costmodel.images import ImageCost
from llmsim.policies.views import RequestView
from llmsim.serving.board import LoadBoard
from llmsim.serving.clock import Clock
from llmsim.serving.flows import FLOW_PRIORITY, Flow, Flows
from llmsim.serving.port import Port
from llmsim.serving.replica import Replica
from llmsim.serving.request import HANDED, Request
from llmsim.serving.wake import Wake

if TYPE_CHECKING:
    from llmsim.serving.fleet import Fleet


@dataclass(frozen=True, slots=True)
class EncodingPlan:
    """What it takes to bring embeddings from who encodes to who computes prompts.

    Parameters
    ----------
    image_tokens : int [tokens]
        What an image is in a prompt.
    bytes_per_token : float [bytes/token]
        Of an embedding.
    message_ns : int [ns]
        What one request's transfer costs beside its bytes.
    port_bytes_per_s : tuple of float [bytes/s]
        What one replica of each pool can send or receive.
    """

    image_tokens: int
    bytes_per_token: float
    message_ns: int
    port_bytes_per_s: tuple[float, ...]


class SeeingReplica(Replica):
    """A replica that encodes the images of its prompts itself, at the start of a step.

    An image is encoded in the step that computes the first of its tokens which is not cached, and
    anew where its prompt has to be computed anew.
    """

    def see(self, cost: ImageCost, energy: ActiveEnergy | None) -> None:
        """Say what encoding takes, before the run."""
        self._images = cost
        self._image_energy = energy
        self._image_uj = 0

    def _price_step(
        self, slices: list[tuple[int, int]], decode: int, padded: int, windowed: int, rows: int
    ) -> int:
        """Return how long a step takes, its images first [ns]; see `StepCost.step_ns`."""
        images = self._begun_images()
        encoding = self._images.images_ns(images)
        self._image_uj = 0
        if images and self._image_energy is not None:
            self._image_uj = self._image_energy.priced_step_uj(0, 0, 0, 0)
        return encoding + super()._price_step(slices, decode, padded, windowed, rows)

    def _launch_step(self, front: int) -> None:
        super()._launch_step(front)
        self._active_uj += self._image_uj

    def _begun_images(self) -> int:
        """Count the images whose first tokens the step computes that is planned."""
        size, images = self._images.image_tokens, 0
        for request, new, past in self.draft.chunks:
            most = request.view.images
            if past >= most * size:
                continue
            goes_on = past > 0 and past == request.encoded_tokens
            first = -(-past // size) if goes_on else past // size
            images += max(0, min(most, -(-(past + new) // size)) - first)
            request.encoded_tokens = past + new
        return images


class EncodePort(Port):
    """The port of a replica that encodes: what counts is who will compute the prompt."""

    def attach(self, encoding: Encoding) -> None:
        """Say whose replica it is."""
        self._encoding = encoding

    def can_ever_hold(self, request: Request) -> bool:
        """Whether somebody can compute the prompt."""
        return self._encoding.can_ever_hold(request)

    def longest_tokens(self) -> int:
        """Return the longest prompt plus output that somebody takes [tokens]."""
        return self._encoding.longest_tokens()

    def drop(self, request: Request, outcome: str) -> None:
        """Let a request go whose client leaves as its images have been encoded."""
        self._encoding.left(request, outcome)


class EncodeReplica(Replica):
    """A replica that encodes images: its prompts are the tokens of images, its chunks whole ones.

    It keeps no KV, and computes no tokens of prompts: what it takes is time and energy.
    """

    def serve(self, encoding: Encoding) -> None:
        """Say to whom requests go on, before the run."""
        self._shares = True  # so that it is asked what KV it holds
        port = EncodePort(self)
        port.attach(encoding)
        self.port = port
        self.delivery.hand_over = encoding.encoded
        self.delivery.drop_handed = port.drop

    def _launch_step(self, front: int) -> None:
        self.draft.logits = 0  # nobody gets a token here
        super()._launch_step(front)

    def _emit(self, end: int) -> int:
        """Note whose images will all be encoded at the end of the step [ns]; no token comes out."""
        for request, _, _ in self.draft.chunks:
            if request.computed == request.prompt:
                self.delivery.completing.append(request)
        return 0

    def _kv_held(self) -> int:
        return 0


class Encoding:
    """The first part of the way of requests with images.

    Parameters
    ----------
    clock : Clock
    plan : EncodingPlan
    fleet : Fleet
    doors : sequence of EncodeReplica
        In the order of the board's indices.
    board : LoadBoard
        Of these.
    flows : Flows
        Whose resources ``2 i`` and ``2 i + 1`` are what leaves replica i and what comes in.
    """

    def __init__(
        self,
        clock: Clock,
        plan: EncodingPlan,
        fleet: Fleet,
        doors: Sequence[Replica],
        board: LoadBoard,
        flows: Flows,
    ) -> None:
        self._clock = clock
        self._plan = plan
        self._fleet = fleet
        self.doors = list(doors)
        self._board = board
        self._flows = flows
        for door in doors:
            if not isinstance(door, EncodeReplica):
                raise InvariantError(f"replica {door.index} encodes no images")
            door.serve(self)

    def choose(self, view: RequestView) -> int:
        """Return who encodes a request's images: the one with the fewest requests."""
        return self._board.least_outstanding()

    def can_ever_hold(self, request: Request) -> bool:
        """Whether somebody can compute a request's prompt."""
        return any(door.port.can_ever_hold(request) for door in self._fleet.doors)

    def longest_tokens(self) -> int:
        """Return the longest prompt plus output that all take who compute prompts [tokens]."""
        return min(door.port.longest_tokens() for door in self._fleet.doors)

    def send(self, request: Request, chosen: int, replica: Replica) -> None:
        """Put a request in the line of a replica that encodes, as if its images were its prompt."""
        self._board.change(chosen, 1, self._clock.now)
        request.prompt = request.view.images * self._plan.image_tokens
        replica.enqueue(request, self._fleet.called(replica, self._clock.now))

    def encoded(self, request: Request) -> None:
        """Let a request go on whose images are encoded, during a call of who has done it."""
        source = request.replica
        if source is None:
            raise InvariantError(f"request {request.view.index} was encoded nowhere")
        blocks = -(-request.computed // source.config.block_tokens)
        source.ledger.release(request, blocks, 0)
        source.ledger.forget(request)
        request.held_blocks = request.computed = 0
        request.prompt = request.view.prompt_tokens
        request.state = HANDED
        wake = Wake(lambda _: self._bring(request, source))
        self._clock.at(wake, FLOW_PRIORITY, self._clock.now)

    def left(self, request: Request, outcome: str) -> None:
        """End a request whose client leaves in the call that sends it on."""
        self._fleet.on_end(request, outcome, self._clock.now)

    def _bring(self, request: Request, source: Replica) -> None:
        """Route a request, and bring its embeddings to where it is going to wait."""
        if request.ended:
            return
        self._fleet.set_adrift(request)
        chosen = self._fleet.chosen(request)
        target = self._fleet.doors[chosen]
        if target.ranks is not None:
            target = target.ranks.choose()
        began = self._clock.now

        def arrived(_: Flow) -> None:
            if request.ended:
                return
            now = self._clock.now
            # at the instant of the source's call, replicas up to it have had theirs
            passed = now == began and target.turn <= source.turn
            self._fleet.board.change(chosen, 1, now)
            request.queued_ns = now
            target.enqueue(request, passed)

        plan = self._plan
        size = plan.bytes_per_token * plan.image_tokens * request.view.images
        path = (2 * source.index, 2 * target.index + 1)
        rank, lead_ns = request.view.index, plan.message_ns
        self._flows.start(path, size, arrived, rank=rank, lead_ns=lead_ns)


def let_see(
    costs: Sequence[tuple[ImageCost | None, ActiveEnergy | None]], replicas: Sequence[Replica]
) -> None:
    """Give every replica that encodes the images of its own prompts what that takes.

    Parameters
    ----------
    costs : sequence of (ImageCost or None, ActiveEnergy or None)
        By pool.
    replicas : sequence of Replica
    """
    for replica in replicas:
        cost, energy = costs[replica.pool]
        if isinstance(replica, SeeingReplica) and cost is not None:
            replica.see(cost, energy)
