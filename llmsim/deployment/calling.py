"""`deploy`: from a scenario, by name or file, to a deployment on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from llmsim.core.errors import InputError
from llmsim.deployment.made import MARK, Deployment, Options, make_deployment
from llmsim.results.folder import check_free
from llmsim.scenario import Scenario
from llmsim.scenario.loader import places_in


def deploy(
    scenario: Scenario | str | Path,
    overrides: Mapping[str, object] | None = None,
    *,
    engine: str | None = None,
    checkpoints: Mapping[str, str] | None = None,
    out: str | Path | None = None,
    force: bool = False,
) -> Deployment:
    """Say a fleet in the words of its engines and of Kubernetes.

    Parameters
    ----------
    scenario : Scenario, str or Path
    overrides : mapping of str to object, optional
    engine : str, optional
        ``"vllm"`` or ``"sglang"`` for all pools; the engine that each pool simulates if absent.
    checkpoints : mapping of str to str, optional
        Repository or folder of a model's weights, by the model's name in the scenario.
    out : str or Path, optional
        Save all files there, or none.
    force : bool
        Replace a folder of an earlier deployment.

    Returns
    -------
    Deployment
        `Deployment.files` has the text of each file, `Deployment.notes` what could not be said.

    Raises
    ------
    InputError
        If the scenario is wrong, or its fleet cannot be deployed; lists every fault.
    OutputError
        If `out` is taken.
    """
    if not isinstance(scenario, Scenario):
        wanted = Scenario.load(scenario, overrides)
    else:
        wanted = scenario.override(overrides) if overrides else scenario
    if out is not None:
        check_free(Path(out), force, MARK)
    try:
        made = make_deployment(wanted, Options(engine, dict(checkpoints or {})))
    except InputError as error:
        raise _placed(error, scenario, overrides) from None
    if out is not None:
        made.save(out, force)
    return made


def _placed(
    error: InputError, source: Scenario | str | Path, overrides: Mapping[str, object] | None
) -> InputError:
    """Return an error whose faults say where their keys were written, if that is known."""
    if isinstance(source, Scenario):
        return error
    place = places_in(source, overrides)
    faults = [
        replace(fault, where=place(fault.path)) if fault.path.startswith("fleet.") else fault
        for fault in error.faults
    ]
    return InputError(error.source, faults)
