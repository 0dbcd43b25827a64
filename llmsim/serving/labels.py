"""What a workload says of a request besides its time and length: model, SLO class, images."""

from __future__ import annotations

from dataclasses import dataclass

from llmsim.policies.views import NOTHING_PROMISED, Promise, RequestView
from llmsim.workload.chunk import RequestChunk


@dataclass(frozen=True, slots=True)
class ClientRules:
    """What clients do by themselves, and what they are promised.

    Parameters
    ----------
    timeout_ns : int [ns]
        A client gives up when its response is not complete this long after it was sent; 0: never.
    promise : Promise
        To requests without an SLO class.
    classes : tuple of Promise
        To those of each class.
    """

    timeout_ns: int = 0
    promise: Promise = NOTHING_PROMISED
    classes: tuple[Promise, ...] = ()


class Labels:
    """Puts models, promises and images on the views of requests.

    Parameters
    ----------
    rules : ClientRules
    """

    __slots__ = ("_classes", "_images", "_models", "_promises")

    def __init__(self, rules: ClientRules) -> None:
        self._promises = [*rules.classes, rules.promise]  # the last is of who has no class: -1
        self._models: list[int] | None = None
        self._classes: list[int] | None = None
        self._images: list[int] | None = None

    def read(self, chunk: RequestChunk) -> bool:
        """Look at the next chunk; return whether there is anything to tell of its requests."""
        self._models = None if chunk.model is None else chunk.model.tolist()
        self._classes = None if chunk.slo_class is None else chunk.slo_class.tolist()
        self._images = None if chunk.images is None else chunk.images.tolist()
        told = self._models is not None or self._classes is not None or self._images is not None
        return told or self._promises[-1] is not NOTHING_PROMISED

    def tell(self, view: RequestView, row: int) -> None:
        """Label the view of the request in a row of the chunk."""
        if self._models is not None:
            view.model = self._models[row]
        if self._images is not None:
            view.images = self._images[row]
        view.promise = self._promises[-1 if self._classes is None else self._classes[row]]
        if view.program is not None:
            view.program.promise = view.promise
