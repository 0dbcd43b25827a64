"""The BurstGPT-like generator: the shipped file, and what of the real traces it reproduces."""

import csv
import gzip
import itertools
from pathlib import Path

import numpy as np
import pytest

from llmsim.core.errors import InputError, OutputError
from llmsim.workload import TRACES
from llmsim.workload import burstgpt_fit as fit
from llmsim.workload.burstgpt_csv import csv_lines, main, write_csv
from llmsim.workload.burstgpt_like import like_days, streams_of
from llmsim.workload.rows import join

SHIPPED = Path(__file__).parents[2] / "traces" / "burstgpt-like.csv.gz"
REAL = Path(__file__).parents[3] / "shared" / "traces" / "burstgpt"

needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real traces are not here")


def columns_of(workload, *names):
    chunks = list(workload.chunks())
    return [np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in names]


def generate(days, seed):
    return join(list(itertools.islice(like_days(fit.FILE_1_RATE_RPS, seed), days)))


@pytest.fixture(scope="module")
def two_months():
    return generate(61, 0)


def test_the_shipped_file_is_what_the_generator_writes():
    with gzip.open(SHIPPED, "rt", encoding="utf-8") as file:
        shipped = [line.rstrip("\n") for line in itertools.islice(file, 3_000)]
    assert shipped == list(itertools.islice(csv_lines(days=2, seed=2), 3_000))
    assert SHIPPED.stat().st_size < 1_500_000


def test_the_shipped_file_reads_as_burstgpt():
    workload = TRACES.get("burstgpt")(path=SHIPPED.name, failed="inject").open(0, None)
    arrival_ns, failed, session, client = columns_of(
        workload, "arrival_ns", "failed", "session", "client"
    )
    assert len(arrival_ns) == 34_426
    assert failed.mean() == pytest.approx(0.018, rel=0.1)
    conversation = np.isin(client, [0, 2])
    assert np.array_equal(session >= 0, conversation)
    assert workload.skipped_rows == 0


def test_csv_and_direct_generation_agree(tmp_path):
    path = tmp_path / "day.csv"
    main([str(path), "--days", "1", "--seed", "5"])
    read = TRACES.get("burstgpt")(path=str(path), failed="inject").open(0, None)
    direct = TRACES.get("burstgpt-like")(
        days=1, rate_rps=fit.FILE_1_RATE_RPS, failed="inject"
    ).open(5, None)
    at_file, prompt_file, failed_file, session_file = columns_of(
        read, "arrival_ns", "prompt_tokens", "failed", "session"
    )
    at, prompt, failed, session = columns_of(
        direct, "arrival_ns", "prompt_tokens", "failed", "session"
    )
    whole_s = at // 10**9
    assert np.array_equal(at_file, (whole_s - whole_s[0]) * 10**9)
    assert np.array_equal(failed_file, failed)
    assert np.array_equal(prompt_file[~failed], prompt[~failed])
    # The same requests share a session, under other ids.
    assert len(set(zip(session.tolist(), session_file.tolist(), strict=True))) == len(
        np.unique(session)
    )
    with pytest.raises(OutputError):
        write_csv(tmp_path / "no" / "such.csv", 1, 0)


def test_gzip_bytes_repeat(tmp_path):
    for name in ("a.csv.gz", "b.csv.gz"):
        write_csv(tmp_path / name, days=1, seed=3)
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()


@pytest.mark.slow
def test_the_published_collection_generates_whole():
    rows, last_ns = 0, 0
    for chunk in TRACES.get("burstgpt-like")(requests=10_310_000).open(0, None).chunks():
        assert chunk.arrival_ns[0] >= last_ns
        rows, last_ns = rows + len(chunk), chunk.arrival_ns[-1]
    assert rows == 10_310_000
    # 213 days at the mean rate; the daily level has a CV near 1.8 and a memory of some days.
    assert last_ns / 86_400e9 == pytest.approx(213, rel=0.5)


def test_chunks_and_extent():
    def rows(**options):
        workload = TRACES.get("burstgpt-like")(rate_rps=0.05, **options).open(4, None)
        return columns_of(workload, "arrival_ns", "prompt_tokens", "session", "client")

    whole = rows(days=1.5)
    assert np.all(whole[0] < 1.5 * 86_400e9)
    for cut in (rows(days=1.5, chunk_rows=77), rows(requests=len(whole[0]))):
        assert all(np.array_equal(a, b) for a, b in zip(cut, whole, strict=True))
    both = {mode: len(rows(days=1, failed=mode)[0]) for mode in ("drop", "as_demand", "inject")}
    assert both["drop"] < both["as_demand"] == both["inject"]
    for options in ({}, {"days": 1, "requests": 5}):
        with pytest.raises(InputError, match="either days or requests"):
            rows(**options)


