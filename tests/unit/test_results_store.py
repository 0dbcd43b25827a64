import math

import numpy as np
import pytest
from example_runs import MS, S, row, table_of

from llmsim.core.errors import InputError, InvariantError
from llmsim.results.columns import OUTCOMES, RAW_COLUMNS, REQUEST_COLUMNS
from llmsim.results.store import FLUSH_ROWS, RequestSink, RequestTable

ROWS = [
    row(
        1,
        arrival_ns=2 * S,
        scheduled_ns=2 * S + 100 * MS,
        first_token_ns=2 * S + 300 * MS,
        end_ns=3 * S,
        prompt_tokens=50,
        output_tokens=8,
        itl_max_ns=150 * MS,
        itl_over_slo=2,
        client=1,
        session=9,
        priority=-1,
        replica=4,
    ),
    row(0, "queued_at_end", pool=-1, replica=-1, scheduled_ns=-1, first_token_ns=-1, end_ns=5 * S),
    row(
        2, "timed_out", arrival_ns=S, scheduled_ns=S, first_token_ns=2 * S, end_ns=4 * S,
        output_tokens=3, client=0,
    ),
    row(
        3, arrival_ns=4 * S, scheduled_ns=4 * S, first_token_ns=5 * S, end_ns=5 * S,
        output_tokens=1,
    ),
]  # fmt: skip


@pytest.fixture(params=["memory", "file"])
def place(request, tmp_path):
    return tmp_path / "requests.parquet" if request.param == "file" else None


def test_columns_are_what_the_table_of_columns_says(place):
    frame = table_of(ROWS, place).frame()
    assert list(frame.columns) == [c.name for c in REQUEST_COLUMNS]
    for column in REQUEST_COLUMNS:
        assert str(frame[column.name].dtype) == column.dtype, column.name


def test_times_by_hand(place):
    frame = table_of(ROWS, place).frame().set_index("request")
    assert frame.index.tolist() == [0, 1, 2, 3]
    one = frame.loc[1]
    assert one.arrival_s == 2.0
    assert one.queue_s == pytest.approx(0.1)
    assert one.ttft_s == pytest.approx(0.3)
    assert one.tpot_s == pytest.approx(0.7 / 7)
    assert one.e2e_s == pytest.approx(1.0)
    assert one.itl_max_s == pytest.approx(0.15)
    assert (one.itl_over_slo, one.session, one.client, one.replica) == (2, 9, "bob", 4)
    assert (one.pool, one.outcome, one.priority) == ("main", "finished", -1)


def test_what_never_happened_has_no_time(place):
    frame = table_of(ROWS, place).frame().set_index("request")
    never = frame.loc[0]
    assert math.isnan(never.queue_s)
    assert math.isnan(never.ttft_s)
    assert math.isnan(never.e2e_s)
    assert (never.pool, never.client, never.replica, never.end_s) == ("", "", -1, 5.0)
    left = frame.loc[2]
    assert left.ttft_s == pytest.approx(1.0)
    assert math.isnan(left.e2e_s)
    assert math.isnan(left.tpot_s)
    assert math.isnan(frame.loc[3].tpot_s)  # a single token has no time between tokens
    assert frame.loc[3].e2e_s == pytest.approx(1.0)


def test_many_flushes_are_one_table(place):
    sink = RequestSink(("main", "spare"), (), place)
    append = sink.rows.append
    for i in range(25):
        append(row(i, OUTCOMES[i % 8], pool=i % 2, arrival_ns=i))
        if i % 10 == 9:
            sink.flush()
            assert not sink.rows
    table = sink.close()
    assert len(table) == 25
    assert table.numbers("request").tolist() == list(range(25))
    assert table.codes("pool", ("spare", "main")).tolist() == [(i + 1) % 2 for i in range(25)]
    assert table.codes("outcome", OUTCOMES).tolist() == [i % 8 for i in range(25)]
    assert table.codes("outcome", OUTCOMES[:3]).max() == 2
    assert sink.close() is table


def test_a_file_keeps_flushes_as_row_groups(tmp_path):
    import pyarrow.parquet as pq

    path = tmp_path / "r.parquet"
    sink = RequestSink(("main",), (), path)
    for start in (0, FLUSH_ROWS):
        sink.rows.extend(row(start + i) for i in range(FLUSH_ROWS))
        sink.flush()
    sink.rows.append(row(2 * FLUSH_ROWS))
    table = sink.close()
    assert pq.ParquetFile(path).num_row_groups == 3
    assert np.array_equal(table.numbers("request"), np.arange(2 * FLUSH_ROWS + 1))


def test_no_requests_are_a_table_too(place):
    table = table_of([], place)
    assert len(table) == 0
    assert len(table.frame()) == 0
    assert table.codes("outcome", OUTCOMES).tolist() == []


def test_what_was_stopped_half_way_can_be_read(tmp_path):
    path = tmp_path / "r.parquet"
    sink = RequestSink(("main",), (), path)
    try:
        for i in range(15):
            sink.rows.append(row(i))
            if i == 9:
                sink.flush()
            if i == 12:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        sink.close()
    assert RequestTable(path).numbers("request").tolist() == list(range(13))


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (row(0)[:-1], "exactly 18 values"),
        (row(0, pool=1), "pool 1"),
        (row(0, client=2), "client 2"),
        (row(0), "outcome 8"),
    ],
)
def test_a_row_that_cannot_be_is_a_bug(bad, told):
    if "outcome" in told:
        values = list(bad)
        values[RAW_COLUMNS.index("outcome")] = len(OUTCOMES)
        bad = tuple(values)
    with pytest.raises(InvariantError, match=told):
        table_of([bad])


def test_nothing_is_recorded_after_the_end():
    sink = RequestSink(("main",), ())
    sink.close()
    sink.rows.append(row(0))
    with pytest.raises(InvariantError, match="after the sink was closed"):
        sink.flush()


def test_all_wrong_columns_are_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "requests.parquet"
    table_of(ROWS, path)
    table = pq.read_table(path)
    table = table.drop_columns(["e2e_s"]).rename_columns(
        [{"ttft_s": "ttft"}.get(n, n) for n in table.column_names if n != "e2e_s"]
    )
    place = table.column_names.index("priority")
    table = table.set_column(place, "priority", table["priority"].cast(pa.float32()))
    pq.write_table(table, path)
    with pytest.raises(InputError) as caught:
        RequestTable(path)
    text = str(caught.value)
    assert "4 problems" in text
    assert "ttft: this column is unknown. Did you mean 'ttft_s'?" in text
    assert "ttft_s: this column is missing" in text
    assert "e2e_s: this column is missing" in text
    assert "priority: has type float, not int32" in text


def test_a_file_that_is_no_table(tmp_path):
    path = tmp_path / "requests.parquet"
    path.write_text("hello")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        RequestTable(path)
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        RequestTable(tmp_path / "absent.parquet")
