"""Where shipped data lies: one resolver for a checkout and for an installed wheel."""

from __future__ import annotations

import os
from pathlib import Path

from llmsim.core.holding import held

_PACKAGE = Path(__file__).resolve().parent.parent


def data_roots() -> tuple[Path, ...]:
    """Return the folders that may hold ``profiles/``, ``scenarios/`` and ``traces/``.

    Returns
    -------
    tuple of Path
        The folders named in ``LLMSIM_PATH`` (separated like ``PATH``), then the checkout that
        llmsim runs from, then the data inside the installed wheel. The current directory is
        never among them.
    """
    named = [Path(part) for part in os.environ.get("LLMSIM_PATH", "").split(os.pathsep) if part]
    checkout = _PACKAGE.parent
    own = [checkout] if (checkout / "pyproject.toml").is_file() else []
    return (*named, *own, _PACKAGE / "_data")


def find_data(*parts: str) -> Path | None:
    """Return the first shipped file or folder with this relative path, or None.

    Parameters
    ----------
    *parts : str
        Such as ``"profiles", "gpus", "h100-sxm.yaml"``.
    """
    for root in data_roots():
        path = root.joinpath(*parts)
        if path.exists():
            return path
    return None


@held
def list_data(folder: str, suffix: str) -> dict[str, Path]:
    """Return the shipped files of a folder by stem; earlier roots win.

    Parameters
    ----------
    folder : str
        Such as ``"profiles/gpus"``.
    suffix : str
        Such as ``".yaml"``.
    """
    found: dict[str, Path] = {}
    for root in data_roots():
        for path in sorted(root.joinpath(folder).glob(f"*{suffix}")):
            found.setdefault(path.name[: -len(suffix)], path)
    return found


def cache_folder() -> Path:
    """Return where results are kept between runs: ``$XDG_CACHE_HOME/llmsim``, or ``~/.cache``."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "llmsim"
