"""xLLM (2025): instances that compute prompts or decode, and change between the two at once.

An instance is stateless: it takes the other role without a reload, beside what it still has to
do of the old one. Whether a role is short is told by predictors that are fitted to the instances'
own profiles when they start: the time of a prompt is quadratic in its tokens, that of a decode
step linear in requests and tokens. This is the released service's rule, looked at once a period
and not at every arrival:

* a prefill instance (the least busy) decodes from now on if no decode instance is predicted to
  keep the promised time per token, and the prefill instances are on average so little busy that
  one fewer would do, or are more than the decode instances;
* a decode instance that has nothing to do computes prompts from now on;
* if no prefill instance is predicted to keep the promised time to first token, the least busy
  decode instance computes prompts from now on, if the others are predicted to keep theirs without
  it (the report; the released service sends it single prompts under the same condition).

References
----------
xLLM technical report, arXiv 2510.14686, 2025; jd-opensource/xllm-service,
``xllm_service/scheduler/managers/instance_mgr.cpp``: select_instance_pair_on_slo,
flip_prefill_to_decode, flip_decode_to_prefill, update_request_metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Gt

from llmsim.policies.control import CONTROL, Action, SetRole
from llmsim.policies.reports import FleetReport, ReplicaReport, by_replica


@CONTROL.register("xllm")
@dataclass
class XllmRoles:
    """Change roles by predicted times, at once and without a reload."""

    flips: ClassVar[bool] = True

    ttft_s: Annotated[float, Gt(0)]
    """[s] Promised time to first token."""
    tpot_s: Annotated[float, Gt(0)]
    """[s] Promised time per output token."""
    prompt_token_s: Annotated[float, Gt(0)]
    """[s] Predictor: of a prompt, per token."""
    step_s: Annotated[float, Gt(0)]
    """[s] Predictor: of a decode step, whatever runs."""
    step_request_s: Annotated[float, Ge(0)]
    """[s] Predictor: of a decode step, per request."""
    step_block_s: Annotated[float, Ge(0)]
    """[s] Predictor: of a decode step, per KV block in use."""
    prompt_token2_s: Annotated[float, Ge(0)] = 0.0
    """[s] Predictor: of a prompt, per token squared."""
    period_s: Annotated[float, Gt(0)] = 0.25
    """[s] Time between two calls. Assumed: the service decides at every arrival."""
    view_age_s: Annotated[float, Ge(0)] = 0.0
    """[s] Age of the reports."""

    def start(self, rng: np.random.Generator) -> None:
        """Need no random numbers."""

    def prompts_s(self, report: ReplicaReport) -> float:
        """Return how long the prompts in line will take [s], as if all were equally long."""
        tokens = report.waiting_tokens
        mean_tokens = tokens / max(1, report.waiting)
        return tokens * (self.prompt_token_s + self.prompt_token2_s * mean_tokens)

    def gap_s(self, report: ReplicaReport) -> float:
        """Return the time per token that one more request would get [s]."""
        requests = report.running + report.waiting + 1
        blocks = report.kv_used + report.waiting_blocks
        return self.step_s + self.step_request_s * requests + self.step_block_s * blocks

    def act(self, fleet: FleetReport) -> Sequence[Action]:
        """Change one role at most."""
        up = [report for report in by_replica(fleet.replicas) if report.state == "up"]
        prefill = [report for report in up if report.role == "prefill"]
        decode = [report for report in up if report.role == "decode"]
        if not prefill or not decode:
            return []
        busy = [self.prompts_s(report) for report in prefill]
        gaps = [self.gap_s(report) for report in decode]
        count = len(decode)
        if min(gaps) > self.tpot_s:
            spare_s = self.ttft_s * (len(prefill) - 1) / len(prefill)
            few = np.mean(busy) < spare_s or count < len(prefill)
            if few and len(prefill) > 1:
                return [SetRole(prefill[int(np.argmin(busy))].replica, "decode")]
            return []
        if count == 1:
            return []
        idlest = decode[int(np.argmin(gaps))]
        if not idlest.running and not idlest.waiting:
            return [SetRole(idlest.replica, "prefill")]
        if min(busy) > self.ttft_s and min(gaps) < self.tpot_s * (count - 1) / count:
            return [SetRole(idlest.replica, "prefill")]
        return []
