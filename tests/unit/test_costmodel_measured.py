"""Tiers of a measured profile: rows, curves, residuals, what is relaxed, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from measured_profiles import DEVICE, GRIDS, TRUE, rows, true_s, write_profile

from llmsim.core.errors import CardError, InputError
from llmsim.costmodel.measured import FAMILIES, Context, Types, find_profile, load_profile
from llmsim.costmodel.measured.fitting import compare_profiles, fit_profile, implausible
from llmsim.costmodel.measured.means import MeanTerms, fit_mean, mean_s
from llmsim.costmodel.measured.profile import filled
from llmsim.costmodel.measured.residual import Scattered, not_falling
from llmsim.specs.profile_meta import read_meta

GEMM = {"m": 128, "n": 4096, "k": 4096}
DECODE = {"batch": 64, "kv_len": 2048, "heads_q": 32, "heads_kv": 8, "head_dim": 128}


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    return load_profile(write_profile(tmp_path_factory.mktemp("p"), rows()))


@pytest.mark.parametrize("op", ["gemm", "attention_decode", "attention_prefill"])
def test_a_fit_finds_the_parameters_of_noisy_rows(op):
    """Floor within 10%, reachable shares within 3 points of what made the rows."""
    family, true = FAMILIES[op], TRUE[op]
    random = np.random.default_rng(1)
    shapes = {}
    for name, values in GRIDS[op].items():
        low, high = np.log(max(1, min(values))), np.log(max(1, max(values)))
        shapes[name] = np.round(np.exp(random.uniform(low, high, 1500)))
    shapes |= {name: np.full(1500, 0.0) for name in ("window",) if name in GRIDS[op]}
    work = family.work(filled(family, shapes), Types(), DEVICE)
    times = mean_s(work, true) * np.exp(random.normal(0.0, 0.03, 1500))
    times[::40] *= 3.0  # rows of a bad run
    found = fit_mean(work, times, family.free, family.start).terms
    assert found.t0_s == pytest.approx(true.t0_s, rel=0.10)
    assert found.memory_frac == pytest.approx(true.memory_frac, abs=0.05)
    if op != "attention_decode":  # its compute limit is far below the other one
        assert found.compute_frac == pytest.approx(true.compute_frac, abs=0.03)


def test_a_measured_row_is_returned_as_it_is(profile):
    answer = profile.latency("gemm", GEMM, Context())
    assert answer.source == "measured"
    assert answer.seconds == pytest.approx(true_s("gemm", GEMM), rel=1e-12)
    assert answer.sigma == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("op", "shape", "sigma"),
    [
        ("gemm", {"m": 300, "n": 4096, "k": 4096}, 0.05),
        ("gemm", {"m": 300, "n": 3000, "k": 3000}, 0.07),
        ("attention_decode", {**DECODE, "batch": 20, "kv_len": 3000}, 0.05),
        ("moe", {**{k: v[0] for k, v in GRIDS["moe"].items()}, "tokens": 100}, 0.05),
        ("all_reduce", {"message_bytes": 5000, "gpus": 4}, 0.05),
    ],
)
def test_between_rows_the_truth_is_met_within_a_few_percent(profile, op, shape, sigma):
    answer = profile.latency(op, shape, Context())
    assert answer.source == "interpolated"
    assert answer.sigma == pytest.approx(sigma)
    assert answer.seconds == pytest.approx(true_s(op, shape), rel=0.05)


def test_beyond_the_rows_the_roofline_scales_and_certainty_falls(profile):
    inside = profile.latency("gemm", {"m": 8192, "n": 16384, "k": 8192}, Context())
    outside = profile.latency("gemm", {"m": 32768, "n": 16384, "k": 8192}, Context())
    assert outside.seconds / inside.seconds == pytest.approx(4.0, rel=0.02)
    assert outside.sigma == pytest.approx(inside.sigma + 2 * 0.05)
    assert any("beyond the measured shapes" in line for line in profile.usage.lines())


def test_times_do_not_fall_with_context_or_message_size(tmp_path):
    noisy = rows(("attention_decode", "all_reduce"), noise=0.4)
    loaded = load_profile(write_profile(tmp_path, noisy))
    lengths = np.arange(128.0, 32768.0, 512.0)
    shape = {name: np.array([float(value)]) for name, value in DECODE.items()}
    times = loaded.latencies("attention_decode", {**shape, "kv_len": lengths}, Context())
    kept = times.source != 0  # a row itself stays what was measured
    assert np.all(np.diff(times.seconds[kept]) >= -0.02 * times.seconds[kept][1:])
    sizes = np.geomspace(300.0, 2.0**25, 50)
    group = {"gpus": np.array([4.0]), "nodes": np.array([1.0])}
    spread = loaded.latencies("all_reduce", {"message_bytes": sizes, **group}, Context())
    assert np.all(np.diff(spread.seconds) >= -1e-12)


def test_gemm_may_fall_with_tokens(tmp_path):
    """A kernel switch makes more tokens cheaper: kept, not smoothed away."""
    made = rows(("gemm",))
    for row in made:
        row["t_median_us"] *= 0.5 if row["m"] >= 128 else 1.0
    loaded = load_profile(write_profile(tmp_path, made))
    few, more = (
        loaded.latency("gemm", {"m": m, "n": 4096, "k": 4096}, Context()) for m in (32, 128)
    )
    assert few.source == more.source == "measured"
    assert more.seconds < few.seconds


def test_relaxing_goes_libraries_kernel_format_roofline(tmp_path):
    old = load_profile(write_profile(tmp_path, rows(("gemm",))))
    same = old.latency("gemm", GEMM, Context(libs="lib 1", kernel_id="true.v1"))
    libs = old.latency("gemm", GEMM, Context(libs="lib 2", kernel_id="true.v1"))
    kernel = old.latency("gemm", GEMM, Context(libs="lib 1", kernel_id="other"))
    fp8 = old.latency("gemm", GEMM, Context(types=Types("fp8", "fp8")))
    none = old.latency("norm", {"tokens": 8, "hidden": 4096}, Context())
    sources = [each.source for each in (same, libs, kernel, fp8, none)]
    assert sources == ["measured", "transferred", "transferred", "transferred", "roofline"]
    assert libs.sigma == pytest.approx(same.sigma)
    assert kernel.sigma == pytest.approx(same.sigma + 0.15)
    assert fp8.sigma >= 0.30
    assert fp8.seconds < same.seconds  # half the bytes, twice the peak
    assert len([line for line in old.usage.relaxed if line.startswith("gemm")]) == 3


@pytest.mark.parametrize(
    "context",
    [
        Context(strict=True, libs="lib 2"),
        Context(strict=True, kernel_id="other"),
        Context(strict=True, types=Types("fp8", "fp8")),
    ],
)
def test_strict_refuses_and_says_what_there_is(profile, context):
    with pytest.raises(InputError, match=r"true\.v1 \(bf16; lib 1\)"):
        profile.latency("gemm", GEMM, context)
    assert profile.latency("gemm", GEMM, Context(strict=True)).source == "measured"


def test_a_later_version_of_a_kernel_stands_for_the_earlier_ones(tmp_path):
    made = rows(("gemm",), kernel_id="own.v9") + rows(("gemm",), kernel_id="own.v10", factor=2.0)
    profile = load_profile(write_profile(tmp_path, made))
    true_us = 1e6 * true_s("gemm", GEMM)
    assert profile.latency("gemm", GEMM, Context()).seconds * 1e6 == pytest.approx(2 * true_us)
    for context in (
        Context(kernel_id="own.v9"),
        Context(kernel_id="other", kernels=(("gemm", "own.v9"),)),
    ):
        assert profile.latency("gemm", GEMM, context).seconds * 1e6 == pytest.approx(true_us)


def test_each_shape_takes_the_kernel_measured_nearest(tmp_path):
    """One engine, two kernels: small products by one, large ones by the other."""
    small = [row for row in rows(("gemm",), kernel_id="small") if row["m"] <= 32]
    large = [row for row in rows(("gemm",), kernel_id="large", factor=2.0) if row["m"] > 32]
    loaded = load_profile(write_profile(tmp_path, small + large))
    few = {"m": 12, "n": 4096, "k": 4096}
    many = {"m": 3000, "n": 4096, "k": 4096}
    assert loaded.latency("gemm", few, Context()).seconds == pytest.approx(
        true_s("gemm", few), rel=0.05
    )
    assert loaded.latency("gemm", many, Context()).seconds == pytest.approx(
        2 * true_s("gemm", many), rel=0.05
    )


def test_collectives_take_the_fastest_kernel(tmp_path):
    slow = rows(("all_reduce",), kernel_id="nccl", libs="nccl 2", factor=2.0)
    fast = [r for r in rows(("all_reduce",), kernel_id="custom") if r["message_bytes"] <= 2**20]
    eager = [
        {**r, "graph": False, "t_median_us": 1.0} for r in rows(("all_reduce",), kernel_id="e")
    ]
    loaded = load_profile(write_profile(tmp_path, slow + fast + eager))
    for size, factor in ((65536, 1.0), (2**26, 2.0)):
        shape = {"message_bytes": size, "gpus": 2}
        answer = loaded.latency("all_reduce", shape, Context())
        assert answer.seconds == pytest.approx(factor * true_s("all_reduce", shape), rel=0.05)


def test_holdout_rows_are_never_fitted_and_judge_the_fit(tmp_path):
    made = rows(("gemm",), noise=0.02)
    for row in made[::7]:
        row |= {"split": "holdout", "t_median_us": 1.3 * row["t_median_us"]}
    folder = write_profile(tmp_path, made)
    loaded = load_profile(folder)
    unseen = {name: made[0][name] for name in ("m", "n", "k")}
    answer = loaded.latency("gemm", unseen, Context())
    assert answer.source == "interpolated"
    assert answer.seconds < 0.85e-6 * made[0]["t_median_us"]
    ((key, fit),) = fit_profile(folder).items()
    assert key == "gemm bf16/bf16/bf16 true.v1 (lib 1)"
    assert fit["holdout"]["rows"] == len(made[::7])
    assert fit["holdout"]["bias"] == pytest.approx(1 / 1.3 - 1, abs=0.03)
    stated = load_profile(folder)
    assert read_meta(folder).fit == {key: fit}
    assert stated.tables("gemm")[0].fit.terms == MeanTerms(**fit["terms"])
    assert stated.latency("gemm", {"m": 300, "n": 3000, "k": 3000}, Context()).sigma > 0.1


def test_times_that_no_device_reaches_are_found(tmp_path):
    made = rows(("gemm",))
    made[-1]["t_median_us"] /= 10
    (fault,) = implausible(load_profile(write_profile(tmp_path, made)))
    assert "times as fast as the best rate allows" in fault.message
    assert "m=8192, n=16384, k=14336" in fault.message


def test_two_profiles_are_compared_where_they_meet(tmp_path):
    old = load_profile(write_profile(tmp_path / "a", rows(("gemm", "norm"))))
    new = load_profile(write_profile(tmp_path / "b", rows(("gemm",), libs="lib 2", factor=1.1)))
    (found,) = compare_profiles(old, new)
    assert (found.operator, found.formats, found.shapes) == ("gemm", "bf16", 84)
    changes = (found.ratio - 1, found.change_median, found.change_p90)
    assert changes == pytest.approx((0.1, 0.1, 0.1), abs=5e-4)


def test_wrong_questions_name_what_is_wrong(profile, tmp_path):
    with pytest.raises(InputError, match="Did you mean 'gemm'"):
        profile.latency("gem", GEMM, Context())
    with pytest.raises(InputError, match="k: missing; gemm needs it"):
        profile.latency("gemm", {"m": 1, "n": 2}, Context())
    with pytest.raises(CardError, match="no profile here"):
        find_profile("nowhere/else", tmp_path)
    failed = write_profile(tmp_path / "f", rows(("norm",)), state="failed", drift_frac=0.2)
    with pytest.raises(CardError, match="drifted by 20%"):
        load_profile(failed)
    assert load_profile(failed, failed_too=True).operators() == ("norm",)


def test_scattered_values_are_met_at_their_points_and_held_outside():
    random = np.random.default_rng(0)
    points = np.round(random.uniform(0, 8, (60, 3)) * 2) / 2
    values = random.normal(size=60)
    table = Scattered.of(points, values)
    _, first, count = np.unique(points, axis=0, return_index=True, return_counts=True)
    single = first[count == 1]
    assert len(single) > 40
    met, outside = table.at(points[single])
    assert met == pytest.approx(values[single], abs=1e-6)
    assert np.all(outside == 0)
    corner = points.max(axis=0)
    held, beyond = table.at(np.array([corner, corner + 2.0]))
    assert held[0] == held[1]
    assert list(beyond) == [0.0, 6.0]


def test_not_falling_is_the_least_squares_answer():
    assert list(not_falling(np.array([1.0, 3.0, 2.0, 2.0, 5.0]))) == pytest.approx(
        [1.0, 7 / 3, 7 / 3, 7 / 3, 5.0]
    )
