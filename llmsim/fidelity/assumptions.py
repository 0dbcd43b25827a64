"""What a source does not say about its runs, as a table with the origin of every value."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from llmsim.core.errors import Fault, InputError, nearest
from llmsim.fidelity.cases import Case

TABLE: Final = Path(__file__).with_name("assumptions.yaml")

SETS: Final = (
    "engine",
    "budget",
    "batching",
    "cost",
    "expert_rows",
    "pools",
    "attention",
    "decode_seqs",
    "asks_output",
    "client",
    "model",
    "quantisation",
    "tp_is_product",
    "experts_dealt",
    "tpot_of_means",
    "not_simulated",
    "seen_by",
)
"""What a rule may set."""

_MERGED: Final = ("engine", "client", "cost", "pools", "attention")
"""Words whose keys a later rule replaces one by one."""

_VERSIONS: Final = ("version_from", "version_below")


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What is taken for granted of one case, before its own record is heard.

    Parameters
    ----------
    engine : mapping
        Keys of a scenario's ``engine``.
    budget : mapping
        Where a recipe makes the batch limits from the load: ``max_num_seqs`` is the concurrency,
        ``max_num_batched_tokens = slots * concurrency + prompt * isl + extra_tokens``; else empty.
    batching : mapping
        Component of the pool; empty for llmsim's own default.
    cost : mapping
        Parameters of the pool's cost, whatever its kind: which kernels ran.
    expert_rows : sequence of str
        Globs of the kernels that multiplied the experts, as tables name them, the best first: rows
        of others do not price them. Empty where whatever a table has for a shape may.
    pools : mapping of str to mapping
        Keys of the pool with a role: ``prefill`` or ``decode``, or ``mixed`` where there are none.
    attention : mapping of str to str
        How the attention of the workers with a role is spread over their GPUs, where the record is
        wrong about it: ``ranks`` (each GPU has requests of its own) or ``tensor``.
    decode_seqs : mapping of int to int
        Where a recipe has a file for each load: ``max_num_seqs`` of a decode worker's rank by the
        requests in flight.
    asks_output : bool
        The batching policy is told what the client asks for: as many tokens as it will get.
    client : mapping
        How requests are sent: ``requests_per_slot``, ``length_min_frac``, ``arrivals``,
        ``distinct_prompts``, ``nominal_tokens``; and how long they are on their way:
        ``front_s``, ``ingest_s`` (one after the other) and ``round_s`` (all that have come
        together), each with ``_token_s`` for a token of the prompt.
    model : str
        Model card, where it differs from the case's model key.
    quantisation : str
        Scheme that the weights are taken to be in; empty for the card's own.
    tp_is_product : bool
        The record's ``tp`` (and ``n_gpu``) is the tensor-parallel GPUs times the expert-parallel
        ones, which are the same GPUs.
    experts_dealt : bool
        The server deals out experts over its GPUs, whatever the record's ``ep`` says.
    tpot_of_means : bool
        The source divides mean times by mean lengths, where others average over requests.
    not_simulated : str
        Why the case cannot be simulated; empty when it can.
    seen_by : str
        What that the simulator ships was fitted to this very case; empty for nothing.
    sources : tuple of str
        Origin of every rule that applied, in order.
    """

    engine: Mapping[str, Any]
    budget: Mapping[str, int]
    batching: Mapping[str, Any]
    cost: Mapping[str, Any]
    expert_rows: Sequence[str]
    pools: Mapping[str, Mapping[str, Any]]
    attention: Mapping[str, str]
    decode_seqs: Mapping[int, int]
    asks_output: bool
    client: Mapping[str, Any]
    model: str
    quantisation: str
    tp_is_product: bool
    experts_dealt: bool
    tpot_of_means: bool
    not_simulated: str
    seen_by: str
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table.

    Parameters
    ----------
    when : mapping of str to tuple of str
        Globs by column; all columns must match, by one of their globs. Those of `gpu` are in
        capitals.
    version_from, version_below : tuple of int
        Limits of the engine version; empty for none.
    sets : mapping
        What it sets.
    source : str
    """

    when: Mapping[str, tuple[str, ...]]
    version_from: tuple[int, ...]
    version_below: tuple[int, ...]
    sets: Mapping[str, Any]
    source: str

    def applies(self, case: Case) -> bool:
        """Whether the rule speaks of a case."""
        for column, globs in self.when.items():
            value = case.model_key if column == "model_key" else case.text(column)
            if column == "gpu":  # letter case does not matter in names of cards
                value = value.upper()
            if not any(fnmatchcase(value, glob) for glob in globs):
                return False
        if not (self.version_from or self.version_below):
            return True
        version = numbers_of(case.text("engine_version"))
        if not version:
            return False
        below = self.version_below
        return version >= self.version_from and (not below or version < below)


def numbers_of(version: str) -> tuple[int, ...]:
    """Return the numbers that a version begins with; empty for a name or a year.

    Parameters
    ----------
    version : str
        Such as ``0.15.1 (fork with tracing)`` or ``1.2.0rc6.post1``.
    """
    match = re.match(r"\d{1,3}(?:\.\d+)+", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def read_rules(path: Path = TABLE) -> tuple[Rule, ...]:
    """Read the table of assumptions.

    Parameters
    ----------
    path : Path

    Raises
    ------
    InputError
        With every rule that has no source or sets an unknown word.
    """
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    rules, faults = [], []
    for number, row in enumerate(data["rules"], 1):
        where = f"{path}, rule {number}"
        sets = row.get("set", {})
        faults += [
            Fault(where, f"set.{word}", "is unknown.", nearest(word, SETS))
            for word in sets
            if word not in SETS
        ]
        if not row.get("source"):
            faults.append(Fault(where, "source", "is missing: every value needs its origin"))
        when = dict(row.get("when", {}))
        limits = [numbers_of(str(when.pop(key, ""))) for key in _VERSIONS]
        globs = {
            column: tuple(value) if isinstance(value, list) else (str(value),)
            for column, value in when.items()
        }
        if "gpu" in globs:
            globs["gpu"] = tuple(glob.upper() for glob in globs["gpu"])
        rules.append(Rule(globs, limits[0], limits[1], sets, row.get("source", "")))
    if faults:
        raise InputError(str(path), faults)
    return tuple(rules)


@cache
def shipped_rules() -> tuple[Rule, ...]:
    """Return the rules that ship with llmsim."""
    return read_rules()


def _joined(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of both, and so on below; the new ones win."""
    below = {
        key: _joined(old[key], value)
        for key, value in new.items()
        if isinstance(value, Mapping) and isinstance(old.get(key), Mapping)
    }
    return {**old, **new, **below}


