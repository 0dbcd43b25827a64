"""From a measured case to a scenario that anybody can run, or to the reason why there is none."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

from llmsim.core.errors import CardError, LlmsimError
from llmsim.fidelity.assumptions import Assumptions, assume
from llmsim.fidelity.cases import Case, layout_of
from llmsim.fidelity.profiles import KnownProfile, priced_by
from llmsim.fidelity.splitting import ranks_of, split_fleet, workers_of
from llmsim.specs import CalibrationCard, load_model
from llmsim.specs.cards import find_card

KV_DTYPES: Final = ("bf16", "fp16", "fp8", "int8")

SPARE_TOKENS: Final = 200
"""Room above prompt and output in ``max_model_len`` where a case does not say [tokens]: what the
InferenceX recipes give at their longest lengths."""

LONGEST_RUN_REQUESTS: Final = 40_000
"""An open run is cut here [requests]: means of a steady state need no more."""


class NotSimulatedError(LlmsimError):
    """A case that cannot be turned into a scenario; the message says why."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the user, or an ablation, changes for every case alike.

    Parameters
    ----------
    cost : mapping
        The pool's ``cost`` component.
    client : mapping
        Replaces what is assumed of clients; see `Assumptions.client`.
    calibrations : mapping of (engine, GPU card) to CalibrationCard
        Factors for the cases of one engine on one GPU, from other models than the case's.
    profiles : sequence of KnownProfile
        Kernel tables that a ``measured`` cost without ``profile`` chooses from, case by case.
    """

    cost: Mapping[str, Any]
    client: Mapping[str, Any]
    calibrations: Mapping[tuple[str, str], CalibrationCard] = field(default_factory=dict)
    profiles: Sequence[KnownProfile] = ()


DEFAULTS: Final = Options({"kind": "roofline"}, {})


def scenario_data(
    case: Case, options: Options = DEFAULTS, replay: Path | None = None
) -> dict[str, Any]:
    """Return the scenario of a case, as its YAML file would say it.

    Parameters
    ----------
    case : Case
    options : Options
    replay : Path or None
        Trace of the case's own requests (Mooncake format); None draws them from laws.

    Raises
    ------
    NotSimulatedError
        If the record leaves something out that no stated assumption fills, or the run used
        something that has no model here.
    """
    known = assume(case)
    if known.not_simulated:
        raise NotSimulatedError(f"{case.text('engine') or 'engine'}: {known.not_simulated}")
    client = {**known.client, **options.client}
    traffic = _replayed(replay) if replay is not None else _traffic(case, client)
    longest = None if replay is not None else _longest(case, client)
    priced = priced_by(options.cost, case, options.profiles, known.expert_rows)
    common: dict[str, Any] = {"cost": {**known.cost, **priced, **_fitted(case, options)}}
    if known.batching:
        common["batching"] = _batching(case, known)
    return {
        "llmsim": 1,
        "name": re.sub(r"[^A-Za-z0-9._-]+", "-", case.case_id),
        "description": _words(case),
        "seed": 1,
        "model": known.model or case.model_key,
        "traffic": traffic,
        "engine": _engine(case, known, longest, client.get("recipe_budget", True)),
        "fleet": _fleet(case, known, common),
    }


def _fleet(case: Case, known: Assumptions, common: dict[str, Any]) -> dict[str, Any]:
    split = case.text("disagg")
    if not split:
        pools = {"main": {**_pool(case, known), **common, **known.pools.get("mixed", {})}}
        return {"routing": {"kind": "round-robin"}, "pools": pools}
    workers = workers_of(split)
    if workers is None:
        raise NotSimulatedError("prefill and decode workers are not counted")
    prefill, decode = (
        each.spread(known.attention.get(role, ""))
        for role, each in zip(("prefill", "decode"), workers, strict=True)
    )
    workers = prefill, decode
    for each in workers:
        if each.tp * each.attention_ranks % each.ep:
            gpus = each.tp * each.attention_ranks
            raise NotSimulatedError(f"ep {each.ep} does not divide {gpus} GPUs")
    gpu, engine = case.text("gpu"), case.text("engine")
    return split_fleet(workers, gpu, engine, common, _by_role(case, known))


def _by_role(case: Case, known: Assumptions) -> dict[str, Any]:
    """Return the keys of the pools with a role, with the batch that a recipe gives decode."""
    by_role = {role: dict(keys) for role, keys in known.pools.items()}
    most = known.decode_seqs.get(case.whole("concurrency") or 0)
    if most is not None:
        decode = by_role.setdefault("decode", {})
        decode["engine"] = {**decode.get("engine", {}), "max_num_seqs": most}
    return by_role


def _batching(case: Case, known: Assumptions) -> dict[str, Any]:
    """Return the batching policy, with what it is told of outputs."""
    batching = dict(known.batching)
    osl = case.whole("osl")
    if known.asks_output and osl is not None:
        batching["max_new_tokens"] = osl
    return batching


def _fitted(case: Case, options: Options) -> Mapping[str, float]:
    if not options.calibrations:
        return {}
    card = options.calibrations.get((case.text("engine"), card_of(case.text("gpu"))))
    return {} if card is None else card.terms_for(layout_of(case), case.model_key)


@cache
def card_of(gpu: str) -> str:
    """Return the name of a GPU's card; the GPU's own where there is none.

    Parameters
    ----------
    gpu : str
        Name or alias, such as ``H100-80G-SXM``.
    """
    try:
        return find_card("profiles/gpus", gpu).stem
    except CardError:
        return gpu


def _words(case: Case) -> str:
    told = ("model", "gpu", "tp", "engine", "engine_version", "quant", "workload", "concurrency")
    return ", ".join(f"{name} {case.text(name)}" for name in told if case.text(name))


def _pool(case: Case, known: Assumptions) -> dict[str, Any]:
    tp, gpus, experts = case.whole("tp"), case.whole("n_gpu"), case.whole("ep") or 1
    if tp is None:
        raise NotSimulatedError("the layout is not recorded")
    if known.tp_is_product:
        tp, gpus = tp // experts, None
    if known.experts_dealt:
        experts = tp
    stages = case.whole("pp") or 1
    pool: dict[str, Any] = {"gpu": case.text("gpu"), "tp": tp}
    pool["replicas"] = case.whole("dp") or 1
    if gpus is not None and gpus != tp * stages * pool["replicas"]:
        words = f"tp {tp}" if stages == 1 else f"tp {tp}, pp {stages}"
        raise NotSimulatedError(f"{gpus} GPUs do not make {pool['replicas']} x {words}")
    if stages > 1:
        pool["pp"] = stages
    if experts > 1 and pool["replicas"] > 1:
        ranks, pool["replicas"] = pool["replicas"], 1
        return pool | ranks_of(ranks, experts, tp, case.text("engine"))
    if experts > 1:
        pool["ep"] = experts
    return pool


def _engine(case: Case, known: Assumptions, longest: int | None, recipe: bool) -> dict[str, Any]:
    """Return the engine's settings: what is assumed, then what the case records."""
    engine = dict(known.engine)
    if recipe:
        engine |= _budget(case, known.budget)
    if known.quantisation:
        engine["quantisation"] = known.quantisation
    for column in ("max_num_seqs", "max_num_batched_tokens"):
        value = case.whole(column)
        if value is not None:
            engine[column] = value
    if case.text("kv_dtype") in KV_DTYPES:
        engine["kv_dtype"] = case.text("kv_dtype")
    for column, key in (("chunked_prefill", "chunked_prefill"), ("prefix_cache", "prefix_caching")):
        word = case.text(column).lower()
        if word.startswith(("on", "true", "default(on")):
            engine[key] = True
        elif word.startswith(("off", "false")):
            engine[key] = False
    recorded = dict(re.findall(r"([a-z_]+)=([\d.]+)", case.text("engine_args")))
    if "gpu_memory_utilization" in recorded:
        engine["gpu_memory_utilization_frac"] = float(recorded["gpu_memory_utilization"])
    if "kv_blocks" in recorded:
        engine["kv_blocks"] = int(recorded["kv_blocks"])
    if "max_model_len" in recorded:
        engine["max_model_len"] = int(recorded["max_model_len"])
    elif longest is not None:
        engine["max_model_len"] = _room(known.model or case.model_key, longest)
    budget = max(engine["max_num_batched_tokens"], engine["max_num_seqs"])
    if not engine["chunked_prefill"]:
        # An engine that never cuts a prompt needs room for the longest one in a step.
        budget = max(budget, engine.get("max_model_len", 0))
    engine["max_num_batched_tokens"] = budget
    return engine


