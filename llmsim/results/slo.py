"""Service-level objectives: what a request must keep, and how many requests must keep it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le

from llmsim.core.errors import Fault, InputError

OBJECTIVES = ("ttft_s", "tpot_s", "itl_s", "e2e_s")
"""Limits an `Slo` may set, by field name."""


@dataclass(frozen=True, slots=True)
class Slo:
    """Limits per request, and the share of requests that must keep all that are set.

    Parameters
    ----------
    ttft_s : float or None [s]
        Longest time to first token; None sets no limit.
    ttft_per_prompt_token_s : float [s/token]
        Added to that limit for every token of the prompt.
    tpot_s : float or None [s]
        Longest mean time per output token after the first.
    itl_s : float or None [s]
        Longest gap between any two consecutive output tokens.
    e2e_s : float or None [s]
        Longest time from arrival to the last output token.
    jct_s : float or None [s]
        Longest time from a program's first call to its last token; not a limit of requests.
    attained_frac : float
        Share of requests that must keep every limit, above 0 and at most 1.
    classes : tuple of SloClass
        Requests of a class are judged by its limits alone, all others by those above.

    Raises
    ------
    InputError
        If a limit is not a positive finite number; lists all that are wrong.
    """

    ttft_s: Annotated[float, Gt(0)] | None = None
    tpot_s: Annotated[float, Gt(0)] | None = None
    itl_s: Annotated[float, Gt(0)] | None = None
    e2e_s: Annotated[float, Gt(0)] | None = None
    jct_s: Annotated[float, Gt(0)] | None = None
    attained_frac: Annotated[float, Gt(0), Le(1)] = 0.95
    ttft_per_prompt_token_s: Annotated[float, Ge(0)] = 0.0
    classes: tuple[SloClass, ...] = ()

    def __post_init__(self) -> None:
        faults = [
            Fault("", f"slo.{name}", f"read {limit}, but a limit is a positive number of seconds")
            for name, limit in (*self.limits().items(), ("jct_s", self.jct_s))
            if limit is not None and not (limit > 0 and math.isfinite(limit))
        ]
        per_token = self.ttft_per_prompt_token_s
        if not (per_token >= 0 and math.isfinite(per_token)):
            text = f"read {per_token}, but it is a number of seconds from 0 up"
            faults.append(Fault("", "slo.ttft_per_prompt_token_s", text))
        elif per_token and self.ttft_s is None:
            text = f"read {per_token}, but there is no ttft_s that it is added to"
            faults.append(Fault("", "slo.ttft_per_prompt_token_s", text))
        if not 0 < self.attained_frac <= 1:
            faults.append(
                Fault("", "slo.attained_frac", f"read {self.attained_frac}, not in (0, 1]")
            )
        if faults:
            raise InputError("slo", faults)

    def limits(self) -> dict[str, float]:
        """Return the limits that are set, by field name [s]."""
        found = {name: getattr(self, name) for name in OBJECTIVES}
        return {name: float(limit) for name, limit in found.items() if limit is not None}

    @property
    def is_set(self) -> bool:
        """Whether any limit is set, be it of a class."""
        return bool(self.limits()) or any(each.slo.is_set for each in self.classes)

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Slo:
        """Return the SLO of which ``dataclasses.asdict`` has made `told`."""
        own = {name: value for name, value in told.items() if name != "classes"}
        classes = (
            SloClass(each["name"], cls.from_json(each["slo"])) for each in told.get("classes", ())
        )
        return cls(**own, classes=tuple(classes))


@dataclass(frozen=True, slots=True)
class SloClass:
    """Requests that are promised something of their own.

    Parameters
    ----------
    name : str
    slo : Slo
        Without classes. What it does not limit is not promised to them.
    """

    name: str
    slo: Slo
