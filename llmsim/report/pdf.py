"""A page as a PDF file, printed by a browser that is on this machine."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from llmsim.core.errors import OutputError

BROWSERS: Final = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
)
"""Programs that print a page without a window; the first that is on PATH is taken."""

QUIET: Final = (
    "--headless=new",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
)
"""Options under which a browser opens no window and asks nobody for anything of its own."""

PRINT_S: Final = 120.0
"""How long a browser may take [s]."""


def find_browser() -> str | None:
    """Return the path of a browser that can print; None where there is none."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def check_browser() -> str:
    """Return the path of a browser that can print; cheap, so call it before long work.

    Raises
    ------
    OutputError
        If there is none; says what is needed.
    """
    found = find_browser()
    if found is None:
        looked = ", ".join(BROWSERS)
        raise OutputError(
            f"a PDF is printed by a browser, and none is on PATH (looked for {looked}); "
            "on Debian: apt install chromium"
        )
    return found


def print_pdf(page: Path, target: Path) -> None:
    """Print a page into a PDF file.

    Parameters
    ----------
    page : Path
        HTML that fetches nothing.
    target : Path
        Replaced if it is there.

    Raises
    ------
    OutputError
        If there is no browser, or it does not print.
    """
    browser = check_browser()
    with tempfile.TemporaryDirectory(prefix="llmsim-browser-") as profile:
        made = Path(profile) / "page.pdf"
        words = [browser, *QUIET, f"--user-data-dir={profile}/profile", *_sandbox()]
        words += ["--no-pdf-header-footer", f"--print-to-pdf={made}", page.resolve().as_uri()]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=PRINT_S)
        except (subprocess.TimeoutExpired, OSError) as error:
            raise OutputError(f"{browser} did not print {page}: {error}") from error
        if done.returncode or not made.is_file():
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise OutputError(f"{browser} did not print {page}: {last}")
        try:
            shutil.copyfile(made, target)
        except OSError as error:
            raise OutputError(f"cannot write {target}: {error.strerror}") from error


def _sandbox() -> tuple[str, ...]:
    """Return what a browser needs to start as root, as in a container: no sandbox of its own."""
    import os

    return ("--no-sandbox",) if hasattr(os, "geteuid") and os.geteuid() == 0 else ()
