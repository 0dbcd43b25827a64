"""The readers on the published files, against the statistics published beside them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmsim.workload import TRACES

TRACE_FILES = Path(__file__).parents[3] / "shared" / "traces"

pytestmark = pytest.mark.skipif(not TRACE_FILES.is_dir(), reason="the real traces are not here")

AZURE = TRACE_FILES / "azure_2023" / "AzureLLMInferenceTrace_conv.csv.gz"
MOONCAKE = TRACE_FILES / "mooncake" / "conversation_trace.jsonl.gz"
BURSTGPT_1 = TRACE_FILES / "burstgpt" / "burstgpt_1_first400.csv"
BURSTGPT_3 = TRACE_FILES / "burstgpt" / "burstgpt_3_first188.csv"


def read(kind, path, seed=0, **options):
    workload = TRACES.get(kind)(path=str(path), **options).open(seed, None)
    chunks = list(workload.chunks())
    return workload, chunks


def column(chunks, name):
    return np.concatenate([getattr(chunk, name) for chunk in chunks])


def pairs(chunks):
    """Both lengths in one number, so that a pair can be looked up."""
    return column(chunks, "prompt_tokens").astype(np.int64) * 2**31 + column(
        chunks, "output_tokens"
    )


def test_azure_conversation_has_the_published_rows_and_means():
    workload, chunks = read("azure-2023", AZURE)
    arrival_s = column(chunks, "arrival_ns") / 1e9
    assert len(arrival_s) == 19_366
    assert round(column(chunks, "prompt_tokens").mean()) == 1_155
    assert round(column(chunks, "output_tokens").mean()) == 211
    assert arrival_s[0] == 0
    assert round(arrival_s[-1]) == 3_502
    gaps = np.diff(arrival_s)
    assert gaps.std() / gaps.mean() == pytest.approx(1.09, abs=0.005)
    assert workload.skipped_rows == 0


def test_azure_stamps_are_read_to_100_ns():
    _, chunks = read("azure-2023", AZURE, limit=2)
    # 18:15:46.6805900 and 18:15:50.9951690
    assert column(chunks, "arrival_ns").tolist() == [0, 4_314_579_000]


def test_reading_csv_does_not_import_pandas():
    code = (
        "import sys\nfrom llmsim.workload import TRACES\n"
        "assert 'pyarrow' not in sys.modules\n"
        f"w = TRACES.get('azure-2023')(path={str(AZURE)!r}).open(0, None)\n"
        "assert sum(len(c) for c in w.chunks()) == 19366\n"
        "assert 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_mooncake_has_the_published_rows_means_and_reuse():
    _, chunks = read("mooncake", MOONCAKE, chunk_rows=5_000)
    prompt = column(chunks, "prompt_tokens")
    assert len(prompt) == 12_031
    assert round(prompt.mean()) == 12_035
    assert round(column(chunks, "output_tokens").mean()) == 343
    assert len(np.unique(column(chunks, "arrival_ns"))) == 1_180
    segments = [pieces for chunk in chunks for pieces in chunk.segments]
    assert [sum(length for _, length in pieces) for pieces in segments] == prompt.tolist()
    seen, hit = set(), 0
    for pieces in segments:
        for key, length in pieces:
            if key not in seen:
                break
            hit += length
        seen.update(key for key, _ in pieces)
    assert hit / prompt.sum() == pytest.approx(0.374, abs=0.0005)


def test_spreading_mooncake_ticks_keeps_counts_and_removes_batches():
    _, as_is = read("mooncake", MOONCAKE)
    _, spread = read("mooncake", MOONCAKE, spread_ticks=True, chunk_rows=997)
    before, after = column(as_is, "arrival_ns"), column(spread, "arrival_ns")
    assert np.all(after >= before)
    assert np.all(np.diff(after) > 0)
    # No request reaches the next tick, except those of the last one, which has none.
    ticks = np.unique(before)
    next_tick = np.append(ticks[1:], 2 * ticks[-1] - ticks[-2])[np.searchsorted(ticks, before)]
    assert np.all(after < next_tick)
    gaps = np.diff(after)
    assert gaps.std() / gaps.mean() < 0.5 < np.diff(before).std() / np.diff(before).mean()


@pytest.mark.parametrize(
    ("mode", "rows", "failed"), [("drop", 383, 0), ("as_demand", 400, 0), ("inject", 400, 17)]
)
def test_failed_rows_of_burstgpt(mode, rows, failed):
    _, chunks = read("burstgpt", BURSTGPT_1, failed=mode)
    assert len(column(chunks, "failed")) == rows
    assert column(chunks, "failed").sum() == failed
    assert column(chunks, "prompt_tokens").min() >= 1
    assert column(chunks, "output_tokens").min() >= 1


def test_imputed_lengths_come_from_answered_rows_of_the_same_client():
    _, injected = read("burstgpt", BURSTGPT_1, failed="inject")
    _, imputed = read("burstgpt", BURSTGPT_1, failed="as_demand", seed=3)
    failed = column(injected, "failed")
    client = column(injected, "client")
    answered = [set(pairs(injected)[~failed & (client == c)].tolist()) for c in range(4)]
    drawn = pairs(imputed)
    assert all(drawn[i] in answered[client[i]] for i in np.flatnonzero(failed))
    assert np.array_equal(drawn[~failed], pairs(injected)[~failed])
    _, other_seed = read("burstgpt", BURSTGPT_1, failed="as_demand", seed=4)
    assert not np.array_equal(drawn, pairs(other_seed))


def test_clients_of_burstgpt_are_model_and_log_type():
    workload, chunks = read("burstgpt", BURSTGPT_1, failed="inject")
    counts = np.bincount(column(chunks, "client"), minlength=4)
    assert dict(zip(workload.clients, counts.tolist(), strict=True)) == {
        "ChatGPT Conversation log": 320,
        "ChatGPT API log": 0,
        "GPT-4 Conversation log": 78,
        "GPT-4 API log": 2,
    }
    assert np.all(column(chunks, "session") == -1)


def test_burstgpt_3_as_re_encoded_has_its_sessions():
    _, chunks = read("burstgpt", BURSTGPT_3, failed="inject")
    session = column(chunks, "session")
    assert len(session) == 188
    assert len(np.unique(session[session >= 0])) == 71
    assert (session < 0).sum() == 6  # API calls
    assert column(chunks, "arrival_ns")[-1] == 36_189 * 10**9


def test_a_file_of_another_format_is_told_apart():
    from llmsim.core.errors import TraceError

    for path, kind, right in (
        (AZURE, "burstgpt", "azure-2023"),
        (BURSTGPT_1, "azure-2023", "burstgpt"),
        (MOONCAKE, "burstgpt", "mooncake"),
        (BURSTGPT_3, "mooncake", "burstgpt"),
    ):
        with pytest.raises(TraceError, match=f"kind: {right}"):
            read(kind, path)


def by_pandas(path, at, prompt, output, **options):
    """The same columns, read by pandas alone."""
    import pandas as pd

    table = pd.read_csv(path, **options)
    rows = table.sort_values(at, kind="stable")
    return rows[at].to_numpy(), rows[prompt].to_numpy(), rows[output].to_numpy()


def agrees(chunks, at_ns, prompt, output):
    assert column(chunks, "arrival_ns").tolist() == (at_ns - at_ns[0]).tolist()
    assert column(chunks, "prompt_tokens").tolist() == prompt.tolist()
    assert column(chunks, "output_tokens").tolist() == np.maximum(output, 1).tolist()


def test_azure_by_both_readers_is_what_pandas_reads():
    found = by_pandas(
        AZURE, "TIMESTAMP", "ContextTokens", "GeneratedTokens", parse_dates=["TIMESTAMP"]
    )
    at_ns = found[0].astype("datetime64[ns]").astype(np.int64)
    for kind in ("azure-2023", "csv"):
        agrees(read(kind, AZURE)[1], at_ns, *found[1:])


def test_the_arena_and_the_lengths_are_what_pandas_reads():
    arena = TRACE_FILES / "multitenant_arena" / "arena_multitenant.csv.gz"
    at_s, prompt, output = by_pandas(arena, "arrival_s", "input_tokens", "output_tokens")
    workload, chunks = read("csv", arena)
    agrees(chunks, np.rint(at_s * 1e9).astype(np.int64), prompt, output)
    assert len(workload.clients) == 27
    pairs_file = TRACE_FILES / "lengths" / "sharegpt_nanoflow.csv.gz"
    import pandas as pd

    table = pd.read_csv(pairs_file)
    sound = table[table.input_tokens >= 1]
    workload, chunks = read("csv", pairs_file, on_bad_row="skip")
    assert column(chunks, "prompt_tokens").tolist() == sound.input_tokens.tolist()
    assert workload.skipped_rows == len(table) - len(sound)


def test_mooncake_by_both_readers_is_what_pandas_reads():
    import pandas as pd

    table = pd.read_json(MOONCAKE, lines=True).sort_values("timestamp", kind="stable")
    at_ns = table.timestamp.to_numpy().astype(np.int64) * 1_000_000
    for kind, options in (("mooncake", {}), ("jsonl", {"time_unit": "ms"})):
        chunks = read(kind, MOONCAKE, **options)[1]
        agrees(chunks, at_ns, table.input_length.to_numpy(), table.output_length.to_numpy())


@pytest.mark.parametrize(
    ("path", "gap_cv", "minute_cv", "reused"),
    [(AZURE, 1.09, 0.22, None), (MOONCAKE, 3.03, 0.12, 0.374)],
    ids=["azure", "mooncake"],
)
def test_a_profile_has_the_published_statistics(path, gap_cv, minute_cv, reused):
    import llmsim as ls

    found = ls.trace.inspect(path)
    assert found.gap_cv == pytest.approx(gap_cv, abs=0.005)
    assert found.minute_cv == pytest.approx(minute_cv, abs=0.005)
    assert found.reused_frac == (reused and pytest.approx(reused, abs=0.0005))


@pytest.mark.parametrize(
    ("pool", "start_s", "end_s"), [("deepseek-r1", 0, 7200), ("m-small", 144_000, 144_600)]
)
def test_a_servegen_pool_gives_the_stated_rates_and_mean_lengths(pool, start_s, end_s):
    import pandas as pd

    folder = TRACE_FILES / "servegen"
    rates = pd.read_csv(folder / f"{pool}_arrivals.csv.gz")
    rates = rates[(rates.t_start_s >= start_s) & (rates.t_start_s < end_s)]
    lengths = pd.read_csv(folder / f"{pool}_lengths.csv.gz").sort_values("window_start_s")
    sent = rates[rates.client.isin(lengths.client)].sort_values("t_start_s")
    workload, chunks = read("servegen", folder / pool, seed=5, start_s=start_s, end_s=end_s)
    client = np.array(workload.clients)[column(chunks, "client")].astype(int)
    assert len(client) == pytest.approx(600 * rates.rate_rps.sum(), rel=0.05)
    known = np.isin(client, sent.client.unique())
    for field, name in (("input_tokens", "prompt_tokens"), ("output_tokens", "output_tokens")):
        told = lengths[lengths.field == field].rename(columns={"window_start_s": "t_start_s"})
        joined = pd.merge_asof(sent, told, on="t_start_s", by="client").dropna(subset="mean")
        stated = np.average(joined["mean"], weights=joined.rate_rps)
        # quantiles in 15 points: means of single clients come out 1% to 4% high
        assert column(chunks, name)[known].mean() == pytest.approx(stated, rel=0.05)
