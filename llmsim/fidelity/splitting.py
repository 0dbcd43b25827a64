"""Disaggregated cases: from what a record says of prefill and decode workers to pools."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from llmsim.specs import load_gpu

_BY_WORKERS: Final = re.compile(
    r"prefill workers=(\d+) tp=(\d+) dp=(\d+) ep=(\d+) \| "
    r"decode workers=(\d+) tp=(\d+) dp=(\d+) ep=(\d+)$"
)
_BY_COUNT: Final = re.compile(r"(\d+) prefill x TP(\d+) \+ (\d+) decode x TP(\d+)\b")


@dataclass(frozen=True, slots=True)
class Workers:
    """Alike workers of one role.

    Parameters
    ----------
    replicas : int
    tp : int [GPUs]
    attention_ranks : int
        Data-parallel ranks of the attention inside one worker.
    ep : int [GPUs]
    """

    replicas: int
    tp: int
    attention_ranks: int = 1
    ep: int = 1

    @property
    def gpus(self) -> int:
        """GPUs of all of them [GPUs]."""
        return self.replicas * self.tp * self.attention_ranks

    def spread(self, attention: str) -> Workers:
        """Return the same workers with their attention spread in another way.

        Parameters
        ----------
        attention : str
            ``ranks``, ``tensor``, or empty to leave it.
        """
        gpus = self.tp * self.attention_ranks
        tp, ranks = {"ranks": (1, gpus), "tensor": (gpus, 1)}.get(
            attention, (self.tp, self.attention_ranks)
        )
        return replace(self, tp=tp, attention_ranks=ranks)


def workers_of(words: str) -> tuple[Workers, Workers] | None:
    """Return the prefill and the decode workers that a record names.

    Parameters
    ----------
    words : str
        Such as ``2 prefill x TP2 + 2 decode x TP2 (NIXL)``, or
        ``prefill workers=1 tp=4 dp=1 ep=4 | decode workers=4 tp=8 dp=1 ep=8``.

    Returns
    -------
    (Workers, Workers) or None
        None if it does not count them.
    """
    found = _BY_WORKERS.match(words)
    if found is not None:
        numbers = [max(1, int(number)) for number in found.groups()]
        return Workers(*numbers[:4]), Workers(*numbers[4:])
    found = _BY_COUNT.match(words)
    if found is None:
        return None
    prefill, prefill_tp, decode, decode_tp = (int(number) for number in found.groups())
    return Workers(prefill, prefill_tp), Workers(decode, decode_tp)


def ranks_of(ranks: int, ep: int, tp: int, engine: str) -> dict[str, Any]:
    """Return the keys of a pool that say how attention and experts are laid out.

    Parameters
    ----------
    ranks : int
        Attention ranks.
    ep, tp : int [GPUs]
    engine : str

    Notes
    -----
    SGLang's recipes with attention ranks exchange tokens by DeepEP, which deals the experts over
    all GPUs of a worker; some records say ``ep=1`` all the same (of 32 GPUs: an expert of 2,048
    channels would be cut into 64, half a block of its scales). SGLang gives ranks their requests
    in turn, TensorRT-LLM by load.
    """
    if ranks == 1:
        return {"ep": ep} if ep > 1 else {}
    if engine == "sglang" and ep == 1:
        ep = ranks * tp
    routing = "round-robin" if engine == "sglang" else "least-loaded"
    return {"dp": ranks, "ep": ep, "rank_routing": routing}


def split_fleet(
    workers: tuple[Workers, Workers],
    gpu: str,
    engine: str,
    common: dict[str, Any],
    by_role: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return the fleet of a scenario with prefill and decode pools.

    Parameters
    ----------
    workers : (Workers, Workers)
        Prefill, decode.
    gpu, engine : str
    common : dict
        Keys of both pools.
    by_role : mapping of str to mapping, optional
        Keys of the pool of each role.

    Notes
    -----
    The servers of these records (Dynamo, SGLang's and TensorRT-LLM's own) answer from the decode
    worker, so that the first token waits for the KV. Workers that fit one node, or one rack of
    NVLink, hand over through it.
    """
    card = load_gpu(gpu)
    handoff: dict[str, Any] = {"first_token": "decode", "messages": "per-layer"}
    if sum(each.gpus for each in workers) <= card.node_gpus:
        handoff["link"] = card.link
    pools = {}
    for role, each in zip(("prefill", "decode"), workers, strict=True):
        pool = {"role": role, "gpu": gpu, "replicas": each.replicas, "tp": each.tp, **common}
        pool |= ranks_of(each.attention_ranks, each.ep, each.tp, engine)
        pools[role] = {**pool, **(by_role or {}).get(role, {})}
    return {"routing": {"kind": "least-loaded"}, "handoff": handoff, "pools": pools}
