"""Measured steps as evidence: what is read, what is left out, and what a fit makes of them."""

from __future__ import annotations

import csv
import gzip
import json
import math

import pytest
from typer.testing import CliRunner

import llmsim as ls
from llmsim.cli.app import app
from llmsim.fidelity.calibrating import step_card
from llmsim.fidelity.calibration import fit
from llmsim.fidelity.steps import Steps, read_steps, steps_of
from llmsim.specs import read_calibration

COLUMNS = (
    "run,segment,prefill_tokens,prefill_reqs,prefill_kv_tokens,decode_reqs,decode_kv_tokens,"
    "latency_ms"
)


def write(folder, rows):
    (folder / "steps").mkdir(exist_ok=True)
    with gzip.open(folder / "steps" / "lab.csv.gz", "wt", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS.split(","))
        writer.writerows(rows)
    runs = [
        {"run": f"tp{tp}", "tp": tp, "max_num_batched_tokens": 2048, "max_num_seqs": 128}
        for tp in (1, 2)
    ]
    meta = {
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "gpu": "H100-80G-SXM (a lab)",
        "engine": "vLLM 0.20.1 in a lab",
        "runs": runs,
    }
    (folder / "steps" / "lab_meta.json").write_text(json.dumps(meta))
    (folder / "steps" / "other_meta.json").write_text(json.dumps({"parallelism": "not recorded"}))
    return read_steps(folder)[0]


ROWS = [
    ("tp1", "sweep", 512, 2, 64, 0, 0, 12.0),
    ("tp1", "sweep", 0, 0, 0, 4, 4096, 7.0),
    ("tp2", "sweep", 4096, 1, 0, 3, 3000, 70.0),  # more tokens than the budget of the meta file
    ("tp1", "real", 0, 0, 0, 4, 90000, 9.0),  # uneven contexts: a sum does not tell the longest
    ("tp1", "sweep", 0, 0, 0, 1, 100, 900.0),  # a first compilation
]


def test_what_is_read_and_what_is_left_out(tmp_path):
    file = write(tmp_path, ROWS)
    assert (file.engine, file.version, file.gpu, file.model) == (
        "vllm", "0.20.1", "h100-sxm", "llama-3.1-8b",
    )  # fmt: skip
    by_kind = {step.kind: step for step in file.steps}
    assert len(file.steps) == 3
    assert by_kind["prefill"].chunks == ((256, 32), (256, 32))
    assert by_kind["decode"].contexts == (1024,) * 4
    assert by_kind["decode"].seconds == pytest.approx(7e-3)
    assert by_kind["mixed"].budget_tokens == 4099
    assert step_card(file) == "vllm-0.20"
    assert steps_of([file], "vllm", "b200") == []


def test_a_known_distortion_of_steps_is_undone(tmp_path):
    sizes = [(0, 0, 0, b, 1000 * b) for b in (1, 2, 4, 8, 16, 32, 64)]
    sizes += [(n, 1, 0, 0, 0) for n in (128, 512, 2048, 4096)]
    rows = [(f"tp{tp}", "sweep", *size, 1.0) for tp in (1, 2) for size in sizes]
    blank = Steps(write(tmp_path, rows), "vllm-0.20")
    truth = {"gemm_scale": 1.2, "communication_scale": 1.3}
    priced = blank.errors(truth)  # over a second, as every row says a millisecond
    line = {step.step_id: math.exp(priced[step.step_id]) for step in blank.file.steps}
    rows = [(*row[:-1], line[f"lab.csv:{number}"]) for number, row in enumerate(rows, 2)]
    found = fit(Steps(write(tmp_path, rows), "vllm-0.20"))
    assert found.before.median > 0.1
    assert found.after.median < 0.01
    assert found.terms["gemm_scale"] == pytest.approx(1.2, rel=0.02)
    assert set(found.count) == {"tp1", "tp2"}


def test_the_command_calibrates_on_steps_alone(tmp_path):
    rows = [
        (f"tp{tp}", "sweep", 0, 0, 0, b, 1000 * b, 8.0 + b / 8) for tp in (1, 2) for b in (1, 8, 64)
    ]
    write(tmp_path, rows)
    with gzip.open(tmp_path / "e2e.csv.gz", "wt") as file:
        file.write("case_id,quality,source,model,gpu,engine,arrival,metric,stat,value,unit\n")
        file.write("a,A,lab,m,L4,vllm,closed loop,ttft,mean,1,s\n")
    out = tmp_path / "out"
    words = ["calibrate", str(tmp_path), "--engine", "vllm", "--gpu", "h100-sxm"]
    done = CliRunner().invoke(app, [*words, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "never fitted" in done.stdout
    again = CliRunner().invoke(app, [*words, "--out", str(out), "--json"])
    told = json.loads(again.stdout)
    assert told["path"] == str(out / "vllm_h100-sxm.yaml")
    assert told["fits"][-1]["terms"] == told["terms"]
    assert told["fits"][-1]["in_sample"]["after"]["count"] == 3
    card = read_calibration(out / "vllm_h100-sxm.yaml")
    assert card.terms_for("llama-3.1-8b") == {}  # its own runs are not predicted by its own steps
    assert card.terms_for("qwen3-14b") == card.terms
    assert "3 steps of llama-3.1-8b on vllm 0.20.1, tp1" in card.source


def test_the_call_calibrates_as_the_command_does(tmp_path):
    sizes = [(0, 0, 0, b, 1000 * b) for b in (1, 8, 64)]
    write(tmp_path, [(f"tp{tp}", "sweep", *x, 8.0 + x[3] / 8) for tp in (1, 2) for x in sizes])
    with gzip.open(tmp_path / "e2e.csv.gz", "wt") as file:
        file.write("case_id,quality,source,model,gpu,engine,arrival,metric,stat,value,unit\n")
        file.write("a,A,lab,m,L4,vllm,closed loop,ttft,mean,1,s\n")
    done = ls.calibrate(tmp_path, engine="vllm", gpu="h100-sxm")
    (fit_of_steps,) = done.fits
    assert fit_of_steps.found.after.median < fit_of_steps.found.before.median
    card = read_calibration(done.write(tmp_path / "out"))
    assert {name: value for name, value in card.terms.items() if value != 1.0} == dict(done.terms)
    with pytest.raises(ls.InputError, match="nothing of it was measured"):
        ls.calibrate(tmp_path, engine="sglang", gpu="h100-sxm")


def test_tables_that_would_price_nothing_are_refused(tmp_path):
    with pytest.raises(ls.InputError, match="add --cost measured"):
        ls.validate(tmp_path, profiles=tmp_path)
