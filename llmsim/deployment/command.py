"""Reads a command that starts an engine, by the same tables that commands are written by."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from llmsim.core.errors import Fault, InputError, nearest
from llmsim.deployment.configfile import with_config
from llmsim.deployment.tables import Flag, FlagTable, load_table

_STARTS: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = {
    "vllm": (("vllm", "serve"), ("vllm.entrypoints.openai.api_server",)),
    "sglang": (("sglang.launch_server",), ("sglang", "serve")),
}
"""Words after which the flags of an engine begin."""

_IMAGES: Final = {"vllm": "vllm/vllm-openai", "sglang": "lmsysorg/sglang"}
"""Container images whose own command is the server, so that flags follow at once."""

_HUMAN: Final = {"k": 10**3, "K": 2**10, "m": 10**6, "M": 2**20, "g": 10**9, "G": 2**30}
"""Endings of whole numbers that vLLM reads: small letters decimal, capital ones binary
(vllm/engine/arg_utils.py, human_readable_int)."""


_SHOWS: Final = re.compile(
    r"(?:--env=)?(CUDA_VISIBLE_DEVICES|HIP_VISIBLE_DEVICES|ROCR_VISIBLE_DEVICES|NVIDIA_VISIBLE_DEVICES"
    r"|(?:--gpus=)?\W?device)=([^;&$]*)"
)
"""Words in front of an engine that choose its GPUs: variables, and docker's ``--gpus device=0,1``.
What only a shell knows is passed over."""


_ENDS: Final = re.compile(r"#.*|\d?>>?&?.*|&>>?.*|<.*|&&?|\|\|?|\|&|;")
"""Words with which a shell's command is over: a comment, where its output goes, the next one."""


@dataclass(frozen=True, slots=True)
class Ignored:
    """A flag that the simulation does not know.

    Parameters
    ----------
    flag, value : str
    text : str
        What that means.
    """

    flag: str
    value: str
    text: str

    def __str__(self) -> str:
        told = f"{self.flag} {self.value}".rstrip()
        return f"{told}: {self.text}"


@dataclass(slots=True)
class Command:
    """What a command says, flag by flag.

    Parameters
    ----------
    table : FlagTable
    model : str
    release : str
        Of the image, empty where the command names none.
    values : dict of str to Any
        By the flag's own name.
    extra : dict of str to Any
        Flags that the table has no row for but that are understood.
    ignored : list of Ignored
    shown : tuple of (str, int), optional
        The word that chooses the GPUs which the engine sees, and how many; None without one.
    """

    table: FlagTable
    model: str = ""
    release: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    ignored: list[Ignored] = field(default_factory=list)
    shown: tuple[str, int] | None = None


UNDERSTOOD: Final[Mapping[str, Mapping[str, bool]]] = {
    "vllm": {"--model": True},
    "sglang": {
        "--dp-size": True,
        "--enable-dp-attention": False,
        "--disable-cuda-graph": False,
        "--enable-ep-moe": False,
    },
}
"""Flags that no command of ours has but that say something of a scenario, and whether each takes a
value: the model as a flag, and SGLang's older words for attention ranks, graphs and experts."""


def read_command(program: str, text: str) -> Command:
    """Read a command.

    Parameters
    ----------
    program : str
        ``vllm`` or ``sglang``.
    text : str
        As a shell reads it; what stands before the engine (variables, docker) is passed over, but
        for the GPUs that it chooses.

    Raises
    ------
    InputError
        With every value that its flag does not take, or if there is no model.
    """
    table = load_table(program)
    source = f"the command of {table.name}"
    try:
        words = shlex.split(text.replace("\r", "").replace("\\\n", " "))
    except ValueError as error:
        raise InputError(source, [Fault("", "", f"no command of a shell: {error}")]) from None
    command = Command(table)
    flags = _after_start(program, words, command)
    command.shown = _shown(words[: len(words) - len(flags)])
    over = next((at for at, word in enumerate(flags) if _ENDS.fullmatch(word)), len(flags))
    words = with_config(flags[:over], source)
    faults: list[Fault] = []
    at = 0
    while at < len(words):
        at = _read_word(program, words, at, command, faults)
    command.model = command.model or str(
        command.extra.get("--model", command.values.get("--model-path", ""))
    )
    if not command.model:
        faults.append(Fault("", "model", "is missing: the command names no model."))
    if faults:
        raise InputError(source, faults)
    return command


def _after_start(program: str, words: Sequence[str], command: Command) -> list[str]:
    for start in _STARTS[program]:
        for at in range(len(words) - len(start) + 1):
            there = words[at : at + len(start)]
            if tuple(each.rsplit("/", 1)[-1] for each in there) == start:
                return list(words[at + len(start) :])
    for at, word in enumerate(words):
        name, _, tag = word.partition(":")
        if name.endswith(_IMAGES[program]):
            found = re.search(r"\d+\.\d+(\.\d+)?", tag)
            command.release = found.group(0) if found else ""
            behind = list(words[at + 1 :])
            return behind[1:] if behind[:1] == ["serve"] else behind  # of `--entrypoint vllm`
    starts = " or ".join(f"'{' '.join(start)}'" for start in _STARTS[program])
    message = f"expected {starts} and its flags, read '{' '.join(words)[:80]}'."
    raise InputError(f"the command of {command.table.name}", [Fault("", "", message)])


