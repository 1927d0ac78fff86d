"""The stored bytes of samples, from their tar shards, for trainers that decode by themselves."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ambient_omni.data.columns import CodeColumn, RowOrder
from schemas.errors import BadInput
from schemas.root import Root
from schemas.shard_files import ShardReader, place_of


class ShardBytes(Dataset[bytes]):
    """A map-style dataset of encoded images, read at random from shards.

    Files of this machine are mapped; of an object store the range of each image is asked for,
    which only a local copy makes quick enough for a training at speed.

    Its order is that of `UsableLevels.from_table` without `sample_ids`: by sample_row.

    Args:
        shards: of the tar files, the paths, or the addresses in an object store.
        shard: (N,) which of them holds a sample.
        byte_offset: (N,) where its bytes begin.
        num_bytes: (N,) how many they are.
    """

    def __init__(
        self,
        shards: Sequence[Path | str],
        shard: NDArray[np.integer],
        byte_offset: NDArray[np.int64],
        num_bytes: NDArray[np.int64],
    ) -> None:
        self._places, self._shard = tuple(shards), shard
        self._begin, self._size = byte_offset, num_bytes
        self._mapped: dict[int, mmap.mmap] = {}
        self._remote: dict[int, ShardReader] = {}
        self._pid = os.getpid()

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
        return cls(places, shard, np.concatenate(begins), np.concatenate(sizes))

    def __len__(self) -> int:
        return len(self._shard)

    def __getitem__(self, index: int) -> bytes:
        """Return the bytes of one sample as they were ingested.

        Raises:
            BadInput: its shard vanished or is shorter than the table says, or its store cannot be
                reached.
        """
        shard = int(self._shard[index])
        begin, size = int(self._begin[index]), int(self._size[index])
        place = self._places[shard]
        if isinstance(place, Path):
            if shard not in self._mapped:
                self._mapped[shard] = _map(place, index)
            found = self._mapped[shard][begin : begin + size]
        else:
            found = self._reader(shard, place).read(begin, size)
        if len(found) < size:
            raise BadInput(
                f"{place} is shorter than the table says: sample number {index} is cut off; "
                "restore the shard or ingest its batch again"
            )
        return found

    def _reader(self, shard: int, address: str) -> ShardReader:
        if self._pid != os.getpid():  # a loader's worker: connections do not outlive a fork
            self._remote, self._pid = {}, os.getpid()
        if shard not in self._remote:
            self._remote[shard] = ShardReader(address, read_ahead_bytes=0)
        return self._remote[shard]


def _map(path: Path, index: int) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{path} cannot be read ({error}), sample number {index} is in it: "
            "restore the shard or ingest its batch again"
        ) from error
