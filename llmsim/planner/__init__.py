"""Which replicas to buy: integer programs over configurations that each carry so much traffic.

Start with `problem` (buckets of traffic, columns of configurations, what is allowed); `packing`
turns it into a program and its answer; `solving` calls the solver and keeps its bound; `shortage`
says why there is no answer.
"""

from llmsim.planner.packing import Packed, pack
from llmsim.planner.problem import Bucket, Column, Problem

__all__ = ["Bucket", "Column", "Packed", "Problem", "pack"]
