"""Which kernel table prices which case."""

import json

import pytest

from llmsim.core.errors import InputError
from llmsim.fidelity.cases import Case
from llmsim.fidelity.profiles import priced_by, profile_for, read_profiles
from llmsim.fidelity.validation import Selection, order_of

MEASURED = {"kind": "measured", "mixed": "split", "host_base_s": 1e-4}


@pytest.fixture
def known(tmp_path):
    for name in (
        *("h100-sxm/vllm-0.14.0", "h100-sxm/vllm-0.24.0", "h100-sxm/trtllm-1.3.0rc20"),
        "h200-sxm/vllm-0.24.0",
    ):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "meta.json").write_text(json.dumps({}))
        (tmp_path / name / "rows.csv").write_text("op,t_median_us\ngemm,5\n")
    return read_profiles(tmp_path)


def case(gpu="H100-80G-SXM", engine="vllm", version=""):
    return Case("c", "A", {"gpu": gpu, "engine": engine, "engine_version": version}, {})


@pytest.mark.parametrize(
    ("version", "folder"),
    [("0.12.0", "vllm-0.14.0"), ("0.15.1", "vllm-0.14.0"), ("0.22.0", "vllm-0.24.0")],
)
def test_the_nearest_version_of_the_gpu_and_engine_prices(known, version, folder):
    assert profile_for(case(version=version), known).folder.name == folder


def test_another_engine_or_gpu_never_does(known):
    assert profile_for(case(engine="trtllm"), known).folder.name == "trtllm-1.3.0rc20"
    assert profile_for(case(engine="sglang"), known) is None
    assert profile_for(case(gpu="B200-180G"), known) is None
    assert profile_for(case(gpu="no such GPU"), known) is None


def test_without_a_table_the_roofline_prices_with_the_terms_that_it_knows(known):
    assert priced_by(MEASURED, case(engine="sglang"), known) == {
        "kind": "roofline",
        "host_base_s": 1e-4,
    }
    assert priced_by(MEASURED, case(), known)["profile"].endswith("vllm-0.14.0")
    own = {"kind": "measured", "profile": "mine"}
    assert priced_by(own, case(), known) == own


def test_a_table_without_gemms_prices_no_model(tmp_path):
    for name, kernel in (("vllm-0.14.0", "mla_decode x"), ("vllm-0.24.0", "gemm bf16 x")):
        (tmp_path / "h100-sxm" / name).mkdir(parents=True)
        meta = tmp_path / "h100-sxm" / name / "meta.json"
        meta.write_text(json.dumps({"fit": {kernel: {}}}))
    assert profile_for(case(version="0.14.0"), read_profiles(tmp_path)).folder.name == "vllm-0.24.0"


def test_nor_does_one_of_experts_alone_that_was_never_fitted(tmp_path):
    for name, op in (("vllm-0.19.0", "moe"), ("vllm-0.24.0", "gemm")):
        (tmp_path / "b200" / name).mkdir(parents=True)
        (tmp_path / "b200" / name / "meta.json").write_text(json.dumps({"fit": {}}))
        (tmp_path / "b200" / name / "rows.csv").write_text(f"op,t_median_us\n{op},5\n")
    found = profile_for(case("B200-180G", version="0.19.0"), read_profiles(tmp_path))
    assert found.folder.name == "vllm-0.24.0"


@pytest.fixture
def releases(tmp_path):
    """Three releases: 0.19 has experts alone, by another kernel than 0.24."""
    for version, kernels in (
        ("0.19.0", ("moe nvfp4 old_fp4 (vllm 0.19)",)),
        ("0.22.0", ("moe fp8_block fused_moe (vllm 0.22)",)),
        ("0.24.0", ("gemm bf16 linear (vllm 0.24)", "moe nvfp4 new_fp4 (vllm 0.24)")),
    ):
        (tmp_path / "b200" / f"vllm-{version}").mkdir(parents=True)
        meta = tmp_path / "b200" / f"vllm-{version}" / "meta.json"
        meta.write_text(json.dumps({"fit": {key: {} for key in kernels}}))
    return read_profiles(tmp_path)


def test_experts_are_priced_by_the_nearest_release_that_has_their_kernel(releases):
    ran = case("B200-180G", version="0.19.0")
    plain = priced_by({"kind": "measured"}, ran, releases)
    assert plain.keys() == {"kind", "profile"}
    found = priced_by({"kind": "measured"}, ran, releases, ["*_fp4"])
    assert found["profile"].endswith("vllm-0.24.0")
    assert found["profiles"]["moe"].endswith("vllm-0.19.0")
    assert found["kernels"] == {"moe": "*_fp4"}
    later = priced_by(
        {"kind": "measured"}, case("B200-180G", version="0.23.1"), releases, ["*_fp4"]
    )
    assert "profiles" not in later
    second = priced_by({"kind": "measured"}, ran, releases, ["*triton*", "fused_moe*"])
    assert second["profiles"]["moe"].endswith("vllm-0.22.0")
    assert second["kernels"] == {"moe": "fused_moe*"}


def test_a_kernel_that_no_release_has_leaves_experts_to_the_roofline(releases):
    found = priced_by({"kind": "measured"}, case("B200-180G"), releases, ["*marlin*"])
    assert "profiles" not in found
    assert found["kernels"] == {"moe": "*marlin*"}


def test_measured_without_tables_says_what_is_missing(tmp_path):
    with pytest.raises(InputError, match="--profiles"):
        order_of(tmp_path, Selection(), {"kind": "measured"})
    with pytest.raises(InputError, match="profile import"):
        order_of(tmp_path, Selection(), {"kind": "measured"}, profiles=tmp_path)
