"""What people have: benchmark files, request logs, spans, metrics, pools."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import llmsim as ls
from llmsim.core.errors import TraceError
from llmsim.core.units import MIB
from llmsim.workload import LENGTHS, TRACES
from llmsim.workload.detect import detect_kind
from llmsim.workload.tracefile import read_some


def write(folder, text, name):
    path = folder / name
    path.write_text(text if isinstance(text, str) else "".join(f"{line}\n" for line in text))
    return path


def read(path, kind, seed=0, **options):
    workload = TRACES.get(kind)(path=str(path), **options).open(seed, None)
    chunks = list(workload.chunks())
    names = ("arrival_ns", "prompt_tokens", "output_tokens", "session", "failed", "client")
    found = {n: np.concatenate([getattr(c, n) for c in chunks]).tolist() for n in names}
    clients = [*workload.clients, ""]
    found["client"] = [clients[code] for code in found["client"]]
    return found


def faults_of(path, kind, **options):
    with pytest.raises(TraceError) as caught:
        read(path, kind, **options)
    return [str(fault) for fault in caught.value.faults]


AZURE_2025 = [
    "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens",
    "2024-10-15T12:00:00.269Z,0,770,491",
    "2024-10-15T12:00:05.819Z,1,949,126",
    "2024-10-15T12:00:06.513Z,1,964,79",
]
"""The first rows that the publishers' notebook prints."""


def test_azure_2025_as_its_notebook_shows_it(tmp_path):
    path = write(tmp_path, AZURE_2025, "AzureLMMInferenceTrace_multimodal.csv")
    found = read(path, "azure-2025")
    assert found["arrival_ns"] == [0, 5_550_000_000, 6_244_000_000]
    assert found["prompt_tokens"] == [770, 949, 964]
    assert found["output_tokens"] == [491, 126, 79]
    assert read(path, "azure-2025", tokens_per_image=500)["prompt_tokens"] == [770, 1449, 1464]
    assert detect_kind(path) == "azure-2025"
    damaged = write(tmp_path, [*AZURE_2025, "2024-10-15T12:00:07Z,-1,5,5"], "bad.csv")
    (fault,) = faults_of(damaged, "azure-2025")
    assert "bad.csv:5: NumImages" in fault
    older = write(tmp_path, "TIMESTAMP,ContextTokens,GeneratedTokens\n", "older.csv")
    (fault,) = faults_of(older, "azure-2025")
    assert "azure-2023" in fault


