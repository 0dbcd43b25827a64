"""Which replicas to buy: integer programs over configurations that each carry so much traffic.

Start with `problem` (buckets of traffic, columns of configurations, what is allowed); `program`
makes an integer program of it, `packing` an answer of that; `solving` calls the solver and keeps
its bound; `shortage` says why there is no answer. Buckets come from `demand`, columns from
`columns`, which asks `capacity` what a replica sustains.
"""

from llmsim.planner.packing import Packed, pack
from llmsim.planner.problem import Bucket, Column, Problem

__all__ = ["Bucket", "Column", "Packed", "Problem", "pack"]
