"""A headless Chromium, driven over a pipe by the DevTools protocol, without any package.

https://chromedevtools.github.io/devtools-protocol. Mouse, touch and keys are real input events.
"""

import base64
import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
TIMEOUT = 60  # seconds per answer; a busy machine is slow to start a browser
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--remote-debugging-pipe", "--hide-scrollbars", "--force-color-profile=srgb"),
)
# Chromium reads commands from descriptor 3 and answers on 4.
LAUNCH = "import os, sys; r, w, *command = sys.argv[1:]; os.dup2(int(r), 3); os.dup2(int(w), 4); "
LAUNCH += "os.execv(command[0], command)"


def find() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page in a browser; `events` collects its events in order."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._rest = write, read, b""
        self._ids, self._session = itertools.count(1), {}
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")
        session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = {"sessionId": session["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params, **self._session}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT
        while b"\0" not in self._rest:
            if not select.select([self._read], [], [], deadline - time.monotonic())[0]:
                raise TimeoutError(f"no answer from the browser in {TIMEOUT} s")
            part = os.read(self._read, 2**16)
            if not part:
                raise RuntimeError("the browser has ended")
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, file: Path, width: int = 1100, height: int = 900, **screen: Any) -> None:
        """Loads a file in a window of this size and clears `events`."""
        metrics = {"deviceScaleFactor": 1, "mobile": False, **screen}
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, **metrics)
        self.events.clear()
        self.call("Page.navigate", url=file.absolute().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def settle(self) -> None:
        """Waits until the screen shows all changes."""
        frame = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        self.evaluate(f"{frame}.then(() => 0)")

    def mouse(self, kind: str, x: float, y: float) -> None:
        """kind: mousePressed, mouseMoved or mouseReleased."""
        button = {"button": "left", "buttons": int(kind != "mouseReleased"), "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def drag(self, points: Iterable[tuple[float, float]]) -> None:
        """Moves along the points with the left button down."""
        first, *rest = points
        self.mouse("mousePressed", *first)
        for point in rest:
            self.mouse("mouseMoved", *point)
        self.mouse("mouseReleased", *(rest or [first])[-1])

    def click(self, selector: str) -> None:
        """Clicks the middle of an element."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        self.drag(
            [
                self.evaluate(
                    f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({box})"
                )
            ]
        )

    def swipe(self, points: Iterable[tuple[float, float]]) -> None:
        """Moves one finger along the points."""
        kind = "touchStart"
        for x, y in points:
            self.call("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y}])
            kind = "touchMove"
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def press(self, key: str, *, ctrl: bool = False) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, modifiers=2 * ctrl)

    def screenshot(self, file: Path) -> None:
        """Saves the whole page as a PNG."""
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(picture["data"]))


@contextlib.contextmanager
def started(profile: Path) -> Iterator[Browser]:
    """Starts the browser that `find` finds; `profile` is a new, empty folder for its files."""
    command_read, command_write = _pipe()
    answer_read, answer_write = _pipe()
    theirs, ours = (command_read, answer_write), (command_write, answer_read)
    launch = [sys.executable, "-I", "-S", "-c", LAUNCH, *map(str, theirs)]
    process = subprocess.Popen(
        [*launch, find(), *FLAGS, f"--user-data-dir={profile}"],
        pass_fds=theirs,
        stderr=subprocess.DEVNULL,
    )
    for descriptor in theirs:
        os.close(descriptor)
    try:
        yield Browser(*ours)
    finally:
        for descriptor in ours:  # the browser ends when its pipe closes
            os.close(descriptor)
        try:
            process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _pipe() -> tuple[int, int]:
    """A pipe whose descriptors are 10 or above, since Chromium needs 3 and 4."""
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return moved[0], moved[1]
