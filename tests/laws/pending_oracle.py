"""PENDING: fails at present; run with ``pytest tests/laws/pending_oracle.py``.

`BatchingPolicy.plan` is typed to get a `StepDraft`, but gets the engine's own `Draft`, whose
public attributes (`running_set`, `prefilling`, `chunks`, `cohort`, `line`) lead to `Request`
objects and their `output`. A policy that looks past the protocol sees the oracle.
"""

from __future__ import annotations

from test_oracle import SECRETIVE, secrets_in
from worlds import run

from llmsim.policies import BATCHING


def test_a_plan_cannot_reach_an_output_length():
    base = BATCHING.get("vllm")

    class Spy(base):
        def plan(self, step):
            assert not secrets_in(step)
            super().plan(step)

    run(SECRETIVE, policy=Spy)
