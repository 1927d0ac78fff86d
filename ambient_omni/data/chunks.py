"""The chunk files under a run: which samples each holds, and whether it is still what it was."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ambient_omni.data.training_data import TrainingData
from schemas.errors import AmbientOmniError

_LOG = logging.getLogger(__name__)

# A chunk that is read again and again is looked at this often.
_CHECK_SECONDS = 5.0


class SamplesLost(AmbientOmniError):
    """Samples vanished, or their bytes changed, under a run that reads them."""


@dataclass(frozen=True)
class ChunkFile:
    """One chunk of a pack as it was when the run opened.

    begin and end are positions in the set of packs; `stamp` is what changes with the content.
    """

    path: Path
    begin: int
    end: int
    stamp: tuple[int, int, int] | None

    def is_unchanged(self) -> bool:
        """Say whether the file is still there with the same content."""
        return self.stamp is not None and _stamp(self.path) == self.stamp


class ChunkReader:
    """Reads rows of packs and notices chunks that vanished or changed.

    A memory map outlives its file, so a read alone would not notice.

    Args:
        data: what is trained on.
        max_missing: samples that may be lost before `SamplesLost` ends the run.
    """

    def __init__(self, data: TrainingData, max_missing: int = 0) -> None:
        self._data = data
        self.max_missing = max_missing
        self.chunks = _chunk_files(data)
        self._ends = np.array([chunk.end for chunk in self.chunks], np.int64)
        self._checked = np.full(len(self.chunks), -np.inf)
        self._lost: set[int] = set()
        self.num_missing = 0

    def chunk_of(self, index: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the number of the chunk that holds each sample."""
        return np.searchsorted(self._ends, self._data.rows_of_pack(index), side="right")

    def missing(self, index: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Look at the chunks of samples and say which samples are lost.

        Raises:
            SamplesLost: more than `max_missing` are lost by now.
        """
        chunk = self.chunk_of(index)
        for number in np.unique(chunk).tolist():
            self.look_at(number)
        return np.isin(chunk, list(self._lost)) if self._lost else np.zeros(len(index), bool)

    def look_at(self, number: int) -> bool:
        """Look at one chunk, at most every few seconds; say whether it is as it was.

        Raises:
            SamplesLost: it is not, and more than `max_missing` samples are lost by now.
        """
        now = time.monotonic()
        if number in self._lost or now - self._checked[number] < _CHECK_SECONDS:
            return number not in self._lost
        self._checked[number] = now
        chunk = self.chunks[number]
        if chunk.is_unchanged():
            return True
        self._lost.add(number)
        self._say(chunk)
        return False

    def take(self, index: NDArray[np.integer]) -> NDArray[Any]:
        """Return the rows of samples, as the packs hold them."""
        return self._data.packs.take(self._data.rows_of_pack(index))

    def samples_of(self, number: int) -> NDArray[np.int64]:
        """Return the places in the training data of what a chunk holds, ascending."""
        chunk = self.chunks[number]
        rows = self._data.packs.sample_rows[chunk.begin : chunk.end]
        place = np.searchsorted(self._data.sample_rows, rows)
        present = place < len(self._data)
        present[present] = self._data.sample_rows[place[present]] == rows[present]
        return np.sort(place[present])

    def _say(self, chunk: ChunkFile) -> None:
        samples = self.samples_of(int(np.searchsorted(self._ends, chunk.begin, side="right")))
        self.num_missing += len(samples)
        if not len(samples):
            return
        first = samples[:1]
        text = (
            f"{chunk.path} {'changed' if chunk.path.exists() else 'vanished'} under the run: "
            f"{len(samples)} samples are lost, the first is "
            f"{self._data.sample_ids.names(first)[0]} (sample_row "
            f"{self._data.sample_rows[first[0]]}); {self.num_missing} lost so far, "
            f"loader.max_missing_samples is {self.max_missing}"
        )
        if self.num_missing > self.max_missing:
            raise SamplesLost(f"{text}: bring the pack back, or build it again, and resume")
        _LOG.warning("%s: others are drawn in their place", text)


def prefetch(path: Path) -> None:
    """Ask the system to read a file ahead."""
    _advise(path, "POSIX_FADV_WILLNEED")


def release(path: Path) -> None:
    """Tell the system that a file's pages are not needed any more."""
    _advise(path, "POSIX_FADV_DONTNEED")


def _advise(path: Path, advice: str) -> None:
    if not hasattr(os, "posix_fadvise"):
        return
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        # Whoever reads it is going to say so.
        return
    try:
        os.posix_fadvise(file, 0, 0, getattr(os, advice))
    finally:
        os.close(file)


def _chunk_files(data: TrainingData) -> list[ChunkFile]:
    files, begin = [], 0
    for pack in data.packs.packs:
        for info in pack.chunks:
            path = pack.folder / info.pixels_file
            files.append(ChunkFile(path, begin, begin + info.num_rows, _stamp(path)))
            begin += info.num_rows
    return files


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
