"""A headless Chromium for tests, spoken to by the Chrome DevTools Protocol over two pipes.

https://chromedevtools.github.io/devtools-protocol: with `--remote-debugging-pipe` the browser
reads messages from descriptor 3 and writes them to 4, JSON ended by a zero byte.
"""

import base64
import json
import os
import select
import subprocess
import tempfile
import time
from pathlib import Path

from llmsim.report.pdf import QUIET, find_browser

LONGEST_S = 60

LOOK = (Path(__file__).parent / "page_look.js").read_text(encoding="utf-8")

FOCUSED = """(() => {
  const at = document.activeElement;
  const all = [...document.querySelectorAll('a[href], summary, [tabindex="0"]')]
    .filter(e => e.checkVisibility());
  return [all.indexOf(at), all.length, at.matches(':focus-visible')
    && getComputedStyle(at).outlineStyle !== 'none'];
})()"""


class Browser:
    """One browser, one page; a context manager."""

    def __init__(self):
        self._profile = tempfile.TemporaryDirectory(prefix="llmsim-test-browser-")
        read_ours, write_theirs = os.pipe()
        read_theirs, write_ours = os.pipe()
        words = [find_browser(), *QUIET, "--no-sandbox", "--remote-debugging-pipe"]
        words += [f"--user-data-dir={self._profile.name}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$0" "$@" 3<&{read_theirs} 4>&{write_theirs}', *words],
            pass_fds=(read_theirs, write_theirs),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_theirs)
        os.close(write_theirs)
        self._read, self._write = read_ours, write_ours
        self._rest, self._number, self._session = b"", 0, None
        self.events = []
        pages = self.call("Target.getTargets")["targetInfos"]
        (page,) = [each["targetId"] for each in pages if each["type"] == "page"]
        told = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self._session = told["sessionId"]
        self.call("Emulation.setScrollbarsHidden", hidden=True)
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._session = None
        os.close(self._write)
        os.close(self._read)
        self._process.terminate()
        self._process.wait(LONGEST_S)
        self._profile.cleanup()

    def call(self, method, **params):
        """Send a command and return its result; events that come meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            told = self._next()
            if told.get("id") == self._number:
                assert "error" not in told, (method, told)
                return told["result"]
            self.events.append(told)

    def wait(self, method):
        """Wait for an event."""
        while not any(each.get("method") == method for each in self.events):
            self.events.append(self._next())

    def _next(self):
        until = time.monotonic() + LONGEST_S
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0, until - time.monotonic()))
            assert ready, "the browser is silent"
            part = os.read(self._read, 1 << 20)
            assert part, "the browser ended"
            self._rest += part
        told, self._rest = self._rest.split(b"\0", 1)
        return json.loads(told)

    def open(self, path):
        """Open a file and return what the page complained of or asked for."""
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait("Page.loadEventFired")
        noise = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        found = [each for each in self.events if each.get("method") in noise]
        asked = [
            each["params"]["request"]["url"]
            for each in self.events
            if each.get("method") == "Network.requestWillBeSent"
        ]
        return found + [url for url in asked if url != path.resolve().as_uri()]

    def resize(self, width, dark):
        """Show the page so wide [px], light or dark."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def run(self, script):
        """Return what a script in the page returns."""
        told = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def press_tab(self):
        """Press the tabulator key."""
        key = {"key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9}
        self.call("Input.dispatchKeyEvent", type="keyDown", **key)
        self.call("Input.dispatchKeyEvent", type="keyUp", **key)

    def spoken(self):
        """Return (role, name) of everything that a screen reader is told of."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            (each["role"]["value"], each.get("name", {}).get("value", ""))
            for each in nodes
            if not each.get("ignored")
        ]

    def picture(self, path):
        """Save the whole page as PNG."""
        told = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(told["data"]))


def complaints(browser, path, pictures=None):
    """Return all that is wrong with a page, at four widths, light and dark, and by keyboard."""
    wrong = [f"noise: {each}" for each in browser.open(path)]
    browser.run("document.querySelectorAll('details').forEach(each => each.open = true)")
    papers = set()
    for dark in (False, True):
        for width in (400, 700, 1024, 1600):
            browser.resize(width, dark)
            shown = f"{width} px, {'dark' if dark else 'light'}"
            wrong += [f"{shown}: {each}" for each in browser.run(LOOK)]
            if pictures and width in (400, 1600):
                browser.picture(pictures / f"{path.parent.name}-{path.stem}-{shown}.png")
        papers.add(browser.run("getComputedStyle(document.body).backgroundColor"))
    if len(papers) < 2:
        wrong.append("dark is as light")
    for role, name in browser.spoken():
        if role in {"image", "region", "heading", "link", "DisclosureTriangle"} and not name:
            wrong.append(f"nameless: {role}")
    visited = set()
    for _ in range(200):
        browser.press_tab()
        number, total, outlined = browser.run(FOCUSED)
        if number in visited or number < 0:
            break
        visited.add(number)
        if not outlined:
            wrong.append(f"focus on element {number} is not seen")
    if len(visited) < total:
        wrong.append(f"the keyboard reaches {len(visited)} of {total}")
    return wrong