def test_zstd_is_known_by_content_and_its_damage_is_named(tmp_path):
    lines = ["arrival_s,prompt_tokens,output_tokens", *(f"{n},{n + 1},2" for n in range(5000))]
    data = "\n".join(lines).encode()
    packed = pa.Codec("zstd").compress(data, asbytes=True)
    path = tmp_path / "packed"
    path.write_bytes(packed)
    assert read(path, "csv")["prompt_tokens"] == list(range(1, 5001))
    assert detect_kind(path) == "csv"
    path.write_bytes(packed[: len(packed) // 2])
    (fault,) = faults_of(path, "csv")
    assert "cut off or damaged" in fault


SHAREGPT = [
    {
        "id": "a",
        "conversations": [{"from": "human", "value": "x" * 41}, {"from": "gpt", "value": "y" * 8}],
    },
    {"id": "b", "conversations": [{"from": "human", "value": "alone"}]},
    {
        "id": "c",
        "conversations": [
            {"role": "user", "content": "ü" * 4},
            {"role": "assistant", "content": ""},
        ],
    },
]


@pytest.mark.parametrize("indent", [None, 1])
def test_sharegpt_keeps_conversations_of_two_messages(tmp_path, indent):
    path = write(tmp_path, json.dumps(SHAREGPT, indent=indent), "sharegpt.json")
    found = read(path, "sharegpt")
    assert found["prompt_tokens"] == [11, 1]
    assert found["output_tokens"] == [2, 1]
    assert set(found["arrival_ns"]) == {0}
    assert detect_kind(path) == "sharegpt"
    assert read(path, "sharegpt", chars_per_token=2.0)["prompt_tokens"] == [21, 2]


def test_a_long_list_is_read_element_by_element_with_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("llmsim.workload.formats.jsonvalues._READ_BYTES", 1000)
    turns = [[{"value": "p" * (4 * n)}, {"value": "a"}] for n in range(1, 300)]
    rows = [json.dumps({"conversations": each}) for each in turns]
    text = "[\n" + ",\n".join(rows) + "\n]"
    path = write(tmp_path, text, "long.json")
    assert read(path, "sharegpt")["prompt_tokens"] == list(range(1, 300))
    bad = write(tmp_path, text.replace(rows[50], '{"conversations": 7}'), "bad.json")
    (fault,) = faults_of(bad, "sharegpt")
    assert "bad.json:52: expected a list of messages, read '7'" in fault
    (fault,) = faults_of(write(tmp_path, text[:-40], "cut.json"), "sharegpt")
    assert "cut.json:300: " in fault
    (fault,) = faults_of(write(tmp_path, '[{"a": ' * 9000, "deep.json"), "sharegpt")
    assert "not JSON: nested too deeply" in fault


def test_data_sets_of_benchmark_clients(tmp_path):
    lines = [
        {"prompt": "x" * 400, "output_tokens": 30},
        {"prompt": "x" * 8},
        {"turns": ["x" * 12, "later"]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "x" * 16}]},
                {"content": "y" * 20},
            ]
        },
        {"prompt": "words", "prompt_len": 77, "output_len": 5},
    ]
    path = write(tmp_path, map(json.dumps, lines), "data.jsonl")
    found = read(path, "bench-dataset", rate_rps=2.0, seed=3)
    assert found["prompt_tokens"] == [100, 2, 3, 4, 77]
    assert found["output_tokens"] == [30, 256, 256, 5, 5]
    assert found["arrival_ns"] != read(path, "bench-dataset", rate_rps=2.0, seed=4)["arrival_ns"]
    assert detect_kind(path) == "bench-dataset"
    (fault,) = faults_of(write(tmp_path, ['{"prompt": 5}'], "bad.jsonl"), "bench-dataset")
    assert "bad.jsonl:1: no conversations, prompt" in fault


RESULT = {
    "completed": 3, "total_input_tokens": 60, "total_output_tokens": 9, "duration": 12.5,
    "request_rate": "inf", "input_lens": [10, 20, 30, 5], "output_lens": [2, 3, 4, 0],
}  # fmt: skip


def test_the_result_of_a_benchmark_is_the_trace_that_was_sent(tmp_path):
    timed = RESULT | {"start_times": [905.5, 900.25, 903.0, 901.0]}
    path = write(tmp_path, json.dumps(timed, indent=2), "result.json")
    found = read(path, "bench-result")
    # in order of sending; the one that produced nothing has failed
    assert found["prompt_tokens"] == [20, 30, 10]
    assert found["arrival_ns"] == [0, 2_750_000_000, 5_250_000_000]
    assert detect_kind(path) == "bench-result"


def test_a_result_without_start_times_is_drawn_at_its_rate(tmp_path):
    many = RESULT | {"input_lens": [10] * 3000, "output_lens": [2] * 3000}
    at_once = write(tmp_path, json.dumps(many), "inf.json")
    assert set(read(at_once, "bench-result")["arrival_ns"]) == {0}
    # SGLang appends a line per run; the last counts
    lines = [json.dumps(RESULT), json.dumps(many | {"request_rate": 8.0})]
    path = write(tmp_path, lines, "sglang.jsonl")
    arrivals = read(path, "bench-result")["arrival_ns"]
    assert np.diff(arrivals).mean() / 1e9 == pytest.approx(1 / 8, rel=0.08)
    short = {key: value for key, value in RESULT.items() if not key.endswith("lens")}
    faults = faults_of(write(tmp_path, json.dumps(short), "short.json"), "bench-result")
    assert all("--save-detailed" in fault for fault in faults)
    assert len(faults) == 2


LOG = [
    {"id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_010, "model": "m",
     "usage": {"prompt_tokens": 12, "completion_tokens": 30, "total_tokens": 42}, "user": "ann"},
    {"timestamp": "2023-11-14T22:13:25.5Z", "request": {"model": "m", "user": "bob"},
     "response": {"usage": {"input_tokens": 100_000, "output_tokens": 1}}, "session_id": "s"},
    {"custom_id": "r", "response": {"status_code": 200, "body": {"created": 1_700_000_011,
     "usage": {"prompt_tokens": 7, "completion_tokens": 0}}}},
    {"time": 1_700_000_020_000, "status_code": 500, "error": {"message": "overloaded"}},
]  # fmt: skip


