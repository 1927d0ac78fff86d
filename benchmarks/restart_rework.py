"""How much of a score job is done again after its driver is killed and it is started once more.

Everything dies at once, driver, JVM and workers, at a random moment of the work; then the job is
run to its end. A task that was begun counts as done, also if it was killed in its first instant.

`python -m benchmarks.restart_rework [--kills 6]`
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ambient_omni import rng
from benchmarks.common import record
from pipelines.batches import ImageTask
from pipelines.ingest import IngestConfig, ingest
from pipelines.jobs import score as job
from pipelines.slices import Writers
from pipelines.spark import SparkSettings
from schemas.root import Root
from schemas.tables import Tables

BATCH, TABLE = "photos", "scores/classical"
IMAGES, IMAGES_PER_SHARD, SIDE = 2048, 256, 256
CONFIG = job.ScoreConfig(packs=("classical",), encoder=None)
SETTINGS = SparkSettings(num_cores=2)
PLAIN = job.measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        score_logged(*options.child)
        return
    moments = rng.generator(0, "bench-kills").random((options.kills, 2))
    with tempfile.TemporaryDirectory() as work:
        fresh = ingested(Path(work) / "fresh", write_images(Path(work) / "images"))
        found = []
        for number, (progress, pause) in enumerate(moments):
            root = Root(Path(work) / f"root-{number}")
            shutil.copytree(fresh.path, root.path)
            images = int(progress * IMAGES)
            found.append(repeated(root, Path(work) / f"{number}.log", images, pause))
            print(f"killed after {images} of {IMAGES} images: {found[-1]:.2f} shards", flush=True)
    record(
        "restart_rework",
        max(found),
        unit="shards",
        goal=1.0,
        better="lower",
        compared_with=f"{IMAGES} images in shards of {IMAGES_PER_SHARD}, two tasks at a time",
        spread=f"worst of {len(found)} kills; all: {', '.join(f'{one:.2f}' for one in found)}",
        note="whole tasks count, however short they were at work; 0 rows lost, 0 rows twice",
        packages=("pyspark", "deltalake"),
    )


def write_images(folder: Path) -> Path:
    from PIL import Image

    folder.mkdir()
    uniform = rng.generator(0, "bench-restart")
    for number in range(IMAGES):
        small = uniform.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((SIDE, SIDE)).save(folder / f"{number:05d}.jpg")
    return folder


def ingested(path: Path, folder: Path) -> Root:
    root = Root.create(path)
    config = IngestConfig(images_per_shard=IMAGES_PER_SHARD, show_progress=False)
    ingest(root, BATCH, str(folder), config)
    return root


def score_logged(path: Path, log: Path) -> None:
    job.measure = Logged(log)
    job.score(Root.open(path), BATCH, CONFIG, settings=SETTINGS)


class Logged:
    """The job's own work, with a line for each task that is begun."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def __call__(self, task: ImageTask, writers: Writers, **options: Any) -> Mapping[str, int]:
        with self.log.open("a") as file:
            file.write(f"{task.first_row} {task.num_images}\n")
        return PLAIN(task, writers, **options)


def begun(log: Path) -> list[tuple[int, int]]:
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return [(int(row), int(count)) for row, count in map(str.split, lines)]


def start(root: Root, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.restart_rework", "--child", root.path, log]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)


def repeated(root: Root, log: Path, images: int, pause: float) -> float:
    """Shards' worth of images that were worked on a second time.

    The kill comes `pause` seconds after work on more than `images` was begun.
    """
    process = start(root, log)
    while sum(count for _, count in begun(log)) <= images and process.poll() is None:
        time.sleep(0.01)
    time.sleep(pause)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert start(root, log).wait() == 0
    check(root.tables)
    return (sum(count for _, count in begun(log)) - IMAGES) / IMAGES_PER_SHARD


def check(tables: Tables) -> None:
    rows = tables.read(TABLE, ["sample_row"])["sample_row"].to_pylist()
    assert len(rows) == len(set(rows)) == IMAGES, (len(rows), len(set(rows)))


if __name__ == "__main__":
    main()
