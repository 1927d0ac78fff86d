"""Small pictures and looks into a root, shared by the tests of ingest."""

import hashlib
import io

import numpy as np
from PIL import Image


def encoded(seed, image_format="PNG", side=16):
    """A small smooth picture that depends on the seed, encoded."""
    value = hashlib.sha256(str(seed).encode()).digest()
    small = np.frombuffer(value[:27], np.uint8).reshape(3, 3, 3)
    out = io.BytesIO()
    Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(out, image_format)
    return out.getvalue()


def put(path, data):
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def attempts(root, batch="b"):
    """The batch's `ingest_attempts` rows by key."""
    rows = root.tables.read("ingest_attempts", where={"ingest_batch": batch}).to_pylist()
    return {row["attempt_key"]: row for row in rows}


def samples(root, batch="b"):
    """The batch's `samples` rows in order."""
    return root.tables.read("samples", where={"ingest_batch": batch}).to_pylist()


def stored_bytes(root, row):
    """The bytes of a `samples` row, read by its offset."""
    with (root.shards / row["shard"]).open("rb") as file:
        file.seek(row["byte_offset"])
        return file.read(row["num_bytes"])
