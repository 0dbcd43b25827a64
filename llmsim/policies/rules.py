"""What differs between engine versions, as data."""

from __future__ import annotations

from dataclasses import dataclass

from llmsim.core.errors import RegistryError, nearest


@dataclass(frozen=True, slots=True)
class EngineRules:
    """Scheduling rules that changed between releases of an engine.

    Parameters
    ----------
    lone_request_unchunked : bool
        The per-request chunk limit is lifted while a request is alone on the replica.
    unfilled_blocks_first : bool
        Released blocks that never filled up are taken again before cached ones.
    scan_ends_on_self_preemption : bool
        Under priority, a request that preempts itself ends the scan of running requests.
    watermark_frac : float
        Default share of KV blocks kept free at admission.

    References
    ----------
    Read off recorded decisions of vLLM 0.20.1 and 0.33.0; ``tests/golden`` replays them.
    """

    lone_request_unchunked: bool
    unfilled_blocks_first: bool
    scan_ends_on_self_preemption: bool
    watermark_frac: float


ENGINE_RULES = {
    "vllm-0.33": EngineRules(
        lone_request_unchunked=True,
        unfilled_blocks_first=True,
        scan_ends_on_self_preemption=False,
        watermark_frac=0.0,
    ),
    "vllm-0.20": EngineRules(
        lone_request_unchunked=False,
        unfilled_blocks_first=False,
        scan_ends_on_self_preemption=True,
        watermark_frac=0.0,
    ),
}


def engine_rules(version: str) -> EngineRules:
    """Return the rules of an engine version.

    Raises
    ------
    RegistryError
        If the version is not known.
    """
    rules = ENGINE_RULES.get(version)
    if rules is None:
        raise RegistryError(f"unknown engine version '{version}'. {nearest(version, ENGINE_RULES)}")
    return rules