def test_logs_of_an_openai_api_in_the_order_in_which_requests_came(tmp_path):
    path = write(tmp_path, map(json.dumps, LOG), "log.jsonl")
    found = read(path, "openai-log")
    assert found["arrival_ns"] == [0, 4_500_000_000, 5_500_000_000]
    assert found["prompt_tokens"] == [100_000, 12, 7]
    assert found["output_tokens"] == [1, 30, 1]
    assert found["client"] == ["bob", "ann", ""]
    assert sum(session >= 0 for session in found["session"]) == 1
    assert read(path, "openai-log", failed="inject")["failed"] == [False, False, False, True]
    assert detect_kind(path) == "openai-log"
    bad = [{"created": 5}, {"usage": {"prompt_tokens": 5}}, {"created": 5, "usage": {}}]
    faults = faults_of(write(tmp_path, map(json.dumps, bad), "bad.jsonl"), "openai-log")
    said = ("1: no usage", "2: no time (start_time,", "3: usage: no prompt_tokens or input_tokens")
    for expected, fault in zip(said, faults, strict=True):
        assert f"bad.jsonl:{expected}" in fault


def attribute(key, **typed):
    return {"key": key, "value": typed}


def span(start_ns, prompt, output, *more, **keys):
    told = [
        attribute("gen_ai.operation.name", stringValue="chat"),
        attribute("gen_ai.usage.input_tokens", intValue=str(prompt)),
        attribute("gen_ai.usage.output_tokens", intValue=str(output)),
    ]
    return {
        "name": "chat m",
        "startTimeUnixNano": str(start_ns),
        "attributes": [*told, *more],
        **keys,
    }


def test_spans_of_model_calls_from_otlp_and_from_an_sdk(tmp_path):
    agent = [
        attribute("gen_ai.operation.name", stringValue="invoke_agent"),
        attribute("gen_ai.usage.input_tokens", intValue="999"),
    ]
    service = [attribute("service.name", stringValue="shop")]
    talk = attribute("gen_ai.conversation.id", stringValue="c1")
    spans = [
        span(1_700_000_002_500_000_000, 40, 4, talk),
        span(1_700_000_001_000_000_000, 30, 3, talk),
        span(1_700_000_003_000_000_000, 0, 0, status={"code": 2}),
        {"name": "agent", "startTimeUnixNano": "1700000000000000000", "attributes": agent},
        {"name": "SELECT", "startTimeUnixNano": "1700000000000000000", "attributes": []},
    ]
    scopes = [{"scopeSpans": [{"spans": spans}], "resource": {"attributes": service}}]
    single = {
        "name": "llm_request", "start_time": "2023-11-14T22:13:24.000000Z",
        "attributes": {"gen_ai.usage.prompt_tokens": 50, "gen_ai.usage.completion_tokens": 5},
    }  # fmt: skip
    lines = [json.dumps({"resourceSpans": scopes}), json.dumps(single)]
    path = write(tmp_path, lines, "spans.jsonl")
    found = read(path, "otel-spans")
    assert found["prompt_tokens"] == [30, 40, 50]
    assert found["arrival_ns"] == [0, 1_500_000_000, 3_000_000_000]
    assert found["client"] == ["shop", "shop", ""]
    assert found["session"][0] == found["session"][1] >= 0
    assert detect_kind(path) == "otel-spans"
    assert read(path, "otel-spans", failed="inject")["failed"].count(True) == 1
    bad = {"resourceSpans": [{"scopeSpans": [{"spans": [span(-5, 1, 1), span(5, 0, 1)]}]}]}
    (fault,) = faults_of(write(tmp_path, [json.dumps(bad)], "bad.jsonl"), "otel-spans")
    assert "bad.jsonl:1: startTimeUnixNano" in fault


