"""The readers on small written files: columns, order, windows, damage."""

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from drawing import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsim.core.errors import InputError, RegistryError, TraceError
from llmsim.workload import TRACES, RequestChunk

OLD_HEADER = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
NEW_HEADER = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type"
)
COLUMNS = tuple(
    name for name in RequestChunk.__dataclass_fields__ if name not in ("model", "slo_class")
)


def old_row(at, prompt=100, output=10, model="GPT-4", log="API log"):
    return f"{at},{model},{prompt},{output},{prompt + output},{log}"


def write(folder, lines, name="trace.csv", end="\n"):
    path = Path(folder) / name
    data = end.join([*lines, ""]).encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return str(path)


def columns_of(workload):
    chunks = list(workload.chunks())
    joined = {
        name: np.concatenate([getattr(chunk, name) for chunk in chunks]).tolist()
        for name in COLUMNS
        if name not in ("segments", "images")
    }
    assert all(chunk.images is None for chunk in chunks)
    joined["segments"] = [chunk.segments for chunk in chunks]
    return joined


def read(path, kind="burstgpt", seed=0, near=None, **options):
    workload = TRACES.get(kind)(path=path, **options).open(seed, near)
    return columns_of(workload) | {"skipped": workload.skipped_rows, "clients": workload.clients}


def faults_of(path, kind="burstgpt", **options):
    with pytest.raises(TraceError) as caught:
        read(path, kind, **options)
    return caught.value.faults


def test_gzip_plain_crlf_and_bom_read_alike(tmp_path):
    lines = [OLD_HEADER, old_row(5), old_row(7.25), old_row(9)]
    plain = read(write(tmp_path, lines))
    assert plain["arrival_ns"] == [0, 2_250_000_000, 4_000_000_000]
    assert read(write(tmp_path, lines, "trace.csv.gz")) == plain
    assert read(write(tmp_path, lines, "crlf.csv", end="\r\n")) == plain
    assert read(write(tmp_path, ["\ufeff" + OLD_HEADER, *lines[1:]], "bom.csv")) == plain
    # gzip is known by its content, whatever the name says
    unnamed = tmp_path / "packed"
    unnamed.write_bytes(gzip.compress("\n".join(lines).encode()))
    assert read(str(unnamed)) == plain


def test_both_generations_of_columns_and_the_lower_case_one(tmp_path):
    new = [
        NEW_HEADER,
        "5,ab-1,3,GPT-4,100,10,110,Conversation log",
        "6,,2,GPT-4,100,10,110,API log",
    ]
    found = read(write(tmp_path, new))
    assert found["session"][0] >= 0
    assert found["session"][1] == -1
    lower = "timestamp,session,elapsed_s,model,request_tokens,response_tokens,total_tokens,log_type"
    assert read(write(tmp_path, [lower, *new[1:]], "lower.csv")) == found
    old = read(write(tmp_path, [OLD_HEADER, old_row(5), old_row(6)]))
    assert old["session"] == [-1, -1]


def test_session_ids_are_equal_in_every_process(tmp_path):
    lines = [NEW_HEADER, *(f"{i},s{i % 3},1,GPT-4,9,9,18,Conversation log" for i in range(9))]
    path = write(tmp_path, lines)
    code = (
        "from llmsim.workload import TRACES\n"
        f"w = TRACES.get('burstgpt')(path={path!r}).open(0, None)\n"
        "print([s for c in w.chunks() for s in c.session.tolist()])"
    )
    fresh = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert fresh.stdout.strip() == str(read(path)["session"])
    assert len(set(read(path)["session"])) == 3


def test_an_unknown_model_becomes_a_client_of_its_own(tmp_path):
    lines = [OLD_HEADER, old_row(1), old_row(2, model="o9"), old_row(3, model="o9")]
    found = read(write(tmp_path, lines))
    assert found["clients"][4:] == ("o9 API log",)
    assert found["client"] == [3, 4, 4]


