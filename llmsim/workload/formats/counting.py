"""How many tokens a text has: by a model's own tokenizer where one is given, else by characters."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from llmsim.core.errors import Fault, InputError

CHARS_PER_TOKEN: Final = 4.0
"""OpenAI's rule of thumb for English text (https://help.openai.com/en/articles/4936856)."""

MOST_BYTES: Final = 256 << 20
"""Of a tokenizer.json; the largest published ones have some 40 MB."""

MISSING: Final = "needs the package tokenizers: pip install 'llmsim[tokenizer]'"

Count = Callable[[str], int]


def counter(tokenizer: str | None, near: Path | None, chars_per_token: float, label: str) -> Count:
    """Return what counts the tokens of a text.

    Parameters
    ----------
    tokenizer : str or None
        Path of a ``tokenizer.json`` of HuggingFace. Its special tokens count where it adds any, as
        ``vllm bench serve`` counts them; a chat template's do not.
    near : Path or None
        Folder that a relative path starts from.
    chars_per_token : float [characters/token]
        Without a tokenizer: a text is as long as its characters divided by this, rounded up.
    label : str
        Of the trace, for messages.

    Raises
    ------
    InputError
        If there is no such file, it is no tokenizer, or the package is not installed.
    """
    if tokenizer is None:
        return lambda text: max(1, math.ceil(len(text) / chars_per_token))
    encode = _loaded(_file(tokenizer, near, label), label).encode
    return lambda text: max(1, len(encode(text).ids))


def _file(tokenizer: str, near: Path | None, label: str) -> Path:
    path = Path(tokenizer).expanduser()
    path = path if near is None else near / path
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise _wrong(label, f"{what}: '{path}'.", "Name a tokenizer.json; nothing is fetched.")
    if path.stat().st_size > MOST_BYTES:
        raise _wrong(label, f"'{path}' has more than {MOST_BYTES >> 20} MiB: no tokenizer.json.")
    return path


def _loaded(path: Path, label: str) -> Any:
    try:
        package = importlib.import_module("tokenizers")
    except ImportError:
        raise _wrong(label, MISSING, "Or leave it out: chars_per_token guesses.") from None
    try:
        found = package.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises Exception itself, of Rust
        raise _wrong(label, f"'{path}' is no tokenizer.json: {str(error)[:200]}") from None
    # Files may bring settings of training: a cut or padded text is not as long as it is.
    found.no_truncation()
    found.no_padding()
    return found


def _wrong(label: str, message: str, hint: str = "") -> InputError:
    return InputError(label, [Fault("", "tokenizer", message, hint)])