def metrics_text(scrapes):
    lines = ["# TYPE vllm:request_prompt_tokens histogram"]
    for name, at in (("prompt", 0), ("generation", 1)):
        for le in ("10.0", "100.0", "1000.0", "+Inf"):
            for time_s, counts in scrapes:
                labels = f'engine="0",le="{le}",model_name="m"'
                metric = f"vllm:request_{name}_tokens_bucket"
                lines.append(f"{metric}{{{labels}}} {counts[at][le]}.0 {time_s}.000")
    return [*lines, "vllm:num_requests_running{} 3 100", "# EOF"]


def counts(*upto):
    return dict(zip(("10.0", "100.0", "1000.0", "+Inf"), upto, strict=True))


def test_metrics_give_as_many_requests_as_were_counted_and_their_lengths(tmp_path):
    scrapes = [
        (1000, (counts(5, 5, 5, 5), counts(9, 9, 9, 9))),
        (1060, (counts(5, 3005, 4005, 4005), counts(4009, 4009, 4009, 4009))),
        # the server started anew: its counts fell
        (1120, (counts(100, 100, 100, 100), counts(0, 100, 100, 100))),
    ]
    path = write(tmp_path, metrics_text(scrapes), "metrics.txt")
    assert detect_kind(path) == "vllm-metrics"
    found = read(path, "vllm-metrics", seed=1)
    assert len(found["arrival_ns"]) == 4100
    prompt, output = np.array(found["prompt_tokens"]), np.array(found["output_tokens"])
    first, last = prompt[:4000], prompt[4000:]
    # whole tokens 11 ... 100 for three in four, 101 ... 1000 for the rest; 4 standard errors
    assert (first <= 100).mean() == pytest.approx(0.75, abs=0.03)
    assert first.min() >= 11
    assert first[first <= 100].mean() == pytest.approx(55.5, abs=2)
    assert last.max() <= 10
    assert output[:4000].max() <= 10
    assert output[4000:].min() >= 11
    arrivals = np.array(found["arrival_ns"][:4000]) / 1e9
    assert arrivals.max() < 60
    assert np.histogram(arrivals, 4)[0] == pytest.approx([1000] * 4, abs=120)
    assert len(read(path, "vllm-metrics", rate_scale=0.5)["arrival_ns"]) == 2050


def test_counters_that_were_scraped_once_tell_nothing(tmp_path):
    lines = metrics_text([(1000, (counts(1, 1, 1, 1), counts(1, 1, 1, 1)))])
    first, second = faults_of(write(tmp_path, lines, "metrics.txt"), "vllm-metrics")
    assert "vllm:request_prompt_tokens_bucket: no counter of it was scraped twice" in first
    assert "vllm:request_generation_tokens_bucket: no counter of it was scraped twice" in second


def test_metrics_as_prometheus_answers_a_query(tmp_path):
    def series(name, le, *values):
        metric = {"__name__": f"vllm:request_{name}_tokens_bucket", "le": le, "pod": "a"}
        pairs = [[1000 + 30 * n, str(value)] for n, value in enumerate(values)]
        return {"metric": metric, "values": pairs}

    result = [
        series(name, le, 0, 10, 10, 25) for name in ("prompt", "generation") for le in ("8", "+Inf")
    ]
    answer = {"status": "success", "data": {"resultType": "matrix", "result": result}}
    path = write(tmp_path, json.dumps(answer), "range.json")
    found = read(path, "vllm-metrics")
    assert len(found["arrival_ns"]) == 25
    assert max(found["prompt_tokens"]) <= 8
    assert detect_kind(path) == "vllm-metrics"
    one = write(tmp_path, ['vllm:request_prompt_tokens_bucket{le="8"} 5'], "scrape.txt")
    (fault,) = faults_of(one, "vllm-metrics")
    assert "a sample without a time" in fault
    result[0]["values"][1][1] = "NaN"
    bad = write(tmp_path, json.dumps(answer), "bad.json")
    (fault,) = faults_of(bad, "vllm-metrics")
    assert "expected a count of at least 0" in fault
    lacking = write(tmp_path, json.dumps({"data": {"result": result[2:]}}), "half.json")
    assert len(faults_of(lacking, "vllm-metrics")) == 1


POOL = {
    "chunk-1-trace.csv": "0,2.0,1.0,Gamma,1.0,0.5\n600,0,0,,,\n1200,4.0,3.0,Weibull,0.5,0.1\n",
    "chunk-1-dataset.json": json.dumps(
        {"0": {"input_tokens": "{100: 0.5, 300: 0.5}", "output_tokens": "{7: 1.0}"}}
    ),
    "chunk-2-trace.csv": "0,1.0,0,,,\n",
}