def test_sessions_join_only_conversations_and_never_look_ahead(two_months):
    rows = two_months
    chat = np.isin(rows.client, [0, 2])
    assert np.all((rows.session >= 0) == chat)
    # Ids are given in the order in which sessions begin.
    _, first = np.unique(rows.session[chat], return_index=True)
    assert np.all(np.diff(first) > 0)
    turns = chat.sum() / len(first)
    assert turns == pytest.approx(fit.TURNS_PER_SESSION, rel=0.05)


def test_days_are_generated_alike_however_many_follow():
    one, two = generate(1, 9), generate(2, 9)
    assert np.array_equal(one.time_ns, two.time_ns[: len(one)])
    assert np.array_equal(one.prompt_tokens, two.prompt_tokens[: len(one)])


# What traces/README.md claims to agree with the real data within 10%.


def quantiles(values):
    return [values.mean(), *np.percentile(values, [50, 90, 99])]


@needs_real
def test_conversation_lengths_agree_with_the_real_sample(two_months):
    with (REAL / "burstgpt_1_first400.csv").open() as file:
        sample = [row for row in csv.DictReader(file) if row["Response tokens"] != "0"]
    sample = [row for row in sample if row["Log Type"] == "Conversation log"]
    mine = np.isin(two_months.client, [0, 2]) & ~two_months.failed
    for name, column in (
        ("Request tokens", two_months.prompt_tokens),
        ("Response tokens", two_months.output_tokens),
    ):
        real = np.array([int(row[name]) for row in sample])
        assert quantiles(column[mine]) == pytest.approx(quantiles(real), rel=0.1)


@needs_real
@pytest.mark.slow
def test_hourly_profile_agrees(two_months):
    table = np.genfromtxt(REAL / "hour_of_day_mean.csv", delimiter=",", skip_header=1)
    hours = np.mean(
        [
            np.bincount(rows.time_ns // (3600 * 10**9) % 24, minlength=24) / len(rows)
            for rows in (two_months, *(generate(61, seed) for seed in (1, 2, 3)))
        ],
        axis=0,
    )
    assert hours == pytest.approx(table[:, 1] / table[:, 1].sum(), rel=0.1)


@pytest.mark.slow
@needs_real
def test_daily_counts_agree():
    real = np.genfromtxt(REAL / "daily_61d.csv", delimiter=",", skip_header=1)[:, 1]

    def shape(counts):
        logs = np.log(counts)
        return [
            counts.std() / counts.mean(),
            np.median(counts) / counts.mean(),
            counts.max() / counts.mean(),
            np.corrcoef(logs[1:], logs[:-1])[0, 1],
        ]

    drawn = [
        shape(np.array([len(day) for day in itertools.islice(like_days(0.27128, seed), 61)], float))
        for seed in range(8)
    ]
    assert np.mean(drawn, axis=0) == pytest.approx(shape(real), rel=0.1)


@needs_real
def test_busy_minutes_of_the_quiet_week_agree():
    real = np.genfromtxt(REAL / "week1_per_minute_tokens_per_s.csv.gz", delimiter=",")
    busy = [
        np.mean([len(np.unique(next(days) // (60 * 10**9))) / 1440 for _ in range(7)])
        for days in (
            streams_of(fit.FILE_1_RATE_RPS)[0].days(seed, "conversations") for seed in range(8)
        )
    ]
    assert np.mean(busy) == pytest.approx((len(real) - 1) / 10_080, rel=0.05)


@needs_real
def test_tokens_per_request_and_failures_agree(two_months):
    real = np.genfromtxt(REAL / "daily_61d.csv", delimiter=",", skip_header=1)
    tokens = (two_months.prompt_tokens + two_months.output_tokens)[~two_months.failed].sum()
    assert tokens / len(two_months) == pytest.approx(real[:, 2].sum() / real[:, 1].sum(), rel=0.1)
    assert two_months.failed.mean() == pytest.approx(1 - 1404.3 / 1429.7, rel=0.05)
