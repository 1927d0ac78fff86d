"""Images a second of our loaders over those of the best of webdataset, streaming and litdata.

Every side reads the same images in its own best format, shuffled, and gives float32 batches of 256;
files are in the page cache. Sides take turns, each in a process of its own, the peers in an
environment of theirs. Ours draws a level and an eligible sample for every image, from the pack for
arrays and from tar shards for JPEG. Noise, ids and labels, which the peers do not make, are left
out on all sides.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ambient_omni import LevelThenSampleBatchSampler, UsableLevels, rng
from ambient_omni.data.pack_writer import PackWriter
from ambient_omni.data.packs import Pack, PackSet
from ambient_omni.data.shard_bytes import ShardBytes, stack_shared
from ambient_omni.data.transforms import Transform
from ambient_omni.noise.priors import LogNormalPrior
from benchmarks.common import cache_folder, record
from benchmarks.peers import loader_side
from benchmarks.peers.loader_side import BATCH, decode, rate

NUM_ARRAYS, NUM_JPEGS = 8192, 512
ROUNDS, SECONDS = 3, 3.0
WORKERS = (1, 2)
PEERS = ("webdataset", "streaming", "litdata")
TRANSFORM = Transform(resolution=loader_side.SHAPE[0])
_SIDE = Path(loader_side.__file__)
_MODULE = "benchmarks.loader_vs_best_peer"


def data_folder() -> Path:
    """Make the images once: arrays of noise, and JPEGs that compress like photographs."""
    folder = cache_folder("loader") / "data-v2"
    if (folder / "done").exists():
        return folder
    (folder / "jpeg").mkdir(parents=True, exist_ok=True)
    draw = rng.generator(0, "loader benchmark")
    np.save(folder / "images.npy", draw.integers(0, 256, (NUM_ARRAYS, *TRANSFORM.shape), np.uint8))
    for number in range(NUM_JPEGS):
        small = Image.fromarray(draw.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        image = small.resize(loader_side.JPEG_SHAPE[:2], Image.Resampling.BICUBIC)
        image.save(folder / "jpeg" / f"{number:06d}.jpg", quality=90)
    _write_ours(folder)
    (folder / "done").touch()
    return folder


def _write_ours(folder: Path) -> None:
    writer = PackWriter(folder / "packs", TRANSFORM, "bench", "v1")
    writer.begin()
    infos = []
    for number, images in enumerate(np.split(np.load(folder / "images.npy"), 8)):
        with writer.chunk(number) as chunk:
            for place, image in enumerate(images):
                chunk.add(number * len(images) + place, image)
        infos.append(chunk.info)
    writer.finish(infos)
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for path in sorted((folder / "jpeg").glob("*.jpg")):
            tar.add(path, path.name)


def peer_python() -> Path:
    """Return the Python of the peers' environment, made on the first call."""
    environment = cache_folder("peers") / "v1"
    python = environment / "bin" / "python"
    if not (environment / "done").exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        wanted = [f"torch=={torch.__version__.split('+')[0]}", "pillow", "numpy"]
        wanted += ["webdataset", "mosaicml-streaming", "litdata"]
        subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True)
        (environment / "done").touch()
    return python


def levels_of(count: int) -> UsableLevels:
    """Return levels as a classifier finds them."""
    draw = rng.generator(0, "levels")
    minimum = np.exp(draw.normal(-0.5, 1, count))
    minimum[draw.random(count) < 0.1] = 0
    return UsableLevels(minimum)


class Arrays(Dataset):
    """Batches of the pack: levels, samples, rows."""

    def __init__(self, folder: Path) -> None:
        self._packs = PackSet([Pack.open(folder / "packs", TRANSFORM.transform_id, "bench")])
        count = len(self._packs)
        self._draw = LevelThenSampleBatchSampler(
            levels_of(count), LogNormalPrior(), BATCH, num_steps=count // BATCH
        )

    def __len__(self) -> int:
        return len(self._draw)

    def __getitem__(self, step: int) -> torch.Tensor:
        index, _ = self._draw.draw(step)
        return torch.from_numpy(self._packs.take(index))


