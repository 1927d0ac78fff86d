"""HTTP servers on loopback that count what they are asked for."""

import http.server
import threading
from collections import Counter
from contextlib import contextmanager


class Handler(http.server.BaseHTTPRequestHandler):
    """Writes no line for each request."""

    def log_message(self, *_):
        pass


class _Server(http.server.ThreadingHTTPServer):
    # With the default of 5, some of many connections at once wait a second for another try.
    request_queue_size = 64


@contextmanager
def serving(handler):
    """Serve; yields the server with its `url` and `asked`, which the handler counts in."""
    server = _Server(("127.0.0.1", 0), handler)
    server.asked = Counter()
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
