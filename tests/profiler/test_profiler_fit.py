"""The fitter on profiles of a synthetic device, whose formula is known: what it must recover."""

from __future__ import annotations

from dataclasses import replace

import pytest
from llmsim_kernels.profiler.run import ProfileOrder, run_profile
from llmsim_kernels.profiler.synthetic import Malice, SyntheticDevice, Truth

from llmsim.core.errors import CardError
from llmsim.costmodel.measured.fitting import fit_profile
from llmsim.costmodel.measured.profile import load_profile
from llmsim.specs.gpu import load_gpu

CARD = load_gpu("h100-sxm")
TRUTH = Truth(t0_s=5e-6, compute_frac=0.7, memory_frac=0.85, norm=2.5)
NOISE = 0.03


def profiled(folder, malice: Malice, **order):
    device = SyntheticDevice(
        {"gemm": TRUTH},
        malice,
        CARD.peak_flops_per_s["bf16"],
        CARD.memory_bytes_per_s,
        unsupported=("fp8", "triton"),
    )
    device.facts = replace(device.facts, details={"gpu_card": CARD.name})
    return run_profile(ProfileOrder(out=folder, **order), None, device).folder


def gemm_fit(folder):
    fits = fit_profile(folder)
    (found,) = (entry for entry in fits.values() if entry["op"] == "gemm")
    return found


def test_the_formula_is_recovered_through_noise(tmp_path):
    found = gemm_fit(profiled(tmp_path / "p", Malice(noise_log=NOISE), blocks=(1, 12)))
    terms = found["terms"]
    assert terms["t0_s"] == pytest.approx(TRUTH.t0_s, rel=0.10)
    assert terms["compute_frac"] == pytest.approx(TRUTH.compute_frac, rel=0.03)
    assert terms["memory_frac"] == pytest.approx(TRUTH.memory_frac, rel=0.03)


def test_the_holdout_report_is_the_noise_that_was_put_in(tmp_path):
    found = gemm_fit(profiled(tmp_path / "p", Malice(noise_log=NOISE), blocks=(1, 12)))
    unseen = found["holdout"]
    assert unseen["rows"] == 16
    # the median of |N(0, s)| is 0.674 s, and the table adds its own noise to that of the row
    assert 0.5 * 0.674 * NOISE < unseen["median"] < 2.0 * 0.674 * NOISE
    exact = gemm_fit(profiled(tmp_path / "q", Malice(), blocks=(1, 12)))
    assert exact["holdout"]["median"] < 0.01


def test_outliers_do_not_move_the_fit(tmp_path):
    malice = Malice(noise_log=NOISE, outlier_frac=0.05)
    terms = gemm_fit(profiled(tmp_path / "p", malice, blocks=(1, 12)))["terms"]
    assert terms["compute_frac"] == pytest.approx(TRUTH.compute_frac, rel=0.05)
    assert terms["memory_frac"] == pytest.approx(TRUTH.memory_frac, rel=0.05)


@pytest.mark.parametrize(
    "malice", [Malice(sawtooth_frac=0.3), Malice(switch_at_m=512)], ids=["sawtooth", "switch"]
)
def test_what_no_smooth_formula_has_shows_in_the_holdout(tmp_path, malice):
    smooth = gemm_fit(profiled(tmp_path / "p", Malice(), blocks=(1, 12)))["holdout"]
    rough = gemm_fit(profiled(tmp_path / "q", malice, blocks=(1, 12)))["holdout"]
    assert rough["p90"] > 2.0 * smooth["p90"]
    assert rough["median"] < 0.2  # and still most shapes are near


def test_holdout_rows_are_never_fitted(tmp_path):
    folder = profiled(tmp_path / "p", Malice(noise_log=NOISE), blocks=(1, 12))
    before = gemm_fit(folder)["terms"]
    lines = (folder / "rows.csv").read_text().splitlines(keepends=True)
    spoiled = [line for line in lines if ",holdout," not in line]
    assert len(spoiled) < len(lines)
    (folder / "rows.csv").write_text("".join(spoiled))
    assert gemm_fit(folder)["terms"] == before


def test_a_throttled_profile_is_refused(tmp_path):
    malice = Malice(throttle_after=60, throttle_ratio=1.4)
    folder = profiled(tmp_path / "p", malice, blocks=(1,))
    with pytest.raises(CardError, match="is 'failed': ceilings drifted by"):
        load_profile(folder)
