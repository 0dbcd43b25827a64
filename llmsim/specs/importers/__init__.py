"""Public kernel tables as profiles: one module per format, and the one call that imports them.

None of these rows are part of llmsim. What is imported carries its licence and its source in
`meta.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from llmsim.core.errors import CardError, Fault, nearest
from llmsim.specs.importers.frames import Batch, Origin, write_profile

FORMAT_NAMES = ("aiconfigurator", "vidur", "llmservingsim", "splitwise", "tidy")

__all__ = ["FORMAT_NAMES", "import_tables"]


def import_tables(
    format_name: str,
    source: Path,
    out: Path,
    *,
    only: str = "",
    version: str = "",
    as_csv: bool = False,
) -> list[Path]:
    """Turn public tables into profile folders.

    Parameters
    ----------
    format_name : str
        One of `FORMAT_NAMES`.
    source : Path
        Where the tables lie.
    out : Path
        Folder of profiles to write into.
    only : str
        Import only profiles whose ``<device>/<engine>-<version>`` contains this.
    version : str
        Commit or release of the source, kept in meta.
    as_csv : bool
        Write ``rows.csv.gz`` in place of ``rows.parquet``.

    Returns
    -------
    list of Path
        The profile folders.

    Raises
    ------
    CardError
        If the format is unknown, the source is not there or holds nothing of it.
    """
    if format_name not in FORMAT_NAMES:
        fault = Fault("", format_name, "unknown format.", nearest(format_name, FORMAT_NAMES))
        raise CardError("profile import", [fault])
    if not source.exists():
        raise CardError("profile import", [Fault(str(source), "", "no such file or folder.")])
    module = import_module(f"llmsim.specs.importers.{format_name}")
    read: Callable[[Path], Iterator[Batch]] = module.read
    origin: Origin = module.ORIGIN
    if version:
        origin = replace(origin, source=f"{origin.source} @ {version}")
    seen: Mapping[str, Batch] = {_name(batch): batch for batch in read(source)}
    kept = [batch for name, batch in seen.items() if only in name]
    if not kept:
        fault = Fault(str(source), only, "matches no profile.", nearest(only, seen))
        raise CardError("profile import", [fault])
    return [write_profile(batch, origin, out, as_csv=as_csv) for batch in kept]


def _name(batch: Batch) -> str:
    from llmsim.specs.importers.frames import slug

    return f"{slug(batch.device)}/{batch.profile}"
