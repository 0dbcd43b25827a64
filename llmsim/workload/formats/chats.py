"""ShareGPT conversations and the data sets of benchmark clients: texts, few lengths, no times."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt

from llmsim.core.errors import TraceError
from llmsim.workload.chunk import Workload
from llmsim.workload.classcolumn import ClassColumn
from llmsim.workload.formats.jsonrecords import Record, RecordReader, shown, tokens_of
from llmsim.workload.formats.naming import Clients
from llmsim.workload.formats.paced import PacedFile, pace
from llmsim.workload.headers import wrong_format
from llmsim.workload.parameters import check_parameters
from llmsim.workload.replay import ReplayWorkload
from llmsim.workload.tracefile import find_trace, first_lines

_TURNS = ("conversations", "conversation", "messages")
_PROMPT_LENGTHS = ("prompt_tokens", "prompt_len", "input_tokens", "input_len", "input_length")
_OUTPUT_LENGTHS = ("output_tokens", "output_len", "completion_tokens", "output_length")


@dataclass(frozen=True, kw_only=True)
class Chats(PacedFile):
    """Texts of prompts: ShareGPT, or a data set of ``vllm bench serve`` or SGLang's.

    Parameters
    ----------
    chars_per_token : float [characters/token]
        Texts are as long as their characters divided by this, rounded up: a tokenizer is not run.
        4 is OpenAI's rule of thumb for English text
        (https://help.openai.com/en/articles/4936856).
    output_tokens : int [tokens]
        Of a prompt that has neither an answer nor a length of one; 256 is the default of
        ``vllm bench serve --custom-output-len``.

    Notes
    -----
    One JSON list (ShareGPT) or one JSON object a line. Of a conversation the first two messages
    count, as the benchmark clients read it; one with fewer is left out, as they do. Otherwise a
    record has a ``prompt``, or ``turns`` whose first counts, and may say how many tokens.
    """

    chars_per_token: Annotated[float, Gt(0)] = 4.0
    output_tokens: Annotated[int, Ge(1)] = 256

    def open(self, seed: int, near: Path | None) -> Workload:
        """Return the workload in the file.

        Parameters
        ----------
        seed : int
            For the times, where `rate_rps` is given.
        near : Path or None
            Folder that a relative path starts from.

        Raises
        ------
        InputError
            If a parameter is out of its limits.
        TraceError
            If the file is missing or is neither a JSON list nor JSON lines.
        """
        check_parameters(self, "trace 'sharegpt'")
        path = find_trace(self.path, near)
        top = next((line for line in first_lines(path, 3) if line.strip()), "")
        begins = top.lstrip()[:1]
        if begins not in ("[", "{"):
            expected = "a JSON list of conversations, or JSON lines with a prompt"
            raise TraceError(str(path), [wrong_format(path, expected, top)])
        classes = ClassColumn(path, self.slo_class_column)
        reader = RecordReader(path, self._record, Clients(), classes)
        return ReplayWorkload(
            path,
            self,
            reader.listed if begins == "[" else reader.lines,
            classes=lambda: tuple(classes.names),
            transform=pace(seed, self.rate_rps),
        )

    def _record(self, row: dict[str, Any]) -> Record | None:
        turns = next((row[key] for key in _TURNS if key in row), None)
        named = row.get(self.slo_class_column or "", "")
        if turns is not None:
            texts = _messages(turns)
            if len(texts) < 2:
                return None
            prompt, output = self._tokens(texts[0]), self._tokens(texts[1])
        else:
            prompt, output = self._asked(row), self.output_tokens
        prompt = _said(row, _PROMPT_LENGTHS, prompt, 1)
        output = _said(row, _OUTPUT_LENGTHS, output, 0)
        return Record(0, prompt, output, slo_class=named if isinstance(named, str) else "")

    def _asked(self, row: dict[str, Any]) -> int:
        said = row.get("prompt", row.get("turns", row.get("text")))
        if isinstance(said, list) and said:
            said = said[0]
        if isinstance(said, dict):
            said = _content(said)
        if isinstance(said, str):
            return self._tokens(said)
        if any(key in row for key in _PROMPT_LENGTHS):
            return 1
        raise ValueError(f"no conversations, prompt, turns or prompt_tokens in {shown(row)}")

    def _tokens(self, text: str) -> int:
        return max(1, math.ceil(len(text) / self.chars_per_token))


def _said(row: dict[str, Any], keys: tuple[str, ...], otherwise: int, least: int) -> int:
    key = next((key for key in keys if key in row), None)
    return otherwise if key is None else tokens_of(key, row[key], least)


def _messages(turns: Any) -> list[str]:
    if not isinstance(turns, list):
        raise ValueError(f"expected a list of messages, read {shown(turns)}")
    return [_content(message) for message in turns[:2]]


def _content(message: Any) -> str:
    said = message.get("value", message.get("content")) if isinstance(message, dict) else message
    if isinstance(said, list):  # parts of a message, as in the OpenAI API
        said = "".join(str(part.get("text", "")) for part in said if isinstance(part, dict))
    if not isinstance(said, str):
        raise ValueError(f"expected a message with a value or content, read {shown(message)}")
    return said
