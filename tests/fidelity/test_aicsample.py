"""The measured sample of the package aiconfigurator, as cases. Rows and times are made up."""

import pytest

from llmsim.core.errors import InputError
from llmsim.fidelity.aicsample import find_sample, read_sample
from llmsim.fidelity.validation import Order, Selection, validate

HEAD = (
    "id,silicon_data_source,backend,backend_version,model_path,system,precision,mode,isl,osl,"
    "batch_size,tp_size,pp_size,attention_dp_size,moe_ep_size,silicon_ttft_ms,silicon_tpot_ms\n"
)
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
ROWS = [
    f"a,source_file=/data/x.csv,vllm,0.12.0,{LLAMA},h100_sxm,bf16,agg,256,16,2,1,1,1,,40,7",
    "b_c4_tp2,source_file=2026-04-06.csv,vllm,0.19.0,MiniMaxAI/MiniMax-M2.5,b200_sxm,fp8,agg,1024,"
    "1024,,2.0,1.0,1.0,1.0,90,9",
    f"d,db-dump; silicon_concurrency=8;,trtllm,1.0,{LLAMA},h100_sxm,bf16,agg,9,9,,1,1,4,,40,7",
    f"e,db-dump; silicon_concurrency=8;,trtllm,1.0,{LLAMA},gb200,bf16,disagg,9,9,,,,,,40,7",
]


@pytest.fixture
def package(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "aiconfigurator_core" / "systems"
    folder.mkdir(parents=True)
    (folder / "silicon_sample.csv").write_text(HEAD + "\n".join(ROWS) + "\n")
    return tmp_path / "aiconfigurator_core"


def test_rows_become_cases(package):
    path = find_sample(package)
    assert find_sample(path) == path
    own, sweep, ranks, split = read_sample(path)
    assert own.text("source") == "aic-silicon-internal"
    assert (own.model_key, own.text("gpu"), own.whole("concurrency")) == (
        "llama-3.1-8b",
        "H100-80G-SXM",
        2,
    )
    assert own.measured == {("ttft", "mean"): 0.04, ("tpot", "mean"): 0.007}
    assert (sweep.text("source"), sweep.whole("concurrency")) == ("aic-silicon-inferencex", 4)
    assert sweep.text("workload").startswith("InferenceX random")
    assert [each.quality for each in (own, sweep, ranks, split)] == ["B", "B", "C", "C"]
    assert split.text("disagg")


def test_the_package_is_validated_like_a_folder(package):
    report = validate(Order(package, Selection(gpus=("H100*",))))
    (score,) = [one for one in report.scores if one.metric == "tpot"]
    assert score.measured == 0.007
    assert 0.2 < score.predicted / score.measured < 5


def test_what_is_wrong_is_told_with_its_line(tmp_path):
    path = tmp_path / "silicon_sample.csv"
    path.write_text(HEAD + ROWS[0].replace(",40,7", ",soon,7") + "\n")
    with pytest.raises(InputError, match=r"silicon_sample.csv:2"):
        read_sample(path)
    path.write_text(HEAD.replace("tp_size", "tp") + "\n")
    with pytest.raises(InputError, match="tp_size"):
        read_sample(path)


def test_other_folders_hold_none(tmp_path):
    assert find_sample(tmp_path) is None
