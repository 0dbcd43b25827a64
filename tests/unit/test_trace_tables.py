"""Tables with a map of columns: CSV, JSON lines, Parquet; written and read back as they were."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

import llmsim as ls
from llmsim.core.errors import InputError, OutputError, TraceError
from llmsim.workload import TRACES
from llmsim.workload.detect import detect_kind
from llmsim.workload.writing import ENDINGS

COLUMNS = ("arrival_ns", "prompt_tokens", "output_tokens", "session", "failed")


def write(folder, lines, name="t.csv"):
    path = folder / name
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def read(path, kind, **options):
    workload = TRACES.get(kind)(path=str(path), **options).open(0, None)
    chunks = list(workload.chunks())
    found = {n: np.concatenate([getattr(c, n) for c in chunks]).tolist() for n in COLUMNS}
    names = [*workload.clients, ""]
    found["client"] = [names[code] for c in chunks for code in c.client.tolist()]
    found["segments"] = [s for c in chunks for s in (c.segments or [None] * len(c))]
    return found, workload


def faults_of(path, kind, **options):
    with pytest.raises(TraceError) as caught:
        read(path, kind, **options)
    return [str(fault) for fault in caught.value.faults]


def test_columns_are_found_by_a_map_by_usual_names_and_by_unit(tmp_path):
    named = write(tmp_path, ["when,in,out", "1500,10,2", "2750,20,3"])
    columns = {"arrival": "when", "prompt_tokens": "in", "output_tokens": "out"}
    found, _ = read(named, "csv", columns=columns, time_unit="ms")
    assert found["arrival_ns"] == [0, 1_250_000_000]
    assert found["prompt_tokens"] == [10, 20]
    for unit, cells in {
        "s": ("1.5", "2.75"),
        "ms": ("1500", "2750.0"),
        "us": ("1500000", "2.75e6"),
        "ns": ("1500000000", "2750000000"),
    }.items():
        lines = [f"arrival_{unit},input_tokens,output_tokens"]
        lines += [f"{cell},{n},1" for n, cell in enumerate(cells, 10)]
        assert read(write(tmp_path, lines), "csv")[0]["arrival_ns"] == found["arrival_ns"]


ODD = "Request Time (CEST){0}Team{0}Tokens In{0}Tokens Out{0}Latency"


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_what_separates_cells_is_seen_in_the_header(tmp_path, mark):
    rows = ["2026-10-25T02:30:00+02:00,a,10,2,x", '2026-10-25T02:30:00.5+01:00,"b",20,3,y']
    path = write(tmp_path, [ODD.format(mark), *(row.replace(",", mark) for row in rows)])
    columns = {"arrival": "Request Time (CEST)", "client": "Team"}
    columns |= {"prompt_tokens": "Tokens In", "output_tokens": "Tokens Out"}
    found, _ = read(path, "csv", columns=columns)
    # the clocks are set back between the two: an hour and half a second
    assert found["arrival_ns"] == [0, 3_600_500_000_000]
    assert (found["prompt_tokens"], found["client"]) == ([10, 20], ["a", "b"])
    assert ls.trace.inspect(path, options={"columns": columns}).requests == 2


def test_columns_with_other_names_are_asked_for_with_what_looks_right(tmp_path):
    path = write(tmp_path, [ODD.format(","), "2026-10-25T02:30:00Z,a,10,2,x"])
    with pytest.raises(TraceError) as caught:
        ls.trace.inspect(path)
    text = str(caught.value)
    looks = "arrival: Request Time (CEST), prompt_tokens: Tokens In, output_tokens: Tokens Out"
    assert f"--set 'traffic.trace.columns={{{looks}}}'" in text
    assert "There are: Request Time (CEST), Team, Tokens In, Tokens Out, Latency." in text
    # nothing is taken for granted: a time that nobody named is no reason to send all at once
    columns = {"prompt_tokens": "Tokens In", "output_tokens": "Tokens Out"}
    (fault,) = faults_of(path, "csv", columns=columns)
    assert "columns.arrival: which column holds it?" in fault
    assert read(path, "csv", columns=columns, rate_rps=3.0)[0]["prompt_tokens"] == [10]
    # how long something took is no time of arrival
    timeless = write(tmp_path, ["Elapsed time,prompt_tokens,output_tokens", "3,10,2"], "u.csv")
    assert read(timeless, "csv")[0]["arrival_ns"] == [0]


def test_a_row_far_out_of_order_names_what_sorts_it(tmp_path):
    path = write(tmp_path, ["time_s,prompt_tokens,output_tokens", "900,1,1", "90,2,1", "80,3,1"])
    first, second = faults_of(path, "csv")
    assert first.endswith("a larger max_disorder_s sorts such rows into their place")
    assert second.endswith("max_disorder_s = 60")
    found, _ = read(path, "csv", max_disorder_s=1000)
    assert found["prompt_tokens"] == [3, 2, 1]


def test_dates_are_known_with_and_without_a_zone(tmp_path):
    for first, second in (
        ("2024-05-10 00:00:00.5", "2024-05-10 00:00:01.75"),
        ("2024-05-10T00:00:00.500Z", "2024-05-10T00:00:01.750Z"),
        ("2024-05-10 02:00:00.5+02:00", "2024-05-10 01:00:01.75+01:00"),
    ):
        lines = ["timestamp,prompt_tokens,output_tokens", f"{first},10,2", f"{second},20,3"]
        assert read(write(tmp_path, lines), "csv")[0]["arrival_ns"] == [0, 1_250_000_000]


def test_what_cannot_be_known_is_asked_for(tmp_path):
    (fault,) = faults_of(write(tmp_path, ["timestamp,prompt_tokens,output_tokens", "5,1,1"]), "csv")
    assert "Say s, ms, us, ns or stamp" in fault
    faults = faults_of(write(tmp_path, ["t_s,tokens", "5,1"]), "csv")
    assert any("columns.prompt_tokens" in each for each in faults)
    assert any("columns.output_tokens" in each for each in faults)
    path = write(tmp_path, ["t_s,prompt_tokens,output_tokens", "5,1,1"])
    (fault,) = faults_of(path, "csv", columns={"client": "promt_tokens"})
    assert "Did you mean 'prompt_tokens'?" in fault
    (fault,) = faults_of(path, "csv", columns={"clients": "t_s"})
    assert "Did you mean 'client'?" in fault


def test_a_table_without_times_comes_at_once_or_at_a_rate(tmp_path):
    path = write(tmp_path, ["input_tokens,output_tokens", *["7,3"] * 4000])
    assert set(read(path, "csv")[0]["arrival_ns"]) == {0}
    arrivals = np.array(read(path, "csv", rate_rps=50.0)[0]["arrival_ns"]) / 1e9
    gaps = np.diff(arrivals)
    assert gaps.mean() == pytest.approx(0.02, rel=0.06)  # 4 standard errors of 4000 gaps
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.06)
    assert read(path, "csv", rate_rps=50.0)[0]["arrival_ns"][5] == round(arrivals[5] * 1e9)


BAD = [
    ("oops,5,5", "time in seconds"),
    ("nan,5,5", "time in seconds"),
    ("inf,5,5", "time in seconds"),
    ("-1,5,5", "at least 0 s"),
    ("1,0,5", "at least 1 token"),
    ("1,-5,5", "no less than 0"),
    ("1,5.5,5", "whole number"),
    ("1,5,3000000000", "at most"),
    ("1,5", "3 columns"),
]


def test_every_damaged_row_of_csv_is_named_by_line(tmp_path):
    good = "arrival_s,prompt_tokens,output_tokens"
    lines = [good, "1,5,5", *(row for row, _ in BAD), "2,100000,0"]
    faults = faults_of(write(tmp_path, lines), "csv")
    assert len(faults) == len(BAD)
    for line, ((_, expected), fault) in enumerate(zip(BAD, faults, strict=True), 3):
        assert f"t.csv:{line}: " in fault
        assert expected in fault
    found, workload = read(tmp_path / "t.csv", "csv", on_bad_row="skip")
    assert workload.skipped_rows == len(BAD)
    # 100,000 tokens are a prompt like any other; an output of 0 runs its prefill
    assert (found["prompt_tokens"], found["output_tokens"]) == ([5, 100_000], [5, 1])


def test_every_damaged_record_of_json_lines_is_named_by_line(tmp_path):
    bad = [
        ('{"arrival_s":NaN,"prompt_tokens":5,"output_tokens":5}', "arrival_s: expected a time"),
        ('{"arrival_s":"soon","prompt_tokens":5,"output_tokens":5}', "expected a number of s"),
        ('{"arrival_s":1,"prompt_tokens":true,"output_tokens":5}', "whole number of tokens"),
        ('{"arrival_s":1,"prompt_tokens":0,"output_tokens":5}', "expected 1 to"),
        ('{"arrival_s":1,"prompt_tokens":5}', "no output_tokens"),
        ('{"arrival_s":1,', "not a line of JSON"),
        ("[" * 5000, "not a line of JSON (nested too deeply)"),
        ("7", "expected a JSON object"),
        (
            '{"arrival_s":1,"prompt_tokens":5,"output_tokens":1,"segments":[[3,4]]}',
            "do not add up to the prompt's 5",
        ),
    ]
    good = '{"arrival_s":1,"prompt_tokens":5.0,"output_tokens":5,"session":"a","client":"b"}'
    path = write(tmp_path, [good, *(row for row, _ in bad)], "t.jsonl")
    faults = faults_of(path, "jsonl")
    assert len(faults) == len(bad)
    for line, ((_, expected), fault) in enumerate(zip(bad, faults, strict=True), 2):
        assert f"t.jsonl:{line}: " in fault
        assert expected in fault
    found, _ = read(path, "jsonl", on_bad_row="skip")
    assert (found["prompt_tokens"], found["client"]) == ([5], ["b"])


def test_every_damaged_row_of_parquet_is_named_by_number(tmp_path):
    path = tmp_path / "t.parquet"
    rows = {
        "arrival_s": [0.5, None, 1.5, -2.0, float("nan"), 3.0, 4.25],
        "prompt_tokens": [5, 5, 0, 5, 5, None, 6],
        "output_tokens": [1.0, 1.0, 1.0, 1.0, 1.0, 1.5, 0.0],
        "client": ["a", "a", "b", "b", "b", "b", None],
    }
    parquet.write_table(pa.table(rows), path)
    faults = faults_of(path, "parquet")
    assert [fault.split(": ")[0].rsplit(":", 1)[1] for fault in faults] == [
        "row 2", "row 3", "row 4", "row 5", "row 6",
    ]  # fmt: skip
    assert "prompt_tokens" in faults[4]
    assert "output_tokens" in faults[4]
    found, _ = read(path, "parquet", on_bad_row="skip")
    assert found["arrival_ns"] == [0, 3_750_000_000]
    assert found["client"] == ["a", ""]


def test_parquet_has_dates_and_whole_numbers_of_every_width(tmp_path):
    path = tmp_path / "t.parquet"
    at = pa.array([1_500, 2_750], pa.timestamp("ms", "Europe/Berlin"))
    small = pa.array([10, 20], pa.uint16())
    parquet.write_table(pa.table({"time": at, "input_len": small, "output_len": small}), path)
    assert read(path, "parquet")[0]["arrival_ns"] == [0, 1_250_000_000]
    whole = pa.table(
        {"arrival_us": [1_500_000, 2_750_000], "input_len": small, "output_len": small}
    )
    parquet.write_table(whole, path)
    assert read(path, "parquet")[0]["arrival_ns"] == [0, 1_250_000_000]
    path.write_bytes(path.read_bytes()[:-40])
    (fault,) = faults_of(path, "parquet")
    assert "no Parquet file, or a damaged one" in fault


ROWS = [
    '{"t_s":0.25,"prompt_tokens":700,"output_tokens":5,"session":"s-1","client":"a, b"}',
    '{"t_s":0.25,"prompt_tokens":700,"output_tokens":5,"client":"a, b"}',
    '{"t_s":17280000.123456,"prompt_tokens":100000,"output_tokens":1,"session":9,"failed":true}',
    '{"t_s":17280000.1,"prompt_tokens":12,"output_tokens":0,"client":"c\\"d"}',
]


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_written_is_read_back_as_it_was(tmp_path, ending):
    path = write(tmp_path, ROWS, "t.jsonl")
    out = tmp_path / f"out{ending}"
    done = ls.trace.convert(path, out, options={"failed": "inject"})
    assert (done.requests, done.path) == (4, out)
    kind = ending.split(".")[1]
    before, _ = read(path, "jsonl", failed="inject")
    after, _ = read(out, kind, failed="inject")
    assert after == before
    assert before["client"] == ["a, b", "a, b", 'c"d', ""]
    # told by content, whatever the name says, and dropped failures are the default
    plain = out.rename(tmp_path / "unnamed")
    assert ls.trace.inspect(plain).requests == 3


def test_only_json_lines_keep_what_prompts_share(tmp_path):
    piece = '{"timestamp":%d,"input_length":%d,"output_length":4,"hash_ids":%s}'
    lines = [piece % (0, 1024, [7, 8]), piece % (5, 1030, [7, 8, 11]), piece % (9, 512, [12])]
    path = write(tmp_path, lines, "moon.jsonl")
    assert ls.trace.inspect(path).reused_frac == 1024 / 2566
    kept = ls.trace.convert(path, tmp_path / "kept.jsonl")
    lost = ls.trace.convert(path, tmp_path / "lost.csv")
    assert (kept.prefixes_lost, lost.prefixes_lost) == (False, True)
    assert read(kept.path, "jsonl")[0]["segments"] == read(path, "mooncake")[0]["segments"]
    assert ls.trace.inspect(kept.path).reused_frac == 1024 / 2566
    assert ls.trace.inspect(lost.path).reused_frac is None


def test_a_json_list_of_records_is_a_table(tmp_path):
    rows = [{"arrival_s": n / 2, "prompt_tokens": n + 1, "output_tokens": 3} for n in range(5)]
    path = tmp_path / "list.json"
    for indent in (None, 1):  # as programs write it, and as people do
        path.write_text(json.dumps(rows, indent=indent))
        assert detect_kind(path) == "jsonl"
        found, _ = read(path, "jsonl")
        assert found["arrival_ns"] == [n * 500_000_000 for n in range(5)]
        assert found["prompt_tokens"] == [1, 2, 3, 4, 5]
    path.write_text(json.dumps([*rows, rows[0] | {"prompt_tokens": -1}]).replace("}, ", "},\n"))
    (fault,) = faults_of(path, "jsonl")
    assert "list.json:6: prompt_tokens: expected" in fault
    path.write_text(json.dumps([{"conversations": []}]))
    assert detect_kind(path) == "sharegpt"


def test_whole_numbers_may_be_written_with_a_point(tmp_path):
    lines = ["arrival_s,prompt_tokens,output_tokens", "0,100.0,20", "1,7.,0.00", "2,5,5.5"]
    found, _ = read(write(tmp_path, lines[:3]), "csv")
    assert (found["prompt_tokens"], found["output_tokens"]) == (
        [100, 7],
        [20, 1],
    )  # 0 is replayed as 1
    (fault,) = faults_of(write(tmp_path, lines), "csv")
    assert "t.csv:4: output_tokens: expected a whole number of tokens, read '5.5'" in fault


def test_what_is_no_table_at_all_is_told(tmp_path):
    for content, said in ((b"", "is empty"), (b"PK\x03\x04...", "a zip archive, as Excel's")):
        (tmp_path / "x.csv").write_bytes(content)
        with pytest.raises(TraceError, match=said):
            detect_kind(tmp_path / "x.csv")


@pytest.mark.parametrize("last", ["12", "conv-1"])  # the first guess of what the others are
def test_sessions_are_numbers_as_they_stand_and_hashes_of_other_texts(tmp_path, last):
    texts = ["a", "", "12", str(2**63 - 1), str(2**63), "007", "\u00b2", "a", last]
    head = ["arrival_s,prompt_tokens,output_tokens,session"]
    path = write(tmp_path, [*head, *(f"{n},5,5,{text}" for n, text in enumerate(texts))])

    def hashed(text):
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1

    whole = {"": -1, "12": 12, "007": 7, str(2**63 - 1): 2**63 - 1}
    wanted = [whole[text] if text in whole else hashed(text) for text in texts]
    found, _ = read(path, "csv")
    assert found["session"] == wanted


def test_nothing_is_written_of_a_damaged_trace_or_over_a_file(tmp_path):
    path = write(tmp_path, ["arrival_s,prompt_tokens,output_tokens", "1,5,5", "x,5,5"])
    with pytest.raises(TraceError):
        ls.trace.convert(path, tmp_path / "out.csv")
    with pytest.raises(OutputError, match="is there already"):
        ls.trace.convert(path, path)
    with pytest.raises(InputError, match=r"\.parquet"):
        ls.trace.convert(path, tmp_path / "out.parket")
    for place, said in (("no", "no such folder"), ("t.csv", "/t.csv is not a folder")):
        with pytest.raises(OutputError, match=f"cannot write .*out.csv: .*{said}$") as caught:
            ls.trace.convert(path, tmp_path / place / "out.csv", options={"on_bad_row": "skip"})
        assert caught.value.__cause__ is None  # the user's word, not the machine's fault
    assert [each.name for each in tmp_path.iterdir()] == ["t.csv"]


def test_a_trace_is_scaled_by_factor_by_rate_and_by_sessions(tmp_path):
    lines = ["arrival_s,prompt_tokens,output_tokens,session"]
    lines += [f"{n},10,1,{n // 4 if n % 2 else ''}" for n in range(4001)]
    path = write(tmp_path, lines)
    half = ls.trace.scale(path, tmp_path / "a.csv", rate_scale=0.5)
    assert ls.trace.inspect(half.path).span_s == 8000
    fast = ls.trace.scale(path, tmp_path / "b.csv", rate_rps=20.0)
    assert ls.trace.inspect(fast.path).rate_rps == pytest.approx(20.0, rel=1e-9)
    thin = ls.trace.scale(path, tmp_path / "c.csv", keep_frac=0.25)
    kept, _ = read(thin.path, "csv")
    assert thin.requests == pytest.approx(1000, abs=120)  # 4 sigma, sessions of two
    by_session = [each for each in kept["session"] if each >= 0]
    assert {by_session.count(each) for each in by_session} == {2}
    for wrong in ({}, {"rate_scale": 1, "keep_frac": 1}, {"rate_rps": float("nan")}):
        with pytest.raises(InputError):
            ls.trace.scale(path, tmp_path / "d.csv", **wrong)


def test_an_anonymised_trace_keeps_times_and_lengths_alone(tmp_path):
    path = write(tmp_path, ROWS, "t.jsonl")
    out = ls.trace.anonymise(path, tmp_path / "out.jsonl").path
    before, after = read(path, "jsonl")[0], read(out, "jsonl")[0]
    for name in ("arrival_ns", "prompt_tokens", "output_tokens"):
        assert after[name] == before[name]
    assert after["client"] == ["client-1", "client-1", "client-2"]
    assert not {s for s in after["session"] if s >= 0} & {s for s in before["session"] if s >= 0}
    assert [s < 0 for s in after["session"]] == [s < 0 for s in before["session"]]
    again = ls.trace.anonymise(path, tmp_path / "again.jsonl").path
    assert read(again, "jsonl")[0]["session"] != after["session"]
    text = out.read_text()
    assert "a, b" not in text
    assert "17280000" not in text.replace(str(before["arrival_ns"][-1]), "")
    rounded = ls.trace.anonymise(path, tmp_path / "r.csv", round_tokens=64).path
    assert read(rounded, "csv")[0]["prompt_tokens"] == [704, 704, 1]


def test_unknown_kinds_and_parameters_get_the_nearest(tmp_path):
    path = write(tmp_path, ["a,b", "1,2"])
    with pytest.raises(TraceError, match="no known kind of trace begins with 'a,b'"):
        ls.trace.inspect(path)
    with pytest.raises(InputError, match="Did you mean 'csv'"):
        ls.trace.inspect(path, "csvv")
    with pytest.raises(InputError, match="Did you mean 'time_unit'"):
        ls.trace.inspect(path, "csv", {"time_unt": "s"})


def test_a_scenario_takes_a_table_with_its_map(tmp_path):
    rows = [f"{n},{500 + n},{20}" for n in range(30)]
    write(tmp_path, ["when,in,out", *rows], "own.csv")
    trace = {
        "kind": "csv",
        "path": str(tmp_path / "own.csv"),
        "columns": {"arrival": "when", "prompt_tokens": "in", "output_tokens": "out"},
        "time_unit": "s",
    }
    result = ls.run("azure-conversation", {"traffic.trace": trace})
    assert len(result.requests) == 30
    assert json.loads(json.dumps(trace)) == trace
