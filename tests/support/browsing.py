"""A page in a headless browser, over the Chrome DevTools Protocol through two pipes: no port, and no package."""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.chromium import find

KEYS = {
    "Enter": ("Enter", 13, "\r"), "Backspace": ("Backspace", 8, ""), "Tab": ("Tab", 9, ""), " ": ("Space", 32, " "),
    "ArrowLeft": ("ArrowLeft", 37, ""), "ArrowUp": ("ArrowUp", 38, ""), "ArrowRight": ("ArrowRight", 39, ""),
    "ArrowDown": ("ArrowDown", 40, ""),
}  # fmt: skip
PATIENCE = 30.0  # seconds for anything to become true, on a busy machine


class Page:
    """One tab. ``console`` and ``asked`` hold what it wrote to its console at the level of an error, or threw, and every
    address that it asked for.
    """

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._buffer = write, read, b""
        self._number = 0
        self._session: str | None = None
        self.console: list[str] = []
        self.asked: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command, and its result."""
        self._number += 1
        said = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            said["sessionId"] = self._session
        os.write(self._write, json.dumps(said).encode() + b"\0")
        while True:
            told = self._next(PATIENCE)
            assert told is not None, f"the browser did not answer {method}"
            if told.get("id") == self._number:
                assert "error" not in told, f"{method}: {told['error']}"
                result: dict[str, Any] = told["result"]
                return result

    def _next(self, patience: float) -> dict[str, Any] | None:
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], patience)[0]:
                return None
            data = os.read(self._read, 1 << 16)
            assert data, "the browser ended"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        told: dict[str, Any] = json.loads(line)
        self._note(told.get("method", ""), told.get("params", {}))
        return told

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.console.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.console.append(json.dumps(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.console.append(params["entry"]["text"])

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def reload(self) -> None:
        self.run("delete document.body.dataset.ready")
        self.call("Page.reload")

    def run(self, script: str) -> Any:
        """The value of an expression of JavaScript."""
        got = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in got, f"{script}: {got['exceptionDetails']}"
        return got["result"].get("value")

    def until(self, script: str) -> Any:
        """Wait for an expression to become true, also while a page loads. Fails, with what stands there, where it does not."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            value = self.run(f"(() => {{ try {{ return {script}; }} catch {{ return null; }} }})()")
            if value:
                return value
            time.sleep(0.02)
        raise AssertionError(f"never became true: {script}\n{self.run('document.body.innerText')}\n{self.console}")

    def press(self, *keys: str) -> None:
        for key in keys:
            code, number, text = KEYS.get(
                key, (f"Key{key.upper()}" if key.isalpha() else f"Digit{key}", ord(key.upper()[0]), key)
            )
            about = {"key": key, "code": code, "windowsVirtualKeyCode": number}
            self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **about)
            self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def middle(self, selector: str) -> tuple[float, float]:
        box = self.run(f"(() => {{ const b = document.querySelector({selector!r}).getBoundingClientRect();"
                       " return [b.x + b.width / 2, b.y + b.height / 2]; })()")  # fmt: skip
        return box[0], box[1]

    def click(self, selector: str) -> None:
        self.drag(selector, selector)

    def drag(self, start: str, end: str) -> None:
        """Press the mouse on one element, move it in two steps to another, let it go."""
        (x, y), (to_x, to_y) = self.middle(start), self.middle(end)
        mouse = {"button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, **mouse)
        if start != end:
            for share in (0.5, 1.0):
                at = {"x": x + (to_x - x) * share, "y": y + (to_y - y) * share}
                self.call("Input.dispatchMouseEvent", type="mouseMoved", buttons=1, **at, **mouse)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=to_x, y=to_y, **mouse)

    def look(self, width: int, height: int, scheme: str = "light") -> None:
        """The size of the window, and whether it is light or dark."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self) -> bytes:
        """A PNG of what is seen."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])


@contextmanager
def browser() -> Iterator[Page]:
    """A browser with one page. It keeps nothing, and ends with the block. Raises FileNotFoundError where there is none."""
    found = find()
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()

    def hand_over() -> None:
        os.dup2(theirs_in, 103), os.dup2(theirs_out, 104)  # first out of the way: one of them may itself be 3 or 4
        os.dup2(103, 3), os.dup2(104, 4)

    with tempfile.TemporaryDirectory() as profile:
        command = [
            found.program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
            "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank",
        ]  # fmt: skip
        running = subprocess.Popen(
            command, env={**os.environ, **found.environ}, preexec_fn=hand_over, close_fds=False, stderr=subprocess.DEVNULL
        )
        os.close(theirs_in), os.close(theirs_out)
        try:
            yield Page(ours_out, ours_in)
        finally:
            running.terminate()
            running.wait(PATIENCE)
            os.close(ours_out), os.close(ours_in)
