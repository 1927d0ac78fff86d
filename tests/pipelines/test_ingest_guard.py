"""The guard in front of the network, in processes of its own: it cannot be taken off again."""

import contextlib
import json
import subprocess
import sys
import textwrap
import time

import pytest

from pipelines.ingest import guard
from tests.data.servers import Handler, serving

SCRIPT = textwrap.dedent(
    """
    import json, sys, time, urllib.request
    from pipelines.ingest import guard

    asked = json.loads(sys.argv[1])
    if asked["lie"]:
        import socket
        told = socket.getaddrinfo
        answers = iter(asked["lie"])

        def lying(host, port, *rest, **named):
            return told(next(answers) if host == "rebind.example" else host, port, *rest, **named)

        socket.getaddrinfo = lying
    guard.install(**asked["settings"])
    for url in asked["urls"]:
        began = time.monotonic()
        try:
            with urllib.request.urlopen(url, timeout=asked["settings"]["timeout_sec"]) as response:
                said = f"{len(response.read())} bytes"
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        print(json.dumps([url, said, time.monotonic() - began]), flush=True)
    """
)


def ask(*urls, lie=(), **settings):
    """What became of each URL under the guard, and the seconds that it took."""
    values = {"timeout_sec": 2.0, "max_bytes": 100_000} | settings
    asked = json.dumps({"urls": urls, "lie": list(lie), "settings": values})
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, asked],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={
            "PYTHONPATH": ":".join(p for p in sys.path if p) + ":.",
            "http_proxy": "http://10.0.0.9",
        },
    )
    return {url: (said, sec) for url, said, sec in map(json.loads, done.stdout.splitlines())}


class Misbehaving(Handler):
    """Misbehaves as the path says."""

    def do_GET(self):
        self.server.asked[self.path] += 1
        name = self.path.strip("/")
        if name.startswith("to:"):
            self.send_response(302)
            self.send_header("Location", name[3:])
            self.end_headers()
            return
        if name.startswith("around"):
            self.send_response(302)
            self.send_header("Location", f"/around?{self.server.asked.total()}")
            self.end_headers()
            return
        with contextlib.suppress(OSError):
            getattr(self, f"serve_{name.partition('?')[0]}")()

    def serve_good(self):
        self.reply(b"x" * 1000, length=1000)

    def serve_announced(self):
        self.reply(b"x", length=10**12)

    def serve_endless(self):
        self.reply(b"")
        while True:
            self.wfile.write(b"x" * 65536)

    def serve_drip(self):
        self.reply(b"", length=10_000)
        for _ in range(10_000):
            self.wfile.write(b"x")
            time.sleep(0.1)

    def serve_drip_headers(self):
        for byte in b"HTTP/1.0 200 OK\r\nContent-Type: image/jpeg\r\nX-Y: " + b"z" * 10_000:
            self.wfile.write(bytes([byte]))
            time.sleep(0.1)

    def serve_short(self):
        self.reply(b"x" * 10, length=1000)

    def reply(self, body, length=None):
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def server():
    with serving(Misbehaving) as found:
        yield found


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.9.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1",
        "169.254.169.254", "100.100.100.200", "168.63.129.16", "224.0.0.1", "255.255.255.255",
        "::", "::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1",
        "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "localhost",
    ],
)  # fmt: skip
def test_addresses_that_are_not_of_the_open_internet_are_no_public_ones(address):
    assert not guard.is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_addresses_of_the_open_internet_are_public(address):
    assert guard.is_public(address)


def test_no_connection_leaves_for_a_private_address_however_it_is_spelt(server):
    port = server.server_port
    hosts = [
        "127.0.0.1", "localhost", "localhost.", "127.1", "2130706433", "0x7f000001", "0177.0.0.1",
        "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "10.0.0.1", "0",
    ]  # fmt: skip
    before = server.asked.total()
    said = ask(*(f"http://{host}:{port}/good" for host in hosts), timeout_sec=1.0)
    assert len(said) == len(hosts)
    for url, (message, _) in said.items():
        assert guard.MARK + "forbidden_address" in message or "not known" in message, (url, message)
    others = [
        "file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1:70/", "data:text/plain,x",
        f"http://8.8.8.8\\@127.0.0.1:{port}/good", f"http:///127.0.0.1:{port}/good",
    ]  # fmt: skip
    said = ask(*others, timeout_sec=1.0)
    assert not [url for url, (message, _) in said.items() if message.endswith("bytes")]
    assert server.asked.total() == before


def test_a_redirect_or_a_second_answer_of_the_name_server_does_not_get_around_it(server):
    targets = ["http://10.0.0.1/", "file:///etc/passwd", "ftp://127.0.0.1/", "http://[fd00::1]/"]
    urls = [f"{server.url}/to:{target}" for target in targets]
    said = ask(*urls, f"{server.url}/good", allow_loopback=True, timeout_sec=1.0)
    assert said.pop(f"{server.url}/good")[0] == "1000 bytes"
    assert not [url for url, (message, _) in said.items() if message.endswith("bytes")]
    refused = ("guard:forbidden_address", "not allowed", "unknown url type")
    assert [u for u in urls if not any(word in said[u][0] for word in refused)] == []
    # Vetted as one address, connected to as another: the connection itself is looked at.
    before = server.asked.total()
    url = f"http://rebind.example:{server.server_port}/good"
    (message, _) = ask(url, lie=["127.0.0.1"])[url]
    assert guard.MARK + "forbidden_address 127.0.0.1" in message
    assert server.asked.total() == before


def test_a_request_is_bounded_in_time_in_bytes_and_in_redirects(server):
    names = ["good", "announced", "endless", "drip", "drip_headers", "short", "around"]
    said = ask(*(f"{server.url}/{n}" for n in names), allow_loopback=True, timeout_sec=1.0)
    found = {url.rpartition("/")[2]: message for url, (message, _) in said.items()}
    assert found["good"] == "1000 bytes"
    assert guard.MARK + "too_many_bytes" in found["announced"]
    assert guard.MARK + "too_many_bytes" in found["endless"]
    assert "timed out" in found["drip"]
    assert "timed out" in found["drip_headers"]
    assert "IncompleteRead" in found["short"]
    assert "HTTP Error 302" in found["around"]
    assert sum(n for path, n in server.asked.items() if path.startswith("/around")) <= 12
