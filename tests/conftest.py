# ruff: noqa: E402 - the thread limits must stand before numpy is imported
"""Fixtures that every package's tests share: a root, one Spark session, batches of tiny images."""

import io
import os
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
from pathlib import Path

# Before any numeric library: two test runs side by side on two cores must not fight for threads.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from ambient_omni import rng
from pipelines.ingest.perceptual import PHASH_VERSION, perceptual_hash
from schemas.ids import sample_id_of, sample_row_of
from schemas.registry import contract
from schemas.root import Root

# Tests judge outcomes; on a busy machine any example may take long.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


@pytest.fixture(scope="session")
def spark():
    """The one local session of this test run."""
    from pipelines.spark import SparkSettings, get_session

    # Executors import the tests' own functions, from wherever pytest was started.
    repository = str(Path(__file__).parents[1])
    conf = {"spark.executorEnv.PYTHONPATH": repository}
    return get_session(SparkSettings(num_cores=2, conf=conf))


@pytest.fixture
def root(tmp_path):
    """A new root."""
    return Root.create(tmp_path / "root")


@pytest.fixture(scope="session")
def object_store():
    """`s3://bucket` of an object store on loopback, in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    settings = {
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-tests",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        try:
            _make_bucket(f"{endpoint}/tests")
            yield "s3://tests"
        finally:
            server.terminate()
            server.wait(30)


def _make_bucket(url, seconds=60):
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="PUT")).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def png_bytes(pixels: np.ndarray) -> bytes:
    """PNG of uint8 (H, W, 3)."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def tiny_images(count, side=32, seed=0):
    """Distinct smooth-ish uint8 images (side, side, 3)."""
    noise = rng.generator(seed, "tests-images").integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    bicubic = Image.Resampling.BICUBIC
    return [np.asarray(Image.fromarray(n).resize((side, side), bicubic)) for n in noise]


@pytest.fixture
def make_batch():
    """`make_batch(root, "b1", images, ...)`: store images as a batch, as ingest would.

    `images`: uint8 arrays (stored as PNG) or encoded bytes. Returns the `samples` table.
    """
    return store_batch


def store_batch(root, batch, images, *, role="pool", source="folder", images_per_shard=4):
    known = root.tables.read("ingest_batches")
    ordinal = known.num_rows
    data = [image if isinstance(image, bytes) else png_bytes(image) for image in images]
    rows = []
    for number in range(0, len(data), images_per_shard):
        shard = f"{batch}/{number // images_per_shard:05d}.tar"
        rows += _store_shard(root, batch, shard, data, number, images_per_shard, ordinal, source)
    registered = {
        "ingest_batch": batch,
        "batch_ordinal": ordinal,
        "role": role,
        "source_kind": "folder",
        "source_uri": "tests",
    }
    root.tables.upsert(
        "ingest_batches", contract("ingest_batches").table([registered]), job="tests"
    )
    inputs = {"ids": [row["sample_id"] for row in rows], "source": source}
    table = contract("samples").table(rows)
    root.tables.commit("samples", table, slice={"ingest_batch": batch}, inputs=inputs, job="tests")
    return table


def _store_shard(root, batch, shard, data, start, count, ordinal, source):
    path = root.shards / shard
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    with tarfile.open(path, "w") as tar:
        for position, content in enumerate(data[start : start + count], start):
            member = tarfile.TarInfo(f"{position:09d}.png")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
            rows.append(_sample(batch, shard, ordinal, position, content, source))
    with tarfile.open(path) as tar:
        offsets = {member.name: member.offset_data for member in tar}
    for position, row in enumerate(rows, start):
        row["byte_offset"] = offsets[f"{position:09d}.png"]
    return rows


def _sample(batch, shard, ordinal, position, content, source):
    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            phash = perceptual_hash(np.asarray(image.convert("L")))
    except OSError:  # some tests store what no decoder reads
        width, height, phash = 8, 8, position
    return {
        "sample_row": sample_row_of(ordinal, position),
        "sample_id": sample_id_of(content),
        "ingest_batch": batch,
        "shard": shard,
        "num_bytes": len(content),
        "width": width,
        "height": height,
        "format": "png",
        "caption": None,
        "label": None,
        "source": source if isinstance(source, str) else source[position],
        "phash": phash,
        "phash_version": PHASH_VERSION,
        "parent_sample_id": None,
        "loop_number": 0,
    }


@pytest.fixture
def images():
    """`images(count, side=32, seed=0)`: distinct uint8 images."""
    return tiny_images
