"""A headless Chromium that clicks, types and reads as a person does, by the DevTools protocol."""

import base64
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from websockets.sync.client import connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SECONDS = 60
# The last of the smallest elements that can be seen and used and whose text is what is looked for.
_FIND = """(() => {
  const [wanted, whole, inside] = %s;
  const clean = (e) => (e.innerText || e.placeholder || '').replace(/\\s+/g, ' ').trim();
  const fits = (e) => whole ? clean(e) === wanted : clean(e).includes(wanted);
  const seen = (e) => {
    const box = e.getBoundingClientRect();
    return box.width && box.height && !e.closest('[disabled], [aria-disabled=true]');
  };
  const all = [...document.querySelectorAll(inside)].filter((e) => seen(e) && fits(e));
  const found = all.filter((e) => !all.some((other) => other !== e && e.contains(other)));
  if (!found.length) return null;
  const one = found[found.length - 1];
  one.scrollIntoView({block: 'center'});
  const box = one.getBoundingClientRect();
  return [box.x + box.width / 2, box.y + box.height / 2];
})()"""


def needs_browser(test):
    """Mark a test that opens pages."""
    installed = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
    return pytest.mark.browser(installed(test))


class Browser:
    """One page. See `opened`."""

    def __init__(self, socket):
        self._socket, self._numbers = socket, itertools.count(1)
        self.errors = []

    def call(self, method, **params):
        """Call a method of the protocol and return its result."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv(timeout=SECONDS))
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(answer["params"]["exceptionDetails"]["text"])
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def run(self, expression):
        """Return the value of an expression of JavaScript."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def go(self, url):
        """Open an address."""
        self.call("Page.navigate", url=url)

    def text(self):
        """Return what can be read on the page, words parted by single spaces."""
        said = self.run("document.body ? document.body.innerText : ''") or ""
        return " ".join(said.split())

    def read(self, *wanted, seconds=SECONDS):
        """Wait until all of these texts can be read; return the page's text."""
        found = self._until(lambda: self._has(wanted), seconds, lambda: self._missing(wanted))
        return found

    def click(self, text, *, whole=True, inside="*"):
        """Click on what bears a text, once it is there."""
        where = json.dumps([text, whole, inside])
        place = self._until(
            lambda: self.run(_FIND % where), SECONDS, lambda: f"nothing says {text!r} on the page"
        )
        time.sleep(0.5)  # dialogs slide into their place
        x, y = self.run(_FIND % where) or place
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def write(self, text):
        """Type where the cursor is."""
        self.call("Input.insertText", text=text)

    def wait(self, expression, why):
        """Wait until an expression of JavaScript is true; return its value."""
        return self._until(lambda: self.run(expression), SECONDS, lambda: why)

    def picture(self, file):
        """Write what is seen as PNG."""
        shot = self.call("Page.captureScreenshot", format="png")
        Path(file).write_bytes(base64.b64decode(shot["data"]))

    def _has(self, wanted):
        text = self.text()
        return text if all(one in text for one in wanted) else None

    def _missing(self, wanted):
        text = self.text()
        return f"the page does not say {[one for one in wanted if one not in text]}, but: {text}"

    def _until(self, ask, seconds, why):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = ask()
            if found:
                return found
            time.sleep(0.2)
        raise AssertionError(why())


@contextmanager
def opened(folder, width=1600, height=860):
    """Start a Chromium with a profile in a folder; yields its page, and ends it."""
    profile = Path(folder) / "profile"
    process = subprocess.Popen(
        [
            *(CHROMIUM, *QUIET, f"--user-data-dir={profile}", f"--window-size={width},{height}"),
            *("--remote-debugging-port=0", "--remote-allow-origins=*", "about:blank"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with connect(_address(profile, process), max_size=None) as socket:
            browser = Browser(socket)
            browser.call("Page.enable")
            browser.call("Runtime.enable")
            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            browser.call("Emulation.setDeviceMetricsOverride", **size)
            yield browser
    finally:
        process.terminate()
        process.wait(30)


def _address(profile, process):
    port, end = profile / "DevToolsActivePort", time.monotonic() + SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, "Chromium ended"
        if port.exists() and (lines := port.read_text().split()):
            with urllib.request.urlopen(f"http://127.0.0.1:{lines[0]}/json/list") as answer:
                pages = [p for p in json.load(answer) if p["type"] == "page"]
            if pages:
                return pages[0]["webSocketDebuggerUrl"]
        time.sleep(0.1)
    raise TimeoutError("Chromium did not come up")
