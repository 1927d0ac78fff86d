"""Images a second of our loaders over those of the best of webdataset, streaming and litdata.

Every side reads the same images in its own best format, shuffled, and gives float32 batches; files
are in the page cache. Each side is a process that lives through the comparison, the peers in an
environment of theirs, and they take many short turns. Ours draws a level and an eligible sample
for every image, from the pack for arrays and from tar shards for JPEG. Noise, ids and labels,
which the peers do not make, are left out on all sides.
"""

from __future__ import annotations

import functools
import statistics
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ambient_omni import LevelThenSampleBatchSampler, UsableLevels, rng
from ambient_omni.data.pack_writer import PackWriter
from ambient_omni.data.packs import Pack, PackSet, channels_first
from ambient_omni.data.shard_bytes import ShardBytes
from ambient_omni.data.slots import Slots
from ambient_omni.data.transforms import Transform
from ambient_omni.noise.priors import LogNormalPrior
from benchmarks.common import cache_folder, record
from benchmarks.peers import loader_side
from benchmarks.peers.loader_side import BATCH, decode, serve

NUM_ARRAYS, NUM_JPEGS = 32768, 4096
TURNS = 15
WORKERS = (1, 2)
PREFETCH = 2
PEERS = ("webdataset", "streaming", "litdata")
TRANSFORM = Transform(resolution=loader_side.SHAPE[1])
_SIDE = Path(loader_side.__file__)
_MODULE = "benchmarks.loader_vs_best_peer"


