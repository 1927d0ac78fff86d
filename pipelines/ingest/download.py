"""img2dataset as a subprocess, judged by the sidecar files it leaves and never by its exit code."""

import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ambient_omni.progress import progress
from pipelines.ingest.config import DownloadConfig, IngestConfig
from pipelines.ingest.early import EarlyVerifier
from pipelines.ingest.guard import MARK
from pipelines.ingest.items import (
    CONNECTION_FAILED,
    DISALLOWED,
    DOWNLOAD_FAILED,
    NO_STATUS,
    TIMEOUT,
    Fetched,
)
from pipelines.ingest.tar_index import read_index
from schemas.errors import BadInput, IngestIncomplete
from schemas.ids import canonical_hash

NUM_TRIES = 2
POLL_SECONDS = 0.5
_STATUS_COLUMNS = ["listed", "status", "error_message", "key"]


def download(urls: Sequence[str], work: Path, config: IngestConfig) -> dict[str, Fetched]:
    """Fetch distinct URLs into shards under `work`; shards that are done there are kept.

    What failed for a reason that may pass is asked for again, in `num_rounds` rounds in all.

    Returns:
        For each URL that img2dataset finished with, what became of it.

    Raises:
        BadInput: img2dataset is not installed.
        IngestIncomplete: shards are missing after every try.
    """
    require_img2dataset()
    found: dict[str, Fetched] = {}
    left = list(urls)
    with EarlyVerifier(config, len(left)) as early:
        for number in range(config.download.num_rounds):
            folder = work / f"round-{number}-{canonical_hash(left)}"
            if number and not folder.exists():
                time.sleep(config.download.first_wait_sec * 2 ** (number - 1))
            found |= _round(left, folder, config, early)
            left = [url for url in left if url not in found or found[url].is_worth_another_try]
            if not left:
                break
        known = early.verified()
    return {
        url: replace(one, verified=known.get((one.path, one.offset))) for url, one in found.items()
    }


def _round(
    urls: Sequence[str], folder: Path, config: IngestConfig, early: EarlyVerifier
) -> dict[str, Fetched]:
    shard_size = _shard_size(len(urls), config.download)
    num_shards = math.ceil(len(urls) / shard_size)
    folder = folder / f"shards-of-{shard_size}"
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[int, dict[int, Fetched]] = {}

    def collect() -> None:
        """Take in the shards that were finished since the last time."""
        for shard in sorted(_done(folder) - set(found)):
            found[shard] = dict(_fetched(folder, shard, len(urls)))
            early.take(list(found[shard].values()))

    collect()
    for _ in range(NUM_TRIES):
        if len(found) < num_shards:
            _fetch(urls, folder, shard_size, num_shards, config, collect)
    if len(found) < num_shards:
        raise IngestIncomplete(
            f"img2dataset finished {len(found)} of {num_shards} shards of {len(urls)} URLs "
            f"({_last_words(folder)}); run again to go on, its log is {folder / 'log.txt'}"
        )
    return {urls[i]: one for shard in sorted(found) for i, one in found[shard].items()}


def require_img2dataset() -> None:
    """Refuse at once where the downloader is missing.

    Raises:
        BadInput: img2dataset is not installed.
    """
    if importlib.util.find_spec("img2dataset") is None:
        raise BadInput("a URL list needs img2dataset: pip install 'ambient-omni[download]'")


def reason_of(message: str) -> str:
    """Return the reason code of one of img2dataset's error messages."""
    if found := re.search(re.escape(MARK) + r"([a-z_]+)", message):
        return found.group(1)
    if found := re.search(r"HTTP Error (\d{3})", message):
        return f"http_{found.group(1)}"
    if "X-Robots-Tag" in message:
        return DISALLOWED
    if "timed out" in message:
        return TIMEOUT
    return CONNECTION_FAILED if "urlopen error" in message else DOWNLOAD_FAILED


def _shard_size(num_urls: int, settings: DownloadConfig) -> int:
    # A shard is one process's work, and all processes should end at about the same time.
    num_turns = math.ceil(num_urls / (settings.urls_per_shard * settings.num_processes))
    return max(1, math.ceil(num_urls / (num_turns * settings.num_processes)))


def _done(folder: Path) -> set[int]:
    """Return the finished shards: img2dataset writes the statistics of a shard last."""
    return {int(p.name.partition("_")[0]) for p in (folder / "out").glob("*_stats.json")}


def _fetch(
    urls: Sequence[str],
    folder: Path,
    shard_size: int,
    num_shards: int,
    config: IngestConfig,
    collect: Callable[[], None],
) -> None:
    table = pa.table({"url": list(urls), "listed": [str(i) for i in range(len(urls))]})
    pq.write_table(table, folder / "urls.parquet")
    options = _options(folder, shard_size, config.download)
    (folder / "options.json").write_text(json.dumps(options))
    with (
        progress(
            label="download", unit="shard", total=num_shards, show=config.show_progress
        ) as bar,
        _running(folder, config) as process,
    ):
        while True:
            try:
                process.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                bar.update(len(_done(folder)) - bar.n)
                collect()
                continue
            bar.update(len(_done(folder)) - bar.n)
            collect()
            return


def _options(folder: Path, shard_size: int, settings: DownloadConfig) -> dict[str, Any]:
    return {
        "url_list": str(folder / "urls.parquet"),
        "input_format": "parquet",
        "url_col": "url",
        "save_additional_columns": ["listed"],
        "output_folder": str(folder / "out"),
        "output_format": "webdataset",
        # The bytes are stored as they came; what they are is for verify.py to say.
        "disable_all_reencoding": True,
        "extract_exif": False,
        "enable_wandb": False,
        "incremental_mode": "incremental",
        "number_sample_per_shard": shard_size,
        "processes_count": settings.num_processes,
        "thread_count": settings.num_threads,
        "timeout": settings.timeout_sec,
        "retries": 0,  # at once is too soon: see `download`
    }


@contextmanager
def _running(folder: Path, config: IngestConfig) -> Iterator["subprocess.Popen[bytes]"]:
    """Run img2dataset; it and its workers end with this block, or with this process."""
    command = [sys.executable, "-m", "pipelines.ingest.download_child", str(folder)]
    guard = {
        "timeout_sec": config.download.timeout_sec,
        "max_bytes": config.max_image_bytes,
        "allow_loopback": config.download.allow_loopback,
    }
    environment = os.environ | {
        "AMBIENT_OMNI_DOWNLOAD_GUARD": json.dumps(guard),
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # never written to: its end tells the child that we are gone
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _fetched(folder: Path, shard: int, num_urls: int) -> Iterator[tuple[int, Fetched]]:
    """Yield (number of the URL, what became of it) of a shard."""
    stem = folder / "out" / f"{shard:05d}"
    path = stem.with_suffix(".tar")
    members = {m.name: m for m in read_index(path) if m.name.endswith(".jpg")}
    rows = pq.read_table(stem.with_suffix(".parquet"), columns=_STATUS_COLUMNS).to_pylist()
    for row in rows:
        number = int(row["listed"])
        assert 0 <= number < num_urls
        member = members.get(f"{row['key']}.jpg")
        if row["status"] != "success":
            message = str(row["error_message"] or row["status"])
            yield number, Fetched(reason=reason_of(message), detail=message[:200])
        elif member is None or member.reason is not None:
            yield number, Fetched(reason=NO_STATUS, detail="no bytes in the shard")
        else:
            yield number, Fetched(str(path), member.offset, member.num_bytes)


def _last_words(folder: Path) -> str:
    try:
        lines = (folder / "log.txt").read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1][:200] if lines else "it said nothing"
