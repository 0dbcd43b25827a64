"""The corpus of hostile and broken input: files and calls, and the exit codes that are right."""

import gzip
import io
import json
import os
import zipfile
from dataclasses import dataclass, field

SCENARIO = """\
llmsim: 1
name: small
seed: 1
model: llama-3.1-8b
traffic:
  arrivals: {kind: poisson, rate_rps: 2}
  lengths: {kind: fixed, prompt_tokens: 10, output_tokens: 2}
  requests: 5
fleet:
  pools:
    main: {replicas: 1, gpu: h100-sxm}
"""
CSV = "arrival_s,prompt_tokens,output_tokens\n"


@dataclass
class Case:
    """A call of the command line over files of its own.

    `files` are made first, by name: bytes, text, or a callable that is given the path. `codes` are
    the exit codes that are right, `says` a word that the message must hold.
    """

    name: str
    words: list
    files: dict = field(default_factory=dict)
    codes: tuple = (2,)
    says: str = ""
    keeps: bool = False
    """Whether what was done before may stay: it is whole."""
    file_bytes: int = 0
    """Largest file that the machine has room for, as a full disk would; 0 for no limit."""


def scenario_texts():
    """Yield (name, text or bytes) of scenario files that are wrong."""
    for name, value in {
        "python-apply": '!!python/object/apply:os.system ["touch pwned"]',
        "python-name": "!!python/name:os.system",
        "python-new": '!!python/object/new:os.system ["touch pwned"]',
        "binary": "!!binary aGVsbG8=",
        "set": "!!set {a, b}",
        "own-tag": "!mine 5",
        "include": "!include /etc/passwd",
        "local": "!<tag:yaml.org,2002:python/object:os.system> x",
        "timestamp": "!!timestamp 2001-12-15",
        "float-tag": "!!float '1'",
    }.items():
        yield f"tag-{name}", SCENARIO.replace("seed: 1", f"seed: {value}")
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    yield "laughs", bomb + SCENARIO
    yield (
        "laughs-mapping",
        (
            "a0: &a0 {x: 1}\n"
            + "".join(
                f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(9))}}}\n"
                for i in range(1, 12)
            )
            + SCENARIO
        ),
    )
    yield "quadratic", f"a: &a '{'x' * 50_000}'\nb: [{', '.join(['*a'] * 20_000)}]\n" + SCENARIO
    yield "own-alias", "a: &a [*a]\n" + SCENARIO
    yield "own-alias-mapping", "a: &a {b: *a}\n" + SCENARIO
    yield "merge", "a: &a {x: 1}\nb: {<<: *a}\n" + SCENARIO
    yield "unknown-alias", SCENARIO.replace("seed: 1", "seed: *nowhere")
    yield "long-text", SCENARIO.replace("name: small", f"name: {'x' * 900_000}")
    yield "long-file", SCENARIO + "#" + "x" * 2_000_000
    yield "long-key", SCENARIO + "k" * 500_000 + ": 1\n"
    yield "long-number", SCENARIO.replace("seed: 1", f"seed: {'9' * 100_000}")
    yield "long-float", SCENARIO.replace("rate_rps: 2", f"rate_rps: -0.{'9' * 100_000}e9")
    yield "long-hex", SCENARIO.replace("seed: 1", f"seed: 0x{'f' * 100_000}")
    yield "many-keys", SCENARIO + "".join(f"key{i}: 1\n" for i in range(8_000))
    yield "many-items", SCENARIO + f"x: [{', '.join(['1'] * 20_000)}]\n"
    yield "deep-list", "a: " + "[" * 20_000
    yield "deep-closed", "a: " + "[" * 5_000 + "]" * 5_000 + "\n" + SCENARIO
    yield "deep-mapping", "".join(f"{' ' * i}a:\n" for i in range(1_000)) + SCENARIO
    yield "deep-flow", "a: " + "{a: " * 50_000
    for coding in ("utf-16", "utf-16-le", "utf-32", "utf-7", "cp037"):
        yield f"as-{coding}", SCENARIO.replace("small", "kästchen").encode(coding)
    yield "as-latin-1", SCENARIO.replace("small", "kästchen").encode("latin-1")
    yield "surrogate", SCENARIO.encode().replace(b"small", b"\xed\xa0\x80")
    yield "nul", SCENARIO.replace("small", "sm\0all")
    yield "control", SCENARIO.replace("small", "sm\x07\x1b[31mall")
    yield "random", bytes((i * 7919 + i // 256) % 256 for i in range(4_096))
    yield "elf", b"\x7fELF\x02\x01\x01" + bytes(2_000)
    yield "zeros", bytes(100_000)
    yield "empty", ""
    yield "blank", " \n\n\t\n"
    yield "comment", "# nothing\n"
    yield "bom-only", b"\xef\xbb\xbf"
    yield "scalar", "hello\n"
    yield "list", "- 1\n- 2\n"
    yield "two-documents", SCENARIO + "---\n" + SCENARIO
    yield "unclosed", SCENARIO.replace("small", '"small')
    yield "tab", SCENARIO.replace("  arrivals", "\tarrivals")
    yield "twice", SCENARIO + "seed: 2\n"
    yield "number-key", SCENARIO + "7: 1\n"
    yield "null-key", SCENARIO + "~: 1\n"
    yield "list-key", SCENARIO + "[a, b]: 1\n"
    yield "json", json.dumps({"llmsim": 1, "nested": {"deep": [[[[]]]]}})
    yield "html", "<!doctype html><html><body>404</body></html>"
    for name in ("../../x", "/etc/x", "a/b", "..", ".", "a\\b", "x" * 300, "~", "$(id)", " "):
        yield f"name-{name[:12]}", SCENARIO.replace("small", json.dumps(name))
    for what in ("model: llama-3.1-8b", "gpu: h100-sxm"):
        for name in (
            "../../../../etc/passwd",
            "/etc/passwd",
            "/etc",
            "../models/llama-3.1-8b.yaml/../../../../etc/hostname",
            "/dev/zero",
            "/proc/self/mem",
            "x" * 5_000,
            "\\0",
            "~root/.bashrc",
            "https://example.com/card.yaml",
            "",
            ".",
        ):
            key = what.split(":")[0]
            wrong = what.replace(what.split(": ")[1], f'"{name}"')
            yield f"{key}-{name[:25]}", SCENARIO.replace(what, wrong)
    for name in ("/etc/passwd", "wrong.yaml", "/dev/zero", "../../..", "/proc/self/environ", ""):
        yield f"extends-{name}", f'extends: "{name}"\n' + SCENARIO


NUMBERS = {
    "traffic.requests": ("nan", "inf", "-1", "0.5", "1e400", "0", "x", "[]", "{}", "true", "1e18"),
    "traffic.arrivals.rate_rps": ("nan", "inf", "-inf", "-1", "0", "1e999", "x", "[]", "true"),
    "traffic.lengths.prompt_mean_tokens": ("nan", "-5", "0", "inf", "x"),
    "traffic.warmup_s": ("nan", "-1", "inf"),
    "slo.ttft_s": ("nan", "0", "-0.1", "inf", "[1]"),
    "slo.attained_frac": ("nan", "0", "1.01", "-1"),
    "fleet.pools.main.replicas": ("nan", "0", "-3", "2.5", "1e9", "inf"),
    "fleet.pools.main.tp": ("0", "-1", "nan", "3", "1000000"),
    "engine.max_num_seqs": ("0", "-1", "nan", "1e30"),
    "engine.max_model_len": ("0", "-1", "99999999999999999999"),
    "engine.gpu_memory_utilization_frac": ("nan", "0", "1.5", "-1"),
    "engine.block_tokens": ("0", "-16", "nan"),
    "seed": ("nan", "-1", "x", "1.5"),
    "fleet.view_age_s": ("nan", "-1", "inf"),
    "no.such.key": ("1",),
    "": ("1",),
    "traffic": ("5", "x"),
    "fleet.pools": ("[]", "null"),
    "model": ("null", "[]", "5", "../../etc/passwd"),
}


def jsonl(**values):
    row = {"arrival_s": 1, "prompt_tokens": 5, "output_tokens": 2} | values
    return json.dumps(row) + "\n"


def zip_of(data):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("trace.csv", data)
    return sink.getvalue()


def zstd(data):
    import pyarrow as pa

    return pa.Codec("zstd").compress(data, asbytes=True)


def parquet(rows=3, change=None):
    """Bytes of a small table; of a bomb, if it has many equal rows: these take no room."""
    import numpy as np
    import pyarrow as pa
    from pyarrow import parquet as pq

    sink = io.BytesIO()
    schema = pa.schema([(n, pa.float64()) for n in CSV.strip().split(",")])
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        left = rows
        while left:
            n = min(left, 2_000_000)
            one = {"arrival_s": 1.0, "prompt_tokens": 5.0, "output_tokens": 2.0} | (change or {})
            columns = {k: pa.array(np.full(n, v), pa.float64()) for k, v in one.items()}
            writer.write_table(pa.table(columns, schema=schema))
            left -= n
    return sink.getvalue()


def sparse(size):
    """A file of zeros that takes no room on the disk."""

    def make(path):
        with path.open("wb") as file:
            file.truncate(size)

    return make


def one_line(start, size):
    """A file that is a single line without an end; zeros behind its first bytes."""

    def make(path):
        with path.open("wb") as file:
            file.write(start)
            file.truncate(size)

    return make


def trace_files():
    """Yield (name, file) of traces that are wrong."""
    good = CSV + "1,5,2\n"
    rows = {
        "nan": "nan,5,2", "inf": "inf,5,2", "minus": "-1,5,2", "huge-time": "1e300,5,2",
        "no-prompt": "1,0,2", "minus-prompt": "1,-5,2", "nan-prompt": "1,nan,2",
        "inf-output": "1,5,inf", "huge-prompt": "1,1e30,2", "digits": f"1,{'9' * 400},2",
        "text": "one,two,three", "short": "1,5", "long": "1,5,2,7", "empty-cells": ",,",
        "quote": '1,"5,2', "nul": "1,5\0,2", "hex": "0x1,5,2", "underscore": "1,5_0,2",
        "formula": "=cmd|' /C calc'!A0,5,2", "spaces": "1 2,5,2", "half": "1,5.5,2",
        "long-cell": f"1,{'x' * 1_000_000},2", "unicode": "1,５,2", "date": "2024-13-45,5,2",
    }  # fmt: skip
    for name, row in rows.items():
        yield f"csv-{name}", CSV + row + "\n"
    yield "csv-empty", ""
    yield "csv-header-only", CSV
    yield "csv-no-header", "1,5,2\n2,5,2\n"
    yield "csv-header-twice", "arrival_s,arrival_s,prompt_tokens,output_tokens\n1,1,5,2\n"
    yield "csv-other", "a,b,c\n1,2,3\n"
    yield "csv-cr", good.replace("\n", "\r")
    yield "csv-utf-16", good.encode("utf-16")
    yield "csv-many-columns", ",".join(f"c{i}" for i in range(200_000)) + "\n"
    yield "binary", bytes((i * 7919 + i // 256) % 256 for i in range(100_000))
    yield "zeros", sparse(200_000_000)
    yield "one-line", one_line(CSV.encode() + b"1,5,", 400_000_000)
    yield "one-line-json", one_line(b'{"arrival_s": 1, "prompt_tokens": "', 400_000_000)
    yield "one-line-result", one_line(b'{"date": "20250101", "input_lens": [1,', 400_000_000)
    packed = gzip.compress(good.encode() * 5)
    yield "gzip-cut", packed[:30]
    yield "gzip-cut-late", packed[:-4]
    yield "gzip-head", packed[:3]
    yield "gzip-crc", packed[:-8] + b"\0\0\0\0" + packed[-4:]
    yield "gzip-twice", gzip.compress(packed)
    yield "gzip-tail", packed + b"garbage" * 9
    yield "gzip-bomb", gzip.compress(bytes(300_000_000), 9)
    yield "gzip-bomb-csv", gzip.compress(CSV.encode() + b"1,5," + b"9" * 200_000_000)
    yield "zip", zip_of(good)
    yield "zip-bomb", zip_of(bytes(300_000_000))
    yield "zstd-cut", zstd(good.encode() * 50)[:20]
    yield "zstd-bomb", zstd(bytes(300_000_000))
    yield "zstd-head", b"\x28\xb5\x2f\xfd"
    yield "xz", b"\xfd7zXZ\0" + bytes(50)
    yield "tar", b"trace.csv" + bytes(600)
    whole = parquet()
    yield "parquet-cut", whole[:-20]
    yield "parquet-head", b"PAR1"
    yield "parquet-both-ends", b"PAR1" + bytes(100) + b"PAR1"
    yield "parquet-footer", whole[:-8] + (2**31 - 1).to_bytes(4, "little") + b"PAR1"
    middle = bytearray(whole)
    middle[20:60] = bytes(40)
    yield "parquet-middle", bytes(middle)
    for name, value in {"nan": float("nan"), "minus": -1.0, "inf": float("inf")}.items():
        yield f"parquet-{name}", parquet(change={"prompt_tokens": value})
    yield "parquet-bomb", parquet(60_000_000, {"prompt_tokens": -1.0})
    for name, value in {
        "nan": float("nan"), "inf": float("inf"), "minus": -1, "text": "x", "list": [1],
        "object": {}, "null": None, "digits": 10**400, "true": True, "half": 1.5,
    }.items():  # fmt: skip
        yield f"jsonl-prompt-{name}", jsonl(prompt_tokens=value)
        yield f"jsonl-arrival-{name}", jsonl(arrival_s=value if name != "half" else "1 h")
    yield "jsonl-deep", '{"arrival_s":1,"prompt_tokens":' + "[" * 200_000
    yield "jsonl-deep-closed", jsonl() + "[" * 5_000 + "]" * 5_000 + "\n"
    yield "jsonl-list", "[1, 2, 3]\n"
    yield "jsonl-twice", '{"arrival_s":1,"arrival_s":-2,"prompt_tokens":5,"output_tokens":2}\n'
    yield "jsonl-cut", jsonl()[:-12]
    yield "jsonl-segments", jsonl(segments=[[1, -5]])
    yield "jsonl-no-keys", "{}\n"
    yield "json-cut", '{"requests": [{"a": 1}'
    yield "html", "<!doctype html><html><body>404 Not Found</body></html>"
    yield "lfs", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"


SPECIAL = {
    "link-to-itself": lambda path: path.symlink_to(path),
    "link-to-nowhere": lambda path: path.symlink_to("/nowhere/at/all"),
    "link-to-folder": lambda path: path.symlink_to("/etc"),
    "link-to-zeros": lambda path: path.symlink_to("/dev/zero"),
    "link-to-memory": lambda path: path.symlink_to("/proc/self/mem"),
    "folder": lambda path: path.mkdir(),
    "pipe": lambda path: os.mkfifo(path),
    "missing": lambda path: None,
}


def cards():
    """Yield (name, text) of model cards that are wrong."""
    good = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
        "intermediate_size": 128, "vocab_size": 1000, "torch_dtype": "bfloat16",
    }  # fmt: skip
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        for name, value in {
            "nan": float("nan"), "inf": float("inf"), "minus": -1, "zero": 0, "text": "x",
            "list": [1], "half": 1.5, "null": None,
        }.items():  # fmt: skip
            yield f"{key}-{name}", json.dumps(good | {key: value})
    yield "many-layers", json.dumps(good | {"num_hidden_layers": 10**12})
    yield "deep", '{"a":' + "[" * 200_000
    yield "deep-closed", '{"a":' + "[" * 50_000 + "]" * 50_000 + "}"
    yield "list", "[]"
    yield "empty", ""
    yield "binary", bytes(range(256)) * 9
    yield "unknown", json.dumps({"architectures": ["NobodyKnows"], "model_type": "nobody"})
    yield "digits", json.dumps(good)[:-1] + ', "hidden_size": ' + "9" * 5_000 + "}"
    yield "big", one_line(b'{"a": "', 300_000_000)


def corpus():
    """Yield every case; calls run in a folder of their own, where `files` are."""
    for name, text in scenario_texts():
        codes = (2, 3) if "/proc" in name or "/dev" in name else (2,)
        yield Case(f"scenario {name}", ["check", "wrong.yaml"], {"wrong.yaml": text}, codes)
    for name, make in SPECIAL.items():
        codes = (2, 3)
        yield Case(f"scenario {name}", ["check", "wrong.yaml"], {"wrong.yaml": make}, codes)
        yield Case(f"trace {name}", ["trace", "inspect", "x.csv"], {"x.csv": make}, codes)
        yield Case(f"model {name}", ["show", "model", "./x.json"], {"x.json": make}, codes)
        yield Case(f"run folder {name}", ["report", "x"], {"x": make}, codes)
        yield Case(f"sweep {name}", ["sweep", "x.yaml"], {"x.yaml": make}, codes)
        yield Case(f"plan {name}", ["plan", "x.yaml"], {"x.yaml": make}, codes)
    for key, values in NUMBERS.items():
        for value in values:
            yield Case(f"{key}={value}", ["check", "quickstart", "--set", f"{key}={value}"])
    for name, made in trace_files():
        yield Case(f"trace {name}", ["trace", "inspect", "x"], {"x": made})
    for name, text in cards():
        yield Case(f"card {name}", ["show", "model", "./config.json"], {"config.json": text})
    yield from run_folders()
    yield from calls()


def run_folders():
    """Yield damaged run folders; the good one lies in `good`, see `prepare`."""
    deep = "[" * 100_000
    for name, file, text in (
        ("meta-empty", "meta.json", ""),
        ("meta-deep", "meta.json", deep),
        ("meta-list", "meta.json", "[]"),
        ("meta-number", "meta.json", "5"),
        ("meta-nan", "meta.json", '{"schema": NaN}'),
        ("meta-other", "meta.json", '{"schema": 99}'),
        ("meta-bare", "meta.json", '{"schema": 1}'),
        ("meta-latin", "meta.json", '{"schema": 1, "name": "ä"}'.encode("latin-1")),
        ("meta-big", "meta.json", one_line(b'{"schema": 1, "x": "', 300_000_000)),
        ("requests-empty", "requests.parquet", ""),
        ("requests-cut", "requests.parquet", parquet()[:-9]),
        ("requests-other", "requests.parquet", parquet()),
        ("timelines-empty", "timelines.parquet", ""),
        ("timelines-other", "timelines.parquet", parquet()),
        ("scenario-latin", "scenario.yaml", "name: ä".encode("latin-1")),
        ("plan-empty", "plan.json", ""),
        ("plan-deep", "plan.json", deep),
        ("plan-bare", "plan.json", "{}"),
        ("plan-list", "plan.json", "[]"),
    ):
        yield Case(f"report {name}", ["report", "run"], {"run": copied(file, text)})


def put(path, made):
    if callable(made):
        made(path)
    elif isinstance(made, bytes):
        path.write_bytes(made)
    else:
        path.write_text(made, encoding="utf-8", newline="")


def copied(file, text):
    """A copy of the good run folder in which one file is another."""

    def make(path):
        import shutil

        shutil.copytree(path.parent.parent / "good", path)
        put(path / file, text)

    return make


def calls():
    """Yield calls whose words are wrong."""
    long = "x" * 100_000
    made = ["run", "--gpu", "h100-sxm", "--from-vllm"]
    for name, words in {
        "vllm-empty": [*made, ""],
        "vllm-long": [*made, f"vllm serve {long}"],
        "vllm-quote": [*made, 'vllm serve "m'],
        "vllm-injection": [*made, "vllm serve m; touch pwned"],
        "vllm-minus": [*made, "vllm serve Qwen/Qwen3-8B --max-num-seqs -5"],
        "vllm-nan": [*made, "vllm serve Qwen/Qwen3-8B --gpu-memory-utilization nan"],
        "vllm-traversal": [*made, "vllm serve ../../../etc/passwd"],
        "set-no-value": ["check", "quickstart", "--set", "seed"],
        "set-tag": ["check", "quickstart", "--set", "seed=!!python/name:os.system"],
        "set-bomb": ["check", "quickstart", "--set", f"seed={'[' * 50_000}"],
        "set-long": ["check", "quickstart", "--set", f"{long}={long}"],
        "set-unicode": ["check", "quickstart", "--set", "seed=\ud800"],
        "scenario-long": ["check", long],
        "scenario-traversal": ["check", "../../../../etc/passwd"],
        "show-traversal": ["show", "gpu", "../../../etc/passwd"],
        "show-long": ["show", "gpu", long],
        "show-link-traversal": ["show", "link", "../gpus/h100-sxm"],
        "trace-traversal": ["trace", "inspect", "../../../../etc/passwd"],
        "trace-set-tag": ["trace", "inspect", "burstgpt-like.csv.gz", "--set", "limit=!!set {a}"],
        "trace-set-nan": ["trace", "head", "burstgpt-like.csv.gz", "--set", "time_scale=.nan"],
        "trace-kind": ["trace", "head", "burstgpt-like.csv.gz", "--kind", "../csv"],
        "scale-nan": ["trace", "scale", "burstgpt-like.csv.gz", "o.csv", "--rate-rps", "nan"],
        "scale-minus": ["trace", "scale", "burstgpt-like.csv.gz", "o.csv", "--rate-scale", "-1"],
        "scale-inf": ["trace", "scale", "burstgpt-like.csv.gz", "o.csv", "--rate-scale", "inf"],
        "sweep-traversal": ["sweep", "../../../etc/passwd"],
        "sweep-many": ["sweep", "quickstart", "--over", "seed=0..1e18:1000000000000"],
        "sweep-nan": ["sweep", "quickstart", "--over", "traffic.arrivals.rate_rps=nan..1:5"],
        "step-huge": [
            "show",
            "step",
            "--model",
            "llama-3.1-8b",
            "--gpu",
            "h100-sxm",
            "--batch",
            "0",
        ],
        "step-nan": [
            "show",
            "step",
            "--model",
            "llama-3.1-8b",
            "--gpu",
            "h100-sxm",
            "--prefill",
            "nan:0",
        ],
        "list-traversal": ["list", "../gpus"],
        "schema-traversal": ["schema", "../../etc/passwd"],
        "price-traversal": ["show", "price", "../../etc/passwd"],
        "calibration-traversal": ["show", "calibration", "../../../etc/passwd"],
        "engine-traversal": ["show", "engine", "../../../etc/passwd"],
        "gallery-traversal": ["gallery", "show", "../../../etc"],
        "deploy-traversal": ["deploy", "../../../etc/passwd", "-o", "out"],
        "validate-nowhere": ["validate", "--data", "/nowhere"],
    }.items():
        yield Case(f"call {name}", words)
