"""Ingest of URL lists through the real img2dataset, against a server on loopback."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ambient_omni.images import ImageLimits, inspect
from pipelines.ingest import DownloadConfig, IngestConfig, download, ingest
from pipelines.ingest.items import Fetched, ListedItem
from pipelines.ingest.url_list import UrlListSource
from schemas.errors import BadInput, IngestIncomplete
from schemas.ids import sample_id_of
from tests.data.pictures import attempts, encoded, put, samples, stored_bytes
from tests.data.servers import Handler, serving

CONFIG = IngestConfig(
    show_progress=False,
    download=DownloadConfig(
        timeout_sec=1, num_rounds=1, num_processes=1, num_threads=4, allow_loopback=True
    ),
)


class Pictures(Handler):
    """Serves pictures by number; other paths misbehave as their names say."""

    def do_GET(self):
        self.server.asked[self.path] += 1
        name = self.path.strip("/")
        if name == "slow":
            time.sleep(2.5)
        if name in ("404", "503"):
            self.send_error(int(name))
            return
        body = b"<html>" if name == "page" else encoded(name, "JPEG" if name[0] == "j" else "PNG")
        body = b"" if name == "empty" else body
        self.send_response(200)
        if name == "optout":
            self.send_header("X-Robots-Tag", "noai")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)


@pytest.fixture
def server():
    with serving(Pictures) as found:
        yield found


@pytest.mark.slow
def test_every_listed_row_ends_as_one_attempt_and_bytes_are_as_they_came(root, tmp_path, server):
    rows = [
        ("j1", "first"),
        ("p2", None),
        ("j1", "the same url again"),
        ("404", "gone"),
        ("503", None),
        ("page", None),
        ("empty", None),
        ("optout", None),
        ("slow", None),
        ("j1?other", "same bytes, other url"),
    ]
    rows = [(f"{server.url}/{name}".replace("?", "#"), caption) for name, caption in rows]
    rows += [("file:///etc/passwd", None), (None, None), ("http://127.0.0.1:1/x", None)]
    lines = [json.dumps({"URL": url, "TEXT": caption}) for url, caption in rows]
    listing = put(tmp_path / "web.jsonl", "\n".join([*lines, "{oops", "[1]"]) + "\n")
    report = ingest(root, "b", listing, CONFIG)
    found = attempts(root)
    assert [key.split(":")[0] for key in sorted(found, key=lambda k: int(k.split(":")[0]))] == [
        str(number) for number in range(1, 16)
    ]
    by_number = {int(k.split(":")[0]): (r["status"], r["reason"]) for k, r in found.items()}
    assert by_number == {
        1: ("stored", None),
        2: ("stored", None),
        3: ("duplicate", None),
        4: ("rejected", "http_404"),
        5: ("rejected", "http_503"),
        6: ("rejected", "not_an_image"),
        7: ("rejected", "empty_file"),
        8: ("rejected", "disallowed"),
        9: ("rejected", "timeout"),
        10: ("duplicate", None),
        11: ("rejected", "unsupported_scheme"),
        12: ("rejected", "no_url"),
        13: ("rejected", "connection_failed"),
        14: ("rejected", "bad_row"),
        15: ("rejected", "bad_row"),
    }
    assert server.asked["/j1"] <= 2  # as one url, and with its fragment as another
    stored = samples(root)
    assert [stored_bytes(root, row) for row in stored] == [encoded("j1", "JPEG"), encoded("p2")]
    assert [row["caption"] for row in stored] == ["first", None]
    assert {row["source"] for row in stored} == {"web"}
    assert stored[0]["sample_id"] == sample_id_of(encoded("j1", "JPEG"))
    assert (report.read, report.written) == (15, 2)
    # Only what may have passed is asked again, nothing changes, nothing is left behind.
    asked, versions = server.asked.copy(), root.tables.versions(["ingest_attempts", "samples"])
    assert ingest(root, "b", listing, CONFIG).unchanged == 2
    assert {path for path in server.asked if server.asked[path] > asked[path]} == {"/503", "/slow"}
    assert root.tables.versions(["ingest_attempts", "samples"]) == versions
    assert not list(root.work.rglob("*.tar"))


KILLED = """
import sys
from pipelines.ingest import DownloadConfig, IngestConfig, ingest
from schemas.root import Root
if __name__ == "__main__":
    settings = DownloadConfig(
        timeout_sec=5, num_processes=1, num_threads=2, urls_per_shard=5, allow_loopback=True
    )
    ingest(Root.open(sys.argv[1]), "b", sys.argv[2], IngestConfig(download=settings))
