"""The stored bytes of samples, from their tar shards, for trainers that decode by themselves."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ambient_omni.data.columns import CodeColumn, RowOrder
from schemas.errors import BadInput
from schemas.ids import sample_id_of
from schemas.root import Root
from schemas.shard_files import is_foreign, place_of, read_range


class ShardBytes(Dataset[bytes]):
    """A map-style dataset of encoded images, read at random from shards.

    Files of this machine are mapped; of an object store the range of each image is asked for, a
    request an image: for a training at speed copy such shards.

    Its order is that of `UsableLevels.from_table` without `sample_ids`: by sample_row.

    Args:
        shards: of the tar files, the paths, or the addresses in an object store.
        shard: (N,) which of them holds a sample.
        byte_offset: (N,) where its bytes begin.
        num_bytes: (N,) how many they are.
        digest: (N,) uint64, the first eight bytes of each sample_id, which the bytes read must
            have; None for shards that nobody else can change.
    """

    def __init__(
        self,
        shards: Sequence[Path | str],
        shard: NDArray[np.integer],
        byte_offset: NDArray[np.int64],
        num_bytes: NDArray[np.int64],
        digest: NDArray[np.uint64] | None = None,
    ) -> None:
        self._places, self._shard = tuple(shards), shard
        self._begin, self._size, self._digest = byte_offset, num_bytes, digest
        self._mapped: dict[int, mmap.mmap] = {}

    @classmethod
    def from_table(cls, root: str | Path, batches: Sequence[str]) -> ShardBytes:
        """Open the shards of batches at the newest version of `samples`."""
        opened = Root.open(root)
        rows = RowOrder(opened.tables.open("samples"), {"ingest_batch": list(batches)})
        names, begins, sizes = CodeColumn(), [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for part in rows.parts(["shard", "byte_offset", "num_bytes"], coded=["shard"]):
            names.add(part["shard"])
            begins.append(part["byte_offset"].to_numpy())
            sizes.append(part["num_bytes"].to_numpy())
        shard, paths = names.finish()
        places = [place_of(opened.shards, path) for path in paths]
        digest = _digests(rows) if any(map(is_foreign, paths)) else None
        return cls(places, shard, np.concatenate(begins), np.concatenate(sizes), digest)

    def __len__(self) -> int:
        return len(self._shard)

    def __getitem__(self, index: int) -> bytes:
        """Return the bytes of one sample as they were ingested.

        Raises:
            BadInput: its shard vanished, changed, or is shorter than the table says, or its store
                cannot be reached.
        """
        shard = int(self._shard[index])
        begin, size = int(self._begin[index]), int(self._size[index])
        place = self._places[shard]
        if isinstance(place, Path):
            if shard not in self._mapped:
                self._mapped[shard] = _map(place, index)
            found = self._mapped[shard][begin : begin + size]
        else:
            found = read_range(place, begin, size)
        if len(found) < size:
            raise BadInput(
                f"{place} is shorter than the table says: sample number {index} is cut off; "
                "restore the shard or ingest its batch again"
            )
        if self._digest is not None and _digest_of(found) != self._digest[index]:
            raise BadInput(
                f"{place} changed since it was ingested: the bytes of sample number {index} are "
                "others; restore the shard or ingest its batch again"
            )
        return found


def _digests(rows: RowOrder) -> NDArray[np.uint64]:
    parts = [np.empty(0, np.uint64)]
    for part in rows.parts(["sample_id"]):
        starts = pc.utf8_slice_codeunits(part["sample_id"], 0, 16).to_pylist()
        parts.append(np.frombuffer(bytes.fromhex("".join(starts)), ">u8").astype(np.uint64))
    return np.concatenate(parts)


def _digest_of(data: bytes) -> int:
    return int(sample_id_of(data)[:16], 16)


def _map(path: Path, index: int) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{path} cannot be read ({error}), sample number {index} is in it: "
            "restore the shard or ingest its batch again"
        ) from error
