"""`from_command`: from a command that people have to a scenario."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmsim.deployment.origin import Origin


def from_command(
    engine: str,
    command: str,
    gpu: str,
    *,
    trace: str | Path | None = None,
    kind: str | None = None,
    options: Mapping[str, object] | None = None,
) -> Origin:
    """Return the scenario of a replica that a command of vLLM or SGLang starts.

    Parameters
    ----------
    engine : str
        ``"vllm"`` or ``"sglang"``.
    command : str
        Such as ``"vllm serve MODEL --tensor-parallel-size 4"``.
    gpu : str
        GPU card.
    trace : str or Path, optional
        What it serves; without it the scenario has no traffic yet.
    kind : str, optional
        Kind of the trace; absent: told by what is in the file.
    options : mapping of str to object, optional
        Parameters of that kind, such as `columns` of a table.

    Returns
    -------
    Origin
        `data` for `Scenario.parse`, `text` for a file, and which flags were `ignored`.

    Raises
    ------
    InputError
        If the command cannot be read; every value that its flag does not take.
    CardError
        If there is no such GPU or model.

    Examples
    --------
    >>> origin = from_command("vllm", "vllm serve Qwen/Qwen3-8B --max-num-seqs 64", "h100-sxm")
    >>> origin.data["engine"]["max_num_seqs"]
    64
    """
    from llmsim.deployment.origin import from_command as read
    from llmsim.workload import TRACES
    from llmsim.workload.detect import detect_kind

    told: dict[str, object] | None = None
    if trace is not None:
        path = Path(trace).expanduser().resolve()
        told = {"kind": kind or detect_kind(path, TRACES.names()), "path": str(path)}
        told |= options or {}
    return read(engine, command, gpu, told)
