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
    (only,) = read_profiles(tmp_path)
    assert only.folder.name == "vllm-0.24.0"


def test_measured_without_tables_says_what_is_missing(tmp_path):
    with pytest.raises(InputError, match="--profiles"):
        order_of(tmp_path, Selection(), {"kind": "measured"})
    with pytest.raises(InputError, match="profile import"):
        order_of(tmp_path, Selection(), {"kind": "measured"}, profiles=tmp_path)
