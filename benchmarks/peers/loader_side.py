"""One side of the loader benchmark, in the environment of its own library.

    python loader_side.py SIDE FOLDER NUM_WORKERS
    python loader_side.py SIDE FOLDER write SOURCE

SIDE is one of webdataset, streaming, litdata, each with `-jpeg` for encoded images. The peers get
what their documentation recommends: their own format and shuffling, whole batches made in the
workers, arrays stored with channels first. On all sides bytes leave the workers, a quarter of the
float32 numbers, and the reading process converts them in the same way.
"""

from __future__ import annotations

import importlib.util
import io
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

SHAPE = (3, 64, 64)
JPEG_SHAPE = (3, 256, 256)
BATCH, JPEG_BATCH = 256, 64
SHUFFLE = 2048
# So that every worker has several.
SHARDS = 8


def stack(images):
    """Stack uint8 (C, H, W) to a batch, as it leaves a worker."""
    return torch.from_numpy(np.stack(images))


def convert(stored):
    """Turn uint8 (B, C, H, W) into float32, -1..1, in the reading process."""
    return stored.to(torch.float32).mul_(1 / 127.5).sub_(1)


def decode(data):
    """Decode a JPEG, a view of uint8 (C, H, W)."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1)


def array_of(data):
    """Read raw bytes, uint8 (C, H, W)."""
    return np.frombuffer(data, np.uint8).reshape(SHAPE)


def webdataset_loader(folder: Path, num_workers: int, jpeg: bool):
    """Tar shards, shuffled by shard and by buffer, batched in the workers."""
    import webdataset as wds

    urls = sorted(str(path) for path in folder.glob("*.tar"))
    batch = JPEG_BATCH if jpeg else BATCH
    read = decode if jpeg else array_of
    name = "jpg" if jpeg else "bin"
    dataset = (
        wds.WebDataset(urls, shardshuffle=len(urls), nodesplitter=None)
        .shuffle(SHUFFLE)
        .to_tuple(name)
        .map_tuple(read)
        .batched(batch, collation_fn=lambda rows: stack([row[0] for row in rows]))
    )
    return wds.WebLoader(dataset, batch_size=None, num_workers=num_workers, prefetch_factor=2)


def streaming_loader(folder: Path, num_workers: int, jpeg: bool):
    """MDS shards with fixed-size arrays, or JPEG bytes."""
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    batch = JPEG_BATCH if jpeg else BATCH
    dataset = StreamingDataset(
        local=str(folder), shuffle=True, batch_size=batch, num_canonical_nodes=1
    )

    def collate(rows):
        images = [decode(row["image"]) if jpeg else row["image"] for row in rows]
        return stack(images)

    return DataLoader(
        dataset,
        batch_size=batch,
        num_workers=num_workers,
        collate_fn=collate,
        prefetch_factor=2,
        drop_last=True,
    )


def litdata_loader(folder: Path, num_workers: int, jpeg: bool):
    """Chunks of raw bytes."""
    from litdata import StreamingDataLoader, StreamingDataset

    read = decode if jpeg else array_of
    dataset = StreamingDataset(str(folder), shuffle=True, drop_last=True)
    return StreamingDataLoader(
        dataset,
        batch_size=JPEG_BATCH if jpeg else BATCH,
        num_workers=num_workers,
        prefetch_factor=2,
        collate_fn=lambda rows: stack([read(row["image"]) for row in rows]),
    )


LOADERS = {
    "webdataset": webdataset_loader,
    "streaming": streaming_loader,
    "litdata": litdata_loader,
}


def write(side: str, source: Path, folder: Path, jpeg: bool) -> None:
    """Write the images of `source` in the format of a side."""
    folder.mkdir(parents=True, exist_ok=True)
    if jpeg:
        images = [path.read_bytes() for path in sorted(source.glob("*.jpg"))]
    else:
        images = np.load(source / "images.npy", mmap_mode="r")
    if side == "webdataset":
        import webdataset as wds

        shards = str(folder / "%05d.tar")
        with wds.ShardWriter(shards, maxcount=len(images) // SHARDS, verbose=0) as sink:
            for number, image in enumerate(images):
                data = image if jpeg else image.tobytes()
                sink.write({"__key__": f"{number:08d}", "jpg" if jpeg else "bin": data})
    elif side == "streaming":
        from streaming import MDSWriter

        kind = "bytes" if jpeg else "ndarray:uint8:" + ",".join(map(str, SHAPE))
        with MDSWriter(out=str(folder), columns={"image": kind}) as sink:
            for image in images:
                sink.write({"image": image if jpeg else np.ascontiguousarray(image)})
    else:
        from litdata.streaming.writer import BinaryWriter

        writer = BinaryWriter(str(folder), chunk_bytes="64MB")
        for number, image in enumerate(images):
            writer[number] = {"image": image if jpeg else image.tobytes()}
        writer.done()
        writer.merge()


def serve(make_batches, num_workers, shape, batch):
    """Answer each line of standard input, a number of seconds, with the rate in that time.

    Whoever asks lets the sides take turns of a second or less, so that what else the machine does
    hits all of them. Batches made ahead while another side had its turn are left out, and so are
    the first ones of a pass: workers start anew with every pass, which long passes hide.

    Args:
        make_batches: returns one pass, an iterable of float32 batches.
        num_workers: how many make batches ahead.
        shape: that every batch must have.
        batch: images per batch.
    """
    ahead = 2 * num_workers + 1
    gaps = _gaps(make_batches, (batch, *shape), ahead)
    for _ in range(50):
        next(gaps)
    print("READY", flush=True)
    for line in sys.stdin:
        for _ in range(ahead):
            next(gaps)
        took, count, seconds = 0.0, 0, float(line)
        while took < seconds:
            took += next(gaps)
            count += batch
        print(count / took, flush=True)


def _gaps(make_batches, shape, ahead):
    while True:
        last = None
        for number, made in enumerate(make_batches()):
            assert tuple(made.shape) == shape
            assert made.dtype == torch.float32
            # The time until here, without what the asker did in between.
            now = time.perf_counter()
            if last is not None and number > ahead:
                yield now - last
            last = time.perf_counter()


def _let_torchvision_load() -> None:
    """Run the project's hook: streaming imports torchvision, whose operators a CPU torch lacks."""
    path = Path(__file__).parents[2] / "ambient_omni" / "torchvision_hook.py"
    spec = importlib.util.spec_from_file_location("torchvision_hook", path)
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    hook.install()


def main() -> None:
    """Write, or read and print the rate."""
    torch.set_num_threads(1)
    _let_torchvision_load()
    side, folder = sys.argv[1], Path(sys.argv[2])
    jpeg = side.endswith("-jpeg")
    name = side.removesuffix("-jpeg")
    if sys.argv[3] == "write":
        write(name, Path(sys.argv[4]), folder, jpeg)
        return
    num_workers = int(sys.argv[3])
    loader = LOADERS[name](folder, num_workers, jpeg)
    shape, batch = (JPEG_SHAPE, JPEG_BATCH) if jpeg else (SHAPE, BATCH)
    serve(lambda: map(convert, loader), num_workers, shape, batch)


if __name__ == "__main__":
    main()