def assume(case: Case, rules: tuple[Rule, ...] | None = None) -> Assumptions:
    """Return what is taken for granted of a case.

    Parameters
    ----------
    case : Case
    rules : tuple of Rule, optional
        Default: the shipped table.
    """
    merged: dict[str, Any] = {word: {} for word in _MERGED}
    sources = []
    for rule in shipped_rules() if rules is None else rules:
        if rule.applies(case):
            sources.append(rule.source)
            for word, value in rule.sets.items():
                merged[word] = _joined(merged[word], value) if word in _MERGED else value
    return Assumptions(
        engine=merged["engine"],
        budget=merged.get("budget", {}),
        batching=merged.get("batching", {}),
        cost=merged["cost"],
        expert_rows=merged.get("expert_rows", ()),
        pools=merged["pools"],
        attention=merged["attention"],
        decode_seqs=merged.get("decode_seqs", {}),
        asks_output=merged.get("asks_output", False),
        client=merged["client"],
        model=merged.get("model", ""),
        quantisation=merged.get("quantisation", ""),
        tp_is_product=merged.get("tp_is_product", False),
        experts_dealt=merged.get("experts_dealt", False),
        tpot_of_means=merged.get("tpot_of_means", False),
        not_simulated=merged.get("not_simulated", ""),
        seen_by=merged.get("seen_by", ""),
        sources=tuple(sources),
    )
