"""Decisions over read-only views: no clock, no true output lengths, no state of the engine.

Start with `batching` (what a step computes), `routing` (which replica takes a request; `dividing`
over pools of unlike ones) and `control` (what is done about the fleet while it runs); `sharing`
divides a GPU between lanes, `tiering` is about KV below the GPU, `allocation` about promises of
KV, `retention` about KV that outlives its call, `precedence` about whose prompt stops a step,
`ordering` about what else a batching policy may decide, `estimation` about what is believed of
output lengths (the one place that may see them, and says so). A new policy is one dataclass
registered under a name: its typed fields are its YAML parameters. `views` and `reports` say what a
policy sees, `rules` what differs between engine versions.
"""

from llmsim.policies.allocation import ALLOCATION, Allocator
from llmsim.policies.batching import BATCHING, BatchingPolicy, StepDraft
from llmsim.policies.control import CONTROL, ControlPolicy
from llmsim.policies.dividing import PlannedSplit
from llmsim.policies.estimation import OUTPUT_LENGTH, TOOL_TIME, LengthEstimator, ToolTimeEstimator
from llmsim.policies.gathering import Gathering
from llmsim.policies.precedence import PRECEDENCE, Precedence, PrefillProfile
from llmsim.policies.reports import FleetReport, ReplicaReport, RunningReport, by_replica
from llmsim.policies.retention import RETENTION, CallView, PinView, RetentionPolicy
from llmsim.policies.routing import ROUTING, FleetView, RoutingPolicy
from llmsim.policies.rules import ENGINE_RULES, EngineRules, engine_rules
from llmsim.policies.sharing import SHARING, LanesView, SharingPolicy
from llmsim.policies.shortest import ShortestFirst
from llmsim.policies.tiering import EVICTION, LOADING, EvictionPolicy, LoadPolicy, LoadView
from llmsim.policies.views import ProgramView, RequestView

__all__ = [
    "ALLOCATION",
    "BATCHING",
    "CONTROL",
    "ENGINE_RULES",
    "EVICTION",
    "LOADING",
    "OUTPUT_LENGTH",
    "PRECEDENCE",
    "RETENTION",
    "ROUTING",
    "SHARING",
    "TOOL_TIME",
    "Allocator",
    "BatchingPolicy",
    "CallView",
    "ControlPolicy",
    "EngineRules",
    "EvictionPolicy",
    "FleetReport",
    "FleetView",
    "Gathering",
    "LanesView",
    "LengthEstimator",
    "LoadPolicy",
    "LoadView",
    "PinView",
    "PlannedSplit",
    "Precedence",
    "PrefillProfile",
    "ProgramView",
    "ReplicaReport",
    "RequestView",
    "RetentionPolicy",
    "RoutingPolicy",
    "RunningReport",
    "SharingPolicy",
    "ShortestFirst",
    "StepDraft",
    "ToolTimeEstimator",
    "by_replica",
    "engine_rules",
]
