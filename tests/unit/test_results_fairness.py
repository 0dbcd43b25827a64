"""Service between clients: by hand, and the orders of service that are known to be unfair."""

import math

import pytest
from example_runs import S, row, table_of

from llmsim.core.errors import InputError
from llmsim.results.fairness import fairness_frame, jain_index, service_windows


def test_jain_by_hand():
    import numpy as np

    assert jain_index(np.array([5.0, 5.0, 5.0])) == pytest.approx(1)
    assert jain_index(np.array([9.0, 0.0, 0.0])) == pytest.approx(1 / 3)
    assert jain_index(np.array([1.0, 3.0])) == pytest.approx(16 / 20)
    assert math.isnan(jain_index(np.zeros(2)))


def test_service_by_hand():
    """Alice has a prompt at 5 s and 8 tokens from 5 s to 25 s; Bob waits until 30 s for his."""
    lengths = {"prompt_tokens": 100, "output_tokens": 8}
    rows = [
        row(0, client=0, scheduled_ns=S, first_token_ns=5 * S, end_ns=25 * S, **lengths),
        row(1, client=1, scheduled_ns=30 * S, first_token_ns=31 * S, end_ns=32 * S, **lengths),
        row(2, client=0, scheduled_ns=28 * S, first_token_ns=40 * S, end_ns=40 * S, **lengths),
    ]
    service = service_windows(table_of(rows), 10.0)
    assert service.clients == ("alice", "bob")
    assert service.start_s.tolist() == [0, 5, 10, 15, 20, 25, 30]
    alice, bob = service.served.T.tolist()
    # the prompt, then a quarter of 16 from 5 to 10 s, half of it in every window of 10 s
    assert alice[0] == pytest.approx(100 + 4)
    assert alice[1] == pytest.approx(100 + 8)
    assert alice[2] == pytest.approx(8)
    assert alice[4] == pytest.approx(4)
    assert bob == pytest.approx([0, 0, 0, 0, 0, 116, 116])
    frame = fairness_frame(service)
    assert frame["backlogged"].tolist() == [2, 2, 2, 2, 1, 0, 0]
    assert frame["difference"][0] == pytest.approx(104)
    assert frame["jain"][0] == pytest.approx(0.5)
    assert frame["jain"][5:].tolist() == pytest.approx([0.5, 0.5])


def test_wrong_orders_are_refused():
    table = table_of([row(0, client=0, end_ns=S)])
    with pytest.raises(InputError, match="positive time"):
        service_windows(table, 0.0)
