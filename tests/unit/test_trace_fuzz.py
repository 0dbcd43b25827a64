"""Damaged files of every kind: read, or refused with a fault, never a traceback.

One target or more for each reader of traces, others for scenarios, model configs, run folders. Call
this file to go on for longer: ``python tests/unit/test_trace_fuzz.py 60`` takes 60 s a target.
"""

import gzip
import io
import json
import math
import os
import random
import sys
import time
import warnings
from contextlib import contextmanager

import pyarrow as pa
import pytest
from example_runs import INFO, facts_of
from pyarrow import parquet
from test_trace_formats import (
    AZURE_2025,
    LOG,
    POOL,
    RESULT,
    SHAREGPT,
    counts,
    metrics_text,
    span,
)
from test_trace_shapes import answers, otlp

import llmsim as ls
from llmsim.core.errors import InvariantError, LlmsimError
from llmsim.results.folder import meta_json
from llmsim.results.slo import Slo
from llmsim.specs import load_model
from llmsim.workload import TRACES
from llmsim.workload.detect import detect_kind

CSV = (
    "arrival_s,prompt_tokens,output_tokens,session,client,failed\n1.5,10,2,s,a,false\n2,20,0,,b,1\n"
)
JSONL = (
    '{"arrival_s":1.5,"prompt_tokens":10,"output_tokens":2,"session":"s","segments":[[1,10]]}\n'
    '{"arrival_s":2,"prompt_tokens":20,"output_tokens":0,"client":"b","failed":true}\n'
)
MOON = '{"timestamp":0,"input_length":600,"output_length":4,"hash_ids":[7,8]}\n'
BURST = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,GPT-4,9,9,18,API log\n"
)
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
    "num_hidden_layers": 4, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 128256, "torch_dtype": "bfloat16",
}  # fmt: skip
SPANS = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span(10**18, 40, 4)]}]}]})


def table():
    rows = {"arrival_s": [0.5, 1.5], "prompt_tokens": [5, 6], "output_tokens": [1, 2]}
    sink = io.BytesIO()
    parquet.write_table(pa.table(rows), sink)
    return sink.getvalue()


SAMPLES = {
    "azure-2025": "\n".join(AZURE_2025).encode(),
    "azure-2023": "\n".join(AZURE_2025).replace("NumImages,", "").encode(),
    "burstgpt": BURST.encode(),
    "mooncake": MOON.encode(),
    "csv": CSV.encode(),
    "jsonl": JSONL.encode(),
    "parquet": table(),
    "sharegpt": json.dumps(SHAREGPT).encode(),
    "bench-dataset": b'{"prompt":"words","output_tokens":3}\n{"turns":["a b"]}\n',
    "bench-result": json.dumps(RESULT | {"start_times": [1.0, 2.0, 3.0, 4.0]}).encode(),
    "openai-log": "\n".join(map(json.dumps, LOG)).encode(),
    "otel-spans": SPANS.encode(),
    "vllm-metrics": "\n".join(
        metrics_text([(10, (counts(1, 1, 1, 1),) * 2), (20, (counts(3, 4, 5, 5),) * 2)])
    ).encode(),
    "vllm-metrics/otlp": "\n".join(map(json.dumps, otlp(True, ":"))).encode(),
    "vllm-metrics/query": json.dumps(answers()[0]).encode(),
    "otel-spans/over lines": json.dumps(json.loads(SPANS), indent=1).encode(),
    "openai-log/list": json.dumps(LOG, indent=1).encode(),
    "csv/semicolons": CSV.replace(",", ";").replace("1.5", "1,5").encode(),
    "servegen": POOL["chunk-1-trace.csv"].encode(),
    "servegen-lengths": POOL["chunk-1-dataset.json"].encode(),
}
PIECES = [
    b"NaN", b"-1", b"1e400", b"null", b"{}", b"[]", b'"', b"\\", b"\n", b"\r", b",", b"\x00",
    b"\xff",
    b"9" * 30, b"true", b"[" * 2000, b'{"a":' * 2000, b"\xef\xbb\xbf", b"0x1F", b"1_0", b"'", b"  ",
    b'"usage":5', b'"response":[]', b"2024-05-10T00:00:00Z", b"Infinity", b"\xe2\x80\xa8", b"-0.0",
]  # fmt: skip


def mutated(sample, rng):
    data = bytearray(sample)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data) + 1)
        kind = rng.random()
        if kind < 0.4:
            data[at:at] = rng.choice(PIECES)
        elif kind < 0.7:
            to = min(len(data), at + rng.randint(1, 12))
            data[at:to] = rng.choice(PIECES) if rng.random() < 0.5 else b""
        elif data and kind < 0.9:
            data[min(at, len(data) - 1)] = rng.randrange(256)
        else:
            data = data[:at]
    packed = rng.random()
    if packed < 0.06:
        return gzip.compress(bytes(data))[: rng.randint(5, 400)]
    if packed < 0.12:
        return pa.Codec("zstd").compress(bytes(data), asbytes=True)[: rng.randint(4, 400)]
    return bytes(data)


