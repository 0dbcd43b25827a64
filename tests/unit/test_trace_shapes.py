"""Traces as exporters and spreadsheets leave them: lists, pages, packed, dated, counted."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from llmsim.core.errors import TraceError
from llmsim.workload import TRACES
from llmsim.workload.detect import detect_kind

TIMES = [1715328000 + n * 0.5 for n in range(6)]
PROMPTS = [20, 300, 4, 57, 1000, 8]
OUTPUTS = [5, 1, 70, 9, 33, 2]


def read(path: Path, kind: str = "", **parameters):
    """Return (arrivals [s], prompts, outputs), as the kind that is found in the file."""
    kind = kind or detect_kind(path)
    chunks = list(TRACES.get(kind)(path=str(path), **parameters).open(1, None).chunks())
    return tuple(
        [value for chunk in chunks for value in getattr(chunk, name).tolist()]
        for name in ("arrival_ns", "prompt_tokens", "output_tokens")
    )


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def fault_of(path: Path, kind: str = "", **parameters) -> str:
    with pytest.raises(TraceError) as caught:
        read(path, kind, **parameters)
    return "\n".join(map(str, caught.value.faults))


ARRIVALS_NS = [n * 500_000_000 for n in range(6)]
EXPECTED = (ARRIVALS_NS, PROMPTS, OUTPUTS)


def span(n: int) -> dict[str, object]:
    usage = {"input": PROMPTS[n], "output": OUTPUTS[n]}
    return {
        "name": "chat",
        "startTimeUnixNano": str(round(TIMES[n] * 1e9)),
        "attributes": [
            {"key": f"gen_ai.usage.{side}_tokens", "value": {"intValue": str(tokens)}}
            for side, tokens in usage.items()
        ],
    }


def exported(first: int, last: int, scope: str = "scopeSpans") -> dict[str, object]:
    spans = [span(n) for n in range(first, last)]
    return {"resourceSpans": [{"resource": {}, scope: [{"spans": spans}]}]}


def logged(n: int) -> dict[str, object]:
    usage = {"prompt_tokens": PROMPTS[n], "completion_tokens": OUTPUTS[n]}
    return {"object": "chat.completion", "created": TIMES[n], "choices": [], "usage": usage}


def row(n: int) -> dict[str, object]:
    return {"arrival_s": TIMES[n], "prompt_tokens": PROMPTS[n], "output_tokens": OUTPUTS[n]}


WAYS = {
    "lines": lambda values: "".join(json.dumps(value) + "\n" for value in values),
    "list": json.dumps,
    "list over lines": lambda values: json.dumps(values, indent=2),
    "values over lines": lambda values: "\n".join(json.dumps(v, indent=4) for v in values) + "\n",
    "lines of Windows": lambda values: "".join(json.dumps(value) + "\r\n" for value in values),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("otel-spans", [exported(0, 4), exported(4, 6)]),
        ("otel-spans", [exported(0, 4, "instrumentationLibrarySpans"), exported(4, 6)]),
        ("openai-log", [logged(n) for n in range(6)]),
        ("jsonl", [row(n) for n in range(6)]),
    ],
)
def test_json_is_read_in_whichever_way_it_is_laid_out(tmp_path, kind, values, way, bom):
    path = put(tmp_path, "t.json", bom + WAYS[way](values))
    assert detect_kind(path) == kind
    assert read(path) == EXPECTED


def test_other_signals_in_the_file_of_a_collector_are_passed_over(tmp_path):
    lines = [exported(0, 3), {"resourceMetrics": []}, {"resourceLogs": []}, exported(3, 6)]
    assert read(put(tmp_path, "t.jsonl", WAYS["lines"](lines))) == EXPECTED


def test_a_damaged_value_over_lines_is_named_by_its_line(tmp_path):
    text = WAYS["values over lines"]([row(n) for n in range(2)])
    path = put(tmp_path, "t.json", text.replace('"prompt_tokens": 300,', '"prompt_tokens": 300'))
    assert "t.json:6: not JSON" in fault_of(path, "jsonl")


@pytest.mark.parametrize("way", ["lines", "list", "values over lines"])
def test_json_of_no_known_kind_is_not_taken_for_a_table(tmp_path, way):
    path = put(
        tmp_path, "t.json", WAYS[way]([{"data": [{"prompt_tokens": 1, "output_tokens": 2}]}])
    )
    if way == "list":
        assert detect_kind(path) == "sharegpt"  # of which it says what it lacks
        assert "no conversations, prompt" in fault_of(path)
        return
    with pytest.raises(TraceError, match=r"no known kind of trace begins with '\{"):
        detect_kind(path)


def test_numbers_that_are_written_as_texts_are_numbers(tmp_path):
    texts = [{key: str(value) for key, value in row(n).items()} for n in range(6)]
    path = put(tmp_path, "t.jsonl", WAYS["lines"](texts))
    assert read(path, "jsonl") == EXPECTED
    texts[2]["prompt_tokens"] = "4.5"
    path = put(tmp_path, "t.jsonl", WAYS["lines"](texts))
    assert "t.jsonl:3: prompt_tokens: expected a whole number" in fault_of(path, "jsonl")


def table(times: list[str], delimiter: str = ",", name: str = "timestamp") -> str:
    lines = [delimiter.join((name, "prompt_tokens", "output_tokens"))]
    lines += [
        delimiter.join(map(str, cells)) for cells in zip(times, PROMPTS, OUTPUTS, strict=True)
    ]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("unit", "factor"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)]
)
def test_a_time_since_1970_shows_its_unit_and_a_name_tells_it(tmp_path, unit, factor):
    times = [f"{time * factor:.1f}" if unit == "s" else str(int(time * factor)) for time in TIMES]
    message = fault_of(put(tmp_path, "t.csv", table(times)))
    assert f"{unit} after 1970 began is 2024-05-10. On the command line" in message
    assert f"--set traffic.trace.time_unit={unit}." in message
    assert read(put(tmp_path, "t.csv", table(times)), time_unit=unit) == EXPECTED
    for name in (f"ts_{unit}", f"start_time_{unit}", f"created_at_{unit}"):
        assert read(put(tmp_path, "t.csv", table(times, name=name))) == EXPECTED
    small = put(tmp_path, "t.csv", table(["1", "2", "3", "4", "5", "6"]))
    assert "after 1970" not in fault_of(small)


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_a_comma_is_a_decimal_point_where_it_separates_nothing(tmp_path, delimiter):
    times = ["0", "0,5", "1,0", "1,5", "2,0", "2,5"]
    assert read(put(tmp_path, "t.csv", table(times, delimiter, "arrival_s"))) == EXPECTED
    damaged = table(times, delimiter, "arrival_s") + delimiter.join(("3,5", "1,000", "7")) + "\n"
    path = put(tmp_path, "t.csv", damaged)
    assert "t.csv:8: prompt_tokens: expected a whole number of tokens, read '1,000'" in fault_of(
        path
    )
    assert read(path, on_bad_row="skip") == EXPECTED


def test_a_text_with_a_line_break_is_called_one(tmp_path):
    text = 'arrival_s,prompt_tokens,output_tokens,prompt\n0,5,6,"one\ntwo"\n1,5,6,three\n'
    message = fault_of(put(tmp_path, "t.csv", text))
    assert "t.csv:3: expected 4 columns" in message
    assert "A quoted cell with a line break? Leave that column out" in message
    assert message.endswith("`on_bad_row: skip` leaves such rows out and counts them")


PLAIN = table([str(time - TIMES[0]) for time in TIMES], name="arrival_s").encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bz2.compress(PLAIN), "packed by bzip2, which is not read. Unpack it: bzip2 -d."),
        (lzma.compress(PLAIN), "packed by xz, which is not read. Unpack it: xz -d."),
        (PLAIN.decode().encode("utf-16"), "is UTF-16, which is not read. Save it as UTF-8."),
        (b"PK\x03\x04" + PLAIN, "is a zip archive"),
        (
            b"ARROW1\0\0" + PLAIN,
            "is an Arrow (Feather) file, which is not read. Save it as Parquet",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["", "csv", "jsonl", "azure-2024"])
def test_what_is_not_read_says_what_it_is(tmp_path, content, message, kind):
    assert message in fault_of(put(tmp_path, "t.csv", content), kind)


def test_packed_files_may_come_in_several_frames(tmp_path):
    half = len(PLAIN) // 2
    zstd = [pa.compress(part, codec="zstd", asbytes=True) for part in (PLAIN[:half], PLAIN[half:])]
    passed_over = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    assert read(put(tmp_path, "a.csv.zst", b"".join(zstd))) == EXPECTED
    assert (
        read(put(tmp_path, "b.csv.zst", passed_over + zstd[0] + passed_over + zstd[1])) == EXPECTED
    )
    gzipped = gzip.compress(PLAIN[:half]) + gzip.compress(PLAIN[half:])
    assert read(put(tmp_path, "c.csv.gz", gzipped)) == EXPECTED


def test_bytes_that_are_no_text_are_refused_in_parquet(tmp_path):
    columns = {
        "arrival_s": [0.0, 1.0],
        "prompt_tokens": pa.array([5, 6], pa.uint16()),
        "output_tokens": pa.array([5, 6]).dictionary_encode(),
        "session": pa.array([b"one", b"tw\xff"]),
    }
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert "session: cannot be read as text (binary)" in fault_of(tmp_path / "t.parquet")
    columns["session"] = pa.array(["one", None], pa.large_string())
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet")[1:] == ([5, 6], [5, 6])


def test_a_systems_message_belongs_to_the_prompt(tmp_path):
    def said(*messages: tuple[str, str]) -> dict[str, object]:
        return {"messages": [{"role": role, "content": text} for role, text in messages]}

    rows = [
        said(("system", "a" * 40), ("user", "b" * 80), ("assistant", "c" * 20), ("user", "d")),
        said(("developer", "a" * 40), ("user", "b" * 80)),
        said(("user", "b" * 80), ("assistant", "c" * 20)),
        said(("user", "b" * 80)),
    ]
    path = put(tmp_path, "t.jsonl", WAYS["lines"](rows))
    assert read(path, output_tokens=100)[1:] == ([30, 30, 20], [5, 100, 5])
    turns = [{"from": "human", "value": "b" * 80}, {"from": "gpt", "value": "c" * 20}]
    path = put(tmp_path, "t.json", json.dumps([{"id": "1", "items": turns}]))
    assert read(path)[1:] == ([20], [5])


BOUNDS = [10.0, 100.0, 1000.0]
SCRAPES_S = [1715328000, 1715328060, 1715328120]
COUNTED = {"prompt": [[1, 0, 0, 0], [1, 8, 0, 0], [1, 8, 4, 0]], "generation": [[1, 0, 0, 0]] * 3}
COUNTED["generation"] = [[1, 0, 0, 0], [9, 0, 0, 0], [9, 0, 0, 4]]
"""Requests so far by bucket, at each scrape."""


def histogram_name(side: str) -> str:
    return f"vllm:request_{side}_tokens"


def upto(counts: list[int]) -> dict[str, int]:
    bounds = [*map(str, BOUNDS), "+Inf"]
    return {bound: sum(counts[: n + 1]) for n, bound in enumerate(bounds)}


def answers() -> list[dict[str, object]]:
    """Return what query_range says of each histogram."""
    return [
        {
            "status": "success",
            "data": {
                "resultType": "matrix",
                "result": [
                    {
                        "metric": {"__name__": f"{histogram_name(side)}_bucket", "le": bound},
                        "values": [
                            [at_s, str(upto(counts)[bound])]
                            for at_s, counts in zip(SCRAPES_S, scrapes, strict=True)
                        ],
                    }
                    for bound in upto(scrapes[0])
                ],
            },
        }
        for side, scrapes in COUNTED.items()
    ]


def text(stamp: str, factor: int) -> str:
    return "".join(
        f'{histogram_name(side)}_bucket{{le="{bound}"}} {count} {stamp.format(at_s * factor)}\n'
        for side, scrapes in COUNTED.items()
        for at_s, counts in zip(SCRAPES_S, scrapes, strict=True)
        for bound, count in upto(counts).items()
    )


def otlp(delta: bool, separator: str) -> list[dict[str, object]]:
    """Return what the collector's file exporter writes at each scrape."""
    exports = []
    for n, at_s in enumerate(SCRAPES_S):
        metrics: list[dict[str, object]] = [{"name": "vllm:num_requests_running", "gauge": {}}]
        for side, scrapes in COUNTED.items():
            before = scrapes[n - 1] if delta and n else [0] * 4
            counts = [now - then for now, then in zip(scrapes[n], before, strict=True)]
            point = {
                "timeUnixNano": str(at_s * 10**9),
                "startTimeUnixNano": str((at_s - 60) * 10**9),
                "bucketCounts": list(map(str, counts)),
                "explicitBounds": BOUNDS,
                "attributes": [{"key": "model_name", "value": {"stringValue": "m"}}],
            }
            told = {"dataPoints": [point], "aggregationTemporality": 1 if delta else 2}
            name = histogram_name(side).replace(":", separator)
            metrics.append({"name": name, "histogram": told})
        exports.append({"resourceMetrics": [{"scopeMetrics": [{"metrics": metrics}]}]})
    return exports


