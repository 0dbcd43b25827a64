"""Every key of a gallery card: one published mechanism, what it should bring, and when it must not.

The docstring under a field is its documentation: it feeds docs/gallery-cards.md.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from annotated_types import Ge, Gt, Len
from pydantic import Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from llmsim.results.metrics import EVERY_METRIC
from llmsim.scenario.section import Section

KNEE, KNEE_PER_GPU = "knee", "knee_per_gpu"
"""Metrics that are searched for: the largest load that holds, and the same per GPU."""

NAIVE_USD, POOLED_USD = "naive_usd_per_hour", "pooled_usd_per_hour"
PLAN_METRICS: Final = (NAIVE_USD, POOLED_USD)
"""Metrics of a plan: the cost of the cheapest fleet as if requests came evenly, and with room for
bursts."""

NULL_FRAC: Final = 0.05
"""Gain that a null regime may not exceed where its spec gives no other."""

LEAST_LOAD: Final = 0.7
"""Share of the knee below which a null says nothing: an idle fleet needs no mechanism."""

SEEDS: Final = (1, 2, 3, 4, 5)
"""Seeds of a card, paired between its arms."""

MOVED_SEEDS: Final = (4, 5, 6, 7, 8)
"""Seeds that test a band which was moved after a look at seeds 1 to 3."""

Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
Key = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]*$", max_length=60)]
"""Name of a regime, an ablation or a sweep."""

ModuleName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=60)]
"""Name of a file of `llmsim/systems`, without its ending."""

Overrides = dict[str, Any]
"""Values by dotted path of a scenario."""

Better = Literal["higher", "lower"]


def complain(key: str, text: str, hint: str = "") -> PydanticCustomError:
    """Return an error about one key of a section."""
    inner = {
        "type": "cross",
        "loc": (key,),
        "msg": text,
        "ctx": {"problem": text, "hint": hint},
        "input": None,
    }
    return PydanticCustomError("crossed", "{told}", {"told": f"{key} {text}", "errors": [inner]})


class Paper(Section):
    """Where the mechanism was published."""

    title: Text
    """Of the paper."""
    where: Text
    """Venue and year."""
    url: Text
    """Where it can be read."""
    code: str = ""
    """Where its code lies; empty if there is none."""


class Arm(Section):
    """One side of a comparison."""

    label: Text
    """What it is, in a few words."""
    set: Overrides = Field({})
    """What it changes in the base scenario, by dotted path."""
    best_of: dict[Key, Overrides] = Field({})
    """Alternatives by name: the one that is best under seed 0 is measured under the others."""


class Moved(Section):
    """Why a band is not the one that was expected before anything was run."""

    old: tuple[float | None, float | None]
    """The band as it was."""
    why: Text
    """The arithmetic or the ablation that explains it."""


class Regime(Section):
    """A setting in which baseline and treatment are compared, pair by pair."""

    says: Text
    """What is set up, and what should happen, in a sentence or two."""
    source: Text
    """Where the expectation comes from."""
    set: Overrides = Field({})
    """What it changes in the base scenario for both arms."""
    baseline: Arm | None = None
    """Replaces the card's baseline."""
    treatment: Arm | None = None
    """Replaces the card's treatment."""
    metric: str | None = None
    """Replaces the card's metric."""
    better: Better | None = None
    """Replaces the card's direction."""
    limits: dict[str, float] | None = None
    """Replaces the card's limits."""
    of_knee: Annotated[float, Gt(0)] | None = None
    """Replaces the card's load."""

    @model_validator(mode="after")
    def _known_metric(self) -> Self:
        check_metric("metric", self.metric)
        for name in self.limits or {}:
            check_metric("limits", name)
        return self


class Band(Regime):
    """A regime with the gain that is expected there, under every seed."""

    band: tuple[float | None, float | None]
    """Least and largest gain; null for an open end."""
    moved: Moved | None = None
    """Says that the band was moved, and why; it is then tested on seeds 4 to 8."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, high = self.band
        if low is None and high is None:
            raise complain("band", "is open at both ends, so that nothing can miss it")
        if low is not None and high is not None and low > high:
            raise complain("band", f"ends below its beginning ({low:g} to {high:g})")
        return self


class Null(Regime):
    """A regime without the mechanism's precondition, in which it must bring nothing."""

    removes: Text
    """Which precondition is gone."""
    limit_frac: Annotated[float, Ge(0)] = NULL_FRAC
    """[fraction] Gain that is still nothing; the build fails when surely more is found."""
    extra: bool = False
    """At light load: beside the nulls that count."""


class Headline(Regime):
    """The paper's own claim, on its model, GPU and traffic or their nearest surrogates."""

    gain: Annotated[float, Gt(0)]
    """The paper's figure, as a ratio above 1."""
    cause: str = ""
    """Where ours differs: the suspected cause."""


class Sweep(Regime):
    """The gain along one knob."""

    key: Text
    """Dotted path of the knob."""
    values: Annotated[list[Any], Len(2)]
    """Its values, in order."""
    sweeps: Literal["both", "treatment"] = "both"
    """Which arms get the value."""
    monotone: Literal["rising", "falling"] | None = None
    """How the gain must move along the values, where that is known."""


class Ablation(Section):
    """The treatment with one part changed or taken away."""

    says: Text
    """Which part."""
    set: Overrides
    """What it changes in the treatment."""
    regime: Key | None = None
    """Where it is measured; the first band when absent."""


