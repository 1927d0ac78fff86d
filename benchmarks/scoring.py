"""Scoring over Spark beside a bare pool and beside cleanvision, and its memory over many images.

`python -m benchmarks.scoring [--rounds 3] [--images 100000] [--only peers|memory]`
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from benchmarks.common import cache_folder, ratio_of_rounds, record
from benchmarks.photos import landscapes, load
from pipelines.ingest import IngestConfig, ingest
from pipelines.jobs.score import JOB, ScoreConfig, score
from pipelines.scorers.classical import CLASSICAL
from pipelines.spark import SparkSettings
from schemas.root import Root

CONFIG = ScoreConfig(packs=("classical",), encoder=None)
SETTINGS = SparkSettings(num_cores=2)
TABLE = "scores/classical"
CLEANVISION = "cleanvision==0.3.7"
CLASSIC_CHECKS = (
    "dark", "light", "odd_aspect_ratio", "odd_size", "low_information", "blurry", "grayscale",
)  # fmt: skip
_QUALITIES = (95, 92, 90, 88, 85, 82, 80, 75, 70, 60)
# As many images a piece of the pool's work as a small batch's task has.
_PIECE = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=100_000, help="tiles of the memory run")
    parser.add_argument("--only", choices=("peers", "memory"), help="one half of it")
    parser.add_argument("--memory-child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_child is not None:
        memory_child(options.memory_child)
        return
    with tempfile.TemporaryDirectory() as work:
        if options.only != "memory":
            beside_peers(Path(work), options.rounds)
        if options.only != "peers":
            memory(Path(work), options.images)


def beside_peers(work: Path, rounds: int) -> None:
    """Time the job, a pool of two processes, and cleanvision with two processes, in turns."""
    folder = photographs(work / "photos")
    root = Root.create(work / "root")
    ingest(root, "photos", str(folder), IngestConfig())
    files = sorted(folder.glob("*.jpg"))
    times: dict[str, list[float]] = {"job": [], "pool": [], "cleanvision": []}
    peer = _cleanvision_python()
    # As in the session's workers: two processes of one thread each are faster than of two.
    os.environ["OMP_NUM_THREADS"] = "1"
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for number in range(rounds + 1):
            taken = {
                "job": _timed_job(root, "photos"),
                "pool": _timed_pool(pool, files),
                "cleanvision": _cleanvision_seconds(peer, folder),
            }
            # The first round starts the workers.
            if number:
                for name, seconds in taken.items():
                    times[name].append(seconds)
    print({name: [round(s, 2) for s in found] for name, found in times.items()})
    what = f"{len(files)} photographs of 720 x 360, nine classical scores"
    figure, spread = ratio_of_rounds(times["pool"], times["job"])
    record(
        "scoring_vs_bare_pool",
        figure,
        unit="ratio of rates",
        goal=0.9,
        better="higher",
        compared_with="two processes that decode with simplejpeg and run the same scorers",
        spread=spread,
        note=f"{what}; the job also hashes the bytes, writes Parquet and commits",
        packages=("numpy", "simplejpeg", "pyspark", "pyarrow"),
    )
    figure, spread = ratio_of_rounds(times["cleanvision"], times["job"])
    record(
        "scoring_vs_cleanvision",
        figure,
        unit="ratio of rates",
        goal=3.0,
        better="higher",
        compared_with=f"{CLEANVISION}, n_jobs=2, its seven checks that look at one image",
        spread=spread,
        note=f"{what}; imports and the start of both are left out",
        packages=("numpy", "simplejpeg", "pyspark", "pyarrow"),
    )


def _timed_job(root: Root, batch: str) -> float:
    """Score the batch anew; making the slice stale is not timed."""
    empty = root.tables.read(TABLE).slice(0, 0)
    slice_ = {"scorer_version": CLASSICAL.version, "ingest_batch": batch}
    root.tables.commit(TABLE, empty, slice=slice_, inputs={"at": time.time()}, job=JOB)
    began = time.perf_counter()
    report = score(root, batch, CONFIG, settings=SETTINGS)
    seconds = time.perf_counter() - began
    assert report.written == report.read > 0
    return seconds


def _timed_pool(pool: Pool, files: list[Path]) -> float:
    pieces = [files[start : start + _PIECE] for start in range(0, len(files), _PIECE)]
    began = time.perf_counter()
    rows = sum(pool.imap_unordered(_score_files, pieces))
    seconds = time.perf_counter() - began
    assert rows == len(files)
    return seconds


def _score_files(files: list[Path]) -> int:
    images = [simplejpeg.decode_jpeg(file.read_bytes()) for file in files]
    return len(CLASSICAL.score(images).reasons)


def photographs(folder: Path) -> Path:
    """Write each landscape at several JPEG qualities; return the folder."""
    folder.mkdir(parents=True)
    for path in sorted(landscapes().glob("*.jpg")):
        with Image.open(path) as image:
            for quality in _QUALITIES:
                image.convert("RGB").save(folder / f"{path.stem}-{quality}.jpg", quality=quality)
    return folder


def _cleanvision_python() -> Path:
    environment = cache_folder("cleanvision") / "venv"
    python = environment / "bin/python"
    if not (environment / "done").exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", CLEANVISION], check=True)
        (environment / "done").touch()
    return python


_CLEANVISION = """
import sys, time
from cleanvision import Imagelab

