"""Cards and checkpoints as a scenario names them: aliases, and `engine.quantisation`."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from scenario_files import spoil, write

from llmsim.core.errors import ScenarioError
from llmsim.scenario import Scenario
from llmsim.scenario.engine import Quantisation
from llmsim.serving.build import build_pools
from llmsim.specs import SCHEMES


def kv_blocks(folder: Path, *changes: tuple[str, str]) -> int:
    plans, _ = build_pools(Scenario.load(write(folder, spoil(*changes))))
    return plans[0].facts.kv_blocks


def test_the_key_takes_every_scheme() -> None:
    assert set(get_args(Quantisation)) == set(SCHEMES)


def test_quantised_weights_leave_room_for_kv(tmp_path: Path) -> None:
    seats = ("max_num_seqs: 128", "max_num_seqs: 128\n  kv_dtype: bf16")
    blocks = kv_blocks(tmp_path, seats)
    fewer = kv_blocks(tmp_path, (seats[0], f"{seats[1]}\n  quantisation: fp8_block"))
    # Llama-3.1-8B: 6.98 B weights inside the layers lose a byte each; a block holds 2 MiB of KV
    freed = 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336) * (1 - 4 / 128**2)
    assert fewer - blocks == pytest.approx(freed / (16 * 131_072), abs=1)


def test_the_checkpoint_says_which_kv_it_wants(tmp_path: Path) -> None:
    seats = "max_num_seqs: 128"
    quantised = kv_blocks(tmp_path, (seats, f"{seats}\n  quantisation: fp8"))
    kept = kv_blocks(tmp_path, (seats, f"{seats}\n  quantisation: fp8\n  kv_dtype: bf16"))
    assert quantised == pytest.approx(2 * kept, abs=1)


def test_unknown_schemes_are_refused(tmp_path: Path) -> None:
    text = spoil(("max_num_seqs: 128", "quantisation: fp6"))
    with pytest.raises(ScenarioError, match="quantisation"):
        Scenario.load(write(tmp_path, text))


def test_aliases_are_cards_of_a_scenario(tmp_path: Path) -> None:
    named = ("gpu: h100-sxm", "gpu: H100-80G-SXM")
    owner = ("model: llama-3.1-8b", "model: meta-llama/Llama-3.1-8B-Instruct")
    plans, _ = build_pools(Scenario.load(write(tmp_path, spoil(named, owner))))
    plain, _ = build_pools(Scenario.load(write(tmp_path, spoil())))
    assert plans[0].facts.kv_blocks == plain[0].facts.kv_blocks
    assert plans[0].facts.usd_per_gpu_hour == plain[0].facts.usd_per_gpu_hour
    with pytest.raises(ScenarioError, match="Did you mean 'h100-sxm'"):
        Scenario.load(write(tmp_path, spoil(("gpu: h100-sxm", "gpu: h100-smx"))))