class Knob(Section):
    """A number of the mechanism, and how sure it is."""

    value: Any
    """As it is set."""
    origin: Literal["code", "paper", "measured", "assumed"]
    """Read in the official code, read in the paper, measured here, or assumed."""
    note: str = ""
    """Where exactly, or why."""


class Card(Section):
    """A published system: what it is, what it should bring, and what it must not."""

    gallery: Literal[1]
    """Version of this file format."""
    title: Text
    """The system's name, as its authors write it."""
    paper: Paper
    """Where it was published."""
    mechanism: Text
    """What it does, in a few sentences."""
    plugs_into: Annotated[list[Key], Len(1)]
    """Seams and sections of a scenario that it uses, such as `batching`."""
    modules: list[ModuleName] = Field([])
    """Files of `llmsim/systems` that it needs, without `.py`."""
    of: Literal["scenario", "plan"] = "scenario"
    """What is compared: simulated fleets, or the costs of planned ones (`llmsim plan`)."""
    base: Text
    """The scenario, or the plan, that both arms start from: a file beside the card, or a shipped
    name."""
    set: Overrides = Field({})
    """What every regime changes in it."""
    baseline: Arm
    """The best public alternative; say whether it chunks prompts and how it evicts."""
    treatment: Arm
    """The system."""
    metric: str
    """Metric of docs/metrics.md that is compared, or `knee`, or `knee_per_gpu`; of plans
    `naive_usd_per_hour` or `pooled_usd_per_hour`."""
    better: Better
    """Which way is better."""
    limits: dict[str, float] = Field({})
    """What a load must keep to be below the knee, as metric and largest value; else the SLO."""
    of_knee: Annotated[float, Gt(0)] | None = None
    """Load of both arms as a share of the baseline's knee under the same seed; else the base's."""
    bands: dict[Key, Band] = Field({})
    """Regimes in which it should help by so much."""
    nulls: Annotated[dict[Key, Null], Len(1)]
    """Regimes in which it must not help."""
    losses: dict[Key, Band] = Field({})
    """Regimes in which it should lose: bands that end below 1 or about it."""
    headlines: dict[Key, Headline] = Field({})
    """The paper's own figures."""
    sweeps: dict[Key, Sweep] = Field({})
    """How the gain moves along a knob."""
    ablations: dict[Key, Ablation] = Field({})
    """What its parts are worth."""
    knobs: dict[str, Knob] = Field({})
    """Numbers of the mechanism, with their origin."""
    micro: list[Text] = Field([])
    """Tests with a timeline that can be checked by hand, as `tests/...py::test_...`."""
    quality: Text
    """What it does to the answers; declared, never simulated."""
    notes: list[Text] = Field([])
    """What a reader should know besides."""

    @model_validator(mode="after")
    def _names_are_one(self) -> Self:
        seen: dict[str, str] = {}
        for group in GROUPS:
            for name in getattr(self, group):
                if name in seen:
                    raise complain(group, f"has '{name}', and so has {seen[name]}")
                seen[name] = group
        return self

    @model_validator(mode="after")
    def _metrics_are_known(self) -> Self:
        check_metric("metric", self.metric)
        for name in self.limits:
            check_metric("limits", name)
        return self

    @model_validator(mode="after")
    def _plans_have_costs(self) -> Self:
        regimes = [each for group in GROUPS for each in getattr(self, group).values()]
        for metric in (self.metric, *(each.metric for each in regimes if each.metric)):
            if (metric in PLAN_METRICS) != (self.of == "plan"):
                told = "are of plans (of: plan)" if self.of != "plan" else "are all that a plan has"
                raise complain("metric", f"is '{metric}': {' and '.join(PLAN_METRICS)} {told}")
        if self.of == "plan":
            for key in ("limits", "of_knee"):
                if any(getattr(each, key) for each in (self, *regimes)):
                    raise complain(key, "is for simulated fleets; a plan is made for its own load")
        return self

    @model_validator(mode="after")
    def _nulls_are_loaded(self) -> Self:
        for name, null in self.nulls.items():
            metric = null.metric or self.metric
            share = null.of_knee or self.of_knee
            if metric in (KNEE, KNEE_PER_GPU) or null.extra:
                continue
            if share is not None and share < LEAST_LOAD:
                text = f"'{name}' runs at {share:g} of the knee; a null needs {LEAST_LOAD:g}"
                raise complain("nulls", text, "Raise of_knee, or say extra: true.")
        if all(null.extra for null in self.nulls.values()):
            raise complain("nulls", "are all extras: one without the precondition is missing")
        return self

    @model_validator(mode="after")
    def _ablations_have_a_regime(self) -> Self:
        for name, each in self.ablations.items():
            home = each.regime or next(iter(self.bands), None)
            if home is None or all(home not in getattr(self, group) for group in GROUPS):
                raise complain("ablations", f"'{name}' is measured in '{home}', which is no regime")
        return self


GROUPS: Final = ("bands", "nulls", "losses", "headlines", "sweeps")
"""Keys of a card that hold regimes, in the order of a report."""


def check_metric(key: str, name: str | None) -> None:
    """Raise an error about a key whose metric nobody knows."""
    from llmsim.core.errors import nearest

    known = [KNEE, KNEE_PER_GPU, *PLAN_METRICS, *(each.name for each in EVERY_METRIC)]
    if name is not None and name not in known:
        raise complain(key, f"names no metric ('{name}').", nearest(name, known))
