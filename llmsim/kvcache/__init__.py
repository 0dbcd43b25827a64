"""Who holds which KV blocks: counts, or extents with content and an eviction order.

Start with `ledger` (the plain count), then `content` (what makes two prompts share tokens) and
`prefix` (the ledger with automatic prefix caching; `ranked` has another order of eviction,
`segments` finds KV that does not stand in front). Lookups
that may fail come in pairs: ask (`match`, `free`), then act (`hold`, `take`).
"""

from llmsim.kvcache.ledger import NO_MATCH, CountLedger, Holder, Match
from llmsim.kvcache.prefix import PrefixLedger
from llmsim.kvcache.ranked import RankedLedger

__all__ = ["NO_MATCH", "CountLedger", "Holder", "Match", "PrefixLedger", "RankedLedger"]
