"""A server that refuses, stalls and recovers: who is asked how often, by the server's own count."""

import contextlib
import time
from collections import Counter

import pytest

from pipelines.ingest import DownloadConfig, IngestConfig, ingest
from tests.data.pictures import attempts, encoded, put, samples
from tests.data.servers import Handler, serving

GOOD = [f"good-{number}" for number in range(28)]
GONE = [f"404-always-{number}" for number in range(3)]
# Passes once it has been asked that many times, by whatever run.
RECOVERING = [f"{kind}-{times}-0" for kind in ("429", "503", "stall") for times in (1, 2)]
NEVER = ["429-always-0", "503-always-0", "stall-always-0"]
NAMES = [*GOOD, *GONE, *RECOVERING, *NEVER]
REASONS = {"404": "http_404", "429": "http_429", "503": "http_503", "stall": "timeout"}
STALL_SECONDS = 2.5


class Flaky(Handler):
    """Answers by the name of the path and by how often it was asked for."""

    def do_GET(self):
        name = self.path.strip("/")
        self.server.asked[name] += 1
        kind, _, rest = name.partition("-")
        times = rest.partition("-")[0]
        if kind in REASONS and (times == "always" or self.server.asked[name] <= int(times)):
            if kind == "stall":
                time.sleep(STALL_SECONDS)
            else:
                self.send_error(int(kind))
                return
        body = encoded(NAMES.index(name))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        with contextlib.suppress(OSError):  # who waited too long is gone
            self.end_headers()
            self.wfile.write(body)


@pytest.fixture
def server():
    with serving(Flaky) as found:
        yield found


def statuses(root, url):
    """(status, reason) by name; every listed row stands in the table once."""
    rows = attempts(root).values()
    assert sorted(row["source_uri"] for row in rows) == sorted(f"{url}/{name}" for name in NAMES)
    return {row["source_uri"].rpartition("/")[2]: (row["status"], row["reason"]) for row in rows}


@pytest.mark.slow
def test_of_a_mix_of_refusals_only_what_may_pass_is_asked_again_and_only_until_it_does(
    root, tmp_path, server
):
    assert len(NAMES) - len(GOOD) == round(0.3 * len(NAMES))
    listing = put(tmp_path / "urls.txt", "\n".join(f"{server.url}/{name}" for name in NAMES))
    asked_by_now = Counter()
    # Rounds of each run; a run asks for what may pass at most that many times.
    for rounds in (2, 1):
        download = DownloadConfig(
            timeout_sec=2,
            num_rounds=rounds,
            first_wait_sec=0,
            num_processes=1,
            num_threads=8,
            allow_loopback=True,
        )
        before = asked_by_now.total()
        ingest(root, "b", listing, IngestConfig(show_progress=False, download=download))
        for name in NAMES:
            asked_by_now[name] = min(asked_by_now[name] + rounds, needed(name))
        assert server.asked == asked_by_now
        assert server.asked.total() > before  # what never passes is asked for in every run
        assert statuses(root, server.url) == {
            name: outcome(name, asked_by_now[name]) for name in NAMES
        }
    assert {row["sample_id"] for row in samples(root)} == {
        row["sample_id"] for row in attempts(root).values() if row["status"] == "stored"
    }
    assert len(samples(root)) == len(GOOD) + len(RECOVERING)


def needed(name):
    """After how many requests nobody has a reason to ask again."""
    times = name.split("-")[1]
    if name in GOOD or name in GONE:
        return 1
    return float("inf") if times == "always" else int(times) + 1


def outcome(name, times_asked):
    """What a row says once its URL was asked for that many times."""
    if name not in GONE and times_asked == needed(name):
        return "stored", None
    return "rejected", REASONS[name.partition("-")[0]]
