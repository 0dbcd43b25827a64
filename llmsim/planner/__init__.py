"""Which replicas to buy: integer programs over configurations that each carry so much traffic.

`planning` is the whole way from a plan file (`keys`, `reading`) to a `Plan` (`plan`, `folder`):
`work` holds traffic (`traffic`) and configurations (`candidates`, `shortlist`), `correcting`
simulates one replica of each, `proving` is the loop between programs and simulated fleets
(`simulating`, `judging`, `fleets`), `rivals` what a plan is measured against.

Below it, `problem` (buckets of traffic, columns of configurations, what is allowed), of which
`program` makes an integer program and `packing` an answer; `solving` calls the solver and keeps
its bound, `shortage` says why there is no answer, `pooling` how much room bursts need, `splitting`
who serves what. Buckets come from `demand`, columns from `columns`, which asks `capacity` what a
replica sustains.
"""

from llmsim.planner.packing import Packed, pack
from llmsim.planner.problem import Bucket, Column, Problem

__all__ = ["Bucket", "Column", "Packed", "Problem", "pack"]
