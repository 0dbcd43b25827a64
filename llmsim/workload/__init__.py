"""Where requests come from: trace readers, arrival processes, length models, prompt identity.

Start with `chunk` (what the engine reads: columns in chunks). `readers` holds one class per
published trace format, `synthetic` the generators. Latent draws happen here, when the workload
is built, from named streams, so that every policy meets the same world.
"""

from llmsim.workload.arrivals import ARRIVALS, Arrivals
from llmsim.workload.burstgpt_like import BurstGPTLike
from llmsim.workload.chunk import ClosedLoop, RequestChunk, Segments, Workload
from llmsim.workload.lengths import LENGTHS, Lengths
from llmsim.workload.prompts import PROMPTS, Prompts
from llmsim.workload.readers import TRACES, TraceReader
from llmsim.workload.synthetic import CHUNK_ROWS, SyntheticWorkload

__all__ = [
    "ARRIVALS",
    "CHUNK_ROWS",
    "LENGTHS",
    "PROMPTS",
    "TRACES",
    "Arrivals",
    "BurstGPTLike",
    "ClosedLoop",
    "Lengths",
    "Prompts",
    "RequestChunk",
    "Segments",
    "SyntheticWorkload",
    "TraceReader",
    "Workload",
]
