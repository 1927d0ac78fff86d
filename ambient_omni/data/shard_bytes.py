"""The stored bytes of samples, from their tar shards, for trainers that decode by themselves."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ambient_omni.data.columns import CodeColumn, RowOrder
from schemas.errors import BadInput
from schemas.root import Root


class ShardBytes(Dataset[bytes]):
    """A map-style dataset of encoded images, read at random from mapped shards.

    Its order is that of `UsableLevels.from_table` without `sample_ids`: by sample_row.

    Args:
        shards: paths of the tar files.
        shard: (N,) which of them holds a sample.
        byte_offset: (N,) where its bytes begin.
        num_bytes: (N,) how many they are.
    """

    def __init__(
        self,
        shards: Sequence[Path],
        shard: NDArray[np.integer],
        byte_offset: NDArray[np.int64],
        num_bytes: NDArray[np.int64],
    ) -> None:
        self._paths, self._shard = tuple(shards), shard
        self._begin, self._size = byte_offset, num_bytes
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
        folders = [opened.shards / path for path in paths]
        return cls(folders, shard, np.concatenate(begins), np.concatenate(sizes))

    def __len__(self) -> int:
        return len(self._shard)

    def __getitem__(self, index: int) -> bytes:
        """Return the bytes of one sample as they were ingested.

        Raises:
            BadInput: its shard vanished or is shorter than the table says.
        """
        shard = int(self._shard[index])
        if shard not in self._mapped:
            self._mapped[shard] = self._map(shard, index)
        begin, size = int(self._begin[index]), int(self._size[index])
        found = self._mapped[shard][begin : begin + size]
        if len(found) < size:
            raise BadInput(
                f"{self._paths[shard]} is shorter than the table says: sample number {index} is "
                "cut off; restore the shard or ingest its batch again"
            )
        return found

    def _map(self, shard: int, index: int) -> mmap.mmap:
        try:
            with self._paths[shard].open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise BadInput(
                f"{self._paths[shard]} cannot be read ({error}), sample number {index} is in it: "
                "restore the shard or ingest its batch again"
            ) from error
