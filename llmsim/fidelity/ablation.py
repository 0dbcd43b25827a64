"""What each assumption about clients and host is worth: the same cases without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from llmsim.fidelity.cases import Case
from llmsim.fidelity.replay import Store, prepare, simulate_all
from llmsim.fidelity.requests import RequestFiles
from llmsim.fidelity.scenarios import Options
from llmsim.fidelity.scores import Errors, errors_of, headline_scores, score_case

Change = Mapping[str, Mapping[str, Any]]
"""What differs: under ``client`` keys of `Assumptions.client`, under ``cost`` of the component."""

_NO_ENCODING: Final = {"front_token_s": 0.0, "ingest_token_s": 0.0, "round_token_s": 0.0}

ABLATIONS: Final[Mapping[str, Change]] = {
    "as it is": {},
    "3 requests per slot": {"client": {"requests_per_slot": 3, "requests_forced": True}},
    "equal lengths": {"client": {"length_min_frac": 1.0}},
    "no two prompts alike": {"client": {"distinct_prompts": 0}},
    "no way to the engine": {"client": {"front_s": 0.0, "round_s": 0.0, **_NO_ENCODING}},
    "prompts need no encoding": {"client": _NO_ENCODING},
    "no rounds of the front end": {"client": {"round_s": 0.0}},
    "front end in turn, 3 ms": {"client": {"ingest_s": 0.003, "round_s": 0.0}},
    "engine's default batch limits": {"client": {"recipe_budget": False}},
    "no host work": {"cost": {"host_base_s": 0.0, "host_per_request_s": 0.0}},
}

CASES: Final = 200
"""Cases of the sample on which assumptions are changed."""


@dataclass(frozen=True, slots=True)
class Ablated:
    """Errors with one assumption changed.

    Parameters
    ----------
    name : str
        Key of `ABLATIONS`.
    changed : int
        Cases whose scenario differs from the one as it is.
    errors : mapping of str to Errors
        By metric, over these cases; over all of them for "as it is".
    before : mapping of str to Errors
        Of the same cases as it is.
    """

    name: str
    changed: int
    errors: Mapping[str, Errors]
    before: Mapping[str, Errors]


def ablate(
    cases: Sequence[Case],
    options: Options,
    files: RequestFiles | None = None,
    store: Store | None = None,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Ablated]:
    """Return the errors of cases with every assumption changed in turn.

    Parameters
    ----------
    cases : sequence of Case
    options : Options
        Of the run as it is.
    files : RequestFiles or None
    store : Store or None
    jobs : int
    progress : callable or None
    """
    plain = {item.case.case_id: item for item in prepare(cases, files, options)[0]}
    base = headline_scores(
        score
        for each in simulate_all(list(plain.values()), store, jobs, progress)
        for score in score_case(each)
    )
    found = []
    for name, change in ABLATIONS.items():
        other = replace(
            options,
            cost={**options.cost, **change.get("cost", {})},
            client={**options.client, **change.get("client", {})},
        )
        ready, _ = prepare(cases, files, other)
        moved = [
            item
            for item in ready
            if name == "as it is"
            or (item.data, item.counted)
            != (plain[item.case.case_id].data, plain[item.case.case_id].counted)
        ]
        scores = headline_scores(
            score
            for each in simulate_all(moved, store, jobs, progress)
            for score in score_case(each)
        )
        keys = set(scores) & set(base)
        found.append(
            Ablated(
                name,
                len(moved),
                _by_metric({key: scores[key].error_frac for key in keys}),
                _by_metric({key: base[key].error_frac for key in keys}),
            )
        )
    return found


def _by_metric(errors: Mapping[tuple[str, str], float]) -> dict[str, Errors]:
    metrics = sorted({metric for _, metric in errors})
    return {
        metric: errors_of([value for key, value in errors.items() if key[1] == metric])
        for metric in metrics
    }
