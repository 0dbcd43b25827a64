"""The port of a pipeline: whoever leaves it is in one of its micro-batches, or between two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmsim.core.errors import InvariantError
from llmsim.serving.cohort import FOREVER
from llmsim.serving.delivery import Delivery
from llmsim.serving.draft import Draft
from llmsim.serving.port import Port
from llmsim.serving.request import DECODE, PARKED, Request

if TYPE_CHECKING:
    from llmsim.serving.pipeline import Pipeline


class StagedPort(Port):
    """A pipeline's part in what its requests do elsewhere.

    Parameters
    ----------
    pipeline : Pipeline

    Notes
    -----
    Who leaves does so when its micro-batch has come out: nothing is stopped inside the stages.
    """

    __slots__ = ("_pipeline",)

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__(pipeline)
        self._pipeline = pipeline

    def deliveries(self) -> list[Delivery]:
        """Return what lets requests go here, of each micro-batch."""
        return [slot.delivery for slot in self._pipeline.slots]

    def drafts(self) -> list[Draft]:
        """Return what is planned here, of each micro-batch."""
        return [slot.draft for slot in self._pipeline.slots]

    def running_requests(self) -> list[Request]:
        """Return everybody who holds KV here, in running order."""
        pipeline = self._pipeline
        running = list(pipeline.loose)
        for slot in pipeline.slots:
            running += slot.draft.running_set
        running.sort(key=lambda request: request.seat)
        return running

    def decodes(self, request: Request) -> bool:
        """Whether a request has its prompt; it may sit one micro-batch out between two others."""
        return request.state in (DECODE, PARKED)

    def decoding(self) -> list[tuple[Request, int]]:
        """Return who decodes here, in running order, with the tokens before the next one."""
        return [
            (request, self._begun_tokens(request))
            for request in self.running_requests()
            if self.decodes(request)
        ]

    def _begun_tokens(self, request: Request) -> int:
        """Return the tokens whose KV there is when a request's micro-batch has come out."""
        if request.state == PARKED:
            return request.computed
        for slot in self._pipeline.slots:
            if request in slot.draft.running_set:
                waits = slot.end_ns == FOREVER and slot.draft.decoding  # not accounted for yet
                return request.base + slot.cohort.tick + waits
        raise InvariantError(f"request {request.view.index} decodes in no micro-batch")

    def computed_tokens(self, request: Request) -> int:
        """Return how many tokens of a decoding request have their KV for sure by now [tokens]."""
        begun = self._begun_tokens(request)
        return begun if request.state == PARKED else begun - 1  # who decodes is in flight

    def let_depart(self, request: Request) -> None:
        """Let a request go on elsewhere as soon as it is in flight in no micro-batch."""
        self._pipeline.departing.append(request)
        self._pipeline.look_again()

    def fail(self) -> None:
        """Lose what each micro-batch holds as it comes out, and send no other before all have."""
        self._pipeline.failing = True
        self._pipeline.look_again()
