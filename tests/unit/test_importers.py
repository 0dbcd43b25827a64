"""Public kernel tables as profiles: each format as it is published, by hand-made rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmsim.cli.app import app
from llmsim.core.errors import CardError
from llmsim.costmodel.measured import Context, load_profile
from llmsim.specs.importers import FORMAT_NAMES, import_tables
from llmsim.specs.profile_meta import read_meta
from llmsim.specs.profile_rows import check_rows, read_rows

TIDY = Path(__file__).resolve().parents[2].parent / "shared" / "kernels"
HEAD = "framework,version,device,op_name,kernel_source,"


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def one(folder: Path) -> list[dict]:
    """Return the rows of a profile, its format checked."""
    table = read_rows(folder)
    assert check_rows(table) == []
    return [table.row(index) for index in range(len(table))]


@pytest.fixture
def aiconfigurator(tmp_path):
    """The layout of the package: systems/data/<gpu>/<what>/<engine>/<version>."""
    data = tmp_path / "systems" / "data" / "h200_sxm"
    pre = "VLLM,0.24.0,NVIDIA H200,"
    write(
        data / "gemm" / "vllm" / "0.24.0" / "gemm_perf.txt",
        HEAD + "gemm_dtype,m,n,k,latency",
        pre + "gemm,torch.nn.functional.linear,bfloat16,8,4096,1024,0.0125",
        pre + "gemm,Cutlass,fp8_block,8,4096,1024,0.02",
        pre + "gemm,Cutlass,fp3,8,4096,1024,0.02",
    )
    attention = "batch_size,isl,num_heads,num_key_value_heads,head_dim,beam_width,"
    attention += "attn_dtype,kv_cache_dtype,step,window_size,latency"
    write(
        data / "attention" / "vllm" / "0.24.0" / "generation_attention_perf.txt",
        HEAD + attention,
        pre + "generation_attention,fa3,4,1,32,8,128,1,bfloat16,fp8,1023,0,0.05",
        pre + "generation_attention,fa3,4,1,32,0,128,1,bfloat16,fp8,1023,128,0.06",
    )
    write(
        data / "moe" / "vllm" / "0.24.0" / "moe_perf.txt",
        HEAD + "moe_dtype,num_tokens,hidden_size,inter_size,topk,num_experts,moe_tp_size,"
        "moe_ep_size,distribution,latency",
        pre + "moe,triton,w4a16_mxfp4,16,2880,2880,4,128,2,4,power_law_1.2,0.1",
        pre + "moe,moe_nongated,bfloat16,16,2880,2880,4,128,2,4,balanced,0.1",
    )
    for version in ("2.9", "2.27.3"):
        write(
            data / "comm" / "nccl" / version / "nccl_perf.txt",
            HEAD + "nccl_dtype,num_gpus,message_size,latency",
            f"TRTLLM,{version},NVIDIA H200,alltoall,NCCL,half,4,512,0.02",
            f"TRTLLM,{version},NVIDIA H200,alltoall,NCCL,int8,4,512,0.02",
        )
    return tmp_path


def test_aiconfigurator(aiconfigurator, tmp_path):
    (folder,) = import_tables("aiconfigurator", aiconfigurator, tmp_path / "out", version="095f")
    assert folder == tmp_path / "out" / "h200-sxm" / "vllm-0.24.0"
    rows = one(folder)
    gemm, block = (row for row in rows if row["op"] == "gemm")
    assert (gemm["m"], gemm["n"], gemm["k"]) == (8, 4096, 1024)
    assert gemm["t_median_us"] == pytest.approx(12.5)
    assert (block["dtype_a"], block["dtype_w"]) == ("fp8_block", "fp8_block")
    plain, windowed = (row for row in rows if row["op"] == "attention_decode")
    assert (plain["kv_len"], plain["window"], plain["heads_kv"]) == (1024, 0, 8)
    assert (windowed["window"], windowed["heads_kv"], windowed["dtype_kv"]) == (128, 32, "fp8")
    (moe,) = (row for row in rows if row["op"] == "moe")
    assert (moe["inter"], moe["experts_local"], moe["skew"]) == (1440, 32, 1.2)
    assert (moe["dtype_a"], moe["dtype_w"]) == ("bf16", "mxfp4")
    (comm,) = (row for row in rows if row["op"] == "all_to_all")
    assert (comm["message_bytes"], comm["gpus"], comm["libs"]) == (1024, 4, "nccl 2.27.3")
    meta = read_meta(folder)
    assert meta.licence.startswith("Apache-2.0")
    assert meta.source.endswith("@ 095f")
    assert meta.origin == "imported"
    assert meta.device == {"name": "h200_sxm", "gpu_card": "h200-sxm"}
    assert "1 gemm rows in format fp3 left out" in meta.notes
    assert "1 rows of experts without gate left out" in meta.notes


def test_products_of_tensorrt_llm_lose_the_pass_that_finds_scales(tmp_path):
    data = tmp_path / "systems" / "data" / "b200_sxm"
    for engine in ("trtllm", "vllm"):
        pre = "X,1.3,NVIDIA B200,"
        write(
            data / "gemm" / engine / "1.3" / "gemm_perf.txt",
            HEAD + "gemm_dtype,m,n,k,latency",
            pre + "gemm,torch_flow,fp8,8,4096,1024,0.020",
            pre + "gemm,torch_flow,bfloat16,8,4096,1024,0.030",
        )
        write(
            data / "quantize" / engine / "1.3" / "computescale_perf.txt",
            HEAD + "m,k,quant_dtype,latency",
            pre + "compute_scale,torch_ops,8,1024,fp8,0.008",
        )
    found = {
        folder.name: sorted(row["t_median_us"] for row in one(folder))
        for folder in import_tables("aiconfigurator", tmp_path, tmp_path / "out")
    }
    assert found["trtllm-1.3"] == pytest.approx([12.0, 30.0])
    assert found["vllm-1.3"] == pytest.approx([20.0, 30.0])


def test_a_table_may_hold_a_single_row(tmp_path):
    """Or the same one again: nothing tells its rows apart then."""
    row = "VLLM,0.24.0,NVIDIA H200,gemm,torch.nn.functional.linear,bfloat16,8,4096,1024,"
    data = tmp_path / "systems" / "data" / "h200_sxm"
    names = HEAD + "gemm_dtype,m,n,k,latency"
    write(data / "gemm" / "vllm" / "0.24.0" / "gemm_perf.txt", names, row + "0.01", row + "0.03")
    (folder,) = import_tables("aiconfigurator", tmp_path, tmp_path / "out")
    (gemm,) = one(folder)
    assert gemm["t_median_us"] == pytest.approx(20.0)


def test_csv_and_parquet_hold_the_same_rows(aiconfigurator, tmp_path):
    (parquet,) = import_tables("aiconfigurator", aiconfigurator, tmp_path / "a")
    (text,) = import_tables("aiconfigurator", aiconfigurator, tmp_path / "b", as_csv=True)
    assert (text / "rows.csv.gz").is_file()
    assert one(parquet) == one(text)


def test_a_git_lfs_pointer_is_named(tmp_path):
    path = tmp_path / "data" / "h200_sxm" / "vllm" / "0.9" / "gemm_perf.txt"
    write(path, "version https://git-lfs.github.com/spec/v1", "oid sha256:0", "size 1")
    with pytest.raises(CardError, match="Git LFS pointer"):
        import_tables("aiconfigurator", tmp_path, tmp_path / "out")


def test_vidur(tmp_path):
    data = tmp_path / "data" / "profiling"
    stats = "time_stats.attn_pre_proj.median,time_stats.mlp_up_proj.median,"
    write(
        data / "compute" / "a100" / "org" / "model" / "mlp.csv",
        stats + "n_head,n_kv_head,n_embd,n_expanded_embd,use_gated_mlp,num_tokens,"
        "num_tensor_parallel_workers",
        "0.05,0.2,64,8,8192,28672,True,128,2",
    )
    write(
        data / "compute" / "h100" / "org" / "model" / "mlp.csv",
        "n_head,num_tokens",
        "64,128",
    )
    write(
        data / "compute" / "a100" / "org" / "model" / "attention.csv",
        "time_stats.attn_decode.median,time_stats.attn_prefill.median,n_embd,n_q_head,n_kv_head,"
        "block_size,num_tensor_parallel_workers,batch_size,prefill_chunk_size,kv_cache_size,"
        "is_prefill,attention_backend",
        "0.015,,8192,64,8,16,2,4,0,1024,False,AttentionBackend.FLASHINFER",
        ",0.4,8192,64,8,16,2,1,512,2048,True,AttentionBackend.FLASHINFER",
    )
    write(
        data / "network" / "a100_dgx" / "all_reduce.csv",
        "time_stats.all_reduce.median,num_workers,size,collective,devices_per_node",
        "0.03,16,2048,all_reduce,8",
    )
    (folder,) = import_tables("vidur", tmp_path, tmp_path / "out")
    rows = {row["op"] + row.get("phase", ""): row for row in one(folder)}
    gemms = sorted((r["n"], r["k"], r["m"]) for r in one(folder) if r["op"] == "gemm")
    assert gemms == [((32 + 2 * 4) * 128, 8192, 128), (2 * 28672 // 2, 8192, 128)]
    decode = rows["attention_decodedecode"]
    assert (decode["heads_q"], decode["heads_kv"], decode["kv_len"]) == (32, 4, 1024)
    assert decode["kernel_id"] == "flashinfer"
    prefill = rows["attention_prefillprefill"]
    assert (prefill["q_len"], prefill["kv_len"]) == (512, 2048)
    assert prefill["t_median_us"] == pytest.approx(400.0)
    reduce = rows["all_reduce"]
    assert (reduce["message_bytes"], reduce["gpus"], reduce["nodes"]) == (2048, 16, 2)
    assert read_meta(folder).licence.startswith("MIT")


def test_llmservingsim(tmp_path):
    place = tmp_path / "perf" / "RTXPRO6000" / "meta-llama" / "Llama-3.1-8B" / "bf16"
    write(place / "meta.yaml", "vllm_version: 0.19.0", "cuda_version: '13.0'")
    write(
        place / "tp2" / "dense.csv",
        "layer,tokens,time_us",
        "qkv_proj,64,30.5",
        "act_fn,64,3.0",
        "rotary_emb,64,5.0",
    )
    write(
        place / "tp2" / "attention.csv",
        "layer,prefill_chunk,prefill_key,n_decode,kv_decode,decode_q_len,time_us",
        "attention,0,0,8,1024,1,20.0",
        "attention,512,2048,0,0,1,90.0",
        "attention,512,2048,8,1024,1,120.0",
    )
    unknown = tmp_path / "perf" / "RTXPRO6000" / "x" / "Unheard-of-1B" / "bf16" / "tp1"
    write(unknown / "dense.csv", "layer,tokens,time_us", "qkv_proj,64,30.5")
    (folder,) = import_tables("llmservingsim", tmp_path, tmp_path / "out")
    rows = {row["op"]: row for row in one(folder)}
    assert set(rows) == {
        *("gemm", "activation", "attention_decode", "attention_prefill", "attention_mixed")
    }
    assert (rows["gemm"]["n"], rows["gemm"]["k"]) == ((32 // 2 + 2 * 4) * 128, 4096)
    assert rows["activation"]["inter"] == 7168
    mixed = rows["attention_mixed"]
    assert (mixed["q_len"], mixed["decode_batch"], mixed["decode_kv_len"]) == (512, 8, 1024)
    assert "Unheard-of-1B" in read_meta(folder).notes
    assert read_meta(folder).libs["vllm"] == "0.19.0"


def test_splitwise(tmp_path):
    write(
        tmp_path / "data" / "perf_model.csv",
        "model,hardware,prompt_size,batch_size,token_size,peak_power,average_power,prompt_time,"
        "token_time,e2e_time,tensor_parallel",
        "llama2-70b,a100-80gb,512,2,128,1,1,200.0,60.0,7000,8",
        "llama2-70b,a100-80gb,512,2,128,1,1,210.0,61.0,7000,8",
        "llama2-70b,h100-80gb,512,2,128,1,1,100.0,40.0,7000,8",
    )
    folders = import_tables("splitwise", tmp_path, tmp_path / "out")
    assert [folder.parent.name for folder in folders] == ["a100-80gb-sxm", "h100-sxm"]
    prompt, token = one(folders[0])
    assert prompt["t_median_us"] == pytest.approx(205e3)  # the median of two repeats
    assert (prompt["variant"], prompt["gpus"]) == ("llama2-70b prompt", 8)
    assert token["kv_len"] == 512 + 64
    write(tmp_path / "data" / "perf_model.csv", "model,hardware", "a,b")
    with pytest.raises(CardError, match="prompt_time: column is missing"):
        import_tables("splitwise", tmp_path, tmp_path / "out")


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_an_empty_folder_says_what_was_looked_for(name, tmp_path):
    with pytest.raises(CardError, match=r"perf|tables|dense|perf_model"):
        import_tables(name, tmp_path, tmp_path / "out")


def test_wrong_orders_name_the_right_word(tmp_path, aiconfigurator):
    with pytest.raises(CardError, match="Did you mean 'vidur'"):
        import_tables("vidr", tmp_path, tmp_path / "out")
    with pytest.raises(CardError, match="no such file or folder"):
        import_tables("vidur", tmp_path / "absent", tmp_path / "out")
    with pytest.raises(CardError, match=r"Did you mean 'h200-sxm/vllm-0\.24\.0'"):
        import_tables("aiconfigurator", aiconfigurator, tmp_path / "out", only="h200-sxm/vllm-0.9")


def test_the_commands_import_show_validate_and_compare(tmp_path):
    data = tmp_path / "systems" / "data" / "h200_sxm" / "gemm" / "vllm" / "0.24.0"
    sizes = [
        (m, n, k) for m in (1, 16, 256, 4096) for n in (1024, 4096, 8192) for k in (1024, 4096)
    ]
    pre = "VLLM,0.24.0,NVIDIA H200,gemm,torch.linear,bfloat16,"
    lines = [f"{pre}{m},{n},{k},{3e-3 + 2e3 * m * n * k / 700e12:.6f}" for m, n, k in sizes]
    write(data / "gemm_perf.txt", HEAD + "gemm_dtype,m,n,k,latency", *lines)
    call = CliRunner().invoke
    out = tmp_path / "profiles"
    asked = ["profile", "import", str(tmp_path), "--format", "aiconfigurator", "--out", str(out)]
    made = call(app, asked)
    assert made.exit_code == 0, made.output
    folder = str(out / "h200-sxm" / "vllm-0.24.0")
    assert folder in made.output
    again = call(app, [*asked, "--no-fit", "--json"])
    assert [each["folder"] for each in json.loads(again.stdout)] == [folder]
    assert call(app, asked).exit_code == 0
    fits = read_meta(Path(folder)).fit
    assert fits["gemm bf16/bf16/bf16 torch.linear (vllm 0.24.0)"]["rows"] == 24
    shown = call(app, ["profile", "show", folder])
    assert "Apache-2.0" in shown.output
    assert "torch.linear" in shown.output
    assert "24 rows, imported, ok" in call(app, ["profile", "validate", folder]).output
    same = call(app, ["profile", "diff", folder, folder]).output.splitlines()[1].split()
    assert same == ["gemm", "bf16", "24", "1.000", "0.0%", "0.0%"]
    meta = json.loads((Path(folder) / "meta.json").read_text())
    (Path(folder) / "meta.json").write_text(json.dumps({**meta, "rows_checksum": "0"}))
    broken = call(app, ["profile", "validate", folder])
    assert broken.exit_code == 2
    assert "they were changed" in broken.output


@pytest.mark.skipif(not TIDY.is_dir(), reason="shared kernel tables are not here")
@pytest.mark.slow
def test_tidy_tables_price_what_they_hold(tmp_path):
    source = tmp_path / "tables"
    source.mkdir()
    for name in ("gemm_l40s", "comm"):
        (source / f"{name}.csv.gz").symlink_to(TIDY / f"{name}.csv.gz")
    (folder,) = import_tables("tidy", source, tmp_path / "out")
    loaded = load_profile(folder)
    answer = loaded.latency("gemm", {"m": 2, "n": 32, "k": 32}, Context())
    assert answer.source == "measured"
    assert answer.seconds == pytest.approx(2.048e-6)
    assert loaded.covers("all_reduce", Context())
