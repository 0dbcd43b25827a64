"""Every key of a scenario file, with its unit and its default.

The docstring under a field is its documentation: it feeds the JSON schema and docs/scenario.md.
`engine` and `fleet` have their keys in modules of those names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Gt, Len
from pydantic import PrivateAttr, StringConstraints, model_validator

from llmsim.scenario.classes import wrong_classes
from llmsim.scenario.component import Component, Seam
from llmsim.scenario.engine import Count, Engine, Frac
from llmsim.scenario.fleet import Fleet, Pool
from llmsim.scenario.foreseeing import (
    wrong_beliefs,
    wrong_caches,
    wrong_forecasts,
    wrong_tool_times,
)
from llmsim.scenario.keeping import wrong_record, wrong_retention
from llmsim.scenario.promises import Estimators, Record, Slo
from llmsim.scenario.section import Section
from llmsim.scenario.section import complain as _complain
from llmsim.scenario.seeing import Images, wrong_seeing
from llmsim.scenario.several import wrong_models

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
"""Becomes part of a folder's name."""

Seconds = Annotated[float, Gt(0)]


class Abort(Section):
    """Clients that go away before their answer is complete (closed tab, stopped generation)."""

    frac: Frac
    """[fraction] Share of requests whose client goes away, if the answer takes that long."""
    mean_s: Seconds
    """[s] Mean time from arrival until such a client goes away."""
    law: Literal["exponential", "fixed"] = "exponential"
    """How that time is distributed: `exponential` with this mean, or `fixed` at it."""


