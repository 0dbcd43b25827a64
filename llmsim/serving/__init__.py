"""The only room that knows time passes: replicas, the fleet, the clock.

Start with `replica` (wake, account, deliver, plan, price, sleep), then `cohort` (why a stretch of
steps costs O(1)) and `draft` (the mechanisms a batching policy decides with). `fleet` is the front
door, `simulate` the one call above it all.
"""

from llmsim.serving.config import EngineConfig
from llmsim.serving.labels import ClientRules
from llmsim.serving.simulate import PoolPlan, simulate

__all__ = ["ClientRules", "EngineConfig", "PoolPlan", "simulate"]