def our_loader(side: str, folder: Path, num_workers: int) -> DataLoader:
    """Return our side's loader."""
    if side == "ours":
        return DataLoader(
            Arrays(folder), batch_size=None, num_workers=num_workers, prefetch_factor=2
        )
    with tarfile.open(folder / "shard.tar") as tar:
        members = tar.getmembers()
    begins = np.array([member.offset_data for member in members], np.int64)
    sizes = np.array([member.size for member in members], np.int64)
    stored = ShardBytes([folder / "shard.tar"], np.zeros(len(sizes), np.uint8), begins, sizes)
    sampler = LevelThenSampleBatchSampler(
        levels_of(len(stored)), LogNormalPrior(), BATCH, num_steps=len(stored) // BATCH
    )
    return DataLoader(
        stored,
        batch_sampler=sampler,
        num_workers=num_workers,
        prefetch_factor=2,
        collate_fn=lambda rows: stack_shared(map(decode, rows), len(rows)),
    )


def measure(side: str, folder: Path, num_workers: int) -> float:
    """Return the images per second of a side, in a process of its own."""
    if side.startswith("ours"):
        command = [sys.executable, "-m", _MODULE, side, str(folder), str(num_workers)]
    else:
        where = folder / "peers" / side
        command = [str(peer_python()), str(_SIDE), side, str(where), str(num_workers), str(SECONDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{side} failed: {done.stderr[-2000:]}")
    return float(done.stdout.split("RATE")[1])


def write_peers(folder: Path) -> None:
    """Write the peers' formats once."""
    for side in (*PEERS, *(f"{peer}-jpeg" for peer in PEERS)):
        where = folder / "peers" / side
        if (where.parent / f"{side}.done").exists():
            continue
        source = folder / "jpeg" if side.endswith("-jpeg") else folder
        command = [str(peer_python()), str(_SIDE), side, str(where), "write", str(source)]
        subprocess.run(command, check=True)
        (where.parent / f"{side}.done").touch()


def compare(suffix: str, folder: Path, num_workers: int) -> tuple[list[float], str]:
    """Return our rate over the best peer's of every round, and the median rates for people."""
    rates: dict[str, list[float]] = {side: [] for side in ("ours", *PEERS)}
    for _ in range(ROUNDS):
        for side in rates:
            rates[side].append(measure(side + suffix, folder, num_workers))
            print(f"{side}{suffix}, {num_workers} workers: {rates[side][-1]:.0f}/s", flush=True)
    best = max(PEERS, key=lambda peer: statistics.median(rates[peer]))
    ratios = [ours / peer for ours, peer in zip(rates["ours"], rates[best], strict=True)]
    said = ", ".join(f"{side} {statistics.median(all_):.0f}" for side, all_ in rates.items())
    return ratios, f"{num_workers} workers (best peer {best}): {said}"


def main() -> None:
    """Record loader_vs_best_peer for arrays and for JPEG; the lower of 1 and 2 workers counts."""
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        side, folder, num_workers = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
        height, width, channels = loader_side.SHAPE if side == "ours" else loader_side.JPEG_SHAPE
        loader = our_loader(side, folder, num_workers)
        print("RATE", rate(loader, SECONDS, (channels, height, width)))
        return
    folder = data_folder()
    write_peers(folder)
    for suffix, name, goal in (("", "loader_vs_best_peer", 1.2), ("-jpeg", "loader_jpeg", 1.0)):
        compared = [compare(suffix, folder, workers) for workers in WORKERS]
        medians = [statistics.median(ratios) for ratios, _ in compared]
        worst = int(np.argmin(medians))
        ratios = compared[worst][0]
        record(
            name,
            medians[worst],
            unit="ratio",
            goal=goal,
            better="higher",
            compared_with="best of webdataset, MosaicML streaming and litdata, images per second",
            spread=f"median of {ROUNDS} rounds, {min(ratios):.3g} .. {max(ratios):.3g}; "
            f"the lower one of 1 and 2 workers ({medians[0]:.3g}, {medians[1]:.3g})",
            note="images/s with " + "; with ".join(said for _, said in compared),
        )


if __name__ == "__main__":
    main()
