"""How much KV memory a request is promised when it is admitted: allocators.

What is promised (a *claim*) is not what is used. Without claims a request takes a block when it
needs one, and may find none; with them it can rely on its claim, and memory that it never fills
lies idle. A request that outgrows its claim gets a new one, or loses its KV and waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

from annotated_types import Ge, Gt

from llmsim.core.registry import Registry
from llmsim.policies.views import RequestView


class Allocator(Protocol):
    """Says how much a request claims.

    Attributes
    ----------
    reserves : bool
        False if nobody claims anything: blocks are taken as they are needed.
    grows : bool
        Whether a claim that is outgrown is renewed on the spot while there is room. If not, or if
        there is none, its request loses its KV and waits until the new claim fits.
    """

    reserves: ClassVar[bool]
    grows: ClassVar[bool]

    def claim_tokens(self, request: RequestView, known_tokens: int, most_tokens: int) -> int:
        """Return what a request claims at its admission [tokens].

        Parameters
        ----------
        request : RequestView
        known_tokens : int [tokens]
            Its prompt, and what it has generated if it was there before.
        most_tokens : int [tokens]
            Longest prompt plus output that the engine takes.
        """
        ...

    def renewed_tokens(self, claimed_tokens: int) -> int:
        """Return what a request claims once it has outgrown `claimed_tokens` [tokens]."""
        ...

    def wait_s(self, tokens: int) -> float:
        """Return how long a step waits for memory that nobody has used before [s].

        Parameters
        ----------
        tokens : int [tokens]
            How many more of them than ever before are claimed.
        """
        ...


ALLOCATION: Registry[Allocator] = Registry("allocation")


@ALLOCATION.register("paged")
@dataclass
class Paged:
    """No claims: every KV block is taken when it is needed.

    References
    ----------
    Kwon et al., Efficient Memory Management for Large Language Model Serving with PagedAttention,
    SOSP 2023, section 4.
    """

    reserves: ClassVar[bool] = False
    grows: ClassVar[bool] = False

    def claim_tokens(self, request: RequestView, known_tokens: int, most_tokens: int) -> int:
        """Claim nothing."""
        return 0

    def renewed_tokens(self, claimed_tokens: int) -> int:
        """Claim nothing."""
        return 0

    def wait_s(self, tokens: int) -> float:
        """Wait for nothing: all memory is there from the beginning."""
        return 0.0


@ALLOCATION.register("contiguous-max")
@dataclass
class ContiguousMax:
    """A region for the longest sequence that the engine takes, from admission to the end.

    References
    ----------
    Yu et al., Orca, OSDI 2022, section 4.2: slots for the maximum number of tokens of a request.
    """

    reserves: ClassVar[bool] = True
    grows: ClassVar[bool] = False

    def claim_tokens(self, request: RequestView, known_tokens: int, most_tokens: int) -> int:
        """Claim the longest sequence."""
        return most_tokens

    def renewed_tokens(self, claimed_tokens: int) -> int:
        """Stay as it is: nobody outgrows it."""
        return claimed_tokens

    def wait_s(self, tokens: int) -> float:
        """Wait for nothing: all memory is there from the beginning."""
        return 0.0


@ALLOCATION.register("power-of-two")
@dataclass
class PowerOfTwo:
    """A region whose size is a power of two, doubled whenever it is full.

    Notes
    -----
    The region holds what is known at admission and at least one token more, so it is never more
    than twice what is used. The "Orca (Pow2)" of the PagedAttention paper knows the output length
    and rounds that up; no policy here does.
    """

    reserves: ClassVar[bool] = True
    grows: ClassVar[bool] = True

    def claim_tokens(self, request: RequestView, known_tokens: int, most_tokens: int) -> int:
        """Claim the next power of two above what is known."""
        return 1 << known_tokens.bit_length()

    def renewed_tokens(self, claimed_tokens: int) -> int:
        """Double the region."""
        return 2 * claimed_tokens

    def wait_s(self, tokens: int) -> float:
        """Wait for nothing: all memory is there from the beginning."""
        return 0.0


@ALLOCATION.register("bucket")
@dataclass
class Bucket:
    """A region for the prompt and a guess at the output; a wrong guess is doubled and recomputed.

    The guess is the same for every request: what a server learns from nothing but its own mean.
    """

    output_tokens: Annotated[int, Ge(1)] = 256
    """[tokens] Output that is claimed beside the prompt."""
    grow_factor: Annotated[float, Gt(1)] = 2.0
    """Size of the next claim over the one that was outgrown."""

    reserves: ClassVar[bool] = True
    grows: ClassVar[bool] = False

    def claim_tokens(self, request: RequestView, known_tokens: int, most_tokens: int) -> int:
        """Claim what is known and the bucket."""
        return known_tokens + self.output_tokens

    def renewed_tokens(self, claimed_tokens: int) -> int:
        """Claim so many times as much."""
        return max(claimed_tokens + 1, int(self.grow_factor * claimed_tokens))

    def wait_s(self, tokens: int) -> float:
        """Wait for nothing: all memory is there from the beginning."""
        return 0.0


@ALLOCATION.register("granules")
@dataclass
class Granules:
    """A region of addresses for the longest sequence, to which memory is mapped bit by bit.

    What a request holds is rounded up to whole granules; it gets another one when its last is full.
    What has been given back stays mapped, so that a step can only wait for memory that nobody has
    used before.

    References
    ----------
    Prabhu et al., vAttention: Dynamic Memory Management for Serving LLMs without PagedAttention,
    ASPLOS 2025, sections 5 and 6.
    """

    granule_tokens: Annotated[int, Ge(1)] = 1024
    """[tokens] That a granule of one layer's K or V holds: with eight KV heads of 128 in 16 bits on
    one GPU 1,024 for 2 MB, 32 for 64 KB."""
    map_s: Annotated[float, Ge(0)] = 640e-6
    """[s] To map one more granule of K and V in every layer. Assumed: 64 driver calls of 10 us."""
    ahead: bool = True
    """Map in the background before it is needed, so that no step waits."""

    reserves: ClassVar[bool] = True
    grows: ClassVar[bool] = True

    def claim_tokens(self, request: RequestView, known_tokens: int, most_tokens: int) -> int:
        """Claim what is known, in whole granules."""
        return -(-known_tokens // self.granule_tokens) * self.granule_tokens

    def renewed_tokens(self, claimed_tokens: int) -> int:
        """Claim one granule more."""
        return claimed_tokens + self.granule_tokens

    def wait_s(self, tokens: int) -> float:
        """Wait for every granule in turn, unless they are mapped ahead."""
        return 0.0 if self.ahead else -(-tokens // self.granule_tokens) * self.map_s
