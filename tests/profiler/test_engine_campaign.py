"""Traffic of the reference engine, the campaign that measures everything, and its compile-ahead."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from llmsim_kernels.profiler.spec import Call, DeviceFacts, RowFault, RowSpec

from llmsim.core.errors import InputError

H100 = DeviceFacts("NVIDIA H100 80GB HBM3", "cuda", 90, 132, 50 << 20, 80 << 30, 67 << 30)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("kind", "prompt", "output", "within", "cv"),
    # means of the traces; BurstGPT's days differ, as do the shares of its clients
    [("conversation-like", 1155, 211, 0.05, 1.09), ("burstgpt-like", 510, 235, 0.25, 1.36)],
)
def test_traffic_has_the_lengths_and_gaps_of_its_trace(kind, prompt, output, within, cv):
    pytest.importorskip("torch")
    from llmsim_kernels.engine.traffic import arriving, lengths_of

    lengths = lengths_of(kind, 6000, 3, 8192, 1024)
    assert np.mean(lengths.prompt) == pytest.approx(prompt, rel=within)
    assert np.mean(lengths.output) == pytest.approx(output, rel=within)
    assert max(lengths.output) <= 1024
    assert max(np.add(lengths.prompt, lengths.output)) <= 8192
    assert min(*lengths.prompt, *lengths.output) >= 1
    times = np.array([request.arrival_s for request in arriving(lengths, 20.0, 3)])
    gaps = np.diff(times)
    assert 1.0 / gaps.mean() == pytest.approx(20.0, rel=0.06)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.06)
    again = arriving(lengths_of(kind, 6000, 3, 8192, 1024), 20.0, 3)
    assert again == arriving(lengths, 20.0, 3)
    assert again != arriving(lengths_of(kind, 6000, 4, 8192, 1024), 20.0, 4)


@pytest.mark.torch
def test_a_kind_of_traffic_that_there_is_not_is_named_with_the_nearest():
    pytest.importorskip("torch")
    from llmsim_kernels.engine.traffic import lengths_of

    with pytest.raises(InputError, match="burstgpt-like"):
        lengths_of("burstgpt", 3, 1, 100, 50)


@pytest.mark.torch
def test_a_campaign_serves_every_run_once_and_goes_on_where_it_ended(tmp_path, capsys):
    pytest.importorskip("torch")
    from llmsim_kernels.campaign import engine_runs, main, saturated_rps

    card = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 64,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "architectures": ["LlamaForCausalLM"],
    }
    (tmp_path / "config.json").write_text(json.dumps(card))
    words = ["--out", str(tmp_path), "--only", "engine", "--device", "cpu", "--seconds", "0.4"]
    words += ["--saturated-seconds", "0.4"]
    words += ["--engine-model", str(tmp_path / "config.json"), "--kv-blocks", "40"]
    words += ["--max-num-seqs", "8", "--max-model-len", "256"]
    assert main([*words, "--engine-limit", "2.5"]) == 0
    folder = tmp_path / "engine"
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert 0 < len(first) < 4 * len(engine_runs())
    assert "no time for" in capsys.readouterr().out
    assert main(words) == 0
    made = {path.name.removesuffix("_meta.json") for path in folder.glob("*_meta.json")}
    assert made == {run.name for run in engine_runs()}
    assert all((folder / name).read_bytes() == found for name, found in first.items())
    for run in engine_runs():
        with open(folder / f"{run.name}_requests.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        ended = [row for row in rows if not row["error"]]
        # all requests of a run at some load end; a saturated one is cut, maybe before anybody ends
        assert len(ended) == len(rows) if run.load else len(ended) <= len(rows)
        with open(folder / f"{run.name}_steps.csv", newline="") as file:
            steps = list(csv.DictReader(file))
        for step in steps:
            parts = float(step["prepare_ms"]) + float(step["launch_ms"])
            assert parts <= float(step["latency_ms"]) + 0.1
    assert saturated_rps(folder, "conversation-like") > 0


def test_every_row_is_compiled_ahead_by_one_process():
    from llmsim_kernels.profiler.ahead import rows_of, shared_out

    specs = rows_of(SimpleNamespace(facts=H100), ["llama-3.1-8b"], triton_only=True)
    assert {spec.needs for spec in specs} == {"triton"}
    shares = [shared_out(specs, share, 5) for share in range(5)]
    assert sorted(id(spec) for share in shares for spec in share) == sorted(map(id, specs))
    everything = rows_of(SimpleNamespace(facts=H100), ["llama-3.1-8b"], triton_only=False)
    assert len(everything) > len(specs) > 100


def test_a_row_that_fails_ahead_is_named_and_the_others_run():
    from llmsim_kernels.profiler.ahead import run_once

    ran = []

    def row(name: str, fault: RowFault | None = None) -> RowSpec:
        def build(bench):
            if fault:
                raise fault
            return Call([lambda: ran.append(name)])

        return RowSpec(1, {"op": "gemm", "kernel_id": name, "m": None}, 1.0, 1.0, build)

    class Device:
        bench = SimpleNamespace(
            torch=SimpleNamespace(cuda=SimpleNamespace(synchronize=lambda: None))
        )

        def time(self, spec, effort):
            self.replay_graph(spec.build(self.bench), effort)

    rows = [row("a"), row("b", RowFault("error", "bad")), row("c", RowFault("unsupported", "no"))]
    assert list(run_once(Device(), [*rows, row("d")])) == ["op=gemm kernel_id=b: error: bad"]
    assert ran == ["a", "d"]


@pytest.mark.torch
def test_tuning_tells_what_the_table_reaches_and_what_would_be_best():
    pytest.importorskip("triton")
    from llmsim_kernels.tune import candidates, told

    found = list(candidates(["fused_moe"]))
    shapes = {(one.kernel, one.shape) for one in found}
    present = [one for one in found if one.tiles is None]
    assert len(present) == len(shapes) == 5
    assert len({zlib.crc32(one.code.encode()) for one in found}) > 10
    rows = [
        {"kernel": "k", "shape": "s", "median_us": us, "present": now, "tiles": tiles}
        | {"achieved": "1e12", "unit": "B/s"}
        for us, now, tiles in ((20.0, True, ""), (0, False, "broken"), (10.0, False, "wide"))
    ]
    (line,) = told(rows)
    assert "20.00 us" in line
    assert line.endswith("best       10.00 us wide")


@pytest.mark.parametrize(("day", "runs"), [("20261126T2239", 8), ("20261127T0955", 11)])
def test_shipped_runs_can_be_read(day, runs):
    from llmsim.core.paths import find_data

    folder = find_data("profiles", "nvidia-h100-80gb-hbm3", day, "engine")
    assert folder is not None
    assert len([*folder.glob("*_meta.json")]) == runs
    for path in folder.glob("*_steps.csv.gz"):
        with gzip.open(path, "rt", newline="") as file:
            steps = list(csv.DictReader(file))
        assert all(0 < float(step["device_ms"]) <= float(step["latency_ms"]) for step in steps)