def _room(model: str, longest: int) -> int:
    """Return a limit of length with some spare, as far as the model reaches [tokens]."""
    most = _longest_context(model)
    return max(longest, min(longest + SPARE_TOKENS, most)) if most else longest + SPARE_TOKENS


@cache
def _longest_context(model: str) -> int:
    try:
        return load_model(model).max_context_tokens
    except LlmsimError:
        return 0  # a model that is missing or damaged says so itself


def _budget(case: Case, rule: Mapping[str, int]) -> dict[str, int]:
    """Return the batch limits of a recipe that makes them from the load."""
    slots, prompt = case.whole("concurrency"), case.whole("isl")
    if not rule or slots is None or prompt is None:
        return {}
    tokens = rule["slots"] * slots + rule["prompt"] * prompt + rule["extra_tokens"]
    return {"max_num_seqs": slots, "max_num_batched_tokens": tokens}


def _longest(case: Case, client: Mapping[str, Any]) -> int | None:
    if "nominal_tokens" in client:
        return 2 * int(client["nominal_tokens"])
    isl, osl = case.whole("isl"), case.whole("osl")
    return None if isl is None or osl is None else isl + osl


def _traffic(case: Case, client: Mapping[str, Any]) -> dict[str, Any]:
    isl, osl = case.whole("isl"), case.whole("osl")
    if isl is None:
        raise NotSimulatedError("the input length is not recorded")
    if osl is None:
        raise NotSimulatedError("the output length is not recorded")
    if case.text("engine_args").find("spec") >= 0:
        raise NotSimulatedError("speculative decoding")
    if "nominal_tokens" in client:
        isl = osl = int(client["nominal_tokens"])
    traffic: dict[str, Any] = {"lengths": _lengths(isl, osl, client)}
    if client.get("distinct_prompts"):
        pool = {"kind": "pool", "prompts": client["distinct_prompts"], "zipf_exponent": 0.0}
        traffic["prompts"] = pool
    return traffic | _arrivals(case, client)