def _shown(words: Sequence[str]) -> tuple[str, int] | None:
    """Return the last word that chooses GPUs, and how many; devices after -1 are not seen."""
    found = None
    for word in words:
        match = _SHOWS.fullmatch(word.strip(";&\"'"))
        if match and match[2] not in ("all", "void", "none"):
            devices = [each.strip() for each in match[2].strip("\"'").split(",")]
            stop = next((at for at, each in enumerate(devices) if each in ("", "-1")), len(devices))
            found = word.strip(";&"), stop
    return found


def _read_word(
    program: str, words: list[str], at: int, command: Command, faults: list[Fault]
) -> int:
    """Read a flag with what is behind it; return where the next one stands."""
    table, word = command.table, words[at]
    if not word.startswith("-") or word == "-":
        if command.model:
            command.ignored.append(Ignored(word, "", "not understood"))
        command.model = command.model or word
        return at + 1
    name, equals, inline = word.partition("=")
    if name.startswith("--"):
        name = name.replace("_", "-")
    name = table.aliases.get(name, name)
    row, off = _row(table, name)
    takes = _takes_value(program, table, name, row)
    value, used = inline, 1
    if takes is not False and not equals and at + 1 < len(words):
        following = words[at + 1]
        number = re.fullmatch(r"-\d+(\.\d+)?", following) is not None
        if not following.startswith("-") or number:
            value, used = following, 2
    if row is not None:
        _keep(command, row, off, value, faults)
    elif name in UNDERSTOOD[program]:
        command.extra[name] = value if takes else True
    else:
        command.ignored.append(_unknown(table, name, value))
    return at + used


def _row(table: FlagTable, name: str) -> tuple[Flag | None, bool]:
    """Return the row of a flag, and whether this is its ``--no-`` form."""
    if name in table.flags:
        return table.flags[name], False
    positive = f"--{name.removeprefix('--no-')}"
    row = table.flags.get(positive) if name.startswith("--no-") else None
    return (row, True) if row is not None and row.takes == "switch" else (None, False)


def _takes_value(program: str, table: FlagTable, name: str, row: Flag | None) -> bool | None:
    """Return whether a flag takes a value; None where nobody knows."""
    if row is not None:
        return row.takes not in ("nothing", "switch")
    if name in UNDERSTOOD[program]:
        return UNDERSTOOD[program][name]
    known = table.others.get(name)
    return None if known is None else known[0]


def _unknown(table: FlagTable, name: str, value: str) -> Ignored:
    known = table.others.get(name)
    if known is None:
        hint = nearest(name, table.flags)
        hint = hint.split(" Known")[0] if hint.startswith("Did") else ""
        return Ignored(name, value, f"no flag that is known here; ignored. {hint}".rstrip())
    if known[1]:
        return Ignored(name, value, "not simulated, and would change the result")
    return Ignored(name, value, "ignored: it does not change how long a step takes")


def _keep(command: Command, row: Flag, off: bool, text: str, faults: list[Fault]) -> None:
    try:
        command.values[row.name] = _value(row, off, text)
    except ValueError as error:
        faults.append(Fault("", row.name, f"{error}, read {text!r}"))


def _value(row: Flag, off: bool, text: str) -> Any:
    if row.takes in ("nothing", "switch"):
        if text:
            raise ValueError("takes no value")
        return not off
    if not text:
        raise ValueError("needs a value")
    return _PARSE[row.takes](text)


def _whole(text: str) -> int:
    match = re.fullmatch(r"(-?\d+(?:\.\d+)?)([kKmMgG]?)", text)
    if match is None:
        raise ValueError("expected a whole number")
    number, ending = match.groups()
    value = float(number) * _HUMAN[ending] if ending else float(number)
    if value != int(value) or ("." in number and not ending):
        raise ValueError("expected a whole number")
    return int(value)


def _count(text: str) -> int:
    value = _whole(text)
    if value < 0:
        raise ValueError("expected a number of at least 0")
    return value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError("expected a number") from None
    if not math.isfinite(value):
        raise ValueError("expected a number")
    return value


def _share(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1:
        raise ValueError("expected a share from 0 to 1")
    return value


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("expected JSON") from None


_PARSE: Final[Mapping[str, Callable[[str], Any]]] = {
    "count": _count,
    "whole": _whole,
    "number": _number,
    "share": _share,
    "gibibytes": lambda text: _number(text) * 2**30,
    "text": str,
    "choice": str,
    "words": str,
    "json": _json,
}
"""The way back of what `line` renders."""
