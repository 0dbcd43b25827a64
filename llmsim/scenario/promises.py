"""What a scenario promises, what it writes down to judge that, and what is believed in it."""

from __future__ import annotations

from typing import Annotated, Self

from annotated_types import Ge, Gt, Le, Len
from pydantic import model_validator

from llmsim.results.slo import Slo as Objectives
from llmsim.results.slo import SloClass as SloClassObjectives
from llmsim.scenario.component import Component, Seam
from llmsim.scenario.section import Section, complain

Seconds = Annotated[float, Gt(0)]
Frac = Annotated[float, Gt(0), Le(1)]


class SloClass(Section):
    """What requests of one SLO class are promised; what is not limited here is not promised them.

    Policies see it. Who belongs to which class is said in `traffic`.
    """

    ttft_s: Seconds | None = None
    """[s] Longest time to first token."""
    ttft_per_prompt_token_s: Annotated[float, Ge(0)] = 0.0
    """[s] Added to `ttft_s` for every token of the prompt."""
    tpot_s: Seconds | None = None
    """[s] Longest mean time per output token after the first."""
    itl_s: Seconds | None = None
    """[s] Longest gap between two consecutive output tokens."""
    e2e_s: Seconds | None = None
    """[s] Longest time from arrival to the last token."""
    attained_frac: Frac | None = None
    """[fraction] Share of the class that must meet all of these; absent: that of the SLO."""

    @model_validator(mode="after")
    def _is_added_to_something(self) -> Self:
        if self.ttft_per_prompt_token_s and self.ttft_s is None:
            complain({"ttft_per_prompt_token_s": "is added to ttft_s, which is missing"})
        return self


class Slo(Section):
    """What the service promises; a request attains it when it meets every limit given here."""

    ttft_s: Seconds | None = None
    """[s] Longest time to first token."""
    ttft_per_prompt_token_s: Annotated[float, Ge(0)] = 0.0
    """[s] Added to `ttft_s` for every token of the prompt: long prompts may take longer."""
    tpot_s: Seconds | None = None
    """[s] Longest mean time per output token after the first."""
    itl_s: Seconds | None = None
    """[s] Longest gap between two consecutive output tokens."""
    e2e_s: Seconds | None = None
    """[s] Longest time from arrival to the last token."""
    jct_s: Seconds | None = None
    """[s] Longest time from a program's first call to its last token; judged for programs, apart
    from the limits of their calls."""
    attained_frac: Frac = 0.95
    """[fraction] Share of requests that must attain the SLO."""
    classes: Annotated[dict[str, SloClass], Len(1)] | None = None
    """SLO classes by name: requests of a class are judged by its limits in place of these, and the
    SLO is met where every class meets its own."""

    @model_validator(mode="after")
    def _is_added_to_something(self) -> Self:
        if self.ttft_per_prompt_token_s and self.ttft_s is None:
            complain({"ttft_per_prompt_token_s": "is added to ttft_s, which is missing"})
        return self

    def objectives(self) -> Objectives:
        """Return the limits as the results evaluate them."""
        told = self.model_dump()
        classes = []
        for name, each in (told.pop("classes") or {}).items():
            frac = each.pop("attained_frac") or self.attained_frac
            classes.append(SloClassObjectives(name, Objectives(**each, attained_frac=frac)))
        return Objectives(**told, classes=tuple(classes))


class Record(Section):
    """What a run writes down besides rows and loads."""

    tokens: bool = False
    """When every token came out, in `tokens.parquet`: 24 bytes per token, and time for each."""
    steps: bool = False
    """Every step, and every stretch of merged decode steps as one, in `steps.parquet`."""


class Estimators(Section):
    """What policies are told of what nobody knows yet."""

    output_length: Annotated[Component, Seam("output_length")] | None = None
    """How long an output will be; absent: policies are told nothing. `oracle`, and whatever else
    looks at true lengths, is named in the summary of a run."""
    tool_time: Annotated[Component, Seam("tool_time")] | None = None
    """How long a tool will take that an answer asks for, for pools that pin KV meanwhile; absent:
    their policy learns for itself, or does without. `oracle`, and whatever else looks at true
    times, is named in the summary of a run."""
    beyond_tokens: Annotated[int, Ge(1)] = 10
    """[tokens] Who has had all the tokens that it was believed to get is believed to get so many
    more. Block's rule (Vidur predictor): 10."""
