"""Ingest of a URL list beside img2dataset alone, from a server on loopback.

`python -m benchmarks.ingest_vs_img2dataset [--urls 2730] [--rounds 3]`

All sides download the same list with two processes of 32 threads. Ours keeps the bytes as they
come, decodes every image, hashes it, stores each once, and writes `ingest_attempts` and `samples`.
img2dataset runs twice: keeping the bytes as they come, which looks at no image, and with its own
defaults, which decode, resize to 256 pixels and encode. Starting a program is part of its time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.common import ratio_of_rounds, record
from benchmarks.scoring import photographs

_PROCESSES, _THREADS = 2, 32

_AS_THEY_COME = "disable_all_reencoding=True, extract_exif=False,"
_OURS = """
import sys
from pathlib import Path
from pipelines.ingest import DownloadConfig, IngestConfig, ingest
from schemas.root import Root

if __name__ == "__main__":
    download = DownloadConfig(allow_loopback=True, num_processes={processes}, num_threads={threads})
    config = IngestConfig(download=download, show_progress=False)
    report = ingest(Root.create(Path(sys.argv[1])), "web", sys.argv[2], config)
    assert report.written == {count}, report.line()
"""
_THEIRS = """
import sys
from img2dataset import download

if __name__ == "__main__":
    download(
        url_list=sys.argv[2], input_format="txt", output_folder=sys.argv[1],
        output_format="webdataset", {changes} enable_wandb=False,
        number_sample_per_shard=1000, processes_count={processes},
        thread_count={threads}, timeout=10, retries=0,
    )
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--urls", type=int, default=2730, help="at most")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        beside(Path(work), options.urls, options.rounds)


def beside(work: Path, num_urls: int, rounds: int) -> None:
    folder = photographs(work / "photos")
    files = sorted(folder.glob("*.jpg"))[:num_urls]
    with _Server(files) as address:
        listing = work / "urls.txt"
        listing.write_text("".join(f"{address}/{number}\n" for number in range(len(files))))
        sides = {
            "ours": _OURS,
            "img2dataset": _THEIRS.replace("{changes}", _AS_THEY_COME),
            "defaults": _THEIRS.replace("{changes}", ""),
        }
        times: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(rounds + 1):
            for name, script in sides.items():
                seconds = _timed(work / f"{name}-{number}", script, listing, len(files))
                # The first round fills the caches of the file system.
                if number:
                    times[name].append(seconds)
    print({name: [round(s, 2) for s in found] for name, found in times.items()})
    size = sum(file.stat().st_size for file in files) / len(files) / 1000
    what = (
        f"{len(files)} JPEG photographs of {size:.0f} kB from loopback, {_PROCESSES} processes of "
        f"{_THREADS} threads, start-up included"
    )
    _record(
        "ingest_vs_img2dataset",
        times["img2dataset"],
        times["ours"],
        "img2dataset alone on the same list, bytes kept as they come",
        f"{what}; ours also decodes, hashes and stores every image and writes the tables",
    )
    _record(
        "ingest_vs_img2dataset_defaults",
        times["defaults"],
        times["ours"],
        "img2dataset alone on the same list with its defaults: decode, resize to 256, encode",
        what,
    )


def _record(name: str, theirs: list[float], ours: list[float], beside: str, note: str) -> None:
    figure, spread = ratio_of_rounds(theirs, ours)
    record(
        name,
        figure,
        unit="ratio of rates",
        goal=0.9,
        better="higher",
        compared_with=beside,
        spread=spread,
        note=note,
        packages=("img2dataset", "simplejpeg", "pyarrow", "deltalake"),
    )


def _timed(out: Path, script: str, listing: Path, count: int) -> float:
    text = script.format(processes=_PROCESSES, threads=_THREADS, count=count)
    environment = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"}
    program = out.with_suffix(".py")
    program.write_text(text)
    environment["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), *sys.path])
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, str(program), str(out), str(listing)],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    seconds = time.perf_counter() - began
    if script != _OURS:
        done = [json.loads(p.read_text()) for p in out.glob("*_stats.json")]
        assert sum(one["successes"] for one in done) == count
    return seconds


class _Server:
    """A process that answers with the files' bytes, from memory."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files

    def __enter__(self) -> str:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._files, there), daemon=True)
        self._process.start()
        return f"http://127.0.0.1:{here.recv()}"

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()


def _serve(files: list[Path], pipe: Connection) -> None:
    bodies = [file.read_bytes() for file in files]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        body = bodies[int(request.split(b" ", 2)[1][1:])]
        head = f"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n"
        writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
        await writer.drain()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


if __name__ == "__main__":
    main()