def _lengths(isl: int, osl: int, client: Mapping[str, Any]) -> dict[str, Any]:
    least = client.get("length_min_frac", 1.0)
    if least >= 1.0:
        return {"kind": "fixed", "prompt_tokens": isl, "output_tokens": osl}
    return {
        "kind": "uniform",
        "prompt_min_tokens": int(least * isl),
        "prompt_max_tokens": isl,
        "output_min_tokens": int(least * osl),
        "output_max_tokens": osl,
    }


def _arrivals(case: Case, client: Mapping[str, Any]) -> dict[str, Any]:
    """Return when requests arrive, and how many."""
    word = case.text("arrival")
    total = case.whole("num_requests")
    rate = case.number("rate_rps")
    if word.startswith(("closed loop", "batch", "single")):
        slots = case.whole("concurrency")
        if slots is None and word.startswith(("batch", "single")):
            slots = total if word.startswith("batch") else 1
        if not slots:
            raise NotSimulatedError("the concurrency is not recorded")
        per_slot = client.get("requests_per_slot", 1)
        if total is not None and not client.get("requests_forced"):
            per_slot = max(1, round(total / slots))
        way_s, turn_s, round_s = front_of(case, client)
        loop = {"kind": "closed-loop", "in_flight": slots, "requests_per_slot": per_slot}
        times = {"think_s": way_s, "ingest_s": turn_s, "round_s": round_s}
        return {"arrivals": {**loop, **times}}
    if word.startswith(("poisson", "constant", "uniform")) and "ladder" not in word:
        if rate is None:
            raise NotSimulatedError("the rate is not recorded")
        seconds = case.number("duration_s")
        requests = total or round(rate * (seconds or 600.0))
        law = client.get("arrivals") or (
            "poisson" if word.startswith("poisson") else "deterministic"
        )
        return {
            "arrivals": {"kind": law, "rate_rps": rate},
            "requests": max(1, min(requests, LONGEST_RUN_REQUESTS)),
        }
    raise NotSimulatedError(f"arrivals '{word}'")


def front_of(case: Case, client: Mapping[str, Any]) -> tuple[float, float, float]:
    """Return how long a request is on its way to the engine, its turn and its share of a round [s].

    Parameters
    ----------
    case : Case
    client : mapping
        See `Assumptions.client`; ``front_s``, ``ingest_s`` and ``round_s`` are per request,
        ``*_token_s`` per prompt token, of which the mean prompt has as many as its law of lengths
        gives.
    """
    shortest = client.get("length_min_frac", 1.0)
    tokens = (case.number("isl") or 0.0) * (1.0 + shortest) / 2.0
    way, turn, share = (
        client.get(f"{name}_s", 0.0) + tokens * client.get(f"{name}_token_s", 0.0)
        for name in ("front", "ingest", "round")
    )
    return way, turn, share


def _replayed(path: Path) -> dict[str, Any]:
    return {"trace": {"kind": "mooncake", "path": str(path)}}