class Traffic(Section):
    """Where requests come from: a recorded trace, or synthetic arrivals with lengths."""

    trace: Annotated[Component, Seam("trace")] | None = None
    """A recorded trace to replay; excludes `arrivals`, `lengths`, `prompts` and `programs`."""
    resample_s: Seconds | None = None
    """[s] Replay blocks of the trace that are so long, drawn with replacement by the seed: another
    trace of the same kind; absent: the trace as it was recorded."""
    arrivals: Annotated[Component, Seam("arrivals")] | None = None
    """When synthetic requests arrive."""
    lengths: Annotated[Component, Seam("lengths")] | None = None
    """How long synthetic prompts and outputs are."""
    prompts: Annotated[Component, Seam("prompts")] | None = None
    """Which synthetic prompts share a prefix; without it no two prompts share a token."""
    programs: Annotated[Component, Seam("programs")] | None = None
    """Clients that ask again when they have been answered: what arrives is the first call of a
    program, `prompts` names its text, and `lengths` gives the text and the output of every call;
    a prompt repeats its program's text and outputs so far."""
    samples: Count = 1
    """[answers] How many answers are asked for to each prompt: so many requests arrive together, as
    a session, and share the prompt's KV where prefixes are cached; `requests` counts prompts."""
    images: Images | None = None
    """Images in front of the text; absent: no request brings any."""
    clients: Annotated[dict[str, Annotated[float, Gt(0)]], Len(1)] | None = None
    """Share of the synthetic requests that each client sends, by name; drawn by chance."""
    own_prompts: bool = False
    """Prompts of different clients share nothing, as if each had the law of `prompts` to itself."""
    requests: Count | None = None
    """[requests] How many synthetic requests, or programs, arrive; either this or `duration_s`."""
    duration_s: Seconds | None = None
    """[s] For how long synthetic requests, or programs, arrive."""
    warmup_s: Annotated[float, Ge(0)] = 0.0
    """[s] Requests that arrive earlier are simulated but left out of the metrics."""
    timeout_s: Seconds | None = None
    """[s] A client that has not got its last token by then gives up; absent: it never does."""
    models: Annotated[dict[str, Annotated[float, Gt(0)]], Len(1)] | None = None
    """Share of the requests that each model gets, by the names that pools give; drawn by chance."""
    model_by_client: Annotated[dict[str, str], Len(1)] | None = None
    """Model of each client of a trace; of clients that are not listed the scenario's own."""
    slo_classes: Annotated[dict[str, Annotated[float, Gt(0)]], Len(1)] | None = None
    """Share of the requests, or programs, that each SLO class gets, by the names in `slo.classes`;
    drawn by chance."""
    slo_class_by_client: Annotated[dict[str, str], Len(1)] | None = None
    """SLO class of each client; clients that are not listed have none. A trace may also have a
    column for it (its `slo_class_column`)."""
    abort: Abort | None = None
    """Clients that leave before the end, apart from any timeout."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        wrong: dict[str, str] = {}
        laws = ("arrivals", "lengths", "prompts", "programs")
        synthetic = [key for key in laws if getattr(self, key)]
        if self.trace is not None:
            wrong |= dict.fromkeys(synthetic, "excludes traffic.trace; set one of the two to null")
            wrong |= {
                key: "is for synthetic traffic; cut a trace by its own keys, such as limit or end_s"
                for key in ("requests", "duration_s")
                if getattr(self, key) is not None
            }
        elif not synthetic:
            wrong["arrivals"] = "is missing; traffic needs a trace, or arrivals and lengths"
        else:
            missing = [key for key in ("arrivals", "lengths") if getattr(self, key) is None]
            wrong |= dict.fromkeys(missing, "is missing; synthetic traffic needs it")
        if self.clients is not None and (self.trace or self.programs or self.samples > 1):
            wrong["clients"] = "is for synthetic requests alone; not for traces, programs, samples"
        if self.resample_s is not None and self.trace is None:
            wrong["resample_s"] = "is for a trace; synthetic traffic is drawn anew by every seed"
        if self.own_prompts and self.clients is None:
            wrong["own_prompts"] = "needs traffic.clients"
        if self.programs is not None and self.abort is not None:
            wrong["abort"] = "does not go with programs, which end when a call fails; use timeout_s"
        if self.samples > 1:
            wrong |= self._wrong_samples()
        if self.duration_s is not None and self.warmup_s >= self.duration_s:
            wrong["warmup_s"] = f"leaves nothing to measure of {self.duration_s:g} s"
        _complain(wrong)
        return self

    def _wrong_samples(self) -> dict[str, str]:
        if self.trace is not None:
            return {"samples": "is for synthetic traffic; a trace says what was asked for"}
        if self.programs is not None:
            return {"samples": "does not go with programs, whose next call follows one answer"}
        if self.arrivals is not None and self.arrivals.kind == "closed-loop":
            return {"samples": "does not go with a closed loop, whose slots hold one request each"}
        return {}


class Scenario(Section):
    """One simulation: a model, its traffic, the fleet that serves it, what it promises."""

    llmsim: Literal[1]
    """Version of this file format."""
    name: Name
    """Names the run; the file's name when absent."""
    description: str = ""
    """One line for the report."""
    seed: Annotated[int, Ge(0)] = 0
    """Seed of every random stream."""
    model: str
    """Model card, such as `llama-3.1-8b`, or a path to a HuggingFace config.json (`./...`)."""
    slo: Slo = Slo()
    """What the service promises."""
    traffic: Traffic
    """Where requests come from."""
    engine: Engine = Engine()
    """Engine settings of every pool that does not say otherwise."""
    fleet: Fleet
    """What serves them."""
    estimators: Estimators = Estimators()
    """What is believed before it is known."""
    record: Record = Record()
    """What is written down besides."""

    _folder: Path | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _routers_can_foresee(self) -> Self:
        _complain(wrong_forecasts(self.fleet, self.estimators))
        _complain(wrong_beliefs(self.fleet, self.estimators))
        _complain(wrong_caches(self.fleet))
        _complain(wrong_tool_times(self))
        return self

    @model_validator(mode="after")
    def _tokens_have_times(self) -> Self:
        if self.record.tokens and any(pool.beside for pool in self.fleet.pools.values()):
            _complain({"record": "tokens cannot be taken down where pools share GPUs as lanes"})
        if self.record.tokens:
            _complain(wrong_record(self.fleet))
        _complain(wrong_retention(self.fleet, self.traffic.programs is not None))
        return self

    @model_validator(mode="after")
    def _models_go_together(self) -> Self:
        _complain(wrong_models(self))
        _complain(wrong_seeing(self))
        return self

    @model_validator(mode="after")
    def _classes_are_known(self) -> Self:
        _complain(wrong_classes(self))
        return self

    def model_of(self, pool: Pool) -> str:
        """Return the model card that a pool of this scenario serves."""
        return pool.model or self.model

    @property
    def models(self) -> tuple[str, ...]:
        """All models of the fleet, in the order of the pools."""
        return tuple(dict.fromkeys(map(self.model_of, self.fleet.pools.values())))

    @model_validator(mode="before")
    @classmethod
    def _inherit_engine(cls, data: Any) -> Any:
        """Give every pool the engine settings that it does not set itself."""
        engine = data.get("engine") if isinstance(data, dict) else None
        fleet = data.get("fleet") if isinstance(data, dict) else None
        pools = fleet.get("pools") if isinstance(fleet, dict) else None
        if not (isinstance(engine, dict) and isinstance(fleet, dict) and isinstance(pools, dict)):
            return data
        full = {}
        for name, pool in pools.items():
            own = pool.get("engine", {}) if isinstance(pool, dict) else None
            full[name] = pool if not isinstance(own, dict) else {**pool, "engine": engine | own}
        return {**data, "fleet": {**fleet, "pools": full}}

    def __eq__(self, other: object) -> bool:
        """Compare what is simulated; where it was read from does not count."""
        return isinstance(other, Scenario) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(self.resolved_yaml())

    @classmethod
    def load(
        cls, path_or_name: str | Path, overrides: Mapping[str, object] | None = None
    ) -> Scenario:
        """Read a scenario file, or a shipped scenario by its bare name.

        Parameters
        ----------
        path_or_name : str or Path
        overrides : mapping of str to object, optional
            Values by dotted path; they come on top of the file.

        Raises
        ------
        ScenarioError
            With every fault of the file, its parents and the overrides.
        """
        from llmsim.scenario.loader import load_scenario

        return load_scenario(path_or_name, overrides)

    @classmethod
    def parse(cls, data: Mapping[str, Any], folder: Path | None = None) -> Scenario:
        """Check a scenario given as a mapping; see `load`.

        Parameters
        ----------
        data : mapping
            What a file would say, without ``extends``.
        folder : Path, optional
            Where relative file names start from; the current directory when absent.
        """
        from llmsim.scenario.loader import build_scenario

        return build_scenario(data, folder=folder)

    def override(self, overrides: Mapping[str, object]) -> Scenario:
        """Return a scenario in which some values differ.

        Parameters
        ----------
        overrides : mapping of str to object
            Values by dotted path. A mapping is merged key by key; one with a ``kind`` replaces
            the component; None takes a value back to its default.

        Raises
        ------
        ScenarioError
            With every fault.
        """
        from llmsim.scenario.loader import build_scenario

        return build_scenario(self.resolved(), overrides, self._folder)

    def resolved(self) -> dict[str, Any]:
        """Return the scenario as plain values with every default filled in.

        Notes
        -----
        A pool's ``engine`` holds only what differs from the scenario's, so that overriding
        ``engine.*`` still reaches every pool.
        """
        data = self.model_dump(mode="json")
        for pool in data["fleet"]["pools"].values():
            own = {k: v for k, v in pool.pop("engine").items() if v != data["engine"][k]}
            if own:
                pool["engine"] = own
        return data

    def resolved_yaml(self) -> str:
        """Return YAML text with every default filled in; it loads back to an equal scenario."""
        from llmsim.scenario.document import dump_yaml

        return dump_yaml(self.resolved())

    @property
    def folder(self) -> Path | None:
        """Folder of the file it was read from; None if it came from Python.

        File names inside the scenario are absolute, so nothing needs it to find them.
        """
        return self._folder

    def located(self, folder: Path | None) -> Scenario:
        """Return this scenario with another `folder`."""
        found = self.model_copy()
        found._folder = folder
        return found
