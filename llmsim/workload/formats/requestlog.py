"""Logs of an OpenAI-style API: one JSON object a line, with the usage that the server counted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from annotated_types import Gt

from llmsim.workload.cells import UNITS_NS
from llmsim.workload.chunk import Workload
from llmsim.workload.formats.chats import content
from llmsim.workload.formats.counting import CHARS_PER_TOKEN, Count, counter
from llmsim.workload.formats.jsonrecords import Record, open_records, shown, time_of, tokens_of
from llmsim.workload.parameters import check_parameters
from llmsim.workload.replay import TraceFile
from llmsim.workload.tracefile import find_trace

_TIMES: Final = (
    "start_time", "startTime", "request_time", "timestamp", "time", "ts", "created_at", "created",
)  # fmt: skip
"""Where logs keep the time of a request; the first that is there counts."""

_SESSIONS: Final = ("session_id", "session", "conversation_id", "prompt_cache_key")
_CLIENTS: Final = ("user", "client", "api_key_alias", "organization")

_MS_FROM: Final = 10**11
"""An epoch above this is not in seconds (year 5138): it is in ms, us or ns by its size."""


@dataclass(frozen=True, kw_only=True)
class OpenAILog(TraceFile):
    """A log of requests to an OpenAI-style API, one JSON object a line.

    Parameters
    ----------
    failed : {"drop", "inject"}
        Requests that ended in an error: leave them out, or keep them as failures that load
        nothing.
    tokenizer : str, optional
        A ``tokenizer.json`` of HuggingFace, by its path, that counts texts where a line has no
        ``usage``; needs ``pip install 'llmsim[tokenizer]'``. Nothing is fetched.
    chars_per_token : float, optional [characters/token]
        Without a tokenizer, texts of such lines are as long as their characters divided by this;
        4 is a usual guess for English. With neither, a line without ``usage`` is an error.

    Notes
    -----
    A line is a response as the API returned it (chat, completions or responses), or an object
    with it under ``response`` (and there, in batch files, under ``body``) and the request under
    ``request``. Tokens come from ``usage``: ``prompt_tokens`` and ``completion_tokens``, or
    ``input_tokens`` and ``output_tokens``. Lines are often written when an answer ends, so
    `max_disorder_s` is an hour here.
    """

    failed: Literal["drop", "inject"] = "drop"
    max_disorder_s: float = 3600.0
    tokenizer: str | None = None
    chars_per_token: Annotated[float, Gt(0)] | None = None

    def open(self, seed: int, near: Path | None) -> Workload:
        """Return the workload in the file; the seed is not used.

        Raises
        ------
        InputError
            If a parameter is out of its limits, or the tokenizer cannot be used.
        TraceError
            If the file is missing or its first line is no JSON object.
        """
        label = "trace 'openai-log'"
        check_parameters(self, label)
        path = find_trace(self.path, near)
        expected = "JSON lines with a time and the usage of a request"
        count = None
        if self.tokenizer is not None or self.chars_per_token is not None:
            guess = self.chars_per_token or CHARS_PER_TOKEN
            count = counter(self.tokenizer, near, guess, label)
        return open_records(path, self, partial(self._record, count), expected)

    def _record(self, count: Count | None, row: dict[str, Any]) -> Record:
        places = _places(row)
        time_ns = _time(places, row)
        code = row.get("status_code", row.get("status"))
        error = any(place.get("error") for place in places)
        failed = error or (isinstance(code, int) and code >= 400)
        usage = next((p["usage"] for p in places if isinstance(p.get("usage"), dict)), None)
        if usage is None and not failed:
            if count is None:
                hint = "a tokenizer or chars_per_token would count its texts"
                raise ValueError(f"no usage in {shown(row)}; {hint}")
            prompt, output = count(_prompt(places)), count(_answer(places))
        else:
            prompt, output = _usage(usage or {}, 0 if failed else 1)
        named = row.get(self.slo_class_column or "", "")
        return Record(
            time_ns,
            prompt,
            output,
            session=_first(places, _SESSIONS),
            client=_first(places, _CLIENTS),
            failed=failed,
            slo_class=named if isinstance(named, str) else "",
        )


def _places(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the objects in which a line may keep what is looked for, outermost first."""
    found = [row]
    for key in ("response", "request", "metadata"):
        inner = row.get(key)
        if isinstance(inner, dict):
            found.append(inner)
            body = inner.get("body")
            if isinstance(body, dict):
                found.append(body)
    return found


def _time(places: list[dict[str, Any]], row: dict[str, Any]) -> int:
    for place in places:
        for key in _TIMES:
            if place.get(key) is not None:
                return time_of(key, place[key], _unit(place[key]))
    raise ValueError(f"no time ({', '.join(_TIMES)}) in {shown(row)}")


def _unit(value: Any) -> str:
    if not isinstance(value, int | float) or not value >= _MS_FROM:
        return "s"
    return next(
        (u for u in ("ms", "us") if value < _MS_FROM * (UNITS_NS["s"] // UNITS_NS[u])), "ns"
    )


def _prompt(places: list[dict[str, Any]]) -> str:
    """Return the texts that a request sends: of all its messages, or of its prompt or input."""
    for place in places:
        for key in ("messages", "prompt", "input"):
            said = place.get(key)
            if isinstance(said, str):
                return said
            if isinstance(said, list) and said:
                return "".join(content(message) for message in said)
    raise ValueError(f"no usage, and no messages, prompt or input in {shown(places[0])}")


def _answer(places: list[dict[str, Any]]) -> str:
    """Return the text of the first answer: of a chat, a completion, or the responses API."""
    for place in places:
        if isinstance(place.get("output_text"), str):
            return str(place["output_text"])
        for key in ("choices", "output"):
            said = place.get(key)
            if isinstance(said, list) and said and isinstance(said[0], dict):
                first = said[0]
                return content(first.get("message", first.get("text", first)))
    raise ValueError(f"no usage, and no choices or output in {shown(places[0])}")


def _usage(usage: dict[str, Any], least: int) -> tuple[int, int]:
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    output = usage.get("completion_tokens", usage.get("output_tokens"))
    if prompt is None and least:
        raise ValueError(f"usage: no prompt_tokens or input_tokens in {shown(usage)}")
    return tokens_of("prompt_tokens", prompt or 0, least), tokens_of("output", output or 0)


def _first(places: list[dict[str, Any]], keys: tuple[str, ...]) -> str:
    found = (place[key] for place in places for key in keys if place.get(key) is not None)
    value = next(found, "")
    return str(value) if isinstance(value, str | int) else ""