if __name__ == "__main__":
    lab = Imagelab(data_path=sys.argv[1])
    began = time.perf_counter()
    lab.find_issues({name: {} for name in sys.argv[2:]}, n_jobs=2, verbose=False)
    print("seconds", time.perf_counter() - began)
"""


def _cleanvision_seconds(python: Path, folder: Path) -> float:
    script = cache_folder("cleanvision") / "side.py"
    script.write_text(_CLEANVISION)
    command = [str(python), str(script), str(folder), *CLASSIC_CHECKS]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    [line] = [line for line in done.stdout.splitlines() if line.startswith("seconds ")]
    return float(line.split()[1])


def memory(work: Path, count: int) -> None:
    """Run a task's own function over many small images in one process and watch its memory."""
    root = Root.create(work / "many")
    ingest(root, "tiles", str(_tile_shards(work / "tiles", count)), IngestConfig())
    child = [sys.executable, "-m", "benchmarks.scoring", "--memory-child", str(root.path)]
    done = subprocess.run(child, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    early, late = found["early"], found["late"]
    record(
        "scoring_memory",
        late / early,
        unit="ratio of memory",
        goal=1.05,
        better="lower",
        compared_with="resident memory after the first tenth of the images",
        spread=f"one run; {early / 2**20:.0f} MiB after a tenth, {late / 2**20:.0f} MiB at the end",
        note=f"{found['images']} images of 32 x 32 in one worker process, all weightless packs",
        packages=("numpy", "simplejpeg", "pyarrow"),
    )


def memory_child(path: Path) -> None:
    from pipelines.batches import image_tasks, open_batch
    from pipelines.jobs.score import _plans, _targets, measure

    config = ScoreConfig(packs=("classical", "natural_statistics"), encoder=None)
    root = Root.open(path)
    facts = open_batch(root, "tiles")
    targets = _targets(config, "tiles", facts.inputs)
    plans = _plans(root, config, facts, targets)
    tasks, seen, marks = image_tasks(root, facts), 0, []
    for task in tasks:
        writers = {t.table: root.tables.writer(t.table, t.slice, "bench") for t in targets}
        measure(task, writers, config=config, plans=plans)
        for writer in writers.values():
            writer.abort()
        seen += task.num_images
        marks.append((seen, _resident()))
    early = max(rss for n, rss in marks if n <= max(len(facts) // 10, marks[0][0]))
    print(json.dumps({"images": seen, "early": early, "late": max(rss for _, rss in marks)}))


def _resident() -> int:
    status = Path("/proc/self/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


def _tile_shards(folder: Path, count: int) -> Path:
    """Write tiles, each made different by its number, as JPEG in tar shards."""
    folder.mkdir(parents=True)
    tiles = load("pool").pixels
    for start in range(0, count, 2000):
        with tarfile.open(folder / f"{start:09d}.tar", "w") as tar:
            for number in range(start, min(start + 2000, count)):
                tile = tiles[number % len(tiles)].copy()
                tile[0, 0] = np.array([number & 255, number >> 8 & 255, number >> 16])
                out = io.BytesIO()
                Image.fromarray(tile).save(out, "JPEG", quality=98, subsampling=0)
                member = tarfile.TarInfo(f"{number:09d}.jpg")
                member.size = out.tell()
                out.seek(0)
                tar.addfile(member, out)
    return folder


if __name__ == "__main__":
    main()