"""


def processes_of(folder):
    """Process ids whose command line names the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(folder) in (entry / "cmdline").read_bytes().decode(errors="replace"):
                found.append(int(entry.name))
    return found


@pytest.mark.slow
def test_a_killed_download_ends_its_workers_and_goes_on_where_it_was(root, tmp_path, server):
    names = [f"p{number}" for number in range(20)]
    listing = put(tmp_path / "urls.txt", "\n".join(f"{server.url}/{n}" for n in names))
    script = put(tmp_path / "run.py", KILLED)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
    command = [sys.executable, str(script), str(root.path), str(listing)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(root.work.rglob("*_stats.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while processes_of(root.work) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not processes_of(root.work)
    done = len(list(root.work.rglob("*_stats.json")))
    assert done >= 1
    asked = server.asked.copy()
    settings = DownloadConfig(timeout_sec=5, num_processes=1, urls_per_shard=5, allow_loopback=True)
    report = ingest(root, "b", listing, CONFIG.model_copy(update={"download": settings}))
    assert report.written == 20
    # Shards that were done when it was killed were not fetched again.
    again = sum(1 for path in asked if server.asked[path] > asked[path])
    assert again <= 20 - 5 * done
    ids = [sample_id_of(encoded(name)) for name in names]
    assert [row["sample_id"] for row in samples(root)] == ids


def stub_download(monkeypatch, reason=None):
    monkeypatch.setattr(
        "pipelines.ingest.url_list.download",
        lambda urls, work, config: {u: Fetched(reason=reason or "x") for u in urls},
    )


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet", "txt"])
def test_lists_of_every_kind_name_the_same_rows(tmp_path, monkeypatch, suffix):
    stub_download(monkeypatch)
    urls, captions = ["http://a/1", "https://a/2,x"], ["one, two", "three"]
    path = tmp_path / f"list.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"Url": urls, "caption": captions, "more": [1, 2]}), path)
    elif suffix == "jsonl":
        rows = zip(urls, captions, strict=True)
        put(path, "\n".join(json.dumps({"url": u, "caption": c}) for u, c in rows))
    elif suffix == "txt":
        put(path, "\n".join(urls))
    else:
        mark = "," if suffix == "csv" else "\t"
        put(path, f'url{mark}caption\n{urls[0]}{mark}"one, two"\n"{urls[1]}"{mark}three\n')
    items = UrlListSource(path, CONFIG).items(tmp_path, {})
    assert [(i.key, i.uri) for i in items] == [(f"{n}:{u}", u) for n, u in enumerate(urls, 1)]
    if suffix != "txt":
        assert [i.caption for i in items] == captions
    assert all(isinstance(i, ListedItem) and i.reason == "x" for i in items)


def test_a_list_without_the_column_or_without_any_url_is_a_clear_error(root, tmp_path):
    with pytest.raises(BadInput, match=r"no column 'url' but \['link'\]"):
        ingest(root, "b", put(tmp_path / "a.csv", "link\nhttp://x/y\n"), CONFIG)
    with pytest.raises(BadInput, match="all 2 items were rejected: unsupported_scheme 2"):
        ingest(root, "b", put(tmp_path / "b.csv", "url\nfile:///etc/passwd\nftp://x/y\n"), CONFIG)
    assert len(attempts(root)) == 2
    with pytest.raises(BadInput, match="lists nothing"):
        ingest(root, "b", put(tmp_path / "d.csv", "url\n"), CONFIG)
    with pytest.raises(BadInput, match="cannot be read"):
        ingest(root, "b", put(tmp_path / "c.parquet", "no parquet"), CONFIG)


def fake_download(monkeypatch, tmp_path, outcomes):
    """Let `outcomes` (url to a reason or to bytes) stand for the web; return what was asked."""
    asked = []

    def fetch(urls, work, config):
        asked.extend(urls)
        found = {}
        for number, url in enumerate(urls):
            if isinstance(outcomes[url], str):
                found[url] = Fetched(reason=outcomes[url])
                continue
            path = put(tmp_path / f"fetched/{number}", outcomes[url])
            found[url] = Fetched(str(path), 0, len(outcomes[url]))
        return found

    monkeypatch.setattr("pipelines.ingest.url_list.download", fetch)
    return asked


def test_another_run_asks_only_for_what_failed_and_may_not_fail_again(root, tmp_path, monkeypatch):
    web = {
        "http://a/1": encoded(1),
        "http://a/2": "timeout",
        "http://a/3": "http_404",
        "http://a/4": "http_503",
        "http://a/5": b"<html>",
        "http://a/6": "forbidden_address",
    }
    asked = fake_download(monkeypatch, tmp_path, web)
    rows = [{"url": url, "caption": f"of {url}"} for url in web]
    listing = put(tmp_path / "web.jsonl", "\n".join(json.dumps(row) for row in rows))
    first = ingest(root, "b", listing, CONFIG)
    assert "2 of 6 URLs could not be fetched; run again" in first.line()
    assert asked == list(web)
    del asked[:]
    web |= {"http://a/2": encoded(2)}
    second = ingest(root, "b", listing, CONFIG)
    assert asked == ["http://a/2", "http://a/4"]
    assert (second.written, second.unchanged) == (2, 0)
    assert second.rejected == {
        "forbidden_address": 1,
        "http_404": 1,
        "http_503": 1,
        "not_an_image": 1,
    }
    assert [row["caption"] for row in samples(root)] == ["of http://a/1", "of http://a/2"]
    del asked[:]
    web |= {"http://a/4": encoded(4)}
    assert ingest(root, "b", listing, CONFIG).notes == ()
    assert asked == ["http://a/4"]
    assert ingest(root, "b", listing, CONFIG).unchanged == 3
    assert asked == ["http://a/4"]


def test_a_longer_list_asks_for_its_new_urls_alone_and_other_limits_for_refused_images(
    root, tmp_path, monkeypatch
):
    web = {"http://a/1": encoded(1), "http://a/2": encoded(2), "http://a/3": b"<html>"}
    asked = fake_download(monkeypatch, tmp_path, web)
    listing = put(tmp_path / "web.txt", "http://a/1\nhttp://a/3\n")
    ingest(root, "b", listing, CONFIG)
    del asked[:]
    put(listing, "http://a/1\nhttp://a/2\nhttp://a/3\n")
    before = samples(root)
    ingest(root, "b", listing, CONFIG)
    assert asked == ["http://a/2"]
    kept = ("sample_row", "sample_id", "caption")
    assert [samples(root)[0][name] for name in kept] == [before[0][name] for name in kept]
    del asked[:]
    other = CONFIG.model_copy(update={"limits": ImageLimits(min_side=2)})
    ingest(root, "b", listing, other)
    assert asked == ["http://a/3"]


def test_what_was_decoded_once_is_only_hashed_again_unless_settings_or_bytes_changed(
    root, tmp_path, monkeypatch
):
    web = {f"http://a/{number}": encoded(number) for number in range(4)}
    fake_download(monkeypatch, tmp_path, web | {"http://a/3": "timeout"})
    decoded = []
    monkeypatch.setattr(
        "pipelines.ingest.verify.inspect",
        lambda data, *settings: decoded.append(data) or inspect(data, *settings),
    )
    listing = put(tmp_path / "web.txt", "\n".join(web))
    ingest(root, "b", listing, CONFIG)
    assert len(decoded) == 3
    before = samples(root)
    del decoded[:]
    fake_download(monkeypatch, tmp_path, web)
    ingest(root, "b", listing, CONFIG)
    assert decoded == [web["http://a/3"]]
    assert [{**row, "shard": "", "byte_offset": 0} for row in samples(root)[:3]] == [
        {**row, "shard": "", "byte_offset": 0} for row in before
    ]
    del decoded[:]
    ingest(root, "b", listing, CONFIG.model_copy(update={"limits": ImageLimits(min_side=2)}))
    assert len(decoded) == 4
    # A byte that turned in the shard is seen by the hash, and judged like any other bytes.
    first = samples(root)[0]
    with (root.shards / first["shard"]).open("r+b") as shard:
        shard.seek(first["byte_offset"])
        shard.write(b"\0")
    del decoded[:]
    put(listing, "\n".join([*web, "http://a/0"]))
    other = CONFIG.model_copy(update={"limits": ImageLimits(min_side=2)})
    report = ingest(root, "b", listing, other)
    assert set(decoded) == {b"\0" + web["http://a/0"][1:]}
    assert report.rejected == {"not_an_image": 2}


def test_a_list_of_which_every_url_failed_is_asked_again_by_the_next_run(
    root, tmp_path, monkeypatch
):
    web = {"http://a/1": "connection_failed"}
    asked = fake_download(monkeypatch, tmp_path, web)
    kept = put(root.work / "ingest/b/round-0/out/00000_stats.json", "{}")
    listing = put(tmp_path / "web.txt", "http://a/1\n")
    with pytest.raises(BadInput, match="connection_failed 1"):
        ingest(root, "b", listing, CONFIG)
    assert not kept.exists()  # or the failed download would be taken for a finished one
    web["http://a/1"] = encoded(1)
    assert ingest(root, "b", listing, CONFIG).written == 1
    assert len(asked) == 2


def test_without_img2dataset_one_line_names_the_extra(root, tmp_path, monkeypatch):
    monkeypatch.setattr(download.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pip install 'ambient-omni\[download\]'"):
        ingest(root, "b", put(tmp_path / "a.txt", "http://127.0.0.1:1/x"), CONFIG)


def test_a_downloader_that_dies_is_told_with_its_last_words(root, tmp_path, monkeypatch):
    @contextlib.contextmanager
    def dying(folder, config):
        put(folder / "log.txt", "start\nout of memory\n")
        with subprocess.Popen([sys.executable, "-c", ""]) as process:
            yield process

    monkeypatch.setattr(download, "_running", dying)
    with pytest.raises(IngestIncomplete, match=r"0 of 1 shards of 1 URLs \(out of memory\)"):
        ingest(root, "b", put(tmp_path / "a.txt", "http://127.0.0.1:1/x"), CONFIG)
    assert not root.tables.exists("samples")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("HTTP Error 429: Too Many Requests", "http_429"),
        ("The read operation timed out", "timeout"),
        ("<urlopen error [Errno 111] Connection refused>", "connection_failed"),
        ("<urlopen error guard:forbidden_address 10.0.0.1>", "forbidden_address"),
        ("guard:too_many_bytes 99 announced", "too_many_bytes"),
        ("Use of image disallowed by X-Robots-Tag directive", "disallowed"),
        ("IncompleteRead(10 bytes read)", "download_failed"),
    ],
)
def test_messages_of_the_downloader_become_reason_codes(message, reason):
    assert download.reason_of(message) == reason


@pytest.mark.slow
def test_the_real_downloader_does_not_reach_into_this_machine(root, tmp_path, server):
    listing = put(tmp_path / "urls.txt", f"{server.url}/j1\n{server.url}/p2\n")
    guarded = CONFIG.download.model_copy(update={"allow_loopback": False})
    with pytest.raises(BadInput, match="forbidden_address 2"):
        ingest(root, "b", listing, CONFIG.model_copy(update={"download": guarded}))
    assert server.asked.total() == 0
