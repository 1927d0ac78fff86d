"""From tables of 1e7 samples and annotations to the first draw, through the trainer's own path.

The root is real: tables written by the project's writer and committed, a pack with its row keys.
Only the pixels are a hole in a sparse file: opening maps them and start-up never reads them.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa

from ambient_omni import rng
from ambient_omni.data.batches import BatchMaker
from ambient_omni.data.pack_writer import PackWriter
from ambient_omni.data.packs import ChunkInfo
from ambient_omni.data.training_data import READ_TABLES, open_training_data
from ambient_omni.data.transforms import Transform
from ambient_omni.training.config import TrainConfig
from ambient_omni.training.run_record import RunRecord
from benchmarks.common import cache_folder, record
from schemas.ids import sample_row_of
from schemas.registry import contract
from schemas.root import Root

NUM_BATCHES, BATCH_ROWS = 10, 1_000_000
WRITE_ROWS = 131_072
TRANSFORM = Transform(resolution=8)
POLICY = "bench"
ROUNDS = 5


def build_root() -> Root:
    """Build the root once and keep it in the cache."""
    folder = cache_folder("startup_1e7") / "root-v1"
    done = folder.parent / "root-v1.done"
    root = Root.create(folder)
    if done.exists():
        return root
    for number in range(NUM_BATCHES):
        print(f"building batch {number + 1} of {NUM_BATCHES}", flush=True)
        _commit(root, "samples", number, _samples)
        _commit(root, "noise_annotations", number, _annotations)
        _pack(root, number)
    done.touch()
    return root


def _name(number: int) -> str:
    return f"batch{number:02d}"


def _rows(number: int, begin: int, end: int) -> np.ndarray:
    return np.arange(sample_row_of(number, begin), sample_row_of(number, end), dtype=np.int64)


def _commit(root: Root, table: str, number: int, make) -> None:
    slice_ = {"ingest_batch": _name(number)}
    if table == "noise_annotations":
        slice_["policy_id"] = POLICY
    writer = root.tables.writer(table, slice_, uuid.uuid4().hex[:16])
    for begin in range(0, BATCH_ROWS, WRITE_ROWS):
        rows = make(number, begin, min(begin + WRITE_ROWS, BATCH_ROWS))
        for column in contract(table).columns:
            if column.name not in {*rows.column_names, *slice_}:
                rows = rows.append_column(column.name, pa.nulls(len(rows), column.type))
        writer.write(rows)
    root.tables.commit(table, writer.close(), slice=slice_, inputs={"v": 1}, job="benchmark")


def _samples(number: int, begin: int, end: int) -> pa.Table:
    draw, count = rng.generator(0, "samples", number, begin), end - begin
    digest = draw.integers(0, 256, (count, 32), dtype=np.uint8).tobytes().hex()
    return pa.table(
        {
            "sample_row": _rows(number, begin, end),
            "sample_id": [digest[64 * i : 64 * i + 64] for i in range(count)],
            "shard": pa.repeat(f"{_name(number)}/00000.tar", count),
            "byte_offset": np.arange(begin, end, dtype=np.int64) * 20_480,
            "num_bytes": draw.integers(5_000, 20_000, count),
            "width": np.full(count, 512, np.int32),
            "height": np.full(count, 512, np.int32),
            "format": pa.repeat("jpeg", count),
            "caption": pa.nulls(count, pa.string()),
            "label": pa.array(draw.integers(0, 1000, count).astype("U4")),
            "source": pa.repeat(f"source{number}", count),
            "phash": draw.integers(-(1 << 62), 1 << 62, count),
            "parent_sample_id": pa.nulls(count, pa.string()),
            "loop_number": np.zeros(count, np.int32),
        }
    )


def _annotations(number: int, begin: int, end: int) -> pa.Table:
    draw, count = rng.generator(0, "levels", number, begin), end - begin
    kind = draw.random(count)
    sigma_min = np.where(kind < 0.1, 0.0, np.exp(draw.normal(-0.5, 1, count)))
    window = draw.choice([0.05, 0.15, 0.2, 0.35, 0.55], count)
    reason = np.where(kind < 0.1, "reference", np.where(kind > 0.9, "never_crosses", "crossing"))
    return pa.table(
        {
            "sample_row": _rows(number, begin, end),
            "sigma_min": pa.array(sigma_min, mask=kind > 0.9),
            "sigma_max": np.where(draw.random(count) < 0.1, window, 0.0),
            "noise_space": pa.repeat(TRANSFORM.noise_space, count),
            "slope": pa.array(draw.random(count), mask=(kind > 0.9) | (kind < 0.1)),
            "sigma_min_standard_error_octaves": draw.random(count),
            "reason": pa.array(reason),
        }
    )


def _pack(root: Root, number: int) -> None:
    writer = PackWriter(root.packs, TRANSFORM, _name(number), "benchmark")
    writer.begin()
    info = ChunkInfo(0, BATCH_ROWS)
    header = {"descr": "|u1", "fortran_order": False, "shape": (BATCH_ROWS, *TRANSFORM.shape)}
    with (writer.folder / info.pixels_file).open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + BATCH_ROWS * int(np.prod(TRANSFORM.shape)))
    np.save(writer.folder / info.rows_file, _rows(number, 0, BATCH_ROWS))
    writer.finish([info])


def open_once(root: Root) -> dict[str, float]:
    """Do what the trainer does before its first step, and say how long each part took."""
    began, worked = time.perf_counter(), time.process_time()
    config = TrainConfig(
        policy_id=POLICY,
        batches=tuple(_name(number) for number in range(NUM_BATCHES)),
        transform=TRANSFORM,
        network={"patch": 2, "widths": (16,), "attention": False, "norm_groups": 4},
        condition={"kind": "label"},
    )
    run = RunRecord.of(root, config)
    identified = time.perf_counter()
    data = open_training_data(root, config, root.tables.versions(READ_TABLES))
    opened = time.perf_counter()
    maker = BatchMaker(data, config)
    indexed = time.perf_counter()
    maker.draw(0)
    drawn = time.perf_counter()
    return {
        "identify": identified - began,
        "read": opened - identified,
        "index": indexed - opened,
        "first_draw": drawn - indexed,
        "total": drawn - began,
        "processor": time.process_time() - worked,
        "samples": float(len(data)),
        "run": float(len(run.run_id)),
        "private_gb": _private_bytes() / 1e9,
    }


def _private_bytes() -> int:
    with Path("/proc/self/status").open() as file:
        found = dict(line.split(":", 1) for line in file)
    return int(found["RssAnon"].split()[0]) * 1024


def main() -> None:
    """Open the root in fresh processes, and record the median."""
    root = build_root()
    if len(sys.argv) > 1:
        print(json.dumps(open_once(root)))
        return
    rounds = []
    for _ in range(ROUNDS):
        child = [sys.executable, "-m", "benchmarks.startup_1e7", "child"]
        done = subprocess.run(child, capture_output=True, text=True, env=os.environ, check=True)
        rounds.append(json.loads(done.stdout.splitlines()[-1]))
        print(rounds[-1], flush=True)
    totals = [one["total"] for one in rounds]
    parts = {
        p: statistics.median(r[p] for r in rounds)
        for p in ("identify", "read", "index", "processor")
    }
    record(
        "startup_1e7",
        statistics.median(totals),
        unit="s",
        goal=10,
        better="lower",
        compared_with="tables of 1e7 samples and annotations in 10 batches, to the first draw",
        spread=f"median of {ROUNDS} fresh processes, {min(totals):.3g} .. {max(totals):.3g}",
        note="; ".join(f"{part} {took:.2f} s" for part, took in parts.items())
        + "; imports not counted; labels read",
        packages=("numpy", "pyarrow", "deltalake"),
    )


if __name__ == "__main__":
    main()
