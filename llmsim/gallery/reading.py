"""From a file to a checked card, or to all of its faults with their lines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from llmsim.core.errors import Fault, InputError, ModelDoesNotFitError, nearest
from llmsim.core.paths import data_roots
from llmsim.gallery.card import (
    GROUPS,
    KNEE,
    KNEE_PER_GPU,
    LEAST_LOAD,
    Arm,
    Card,
    Null,
    Overrides,
    Regime,
    Sweep,
)
from llmsim.planner.reading import Asked, read_plan
from llmsim.scenario import Scenario
from llmsim.scenario.document import Keys, brief, read_document
from llmsim.scenario.faults import faults_of
from llmsim.scenario.layers import Layers

CARD: Final = "card.yaml"
BASELINE, TREATMENT = "baseline", "treatment"

RUSH_S: Final = 1.0
"""[s] Arrivals that are over by then are a queue, whose load no knee bounds."""

UNLOADED: Final = (
    f"a null needs a fleet at {LEAST_LOAD:g} of its knee or more, and this says no load."
)
UNLOADED_HINT: Final = (
    "Give of_knee, compare the knee, let all requests come at the beginning, or say extra: true."
)


class GalleryError(InputError):
    """A gallery card is wrong or missing."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One regime of a card, with everything that it inherits filled in.

    Parameters
    ----------
    group : str
        Which of `GROUPS` it stands in.
    name : str
        A sweep has one setting per value, called ``name=value``.
    regime : Regime
    arms : mapping of str to Arm
        ``baseline``, ``treatment``, and the ablations that are measured here.
    overrides : mapping of str to dict
        What each arm changes in the base scenario, without its alternatives.
    metric : str
    higher_is_better : bool
    limits : mapping of str to float
    of_knee : float or None
    """

    group: str
    name: str
    regime: Regime
    arms: dict[str, Arm]
    overrides: dict[str, Overrides]
    metric: str
    higher_is_better: bool
    limits: dict[str, float]
    of_knee: float | None

    @property
    def searches(self) -> bool:
        """Whether the metric itself is a knee."""
        return self.metric in (KNEE, KNEE_PER_GPU)


@dataclass(frozen=True, slots=True)
class Exhibit:
    """A card in its folder.

    Parameters
    ----------
    name : str
        Of the folder.
    folder : Path
    card : Card
    """

    name: str
    folder: Path
    card: Card

    def settings(self) -> list[Setting]:
        """Return the regimes in order, a sweep as one setting per value."""
        return list(_settings(self.card))

    def base(self) -> str | Path:
        """Return what `Scenario.load` reads: a file beside the card, or a shipped name."""
        beside = self.folder / self.card.base
        return beside if beside.is_file() else self.card.base

    def scenario(self, setting: Setting, arm: str, alternative: str | None = None) -> Scenario:
        """Return what one arm of a setting simulates, at the base's own load and seed.

        Raises
        ------
        ScenarioError
            If the overrides do not go with the base.
        """
        return Scenario.load(self.base(), self.changes(setting, arm, alternative))

    def plan(self, setting: Setting, arm: str, alternative: str | None, seed: int) -> Asked:
        """Return what one arm of a setting plans, in a card of plans.

        Raises
        ------
        ScenarioError
            If the overrides do not go with the base.
        """
        changes = self.changes(setting, arm, alternative) | {"seed": seed}
        return read_plan(self.base(), changes)

    def changes(self, setting: Setting, arm: str, alternative: str | None) -> Overrides:
        """Return what one arm of a setting changes in the base.

        Parameters
        ----------
        setting : Setting
        arm : str
        alternative : str or None
        """
        changes = dict(setting.overrides[arm])
        if alternative is not None:
            changes |= setting.arms[arm].best_of[alternative]
        return changes

    def inputs_hash(self, setting: Setting) -> str:
        """Return a hash of all that a setting's results depend on beside the code.

        Parameters
        ----------
        setting : Setting

        Notes
        -----
        Of the card, only what is simulated counts: an expectation may be written down, and a
        word mended, without a run.
        """
        told = {
            "overrides": setting.overrides,
            "best_of": {key: arm.best_of for key, arm in setting.arms.items()},
            "limits": setting.limits,
            "metric": setting.metric,
            "of_knee": setting.of_knee,
        }
        digest = hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=12)
        for path in sorted(self.folder.glob("*.yaml")):
            if path.name != CARD:
                digest.update(path.name.encode() + path.read_bytes())
        if not isinstance(self.base(), Path):
            digest.update(self.card.base.encode())
        return digest.hexdigest()


def exhibits() -> dict[str, Path]:
    """Return the folders of all shipped cards by name; earlier data roots win."""
    found: dict[str, Path] = {}
    for root in data_roots():
        for path in sorted((root / "scenarios" / "gallery").glob(f"*/{CARD}")):
            found.setdefault(path.parent.name, path.parent)
    return found


def find_exhibit(source: str | Path) -> Exhibit:
    """Return the card of a shipped system by name, or of a folder.

    Raises
    ------
    GalleryError
        If there is none, or it is wrong; lists every fault.
    """
    known = exhibits()
    text = str(source)
    if text in known:
        return read_exhibit(known[text])
    folder = Path(source).expanduser()
    if (folder / CARD).is_file():
        return read_exhibit(folder.resolve())
    if folder.name == CARD and folder.is_file():
        return read_exhibit(folder.resolve().parent)
    fault = Fault("", "", f"no system of the gallery is called '{text}'.", nearest(text, known))
    raise GalleryError("gallery", [fault])


def read_exhibit(folder: Path, prove: bool = True) -> Exhibit:
    """Read a card and everything it names.

    Parameters
    ----------
    folder : Path
        Holds ``card.yaml``, its scenarios, and the results once there are some.
    prove : bool
        Also load every scenario that the card asks for.

    Raises
    ------
    GalleryError
        With every fault of the card and of the scenarios that it asks for.
    """
    path = folder / CARD
    layers = Layers()
    layers.put(read_document(path))
    try:
        card = Card.model_validate_json(json.dumps(layers.data))
    except ValidationError as error:
        found = faults_of(error.errors(include_url=False), layers, CARD, Card)
        raise GalleryError(brief(path), found) from None
    exhibit = Exhibit(folder.name, folder, card)
    faults = list(_scenario_faults(exhibit, layers)) if prove else []
    if faults:
        raise GalleryError(brief(path), faults)
    return exhibit


def _settings(card: Card) -> Iterator[Setting]:
    for group in GROUPS:
        regimes: dict[str, Regime] = getattr(card, group)
        for name, regime in regimes.items():
            if not isinstance(regime, Sweep):
                yield _setting(card, group, name, regime, {}, {})
                continue
            for value in regime.values:
                shared = {regime.key: value} if regime.sweeps == "both" else {}
                yield _setting(card, group, f"{name}={value}", regime, shared, {regime.key: value})


def _setting(
    card: Card, group: str, name: str, regime: Regime, shared: Overrides, treated: Overrides
) -> Setting:
    baseline, treatment = regime.baseline or card.baseline, regime.treatment or card.treatment
    ground = card.set | regime.set
    arms = {BASELINE: baseline, TREATMENT: treatment}
    overrides = {
        BASELINE: ground | baseline.set | shared,
        TREATMENT: ground | treatment.set | treated,
    }
    for key, each in card.ablations.items():
        if (each.regime or next(iter(card.bands), None)) == name:
            arms[key] = Arm(label=each.says, set=each.set, best_of=treatment.best_of)
            overrides[key] = overrides[TREATMENT] | each.set
    better = regime.better or card.better
    return Setting(
        group,
        name,
        regime,
        arms,
        overrides,
        regime.metric or card.metric,
        better == "higher",
        dict(card.limits if regime.limits is None else regime.limits),
        regime.of_knee or card.of_knee,
    )


def _scenario_faults(exhibit: Exhibit, layers: Layers) -> Iterator[Fault]:
    """Yield what is wrong with the scenarios, once each, at the card's line where it has one."""
    seen: set[tuple[str, str, str]] = set()
    try:
        if exhibit.card.of == "plan":
            read_plan(exhibit.base())
        else:
            Scenario.load(exhibit.base())
    except InputError as error:
        yield from (_at_base(fault, layers) for fault in error.faults)
        return
    for setting in exhibit.settings():
        for arm in setting.arms:
            for alternative in setting.arms[arm].best_of or (None,):
                for fault in _faults_of_arm(exhibit, setting, arm, alternative):
                    told = _at_card(fault, setting, arm, layers)
                    key = (told.where, told.path, told.message)
                    if key not in seen:
                        seen.add(key)
                        yield told


