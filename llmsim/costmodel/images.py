"""What it takes to turn images into embeddings: steps of a vision encoder, image by image."""

from __future__ import annotations

from collections.abc import Sequence

from llmsim.core.errors import InvariantError
from llmsim.costmodel.contract import Chunk, PriceLine, StepCost


class ImageCost:
    """The price of encoding images of one size; as `StepCost`, of steps that do nothing else.

    Parameters
    ----------
    cost : StepCost
        Of the encoder's layers; a token of its is a patch.
    image_tokens : int [tokens]
        What an image becomes in a prompt.
    patches : int [patches]
        What an image is for the encoder.

    Notes
    -----
    The patches of an image attend to one another in both directions: ``n^2`` pairs, as a chunk of
    n patches behind n / 2 others has. That chunk's reads of K and V count half as much again.
    """

    context_tile = 1
    window_tokens = 0

    def __init__(self, cost: StepCost, image_tokens: int, patches: int) -> None:
        self.cost = cost
        self.image_tokens = image_tokens
        self._image: Chunk = (patches, patches // 2)

    def images_ns(self, images: int) -> int:
        """Return what encoding some images at once takes [ns]; 0 for none."""
        return self.cost.step_ns([self._image] * images, 0, 0, 0, 0) if images else 0

    def decode_line(self, batch: int, padded_tokens: int) -> PriceLine:
        """Refuse: an encoder has nothing to decode."""
        raise InvariantError(f"an encoder decodes nothing, and {batch} requests do")

    def step_ns(
        self,
        chunks: Sequence[Chunk],
        decode: int,
        padded_tokens: int,
        windowed_tokens: int,
        logits: int,
    ) -> int:
        """Price a step whose chunks are whole images; see `StepCost.step_ns`."""
        return max(1, self.images_ns(sum(new for new, _ in chunks) // self.image_tokens))
