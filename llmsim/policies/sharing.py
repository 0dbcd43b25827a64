"""How lanes that run on the same GPUs divide the SMs among themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

from annotated_types import Gt

from llmsim.core.registry import Registry


@dataclass(frozen=True, slots=True)
class LanesView:
    """What a sharing policy sees of one device, its own measurements alone.

    Parameters
    ----------
    prefill_share_frac, decode_share_frac : float
        As they are.
    ttft_s : tuple of float [s]
        Of the requests that had their first token since the policy was last asked.
    step_s : float [s]
        The decode step under way; 0 when nobody decodes.
    waiting : int [requests]
        In the line of the prefill lane.
    decoding : int [requests]
    ttft_slo_s, tpot_slo_s : float [s]
        What the scenario promises; infinite where it promises nothing.
    """

    prefill_share_frac: float
    decode_share_frac: float
    ttft_s: tuple[float, ...]
    step_s: float
    waiting: int
    decoding: int
    ttft_slo_s: float
    tpot_slo_s: float


class SharingPolicy(Protocol):
    """Sets the shares of a prefill lane and a decode lane, one instance per device.

    Attributes
    ----------
    period_s : float [s]
        How often it is asked; 0: never.
    """

    @property
    def period_s(self) -> float:
        """How often it is asked [s]; 0: never."""
        ...

    def shares(self, view: LanesView) -> tuple[float, float]:
        """Return the shares of prefill and decode from the end of their steps under way on."""
        ...


SHARING: Registry[SharingPolicy] = Registry("sharing")


@SHARING.register("fixed")
@dataclass
class FixedShares:
    """Shares stay as the pools say."""

    period_s: ClassVar[float] = 0.0

    def shares(self, view: LanesView) -> tuple[float, float]:
        """Return the shares as they are."""
        return view.prefill_share_frac, view.decode_share_frac


@SHARING.register("tpot-feedback")
@dataclass
class TpotFeedback:
    """Decode gets what its objective needs, prefill what is left.

    When the decode step under way takes longer than `target_frac` of the TPOT objective, prefill
    gives up `step_frac` of the SMs; when it takes less than 0.8 of that and prompts are waiting,
    prefill gets it back.
    """

    period_s: Annotated[float, Gt(0)] = 0.5
    """[s] How often the shares are looked at."""
    step_frac: Annotated[float, Gt(0)] = 0.1
    """[fraction] By how much they change at a time."""
    least_frac: Annotated[float, Gt(0)] = 0.2
    """[fraction] Least share of the prefill lane."""
    most_frac: Annotated[float, Gt(0)] = 0.9
    """[fraction] Largest share of the prefill lane."""
    target_frac: Annotated[float, Gt(0)] = 0.9
    """[fraction] Of the TPOT objective that a decode step may take."""

    def shares(self, view: LanesView) -> tuple[float, float]:
        """Return the shares; see `SharingPolicy.shares`."""
        prefill = view.prefill_share_frac
        limit = self.target_frac * view.tpot_slo_s
        if view.step_s > limit:
            prefill -= self.step_frac
        elif view.waiting and view.step_s < 0.8 * limit:
            prefill += self.step_frac
        prefill = round(min(self.most_frac, max(self.least_frac, prefill)), 6)
        return prefill, view.decode_share_frac
