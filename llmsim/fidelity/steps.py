"""Measured steps of an engine: batch composition and wall time, as evidence for a calibration."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from llmsim.core.units import NS_PER_S
from llmsim.costmodel import RooflineCost, padded_sums
from llmsim.fidelity.scenarios import card_of
from llmsim.specs import (
    EngineLimits,
    HostTerms,
    OperatorScales,
    ParallelPlan,
    load_engine,
    load_gpu,
    load_link,
    load_model,
)

PER_KIND: Final = 40
"""Steps taken of one layout and kind, drawn by hash: neighbours in time are all but repeats."""

FIRST_STEPS_S: Final = 0.5
"""A decode step that takes longer held something else, such as a first compilation [s]."""


@dataclass(frozen=True, slots=True)
class Step:
    """One measured step.

    Parameters
    ----------
    step_id : str
    layout : str
        What steps that are held out together share: its tensor-parallel degree.
    tp : int [GPUs]
    budget_tokens, max_num_seqs : int [tokens], [requests]
        Limits of the engine.
    chunks : tuple of (new, past) [tokens]
    contexts : tuple of int [tokens]
        Of the decoding requests, this step's token included; the record holds their sum, so they
        are taken to be equal.
    seconds : float [s]
    """

    step_id: str
    layout: str
    tp: int
    budget_tokens: int
    max_num_seqs: int
    chunks: tuple[tuple[int, int], ...]
    contexts: tuple[int, ...]
    seconds: float

    @property
    def kind(self) -> str:
        """What the step does: prefill, decode or mixed."""
        if not self.chunks:
            return "decode"
        return "mixed" if self.contexts else "prefill"


@dataclass(frozen=True, slots=True)
class StepFile:
    """Steps of one engine, model and GPU.

    Parameters
    ----------
    engine, version : str
    gpu : str
        Name of its card.
    model : str
        Name of its card.
    steps : tuple of Step
    """

    engine: str
    version: str
    gpu: str
    model: str
    steps: tuple[Step, ...]


def read_steps(folder: Path) -> list[StepFile]:
    """Return the measured steps of a folder; files whose layout is not recorded are left out.

    Parameters
    ----------
    folder : Path
        With ``steps/NAME.csv.gz`` beside ``steps/NAME_meta.json``.
    """
    found = []
    for path in sorted((folder / "steps").glob("*_meta.json")):
        meta = json.loads(path.read_text(encoding="utf-8"))
        table = path.with_name(path.name.replace("_meta.json", ".csv.gz"))
        if "runs" in meta and table.is_file():
            found.append(_read(meta, table))
    return found


def _read(meta: Mapping[str, Any], table: Path) -> StepFile:
    engine, version = re.findall(r"[A-Za-z]+|\d+(?:\.\d+)+", meta["engine"])[:2]
    runs = {run["run"]: run for run in meta["runs"]}
    steps: dict[tuple[str, str], list[Step]] = defaultdict(list)
    with gzip.open(table, "rt", encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            step = _step(f"{table.stem}:{number + 2}", row, runs[row["run"]])
            if step is not None:
                steps[step.layout, step.kind].append(step)
    drawn = [step for side in steps.values() for step in _by_hash(side)[:PER_KIND]]
    gpu = card_of(str(meta["gpu"]).split()[0])
    return StepFile(engine.lower(), version, gpu, load_model(meta["model"]).name, tuple(drawn))


def _step(step_id: str, row: Mapping[str, str], run: Mapping[str, Any]) -> Step | None:
    """Return one step; None where its composition is too uneven to be known from sums.

    Under real traffic contexts differ by far, and the kernel of the longest one sets the time: a
    sum does not tell that. The sweep's requests are alike.
    """
    prompts, decoding = int(row["prefill_reqs"]), int(row["decode_reqs"])
    seconds = float(row["latency_ms"]) / 1e3
    if row["segment"] != "sweep" or not prompts + decoding:
        return None
    if not prompts and seconds > FIRST_STEPS_S:
        return None
    new, past = int(row["prefill_tokens"]), int(row["prefill_kv_tokens"])
    chunks = [(new // prompts, past // prompts)] * prompts if prompts else []
    contexts = [round(int(row["decode_kv_tokens"]) / decoding)] * decoding if decoding else []
    tp = int(run["tp"])
    # A step of the record may hold more than the budget that the meta file states.
    budget = max(int(run["max_num_batched_tokens"]), new + decoding)
    return Step(
        step_id,
        f"tp{tp}",
        tp,
        budget,
        int(run["max_num_seqs"]),
        tuple(chunks),
        tuple(contexts),
        seconds,
    )


def _by_hash(steps: Iterable[Step]) -> list[Step]:
    return sorted(steps, key=lambda step: hashlib.blake2b(step.step_id.encode()).digest())


@dataclass(frozen=True, slots=True)
class Steps:
    """Measured steps as evidence; a group is a layout.

    Parameters
    ----------
    file : StepFile
    version : str
        Engine card whose host terms hold.
    """

    file: StepFile
    version: str

    @property
    def kin(self) -> Mapping[str, str]:
        """Nothing: all steps of a file are of one model."""
        return {}

    @property
    def groups(self) -> Mapping[str, str]:
        """Layout of every step."""
        return {step.step_id: step.layout for step in self.file.steps}

    def of(self, layouts: Collection[str]) -> Steps:
        """Return the steps of some layouts.

        Parameters
        ----------
        layouts : collection of str
        """
        kept = tuple(step for step in self.file.steps if step.layout in layouts)
        file = self.file
        return Steps(StepFile(file.engine, file.version, file.gpu, file.model, kept), self.version)

    def errors(
        self, terms: Mapping[str, float], only: Collection[str] | None = None
    ) -> dict[str, float]:
        """Return the logarithm of predicted over measured, by step; see `Evidence.errors`."""
        key = tuple(sorted(terms.items()))
        file = self.file
        found = {}
        for step in file.steps:
            if only is None or step.step_id in only:
                limits = (step.max_num_seqs, step.budget_tokens)
                cost = _cost(file.model, file.gpu, self.version, step.tp, limits, key)
                padded, windowed = padded_sums(step.contexts, cost.context_tile, cost.window_tokens)
                rows = len(step.chunks) + len(step.contexts)
                price = cost.step_ns(step.chunks, len(step.contexts), padded, windowed, rows)
                found[step.step_id] = math.log(price / NS_PER_S / step.seconds)
        return found


@lru_cache(maxsize=32)
def _cost(
    model: str,
    gpu: str,
    version: str,
    tp: int,
    limits: tuple[int, int],
    terms: tuple[tuple[str, float], ...],
) -> RooflineCost:
    factors = dict(terms)
    engine = load_engine(version)
    host: HostTerms = engine.host.times(factors.pop("host_scale", 1.0))
    scales = OperatorScales(**{name.removesuffix("_scale"): x for name, x in factors.items()})
    card = load_gpu(gpu, None, engine.family)
    link = load_link(card.link, None, engine.family) if tp > 1 else None
    between = load_link(card.scale_out) if tp > card.node_gpus else None
    seqs, budget = limits
    bounds = EngineLimits(
        max_num_seqs=seqs, max_num_batched_tokens=max(budget, seqs), max_model_len=2**17
    )
    return RooflineCost(
        load_model(model),
        card,
        link,
        ParallelPlan(tp),
        bounds,
        None,
        engine.lookahead,
        host,
        scales,
        between,
        engine.fused_norm,
    )


def steps_of(files: Sequence[StepFile], engine: str, gpu: str) -> list[StepFile]:
    """Return the files of one engine on one GPU.

    Parameters
    ----------
    files : sequence of StepFile
    engine, gpu : str
        Engine as measurements call it; name of a GPU card.
    """
    return [file for file in files if (file.engine, file.gpu) == (engine, gpu)]