def test_a_pool_as_published_gives_every_clients_rate_and_lengths(tmp_path):
    for name, text in POOL.items():
        write(tmp_path, text, name)
    found = read(tmp_path, "servegen", seed=2)
    arrivals = np.array(found["arrival_ns"]) / 1e9
    client = np.array(found["client"])
    # 1200 and 600 expected in the first window, 2400 with a CV of 2.24 in the third
    assert (client[arrivals < 600] == "1").sum() == pytest.approx(1200, abs=4 * 35)
    assert (client == "2").sum() == pytest.approx(600, abs=4 * 25)
    assert ((arrivals >= 600) & (arrivals < 1200)).sum() == 0
    third = arrivals[arrivals >= 1200]
    assert len(third) == pytest.approx(2400, abs=4 * 2.24 * 49)
    gaps = np.diff(third)
    assert gaps.std() / gaps.mean() == pytest.approx(5**0.5, rel=0.2)
    # half of the prompts near 100, half near 300; a client without lengths draws from the others
    prompt = np.array(found["prompt_tokens"])
    assert prompt.mean() == pytest.approx(200, abs=12)
    assert set(prompt) >= {100, 300}
    assert set(found["output_tokens"]) == {7}
    twice = read(tmp_path, "servegen", seed=2, rate_scale=2.0, end_s=600.0)
    assert len(twice["arrival_ns"]) == pytest.approx(3600, abs=4 * 60)
    assert set(read(tmp_path, "servegen", busiest_clients=1)["client"]) == {"1"}
    assert read(tmp_path, "servegen", seed=2) == found
    assert detect_kind(tmp_path) == "servegen"


def test_a_pool_of_more_requests_than_anybody_waits_for_asks_how_many(tmp_path, monkeypatch):
    for name, text in POOL.items():
        write(tmp_path, text, name)
    # 2 and 1 requests/s for ten minutes, then 4 requests/s: 4200
    monkeypatch.setattr("llmsim.api.trace.MOST_MADE", 4199)
    for call in (ls.trace.inspect, lambda path: ls.trace.convert(path, tmp_path / "out.csv")):
        with pytest.raises(
            ls.InputError, match=r"limit: these statistics make about 4,200 requests"
        ):
            call(tmp_path)
    assert not (tmp_path / "out.csv").exists()
    assert ls.trace.inspect(tmp_path, options={"limit": 5000}).requests > 3000
    assert ls.trace.inspect(tmp_path, options={"end_s": 600.0}).requests < 3000
    monkeypatch.setattr("llmsim.api.trace.MOST_MADE", 4200)
    assert ls.trace.inspect(tmp_path).requests > 3000


def test_a_link_to_nothing_is_called_one_and_a_hint_begins_a_sentence(tmp_path):
    write(tmp_path, "x", "lopp.csv")
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    (fault,) = faults_of(tmp_path / "loop.csv", "csv")
    assert "path: a link to nothing. Did you mean 'lopp.csv'?" in fault
    (fault,) = faults_of(tmp_path / "lopp2.csv", "csv")
    assert "path: no such file. Did you mean 'lopp.csv'?" in fault


def test_a_damaged_pool_is_named_by_line(tmp_path):
    (fault,) = faults_of(tmp_path, "servegen")
    assert "no ServeGen pool" in fault
    (fault,) = faults_of(tmp_path / "m-small", "servegen")
    assert "no such table" in fault
    write(tmp_path, "0,1.0,1.0,Gamma,1.0,0.5\n600,oops,1,Gamma,1,1\n", "chunk-1-trace.csv")
    (fault,) = faults_of(tmp_path, "servegen")
    assert "chunk-1-trace.csv:2: expected a number of at least 0, read 'oops'" in fault
    write(tmp_path, "0,1.0,1.0,Pareto,1.0,0.5\n", "chunk-1-trace.csv")
    (fault,) = faults_of(tmp_path, "servegen")
    assert "expected Gamma, Weibull or nothing, read 'Pareto'" in fault
    write(tmp_path, "1e300,1.0,0,,,\n", "chunk-1-trace.csv")
    (fault,) = faults_of(tmp_path, "servegen")
    assert "chunk-1-trace.csv:1: expected a time below 9.2e+09 s" in fault
    write(tmp_path, POOL["chunk-1-trace.csv"], "chunk-1-trace.csv")
    deep = json.dumps({"0": {"input_tokens": "9{1" + "[" * 500}})  # a MemoryError of the parser
    write(tmp_path, deep, "chunk-1-dataset.json")
    (fault,) = faults_of(tmp_path, "servegen")
    assert "not the histograms of a client: too many brackets" in fault