def test_window_scale_limit_and_longest_prompt(tmp_path):
    lines = [OLD_HEADER, *(old_row(10 + i, prompt=1 + i) for i in range(20))]
    path = write(tmp_path, lines)
    assert read(path, start_s=5, end_s=8)["prompt_tokens"] == [6, 7, 8]
    assert read(path, start_s=5, end_s=8)["arrival_ns"] == [0, 10**9, 2 * 10**9]
    assert read(path, rate_scale=4, limit=3)["arrival_ns"] == [0, 250_000_000, 500_000_000]
    assert read(path, max_prompt_tokens=2)["prompt_tokens"] == [1, 2]
    assert read(path, start_s=18, limit=5)["prompt_tokens"] == [19, 20]


def test_a_failed_first_row_still_begins_the_window(tmp_path):
    lines = [OLD_HEADER, old_row(0, output=0), old_row(4), old_row(6)]
    path = write(tmp_path, lines)
    for mode, kept in (("drop", 1), ("inject", 2), ("as_demand", 2)):
        assert len(read(path, failed=mode, end_s=5)["arrival_ns"]) == kept


def test_a_client_without_answers_draws_from_all(tmp_path):
    lines = [OLD_HEADER, old_row(1, 7, 70), old_row(2, 0, 0, model="ChatGPT")]
    found = read(write(tmp_path, lines), failed="as_demand")
    assert (found["prompt_tokens"][1], found["output_tokens"][1]) == (7, 70)
    known = read(write(tmp_path, [*lines[:2], old_row(2, 33, 0)]), failed="as_demand")
    assert (known["prompt_tokens"][1], known["output_tokens"][1]) == (33, 70)
    (fault,) = faults_of(write(tmp_path, [OLD_HEADER, old_row(1, 0, 0)]), failed="as_demand")
    assert "no row was answered" in fault.message


def test_small_disorder_is_sorted_and_large_is_damage(tmp_path):
    lines = [OLD_HEADER, *(old_row(t, prompt=t) for t in (100, 130, 110, 130, 300, 290))]
    path = write(tmp_path, lines)
    assert read(path)["prompt_tokens"] == [100, 110, 130, 130, 290, 300]
    faults = faults_of(path, max_disorder_s=15)
    assert [fault.where for fault in faults] == [f"{path}:4"]
    assert "20 s back in time" in faults[0].message
    skipped = read(path, max_disorder_s=15, on_bad_row="skip")
    assert skipped["prompt_tokens"] == [100, 130, 130, 290, 300]
    assert skipped["skipped"] == 1


DAMAGE = {
    "abc,GPT-4,100,10,110,API log": "Timestamp: expected a time in seconds, read 'abc'",
    "-5,GPT-4,100,10,110,API log": "at least 0 s",
    "nan,GPT-4,100,10,110,API log": "expected a time in seconds, read 'nan'",
    ",GPT-4,100,10,110,API log": "expected a time in seconds, read ''",
    "50,GPT-4,x,10,110,API log": "Request tokens: expected a whole number of tokens, read 'x'",
    "50,GPT-4,1.5,10,110,API log": "Request tokens: expected a whole number",
    "50,GPT-4,0x1F,10,110,API log": "Request tokens: expected a whole number",
    "50,GPT-4,-1,10,110,API log": "expected no less than 0 tokens, read '-1'",
    "50,GPT-4,100,-10,90,API log": "Response tokens: expected no less than 0 tokens",
    "50,GPT-4,99999999999,10,110,API log": "expected at most 2147483647 tokens",
    "50,GPT-4,99999999999999999999,10,110,API log": "expected at most 2147483647 tokens",
    "50,GPT-4,0,10,10,API log": "expected at least 1 token with an answer of 10, read 0",
    "50,GPT-4,100,10": "expected 6 columns",
    "50,GPT-4,100,10,110,API log,more": "read 7",
    "rubbish": "read 1: 'rubbish'",
}