def data_folder() -> Path:
    """Make the images once: arrays of noise, and JPEGs that compress like photographs."""
    folder = cache_folder("loader") / "data-v4"
    if (folder / "done").exists():
        return folder
    (folder / "jpeg").mkdir(parents=True, exist_ok=True)
    draw = rng.generator(0, "loader benchmark")
    shape = (NUM_ARRAYS, *loader_side.SHAPE)
    np.save(folder / "images.npy", draw.integers(0, 256, shape, np.uint8))
    for number in range(NUM_JPEGS):
        small = Image.fromarray(draw.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        image = small.resize(loader_side.JPEG_SHAPE[1:], Image.Resampling.BICUBIC)
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
                chunk.add(number * len(images) + place, image.transpose(1, 2, 0))
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

    def __init__(self, folder: Path, slots: Slots) -> None:
        self._packs = PackSet([Pack.open(folder / "packs", TRANSFORM.transform_id, "bench")])
        self._slots, count = slots, len(self._packs)
        self._draw = LevelThenSampleBatchSampler(
            levels_of(count), LogNormalPrior(), BATCH, num_steps=count // BATCH
        )

    def __len__(self) -> int:
        return len(self._draw)

    def __getitem__(self, step: int) -> int:
        index, _ = self._draw.draw(step)
        slot = self._slots.next()
        channels_first(self._packs.take(index), self._slots[slot])
        return slot


def stored_jpegs(folder: Path) -> ShardBytes:
    """Return the encoded images of our tar shard."""
    with tarfile.open(folder / "shard.tar") as tar:
        members = tar.getmembers()
    begins = np.array([member.offset_data for member in members], np.int64)
    sizes = np.array([member.size for member in members], np.int64)
    return ShardBytes([folder / "shard.tar"], np.zeros(len(sizes), np.uint8), begins, sizes)


def array_batches(folder: Path, num_workers: int) -> Iterator[torch.Tensor]:
    """Yield one pass of our batches from the pack."""
    slots = Slots((BATCH, *loader_side.SHAPE), np.dtype(np.uint8), num_workers, PREFETCH)
    source = Arrays(folder, slots)
    loader = DataLoader(source, batch_size=None, num_workers=num_workers, prefetch_factor=PREFETCH)
    for slot in loader:
        yield loader_side.convert(torch.from_numpy(slots[slot]))


def jpeg_batches(stored: ShardBytes, num_workers: int) -> Iterator[torch.Tensor]:
    """Yield one pass of our batches from tar shards."""
    shape = (loader_side.JPEG_BATCH, *loader_side.JPEG_SHAPE)
    slots = Slots(shape, np.dtype(np.uint8), num_workers, PREFETCH)

    def decoded(rows: list[bytes]) -> int:
        slot = slots.next()
        for place, row in enumerate(rows):
            slots[slot][place] = decode(row)
        return slot

    sampler = LevelThenSampleBatchSampler(
        levels_of(len(stored)),
        LogNormalPrior(),
        loader_side.JPEG_BATCH,
        num_steps=len(stored) // loader_side.JPEG_BATCH,
    )
    loader = DataLoader(
        stored,
        batch_sampler=sampler,
        num_workers=num_workers,
        prefetch_factor=PREFETCH,
        collate_fn=decoded,
    )
    for slot in loader:
        yield loader_side.convert(torch.from_numpy(slots[slot]))


def serve_ours(side: str, folder: Path, num_workers: int) -> None:
    """Be our side of a comparison."""
    if side == "ours":
        made = functools.partial(array_batches, folder, num_workers)
        serve(made, num_workers, loader_side.SHAPE, BATCH)
    else:
        made = functools.partial(jpeg_batches, stored_jpegs(folder), num_workers)
        serve(made, num_workers, loader_side.JPEG_SHAPE, loader_side.JPEG_BATCH)


class Side:
    """A process that reads with one library, and measures when it is asked to."""

    def __init__(self, side: str, folder: Path, num_workers: int) -> None:
        if side.startswith("ours"):
            command = [sys.executable, "-m", _MODULE, side, str(folder), str(num_workers)]
        else:
            command = [str(peer_python()), str(_SIDE), side]
            command += [str(folder / "peers" / side), str(num_workers)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._side = side
        while self._read() != "READY":
            pass

    def rate(self, seconds: float) -> float:
        """Return images per second."""
        assert self._process.stdin is not None
        print(seconds, file=self._process.stdin, flush=True)
        return float(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._side} failed")
        return line.strip()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


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


def compare(suffix: str, folder: Path, num_workers: int, seconds: float) -> tuple[list[float], str]:
    """Return our rate over the best peer's of every turn, and the median rates for people."""
    sides = {side: Side(side + suffix, folder, num_workers) for side in ("ours", *PEERS)}
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(TURNS):
        for side, process in sides.items():
            rates[side].append(process.rate(seconds))
    for process in sides.values():
        process.close()
    best = max(PEERS, key=lambda peer: statistics.median(rates[peer]))
    ratios = [ours / peer for ours, peer in zip(rates["ours"], rates[best], strict=True)]
    said = ", ".join(f"{side} {statistics.median(all_):.0f}" for side, all_ in rates.items())
    text = f"{num_workers} workers (best peer {best}): {said}"
    print(f"{suffix or '-arrays'} {text}", flush=True)
    return ratios, text


def compare_and_record(
    folder: Path, name: str, suffix: str, *, goal: float, seconds: float
) -> None:
    """Record one kind of images; the lower one of 1 and 2 workers counts."""
    compared = [compare(suffix, folder, workers, seconds) for workers in WORKERS]
    medians = [statistics.median(ratios) for ratios, _ in compared]
    worst = int(np.argmin(medians))
    low, high = np.quantile(compared[worst][0], (0.1, 0.9))
    record(
        name,
        medians[worst],
        unit="ratio",
        goal=goal,
        better="higher",
        compared_with="best of webdataset, MosaicML streaming and litdata, images per second",
        spread=f"median of {TURNS} turns, 10 % .. 90 %: {low:.3g} .. {high:.3g}; "
        f"the lower one of 1 and 2 workers ({medians[0]:.3g}, {medians[1]:.3g})",
        note="images/s with " + "; with ".join(said for _, said in compared),
    )


def main() -> None:
    """Record loader_vs_best_peer, arrays, and loader_jpeg."""
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        serve_ours(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
        return
    folder = data_folder()
    write_peers(folder)
    compare_and_record(folder, "loader_vs_best_peer", "", goal=1.2, seconds=0.5)
    compare_and_record(folder, "loader_jpeg", "-jpeg", goal=1.0, seconds=1.2)


if __name__ == "__main__":
    main()
