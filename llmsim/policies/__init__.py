"""Decisions over read-only views: no clock, no true output lengths, no state of the engine.

Start with `batching` (what a step computes) and `routing` (which replica takes a request). A new
policy is one dataclass registered under a name: its typed fields are its YAML parameters.
`tiering` is about KV below the GPU, `views` says what a policy may see, `rules` what differs
between engine versions.
"""

from llmsim.policies.batching import BATCHING, BatchingPolicy, StepDraft
from llmsim.policies.routing import ROUTING, FleetView, RoutingPolicy
from llmsim.policies.rules import ENGINE_RULES, EngineRules, engine_rules
from llmsim.policies.tiering import EVICTION, LOADING, EvictionPolicy, LoadPolicy, LoadView
from llmsim.policies.views import RequestView

__all__ = [
    "BATCHING",
    "ENGINE_RULES",
    "EVICTION",
    "LOADING",
    "ROUTING",
    "BatchingPolicy",
    "EngineRules",
    "EvictionPolicy",
    "FleetView",
    "LoadPolicy",
    "LoadView",
    "RequestView",
    "RoutingPolicy",
    "StepDraft",
    "engine_rules",
]
