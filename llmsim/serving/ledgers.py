"""Which ledger keeps a replica's KV blocks."""

from __future__ import annotations

from collections.abc import Callable

from llmsim.kvcache import CountLedger, PrefixLedger
from llmsim.serving.config import EngineConfig
from llmsim.serving.request import Request, identity_of


def make_ledger(
    config: EngineConfig, registrable: Callable[[Request], int]
) -> CountLedger | PrefixLedger:
    """Return an empty ledger: a count, or blocks with content where prefixes are cached.

    Parameters
    ----------
    config : EngineConfig
    registrable : callable
        Returns how many tokens of a request may be registered during a call.
    """
    if not config.prefix_caching:
        return CountLedger(config.kv_blocks, config.block_tokens)
    return PrefixLedger(
        config.kv_blocks,
        config.block_tokens,
        config.rules.unfilled_blocks_first,
        identity_of,
        registrable,
    )
