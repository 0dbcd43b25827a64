"""Worlds in which merged and stepped runs once differed, as the laws found them by chance."""

from __future__ import annotations

from prices import MS
from test_fast_forward import assert_same
from worlds import Job, World


def test_the_wait_of_who_is_next_begins_when_others_leave_for_their_kv():
    # on a decode replica those who are admitted leave the line, but are in no step yet
    jobs = (Job(0, 22, 15, session=0),) * 12
    limits = {"max_num_seqs": 2, "budget_tokens": 32, "block_tokens": 4, "kv_blocks": 30}
    apart = {"decoders": 1, "port_bytes_per_s": 1e12, "message_ns": MS}
    line = {"batching": "gathering", "order": "priority", "routing": "least-loaded"}
    assert_same(World(jobs, "tiled knee", **limits, **apart, **line))


def test_what_who_loses_its_kv_has_had_counts_before_the_next_is_chosen():
    # tokens of who runs are counted when somebody may be admitted: merged steps ask less often
    jobs = (Job(MS, 2, 6, session=1), *(Job(MS, 1, 1, session=0),) * 10)
    limits = {"max_num_seqs": 2, "budget_tokens": 8, "kv_blocks": 1}
    assert_same(World(jobs, "window", **limits, batching="vtc", allocation="s3"))