@pytest.mark.parametrize(("line", "message"), DAMAGE.items())
def test_damage_in_burstgpt_names_its_line(tmp_path, line, message):
    lines = [OLD_HEADER, *(old_row(i) for i in range(50)), line, *(old_row(51) for _ in range(3))]
    path = write(tmp_path, lines)
    (fault,) = faults_of(path)
    assert fault.where == f"{path}:52"
    assert message in fault.message
    skipped = read(path, on_bad_row="skip")
    assert skipped["skipped"] == 1
    assert len(skipped["arrival_ns"]) == 53


def test_blank_lines_are_no_damage_and_keep_the_count(tmp_path):
    lines = [OLD_HEADER, old_row(1), "", old_row(2), "", "bad", old_row(3)]
    path = write(tmp_path, lines)
    assert [fault.where for fault in faults_of(path)] == [f"{path}:6"]
    assert len(read(path, on_bad_row="skip")["arrival_ns"]) == 3


@pytest.mark.slow
def test_damage_deep_in_a_large_file_names_its_line(tmp_path):
    rows = [old_row(i) for i in range(120_000)]  # several blocks
    rows[99_990] = "late" + old_row(99_990)
    rows[100_010] = old_row(100_010, prompt=0, output=5)
    path = write(tmp_path, [OLD_HEADER, *rows], "trace.csv.gz")
    assert [fault.where for fault in faults_of(path)] == [f"{path}:{n}" for n in (99_992, 100_012)]
    assert len(read(path, on_bad_row="skip")["arrival_ns"]) == 119_998


def test_all_faults_are_listed_up_to_a_limit(tmp_path):
    path = write(tmp_path, [OLD_HEADER, *("bad" for _ in range(50))])
    faults = faults_of(path)
    assert [fault.where for fault in faults[:20]] == [f"{path}:{n}" for n in range(2, 22)]
    assert len(faults) == 21
    assert "on_bad_row: skip" in faults[-1].message


AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"


def test_azure_of_both_years(tmp_path):
    rows = ["2023-11-16 18:15:46.6805900,374,44", "2023-11-16 18:15:47.6805901,10,0"]
    found = read(write(tmp_path, [AZURE_HEADER, *rows]), "azure-2023")
    assert found["arrival_ns"] == [0, 1_000_000_100]
    assert found["output_tokens"] == [44, 1]
    zoned = ["2024-05-10 00:00:00.009930+00:00,2162,5", "2024-05-10 00:00:01+00:00,2399,6"]
    found = read(write(tmp_path, [AZURE_HEADER, *zoned]), "azure-2024")
    assert found["arrival_ns"] == [0, 990_070_000]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("16.11.2023 18:15,374,44", "expected a date and time like"),
        ("2023-13-16 18:15:46.6,374,44", "month must be in 1..12"),
        ("2023-11-16 18:15:46.6,0,44", "ContextTokens: expected at least 1 token, read 0"),
        ("2023-11-16 18:15:46.6,3,-1", "GeneratedTokens: expected no less than 0"),
        ("2023-11-16 18:15:46.6,3", "expected 3 columns"),
    ],
)
def test_damage_in_azure_names_its_line(tmp_path, line, message):
    path = write(tmp_path, [AZURE_HEADER, "2023-11-16 18:15:46.6805900,374,44", line])
    (fault,) = faults_of(path, "azure-2023")
    assert fault.where == f"{path}:3"
    assert message in fault.message


