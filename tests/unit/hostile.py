"""Hostile and broken input: runs the corpus in one process.

``python tests/unit/hostile.py FOLDER`` runs every case under limits of memory and processor time
and prints a line of JSON for each: what it was, how it ended, what was said, what was left behind.
"""

import contextlib
import io
import json
import os
import resource
import signal
import sys
import traceback
from functools import cache
from itertools import chain
from pathlib import Path

from hostile_corpus import Case, corpus, put

MEMORY_BYTES = 6 * 2**30
"""Address space of the whole process [bytes]; threads' stacks and mapped libraries count."""

CPU_S = 90
"""Processor time of the whole corpus [s]: beyond it something hangs."""

MOST_TOLD = 6_000
"""Characters of a message; a user reads no more."""


def outputs():
    """Yield calls that have nowhere to write to; the machine's faults end with 3."""
    small = ["run", "quickstart", "--set", "traffic.requests=40", "--quiet"]
    trace = ["burstgpt-like.csv.gz"]
    head = ["--set", "limit=3000"]
    file = {"a-file": "x"}
    for name, out in {
        "under-a-file": "a-file/run",
        "a-file": "a-file",
        "long-name": "x" * 300,
        "proc": "/proc/nowhere",
        "null": "/dev/null",
        "link": "link",
    }.items():
        made = file | {"link": lambda path: path.symlink_to("elsewhere")}
        said = "a-file is not a folder" if name in ("under-a-file", "a-file") else ""
        yield Case(f"out {name}", [*small, "--out", out], made, (2, 3), said)
    for name, words in {
        "run": [*small, "--out", "run"],
        "perfetto": [*small, "--out", "run", "--perfetto", "t.json"],
        "convert": ["trace", "convert", *trace, "o.csv", *head],
        "convert-jsonl": ["trace", "convert", *trace, "o.jsonl", *head],
        "convert-parquet": ["trace", "convert", *trace, "o.parquet", *head],
        "convert-gzip": ["trace", "convert", *trace, "o.csv.gz", *head],
        "scale": ["trace", "scale", *trace, "o.csv", "--rate-scale", "2", *head],
        "anonymise": ["trace", "anonymise", *trace, "o.csv", *head],
        "page": ["trace", "inspect", *trace, "--html", "o.html", *head],
        "deploy": ["deploy", "quickstart", "-o", "made"],
    }.items():
        size = 1_000 if name not in ("perfetto",) else 40_000
        yield Case(f"full disk {name}", words, {}, (3,), "cannot write", file_bytes=size)
    page = ["trace", "inspect", *trace, *head, "--html"]
    for name, target in {
        "full": "/dev/full",
        "folder": "a-folder",
        "under-a-file": "a-file/x.html",
        "nowhere": "no/such/folder/x.html",
        "proc": "/proc/x.html",
    }.items():
        made = file | {"a-folder": lambda path: path.mkdir()}
        yield Case(f"page {name}", [*page, target], made, (2, 3), "cannot write")
        words = [*small, "--out", "run", "--perfetto", target]
        yield Case(
            f"perfetto {name}", words, made, (2, 3), "cannot write", keeps=name in ("full", "proc")
        )
        table = target.replace(".html", ".csv")
        yield Case(f"convert {name}", ["trace", "convert", *trace, table, *head], made, (2, 3))
        scenario = target.replace(".html", ".yaml")
        said = {"under-a-file": "a-file is not a folder", "nowhere": "no such folder"}.get(name, "")
        yield Case(f"init {name}", ["init", scenario, "--yes"], made, (2, 3), said)


def listing(folder):
    """Return what lies in a folder: names, kinds and sizes."""
    return {
        str(path.relative_to(folder)): (path.is_dir(), path.lstat().st_size)
        for path in sorted(folder.rglob("*"))
    }


@cache
def command():
    """The command line, made once: typer would make it anew for every call."""
    from typer.main import get_command

    from llmsim.cli.app import app

    return get_command(app)


def call(words):
    """Call the command line; return exit code, output, errors, and whether it broke."""
    out, err, broke, code = io.StringIO(), io.StringIO(), False, 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            command().main([str(word) for word in words], prog_name="llmsim")
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            code, broke = 1, True
            err.write(traceback.format_exc(limit=-6))
    return code, out.getvalue(), err.getvalue(), broke


def attempt(case, folder):
    """Run a case in a folder, and return how it went."""
    folder.mkdir()
    for name, made in case.files.items():
        put(folder / name, made)
    before = listing(folder)
    os.chdir(folder)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    if case.file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (case.file_bytes, hard))
    try:
        code, printed, told, broke = call(case.words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        os.chdir(folder.parent)
    left = {name: what for name, what in listing(folder).items() if before.get(name) != what}
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if path.is_file() and not path.is_symlink():
                path.unlink()
    return {
        "name": case.name,
        "code": code,
        "codes": case.codes,
        "broke": broke,
        "said": told,
        "says": case.says,
        "printed": printed,
        "left": [] if case.keeps else sorted(left),
    }


def main(folder):
    """Run the corpus; a case that hangs or eats the memory ends the process."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that a full disk is an error, as it is
    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    words = ["run", "quickstart", "--set", "traffic.requests=30", "--out", "good", "--quiet"]
    assert call(words)[0] == 0
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    only = sys.argv[2] if len(sys.argv) > 2 else ""
    for number, case in enumerate(chain(corpus(), outputs())):
        if only not in case.name:
            continue
        print(json.dumps({"begun": case.name}), flush=True)
        clock = resource.getrusage(resource.RUSAGE_SELF)
        told = attempt(case, folder / str(number))
        now = resource.getrusage(resource.RUSAGE_SELF)
        told["cpu_s"] = now.ru_utime + now.ru_stime - clock.ru_utime - clock.ru_stime
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
