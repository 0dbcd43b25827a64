"""Where requests come from: trace readers, arrival processes, length models, prompt identity.

Start with `chunk` (what the engine reads: columns in chunks). `readers` holds one class per
published trace format, `synthetic` the generators. Latent draws happen here, when the workload
is built, from named streams, so that every policy meets the same world. `programs` is the contract
of clients that ask again when they have been answered, `agents` makes such clients; `samples` asks
for several answers to one prompt.
"""

from llmsim.workload.agents import PROGRAMS, ProgramLaw, ProgramWorkload
from llmsim.workload.alternating import Alternating
from llmsim.workload.arrivals import ARRIVALS, Arrivals
from llmsim.workload.burstgpt_like import BurstGPTLike
from llmsim.workload.chunk import ClosedLoop, RequestChunk, Segments, Workload
from llmsim.workload.images import WithImages
from llmsim.workload.lengths import LENGTHS, Lengths
from llmsim.workload.programs import CallEnd, NextCall, Programs
from llmsim.workload.prompts import PROMPTS, Prompts
from llmsim.workload.readers import TRACES, TraceReader
from llmsim.workload.resampling import Resampled
from llmsim.workload.samples import SampledWorkload
from llmsim.workload.synthetic import CHUNK_ROWS, SyntheticWorkload
from llmsim.workload.wrapped import WrappedWorkload

__all__ = [
    "ARRIVALS",
    "CHUNK_ROWS",
    "LENGTHS",
    "PROGRAMS",
    "PROMPTS",
    "TRACES",
    "Alternating",
    "Arrivals",
    "BurstGPTLike",
    "CallEnd",
    "ClosedLoop",
    "Lengths",
    "NextCall",
    "ProgramLaw",
    "ProgramWorkload",
    "Programs",
    "Prompts",
    "RequestChunk",
    "Resampled",
    "SampledWorkload",
    "Segments",
    "SyntheticWorkload",
    "TraceReader",
    "WithImages",
    "Workload",
    "WrappedWorkload",
]