def mooncake_row(at, prompt, output=5, ids=None):
    ids = list(range(-(-prompt // 512))) if ids is None else ids
    return (
        f'{{"timestamp": {at}, "input_length": {prompt}, "output_length": {output}, '
        f'"hash_ids": {ids}}}'
    )


def test_mooncake_segments_end_with_what_is_left(tmp_path):
    lines = [mooncake_row(0, 1100, ids=[4, 5, 6]), mooncake_row(3000, 1024), mooncake_row(3001, 1)]
    found = read(write(tmp_path, lines, "m.jsonl"), "mooncake")
    assert found["segments"] == [[((4, 512), (5, 512), (6, 76)), ((0, 512), (1, 512)), ((0, 1),)]]
    assert found["arrival_ns"] == [0, 3 * 10**9, 3_001_000_000]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "not a line of JSON"),
        ("[1, 2]", "no timestamp, input_length, output_length, hash_ids"),
        ('{"timestamp": 1, "input_length": 9, "output_length": 9}', "no hash_ids"),
        (mooncake_row(-1, 9), "timestamp: expected milliseconds of at least 0, read -1"),
        (mooncake_row(0, 0, ids=[]), "input_length: expected a whole number of at least 1, read 0"),
        (mooncake_row(0, 9, output=-3), "output_length: expected"),
        (mooncake_row(0, 9, output='"9"'), "output_length: expected"),
        (mooncake_row(0, 9, output="true"), "output_length: expected"),
        (mooncake_row(0, 600, ids=[1]), "expected 2 ids of 512 tokens"),
        (mooncake_row(0, 9, ids=[-1]), "hash_ids: expected whole numbers of at least 0"),
    ],
)
def test_damage_in_mooncake_names_its_line(tmp_path, line, message):
    path = write(tmp_path, [mooncake_row(0, 9), mooncake_row(0, 9), line], "m.jsonl")
    (fault,) = faults_of(path, "mooncake")
    assert fault.where == f"{path}:3"
    assert message in fault.message
    assert read(path, "mooncake", on_bad_row="skip")["skipped"] == 1


def test_a_missing_file_names_the_nearest(tmp_path):
    write(tmp_path, [OLD_HEADER, old_row(1)], "burstgpt_day9.csv")
    (fault,) = faults_of("burstgpt_day8.csv", near=tmp_path)
    assert "Did you mean 'burstgpt_day9.csv'?" in fault.hint
    assert str(tmp_path) in fault.where


def test_paths_start_at_the_scenario_and_names_may_be_shipped(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub", [OLD_HEADER, old_row(1)], "t.csv")
    assert len(read("sub/t.csv", near=tmp_path)["arrival_ns"]) == 1
    assert len(read("burstgpt-like.csv.gz", near=tmp_path, limit=3)["arrival_ns"]) == 3


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("", "no header line"),
        ("a,b,c", "expected the header Timestamp"),
        (OLD_HEADER.replace("Response tokens", "Responce tokens"), "Did you mean 'Responce"),
        (OLD_HEADER.replace("Total tokens", "Timestamp"), "two columns have this name"),
    ],
)
def test_a_wrong_header_says_what_was_expected(tmp_path, header, message):
    faults = faults_of(write(tmp_path, [header, old_row(1)]))
    assert message in "\n".join(map(str, faults))
    assert all(fault.where.endswith(":1") for fault in faults)


def test_nothing_left_is_an_error(tmp_path):
    assert "no request is left" in faults_of(write(tmp_path, [OLD_HEADER]))[0].message
    path = write(tmp_path, [OLD_HEADER, old_row(1)])
    assert "start_s = 9" in faults_of(path, start_s=9.0)[0].message


def test_a_cut_gzip_is_an_error_with_the_line_reached(tmp_path):
    path = tmp_path / "cut.csv.gz"
    rows = [old_row(i * 37 % 50 + i) for i in range(30_000)]
    path.write_bytes(gzip.compress("\n".join([OLD_HEADER, *rows]).encode())[:-2000])
    (fault,) = faults_of(str(path))
    assert "cut off or damaged" in fault.message


def test_wrong_parameters_are_all_named():
    with pytest.raises(InputError) as caught:
        TRACES.get("burstgpt")(path="x", rate_scale=0, limit=0, failed="dropp").open(0, None)
    assert [fault.path for fault in caught.value.faults] == ["rate_scale", "limit", "failed"]
    assert "Did you mean 'drop'?" in caught.value.faults[2].message


def test_the_window_must_not_be_empty(tmp_path):
    path = write(tmp_path, [OLD_HEADER, old_row(1)])
    with pytest.raises(InputError, match="greater than start_s"):
        read(path, start_s=5.0, end_s=5.0)