@pytest.mark.parametrize(
    ("start", "histogram", "said"),
    [
        ("0", "{NaN: 1.0}", "not the histograms of a client"),
        ("0", {"NaN": 1.0}, "input_tokens at 0 s: expected a number of at least 0, read 'NaN'"),
        ("0", {"100": math.nan}, "expected a number of at least 0, read nan"),
        ("0", "{1e999: 1.0}", "expected a number of at least 0, read inf"),
        ("0", {"-5": 1.0}, "expected a number of at least 0, read '-5'"),
        ("0", {"1e12": 1.0}, "input_tokens: expected at most 2147483647, read '1e12'"),
        ("0", {"100": 0.0}, "expected shares whose sum is greater than 0, it is 0"),
        ("0", {"100": None}, "expected a number of at least 0, read None"),
        ("nan", {"100": 1.0}, "expected a number of at least 0, read 'nan'"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_lengths_of_a_pool_that_are_no_numbers_are_refused(tmp_path, start, histogram, said):
    write(tmp_path, "0,1.0,0,,,\n", "chunk-1-trace.csv")
    fields = {"input_tokens": histogram, "output_tokens": "{7: 1.0}"}
    write(tmp_path, json.dumps({start: fields}), "chunk-1-dataset.json")
    (fault,) = faults_of(tmp_path, "servegen")
    assert said in fault


def test_lengths_are_drawn_from_any_file_with_rows(tmp_path):
    path = write(tmp_path, json.dumps(SHAREGPT), "sharegpt.json")
    sample = LENGTHS.get("trace")(path=str(path), format="sharegpt").sampler(0, None, "requests")
    prompt, output = sample(200)
    assert {*zip(prompt.tolist(), output.tolist(), strict=True)} == {(11, 2), (1, 1)}


def test_a_profile_by_hand(tmp_path):
    rows = [(0, 10, 1, "a"), (0, 10, 1, "a"), (30, 20, 2, "b"), (90, 30, 3, "a"), (150, 40, 90, "")]
    lines = ["arrival_s,prompt_tokens,output_tokens,client"]
    lines += [",".join(map(str, row)) for row in rows]
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    for chunk_rows in (1, 2, 65_536):
        found = ls.trace.inspect(path, options={"chunk_rows": chunk_rows})
        assert (found.requests, found.span_s, found.rate_rps) == (5, 150.0, 4 / 150)
        gaps = np.array([0, 30, 60, 60])
        assert found.gap_cv == pytest.approx(gaps.std() / gaps.mean())
        assert found.per_minute.tolist() == [3, 1, 1]
        assert found.minute_cv == pytest.approx(0.5)  # of the two whole minutes, 3 and 1
        assert (found.same_time_frac, found.repeated) == (0.2, 1)
        assert found.prompt.quantiles == {0.5: 20, 0.9: 40, 0.99: 40}
        assert (found.output.mean, found.output.longest) == (19.4, 90)
        assert found.clients == {"a": 3, "b": 1}
        assert found.in_session_frac == 0.0


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="no /proc: not Linux")
def test_damaged_zstd_sets_no_memory_aside(tmp_path):
    def mapped_bytes():
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmSize:")[2].split()[0])

    path = tmp_path / "damaged.zst"
    path.write_bytes(
        b"(\xb5/\xfd \xcc]\x04\x00R\xc9\x1c\x1c`5\xd6\x01\x1e\x9b \xc3H\xa3pF\x91\xfa\xa0A"
    )
    with pytest.raises(TraceError):
        read_some(path, 512 * MIB)  # what is set up once
    before = mapped_bytes()
    for _ in range(4):
        with pytest.raises(TraceError):
            read_some(path, 512 * MIB)
    assert mapped_bytes() < before + 512 * MIB
