"""A router that reads caches sees what an engine would find, and changes nothing by looking."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prices import MS
from world_strategies import laws, worlds
from worlds import Job, World, run

from llmsim.kvcache.looking import cached_tokens


@laws(30)
@given(data=st.data())
def test_what_is_seen_is_what_is_found(data):
    world = data.draw(worlds(batching="vllm", handoff=None))
    if not world.prefix_caching:
        return
    seen = []

    def watch(replica, call):
        ledger = replica.ledger
        for request in replica.line.requests():
            segments = request.view.segments
            if segments is None or request.generated:
                continue
            found = ledger.match(request, request.prompt).blocks * ledger.block_tokens
            looked = cached_tokens(ledger.root, segments, request.prompt, ledger.block_tokens)
            seen.append((looked, found))

    run(world, False, recorder=watch)
    assert all(looked == found for looked, found in seen)


DOCUMENT = ((7, 64),)


def asked(at_ms, *own):
    segments = (*DOCUMENT, *own)
    return Job(at_ms * MS, sum(length for _, length in segments), 20, segments)


def test_a_request_goes_where_its_prefix_is_cached():
    """The second is on replica 1, the least loaded; the others where their documents are."""
    jobs = (
        asked(0, (1, 16)),
        Job(1 * MS, 80, 20, ((8, 64), (2, 16))),
        asked(200, (3, 16)),
        Job(201 * MS, 80, 20, ((8, 64), (4, 16))),
        Job(400 * MS, 80, 20, ((8, 64), (5, 16))),
    )
    world = World(
        jobs, cost="flat", replicas=2, routing="precise", kv_blocks=400, prefix_caching=True
    )
    assert [row.replica for row in run(world).rows] == [0, 1, 0, 1, 1]
    blind = World(
        jobs, cost="flat", replicas=2, routing="least-loaded", kv_blocks=400, prefix_caching=True
    )
    assert [row.replica for row in run(blind).rows] == [0, 1, 0, 1, 0]


def test_what_was_overwritten_is_not_believed_to_be_there():
    """Memory for one prompt: the second overwrites the first, which `prefix-affinity` forgets."""
    one, other = ((7, 64), (1, 16)), ((8, 64), (2, 16))
    jobs = (Job(0, 80, 2, one), Job(0, 80, 2, other), Job(50 * MS, 80, 2, other))
    jobs += (Job(100 * MS, 80, 2, other), Job(150 * MS, 80, 2, one), Job(200 * MS, 80, 2, one))
    given = {
        "cost": "flat",
        "kv_blocks": 7,
        "prefix_caching": True,
        "replicas": 2,
        "block_tokens": 16,
    }
    rows = run(World(jobs, routing="precise", **given)).rows
    assert [row.replica for row in rows[:2]] == [0, 1]
    assert [row.replica for row in rows[2:]] == [1, 1, 0, 0]
    assert [row.cached_tokens for row in rows[2:]] == [64, 64, 64, 64]