@pytest.mark.parametrize(
    "content",
    [
        WAYS["lines"](answers()),
        WAYS["values over lines"](answers()),
        text("{}.000", 1) + "# EOF\n",
        "# HELP x y\n" + text("{}", 1000),
        WAYS["lines"](otlp(False, ":")),
        WAYS["values over lines"](otlp(False, "_")),
        WAYS["lines"]([otlp(False, ":")[0], {"resourceLogs": []}, *otlp(False, ":")[1:]]),
    ],
)
def test_metrics_are_the_same_by_every_way_out_of_the_server(tmp_path, content):
    path = put(tmp_path, "m", content)
    assert detect_kind(path) == "vllm-metrics"
    arrivals, prompts, outputs = read(path)
    assert len(arrivals) == 12
    assert all(time < 60e9 for time in arrivals[:8])
    assert all(10 < prompt <= 100 for prompt in prompts[:8])
    assert all(100 < prompt <= 1000 for prompt in prompts[8:])
    assert max(outputs[:8]) <= 10
    assert set(outputs[8:]) == {1000}  # beyond the last bound
    assert read(path) == read(put(tmp_path, "n", WAYS["lines"](answers())))


def test_histograms_of_what_came_since_the_last_report_begin_with_the_first(tmp_path):
    arrivals, prompts, _ = read(put(tmp_path, "m", WAYS["lines"](otlp(True, ":"))))
    assert len(arrivals) == 13  # with the one before the first scrape
    assert sorted(prompt <= 10 for prompt in prompts) == [False] * 12 + [True]


def test_one_scrape_says_nothing(tmp_path):
    one = answers()[0]
    one["data"]["resultType"] = "vector"
    message = fault_of(put(tmp_path, "m.json", json.dumps(one)))
    assert "one scrape says nothing of how fast they came. Ask query_range." in message
