"""What stands between a list of URLs that strangers wrote and the network that we are in.

It is installed in every process that downloads (`download_child`). Two walls:

* An audit hook sees the address of each connection that this process opens, whoever opens it. It
  lets public ones pass. That is after the name was resolved and after every redirect, so neither a
  name that resolves to a private address, nor one that resolves otherwise the second time, nor a
  spelling of an address that another parser reads differently gets by.
* The opener that ``urllib`` uses knows http and https and no other scheme, no proxy of the
  environment (its addresses would be the proxy's, and nothing could be vetted), and bounds the time
  and the bytes of a request as a whole.
"""

import contextlib
import http.client
import ipaddress
import socket
import sys
import threading
import time
import urllib.request
import weakref
from collections.abc import Iterator
from typing import Any

MARK = "guard:"
"""Begins the messages of this module, followed by a reason code of `pipelines.ingest.items`."""

# Public by number, yet the host of a cloud's own services (Azure).
_DENIED = frozenset({ipaddress.ip_address("168.63.129.16")})
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

_now = threading.local()


class Refused(OSError):
    """The guard stopped a request. The message begins with `MARK` and a reason code."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{MARK}{reason} {detail}")


def is_public(address: str) -> bool:
    """Say whether an IP address is one of the open internet.

    Loopback, private, link-local, shared, multicast and reserved ones are not, nor the addresses
    of clouds' metadata services. IPv6 forms that carry an IPv4 address are judged by that one.

    Args:
        address: in numbers, as the system connects to it; an IPv6 zone may follow a percent sign.
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address) and (inner := _inner(found)) is not None:
        found = inner
    return found.is_global and not found.is_multicast and found not in _DENIED


def install(*, timeout_sec: float, max_bytes: int, allow_loopback: bool = False) -> None:
    """Guard this process from here on; it cannot be undone.

    Args:
        timeout_sec: longest time of a request, redirects and body included.
        max_bytes: longest body.
        allow_loopback: let connections to this machine pass; for tests alone.
    """

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.sendto"):
            _require_public(arguments[-1], allow_loopback)

    sys.addaudithook(hook)
    urllib.request.install_opener(_opener(timeout_sec, max_bytes))


def _inner(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if address in _NAT64 or int(address) >> 32 == 0:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def _require_public(address: Any, allow_loopback: bool) -> None:
    if not isinstance(address, tuple):
        return  # a socket of the file system: how processes of one pool talk
    host = str(address[0])
    if is_public(host) or (allow_loopback and _is_loopback(host)):
        return
    raise Refused("forbidden_address", host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Watchdog(threading.Thread):
    """Cuts connections whose request's time is over, whatever they are doing.

    A limit on each read alone would let a server drip one byte at a time for ever.
    """

    _EVERY_SEC = 0.05

    def __init__(self) -> None:
        super().__init__(daemon=True, name="download-deadlines")
        self._lock = threading.Lock()
        self._watched: list[tuple[float, weakref.ref[socket.socket]]] = []

    def watch(self, sock: socket.socket, deadline: float) -> None:
        """Cut a socket at a time of the monotonic clock, if it is still open then."""
        with self._lock:
            self._watched.append((deadline, weakref.ref(sock)))

    def run(self) -> None:
        """Look at the sockets until the process ends."""
        while True:
            time.sleep(self._EVERY_SEC)
            now = time.monotonic()
            with self._lock:
                late = [ref for deadline, ref in self._watched if deadline <= now]
                self._watched = [w for w in self._watched if w[0] > now and w[1]() is not None]
            for ref in late:
                if (sock := ref()) is not None:
                    with contextlib.suppress(OSError):
                        # Not the TLS socket's own, which takes its state from under the reader.
                        socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _Response(http.client.HTTPResponse):
    """A response whose body has an end, in bytes and in time."""

    max_bytes = 0

    def read(self, amt: int | None = None) -> bytes:
        """Read at most `amt` bytes, or the whole body.

        Raises:
            Refused: the body is longer than allowed.
            TimeoutError: the request's time is over.
            IncompleteRead: the server ended it early.
        """
        if amt is not None:
            return super().read(amt)
        if self.length is not None and self.length > self.max_bytes:
            raise Refused("too_many_bytes", f"{self.length} announced")
        deadline = _now.deadline
        with _in_time(deadline):
            data = super().read(self.max_bytes + 1)
            if len(data) > self.max_bytes:
                raise Refused("too_many_bytes", f"more than {self.max_bytes}")
            # A cut connection ends a body of unknown length as if that were all.
            if self.length or time.monotonic() >= deadline:
                raise http.client.IncompleteRead(data, self.length)
        return data


@contextlib.contextmanager
def _in_time(deadline: float) -> Iterator[None]:
    """Say that time is over where that is why something failed."""
    try:
        yield
    except Refused:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        if time.monotonic() >= deadline:
            raise TimeoutError("timed out") from error
        raise


class _Opener(urllib.request.OpenerDirector):
    """Gives each request, with all its redirects, one deadline."""

    timeout_sec = 0.0

    def open(self, *args: Any, **kwargs: Any) -> Any:
        """Open a request; redirects come here again, within the first one's time."""
        if getattr(_now, "inside", False):
            return super().open(*args, **kwargs)
        _now.inside, _now.deadline = True, time.monotonic() + self.timeout_sec
        try:
            with _in_time(_now.deadline):
                return super().open(*args, **kwargs)
        finally:
            _now.inside = False


def _opener(timeout_sec: float, max_bytes: int) -> urllib.request.OpenerDirector:
    watchdog = _Watchdog()
    watchdog.start()
    response = type("_Response", (_Response,), {"max_bytes": max_bytes})

    def connection(base: type[http.client.HTTPConnection]) -> type[http.client.HTTPConnection]:
        def connect(self: Any) -> None:
            self.timeout = max(0.001, _now.deadline - time.monotonic())
            base.connect(self)
            watchdog.watch(self.sock, _now.deadline)

        return type(base.__name__, (base,), {"connect": connect, "response_class": response})

    http_class, https_class = map(
        connection, (http.client.HTTPConnection, http.client.HTTPSConnection)
    )

    class Http(urllib.request.HTTPHandler):
        def http_open(self, request: urllib.request.Request) -> Any:
            return self.do_open(http_class, request)

    class Https(urllib.request.HTTPSHandler):
        def https_open(self, request: urllib.request.Request) -> Any:
            return self.do_open(https_class, request, context=self._context)  # type: ignore[attr-defined]

    opener = _Opener()
    opener.timeout_sec = timeout_sec
    for handler in (
        Http(),
        Https(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener
