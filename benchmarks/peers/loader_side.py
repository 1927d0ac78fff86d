"""One side of the loader benchmark, in the environment of its own library: samples per second.

    python loader_side.py SIDE FOLDER NUM_WORKERS SECONDS

SIDE is one of webdataset, streaming, litdata, each with `-jpeg` for encoded images. The peers get
what their documentation recommends: their own format and shuffling, whole batches made in the
workers. On all sides bytes leave the workers, a quarter of the float32 numbers, and the reading
process converts them in the same way.
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

SHAPE = (64, 64, 3)
JPEG_SHAPE = (256, 256, 3)
BATCH = 256
SHUFFLE = 2048


def stack(images):
    """Stack uint8 (H, W, 3) to a batch, as it leaves a worker."""
    return torch.from_numpy(np.stack(images))


def convert(rows):
    """Turn uint8 (B, H, W, 3) into float32 (B, 3, H, W), -1..1, in the reading process."""
    ordered = rows.permute(0, 3, 1, 2).contiguous()
    return ordered.to(torch.float32).mul_(1 / 127.5).sub_(1)


def decode(data):
    """Decode a JPEG, uint8 (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def array_of(data):
    """Read raw bytes, uint8 (H, W, 3)."""
    return np.frombuffer(data, np.uint8).reshape(SHAPE)


def webdataset_loader(folder: Path, num_workers: int, jpeg: bool):
    """Tar shards, shuffled by shard and by buffer, batched in the workers."""
    import webdataset as wds

    urls = sorted(str(path) for path in folder.glob("*.tar"))
    read = decode if jpeg else array_of
    name = "jpg" if jpeg else "bin"
    dataset = (
        wds.WebDataset(urls, shardshuffle=len(urls), nodesplitter=None)
        .shuffle(SHUFFLE)
        .to_tuple(name)
        .map_tuple(read)
        .batched(BATCH, collation_fn=lambda rows: stack([row[0] for row in rows]))
    )
    return wds.WebLoader(dataset, batch_size=None, num_workers=num_workers, prefetch_factor=2)


def streaming_loader(folder: Path, num_workers: int, jpeg: bool):
    """MDS shards with fixed-size arrays, or JPEG bytes."""
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    dataset = StreamingDataset(
        local=str(folder), shuffle=True, batch_size=BATCH, num_canonical_nodes=1
    )

    def collate(rows):
        images = [decode(row["image"]) if jpeg else row["image"] for row in rows]
        return stack(images)

    return DataLoader(
        dataset,
        batch_size=BATCH,
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
        batch_size=BATCH,
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

        with wds.ShardWriter(str(folder / "%05d.tar"), maxcount=1000, verbose=0) as sink:
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


def rate(loader, seconds: float, expected: tuple[int, ...]) -> float:
    """Return samples per second once workers run, after a pass that warms caches.

    Workers start anew with every pass, which long passes hide and these short ones do not: the
    clock runs from the first batch of a pass to its last.
    """
    for rows in loader:
        batch = convert(rows)
        assert tuple(batch.shape[1:]) == expected
        assert batch.dtype == torch.float32
    count, took = 0, 0.0
    while took < seconds:
        began = None
        for rows in loader:
            batch = convert(rows)
            if began is not None:
                count += len(batch)
            began = began or time.perf_counter()
        took += time.perf_counter() - began
    return count / took


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
    loader = LOADERS[name](folder, int(sys.argv[3]), jpeg)
    height, width, channels = JPEG_SHAPE if jpeg else SHAPE
    print("RATE", rate(loader, float(sys.argv[4]), (channels, height, width)))


if __name__ == "__main__":
    main()