def _faults_of_arm(
    exhibit: Exhibit, setting: Setting, arm: str, alternative: str | None
) -> list[Fault]:
    from llmsim.study.knee import load_key

    try:
        if exhibit.card.of == "plan":
            exhibit.plan(setting, arm, alternative, seed=0)
            return []
        scenario = exhibit.scenario(setting, arm, alternative)
        if setting.searches or setting.of_knee is not None:
            load_key(scenario)
        elif arm == BASELINE and _is_unloaded_null(setting, scenario):
            return [Fault("", "", UNLOADED, UNLOADED_HINT)]
    except InputError as error:
        return list(error.faults)
    except ModelDoesNotFitError as error:
        return [Fault("", "", str(error))]
    return []


def _is_unloaded_null(setting: Setting, scenario: Scenario) -> bool:
    """Say whether a null leaves open how loaded its fleet is.

    It does not where all requests are there at the beginning, nor where every client sends its
    next request as soon as it is answered: more work than that cannot wait.
    """
    if not isinstance(setting.regime, Null) or setting.regime.extra:
        return False
    traffic = scenario.traffic
    if traffic.arrivals is None:
        return True
    params = traffic.arrivals.params
    if "in_flight" in params:
        return bool(params.get("think_s", 0))
    rate, asked = params.get("rate_rps"), traffic.requests
    return not (rate and asked and asked <= rate * RUSH_S)


def _at_base(fault: Fault, layers: Layers) -> Fault:
    where = fault.where or layers.place(("base",))
    return Fault(where, f"base {fault.path}".rstrip(), fault.message, fault.hint)


def _at_card(fault: Fault, setting: Setting, arm: str, layers: Layers) -> Fault:
    """Return the fault at the line of the override that caused it, or of the regime."""
    name = setting.name.partition("=")[0] if isinstance(setting.regime, Sweep) else setting.name
    home: Keys = (setting.group, name)
    holders: list[Keys] = [("ablations", arm), (*home, arm), home, (arm,), ()]
    for holder in holders:
        for depth in range(fault.path.count(".") + 1, 0, -1):
            dotted = ".".join(fault.path.split(".")[:depth])
            keys = (*holder, "set", dotted)
            if keys in layers.places:
                return Fault(layers.places[keys], ".".join(keys), fault.message, fault.hint)
    where = fault.where if fault.where and fault.where != "--set" else layers.place(home)
    path = f"{'.'.join(home)} ({arm}) {fault.path}".rstrip()
    return Fault(where, path, fault.message, fault.hint)
