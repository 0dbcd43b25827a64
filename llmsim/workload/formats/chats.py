"""ShareGPT conversations and the data sets of benchmark clients: texts, few lengths, no times."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt

from llmsim.core.errors import TraceError
from llmsim.workload.chunk import Workload
from llmsim.workload.classcolumn import ClassColumn
from llmsim.workload.formats.counting import CHARS_PER_TOKEN, Count, counter
from llmsim.workload.formats.jsonrecords import Record, RecordReader, shown, tokens_of
from llmsim.workload.formats.naming import Clients
from llmsim.workload.formats.paced import PacedFile, pace
from llmsim.workload.headers import wrong_format
from llmsim.workload.parameters import check_parameters
from llmsim.workload.replay import ReplayWorkload
from llmsim.workload.tracefile import find_trace, first_lines

_TURNS = ("conversations", "conversation", "items", "messages")
_PROMPT_LENGTHS = ("prompt_tokens", "prompt_len", "input_tokens", "input_len", "input_length")
_OUTPUT_LENGTHS = ("output_tokens", "output_len", "completion_tokens", "output_length")


@dataclass(frozen=True, kw_only=True)
class Chats(PacedFile):
    """Texts of prompts: ShareGPT, or a data set of ``vllm bench serve`` or SGLang's.

    Parameters
    ----------
    tokenizer : str, optional
        A ``tokenizer.json`` of HuggingFace, by its path, that counts the tokens of texts; needs
        ``pip install 'llmsim[tokenizer]'``. Nothing is fetched.
    chars_per_token : float [characters/token]
        Without a tokenizer: texts are as long as their characters divided by this, rounded up.
        4 is OpenAI's rule of thumb for English text
        (https://help.openai.com/en/articles/4936856).
    output_tokens : int [tokens]
        Of a prompt that has neither an answer nor a length of one; 256 is the default of
        ``vllm bench serve --custom-output-len``.

    Notes
    -----
    One JSON list (ShareGPT) or one JSON object a line. Of a conversation the first two messages
    count, as the benchmark clients read it; one with fewer is left out, as they do. Where a
    system's message is among them, all up to the first answer are the prompt. Otherwise a
    record has a ``prompt``, or ``turns`` whose first counts, and may say how many tokens.
    """

    tokenizer: str | None = None
    chars_per_token: Annotated[float, Gt(0)] = CHARS_PER_TOKEN
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
            If a parameter is out of its limits, or the tokenizer cannot be used.
        TraceError
            If the file is missing or is neither a JSON list nor JSON lines.
        """
        label = "trace 'sharegpt'"
        check_parameters(self, label)
        path = find_trace(self.path, near)
        top = next((line for line in first_lines(path, 3) if line.strip()), "")
        begins = top.lstrip()[:1]
        if begins not in ("[", "{"):
            expected = "a JSON list of conversations, or JSON lines with a prompt"
            raise TraceError(str(path), [wrong_format(path, expected, top)])
        classes = ClassColumn(path, self.slo_class_column)
        count = counter(self.tokenizer, near, self.chars_per_token, label)
        reader = RecordReader(path, partial(self._record, count), Clients(), classes)
        return ReplayWorkload(
            path,
            self,
            reader.read,
            classes=lambda: tuple(classes.names),
            transform=pace(seed, self.rate_rps),
        )

    def _record(self, count: Count, row: dict[str, Any]) -> Record | None:
        turns = next((row[key] for key in _TURNS if key in row), None)
        named = row.get(self.slo_class_column or "", "")
        if turns is not None:
            said = _exchange(turns)
            if said is None:
                return None
            asked, answer = said
        else:
            asked, answer = _asked(row), None
        prompt = _said(row, _PROMPT_LENGTHS, 1)
        prompt = count(asked) if prompt is None else prompt
        output = _said(row, _OUTPUT_LENGTHS, 0)
        if output is None:
            output = self.output_tokens if answer is None else count(answer)
        return Record(0, prompt, output, slo_class=named if isinstance(named, str) else "")


def _asked(row: dict[str, Any]) -> str:
    """Return the prompt of a record without an answer; nothing where only its length is told."""
    said = row.get("prompt", row.get("turns", row.get("text")))
    if isinstance(said, list) and said:
        said = said[0]
    if isinstance(said, dict):
        said = content(said)
    if isinstance(said, str):
        return said
    if any(key in row for key in _PROMPT_LENGTHS):
        return ""
    raise ValueError(f"no conversations, prompt, turns or prompt_tokens in {shown(row)}")


def _said(row: dict[str, Any], keys: tuple[str, ...], least: int) -> int | None:
    key = next((key for key in keys if key in row), None)
    return None if key is None else tokens_of(key, row[key], least)


def _exchange(turns: Any) -> tuple[str, str | None] | None:
    """Return what is asked and what is answered; None of fewer than two messages.

    Messages with the roles of the OpenAI API are asked up to the first of an assistant, with the
    system's; of others the first two count.
    """
    if not isinstance(turns, list):
        raise ValueError(f"expected a list of messages, read {shown(turns)}")
    roles = [turn.get("role") if isinstance(turn, dict) else None for turn in turns]
    if "system" in roles or "developer" in roles:
        end = roles.index("assistant") if "assistant" in roles else len(roles)
        if end:
            answer = content(turns[end]) if end < len(turns) else None
            return "".join(map(content, turns[:end])), answer
    if len(turns) < 2:
        return None
    return content(turns[0]), content(turns[1])


def content(message: Any) -> str:
    """Return the text of a message, by itself or under ``value`` or ``content``, also in parts.

    Raises
    ------
    ValueError
        If it has none.
    """
    said = message.get("value", message.get("content")) if isinstance(message, dict) else message
    if isinstance(said, list):  # parts of a message, as in the OpenAI API
        said = "".join(str(part.get("text", "")) for part in said if isinstance(part, dict))
    if not isinstance(said, str):
        raise ValueError(f"expected a message with a value or content, read {shown(message)}")
    return said