def test_an_unknown_kind_names_the_nearest():
    with pytest.raises(RegistryError, match="Did you mean 'burstgpt'"):
        TRACES.get("burst-gpt")


def test_reading_twice_gives_the_same(tmp_path):
    lines = [NEW_HEADER]
    lines += [
        f"{i},s{i % 7},1,GPT-4,{i % 5 * 9},{i % 4},9,Chat" for i in range(400) if i % 4 or not i % 5
    ]
    path = write(tmp_path, lines)
    for mode in ("drop", "as_demand", "inject"):
        workload = TRACES.get("burstgpt")(path=path, failed=mode, on_bad_row="skip").open(1, None)
        first, skipped = columns_of(workload), workload.skipped_rows
        assert columns_of(workload) == first
        assert workload.skipped_rows == skipped > 0


ROWS = st.lists(
    st.tuples(
        st.integers(0, 300),
        st.integers(0, 3),
        st.integers(0, 3),
        st.sampled_from(["GPT-4", "ChatGPT", "X"]),
    ),
    min_size=1,
    max_size=60,
)


@settings(max_examples=examples(60), deadline=None)
@given(
    rows=ROWS,
    chunk_rows=st.integers(1, 20),
    block_bytes=st.integers(1, 400),
    mode=st.sampled_from(["drop", "as_demand", "inject"]),
    disorder_s=st.sampled_from([0.0, 10.0, 60.0]),
)
def test_chunk_and_block_sizes_do_not_matter(
    tmp_path_factory, rows, chunk_rows, block_bytes, mode, disorder_s
):
    lines = [OLD_HEADER, *(old_row(t, p, o, model) for t, p, o, model in rows)]
    path = write(tmp_path_factory.mktemp("t"), lines)
    options = {"failed": mode, "on_bad_row": "skip", "max_disorder_s": disorder_s}

    def attempt(**more):
        try:
            found = read(path, **options, **more)
        except TraceError as error:
            return str(error)
        found.pop("segments")
        return found

    whole = attempt()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmsim.workload.tracefile.BLOCK_BYTES", block_bytes)
        assert attempt(chunk_rows=chunk_rows) == whole


@settings(max_examples=examples(60), deadline=None)
@given(
    ticks=st.lists(st.integers(0, 12), min_size=1, max_size=40),
    chunk_rows=st.integers(1, 9),
    block_bytes=st.integers(1, 300),
)
def test_spreading_ticks_does_not_depend_on_cuts(tmp_path_factory, ticks, chunk_rows, block_bytes):
    lines = [mooncake_row(3000 * tick, 9) for tick in sorted(ticks)]
    path = write(tmp_path_factory.mktemp("t"), lines, "m.jsonl")
    whole = read(path, "mooncake", spread_ticks=True)["arrival_ns"]
    assert whole == sorted(whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmsim.workload.tracefile.BLOCK_BYTES", block_bytes)
        cut = read(path, "mooncake", spread_ticks=True, chunk_rows=chunk_rows)["arrival_ns"]
    assert cut == whole


CELLS = st.sampled_from(
    [
        "5",
        "12",
        "0",
        " 7",
        "7 ",
        "-1",
        "1.5",
        "2e1",
        "+3",
        "",
        "abc",
        "0x5",
        "1_0",
        '"8"',
        '" 7"',
        '""',
        '"4',
        '4"',
        '"1""2"',
        "٣",
        "nan",
    ]
)


@settings(max_examples=examples(200), deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=4))
def test_a_row_is_read_alike_alone_and_beside_damage(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("t")
    lines = [OLD_HEADER, *(f"{t},GPT-4,{p},{o},9,API log" for t, p, o in rows)]
    options = {"on_bad_row": "skip", "failed": "inject", "max_disorder_s": 1e6}

    def attempt(path):
        try:
            found = read(path, **options)
        except TraceError:
            return None
        return [found[name] for name in ("arrival_ns", "prompt_tokens", "output_tokens")]

    assert attempt(write(folder, lines)) == attempt(write(folder, [*lines, "damage"], "d.csv"))
