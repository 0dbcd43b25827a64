"""How a run must have ended, whatever happened in it."""

from __future__ import annotations

from worlds import Ran


def assert_all_ended(ran: Ran) -> None:
    """Every request has ended once, and in full unless its client left; every block is back."""
    world = ran.world
    assert [row.request for row in ran.rows] == list(range(len(world.jobs)))
    for row, job in zip(ran.rows, world.jobs, strict=True):
        if row.ended_as == "finished":
            assert row.output_tokens == job.output
        if job.abort_ns < 0 and not world.timeout_ns and not job.failed:
            assert row.ended_as == "finished"
    assert_all_back(ran)
    assert all(replica.port.expected == 0 for replica in ran.replicas)


def assert_all_back(ran: Ran) -> None:
    """Nobody is left on any replica, and its KV blocks are free."""
    for replica in ran.replicas:
        replica.ledger.check()
        assert replica.ledger.free == replica.config.kv_blocks
        assert not replica.running
        assert not replica.waiting


def assert_tiers_back(ran: Ran) -> None:
    """The same where KV goes to tiers: what is still being written there may hold its blocks."""
    for replica in ran.replicas:
        keeper = replica.draft.keeper
        replica.ledger.check()
        kept = sum(keep.blocks for keep in keeper.writer.keeps)  # being written when the run ended
        assert replica.config.kv_blocks - replica.ledger.free <= kept
        assert kept or replica.ledger.free == replica.config.kv_blocks
        assert not keeper.loads
        assert not replica.running
        assert not replica.waiting
        for tier in keeper.tiers:
            tier.store.check()