def attempt(kind, folder, data):
    path, kind = folder / "damaged", kind.partition("/")[0]
    if kind.startswith("servegen"):
        files = {name: text.encode() for name, text in POOL.items() if name.startswith("chunk-1")}
        files["chunk-1-dataset.json" if kind.endswith("lengths") else "chunk-1-trace.csv"] = data
        for name, content in files.items():
            (folder / name).write_bytes(content)
        kind, path = "servegen", folder
    else:
        path.write_bytes(data)
    made = kind in ("servegen", "vllm-metrics")
    for options in ({},) if made else ({}, {"on_bad_row": "skip"}):
        told = refusal(lambda options=options: read(kind, path, options))
        assert told is None or told.faults
    told = refusal(lambda: detect_kind(path))
    assert told is None or told.faults


def read(kind, path, options):
    workload = TRACES.get(kind)(path=str(path), limit=2000, **options).open(0, None)
    for chunk in workload.chunks():
        assert (chunk.prompt_tokens >= 1).all()
        assert (chunk.output_tokens >= 1).all()
        assert (chunk.arrival_ns >= 0).all()


def refusal(call):
    """Return how a call is refused on purpose; None where it is not."""
    try:
        call()
    except InvariantError:
        raise
    except LlmsimError as error:
        return error
    return None


@contextmanager
def only_told():
    """Let warnings about rows pass, and none of NumPy's about numbers that are none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", RuntimeWarning)
        yield


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.many
def test_a_damaged_file_is_read_or_refused_with_a_fault(kind, tmp_path):
    rng = random.Random(f"{kind}/1")
    with only_told():
        for _ in range(60):
            attempt(kind, tmp_path, mutated(SAMPLES[kind], rng))


def scenario(folder, data):
    path = folder / "damaged.yaml"
    path.write_bytes(data)
    return refusal(lambda: ls.Scenario.load(path))


def config(folder, data):
    path = folder / "config.json"
    path.write_bytes(data)
    return refusal(lambda: load_model(str(path)))


def run_folder(folder, data):
    if not (folder / "run").is_dir():
        ls.run("quickstart", {"traffic.requests": 20}, out=folder / "run")
    (folder / "run" / "meta.json").write_bytes(data)
    return refusal(lambda: ls.load(folder / "run").evaluate())


def meta():
    facts = facts_of(20, 10**9)
    return meta_json(INFO, facts, Slo(), 0.0, {"finished": 20}).encode()


OTHERS = {
    "scenario": (scenario, lambda: ls.Scenario.load("quickstart").resolved_yaml().encode()),
    "config": (config, lambda: json.dumps(CONFIG).encode()),
    "run folder": (run_folder, meta),
}
"""Readers of other files, each with what makes a good one."""

FILES = 800
"""That each target is tried with by a plain pytest: about a minute for all."""

CI_S = 60.0
"""For each target in `make test`, which is what CI runs [s]; always the same files, as far as they
come."""


def fuzz(target, folder, rng, seconds=math.inf, files=math.inf):
    """Try a target for so long, or with so many files; return how many it was."""
    end, done = time.monotonic() + seconds, 0
    sample = SAMPLES[target] if target in SAMPLES else OTHERS[target][1]()
    while time.monotonic() < end and done < files:
        data = mutated(sample, rng)
        try:
            if target in SAMPLES:
                attempt(target, folder, data)
            else:
                told = OTHERS[target][0](folder, data)
                assert told is None or str(told)
        except Exception as error:
            error.add_note(f"{target}: {data!r}"[:4_000])
            raise
        done += 1
    return done


@pytest.mark.slow
@pytest.mark.parametrize("target", [*SAMPLES, *OTHERS])
def test_a_target_stands_many_damaged_files(target, tmp_path):
    files = FILES // 4 if target == "scenario" else FILES  # the slowest to read
    rng = random.Random(f"{target}/2")
    with only_told():
        if os.environ.get("LLMSIM_TESTS_WANT") == "installed":
            assert fuzz(target, tmp_path, rng, seconds=CI_S) > 10
        else:
            assert fuzz(target, tmp_path, rng, files=files) == files


if __name__ == "__main__":
    import tempfile
    from pathlib import Path

    for target in (*SAMPLES, *OTHERS):
        with tempfile.TemporaryDirectory() as folder:
            done = fuzz(target, Path(folder), random.Random(), float(sys.argv[1]))
        print(target, done, flush=True)
