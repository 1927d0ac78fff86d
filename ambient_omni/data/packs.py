"""Packs: one batch as fixed-size rows for random access, pixels or latents.

On disk, under ``<root>/packs/<transform_id>/<ingest_batch>/``::

    chunk-000000.npy   memory-mapped by readers; pixels are uint8 (rows, H, W, 3), latents
                       float16 (rows, C, H, W)
    rows-000000.npy    int64 (rows,), the sample_row of each
    meta.json          written last: its presence says that the pack is complete

One chunk is what one task wrote, so that executors build a pack side by side.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.errors import AmbientOmniError

PACK_FORMAT = 1
META_FILE = "meta.json"


class PackMissing(AmbientOmniError):
    """A pack is absent, incomplete, damaged, or lacks samples that are asked of it."""


class Space(Protocol):
    """What the rows of a pack are, and what σ is measured in: a `Transform` or a `LatentSpace`."""

    @property
    def transform_id(self) -> str:
        """Hash of everything that decides the rows."""

    @property
    def noise_space(self) -> str:
        """What σ is measured in."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a row."""

    @property
    def x0_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of x_0."""

    @property
    def row_dtype(self) -> str:
        """Numpy's name of a row's type."""

    def how_to_build(self, batch: str) -> str:
        """Say what makes the pack of a batch."""

    def model_dump(self) -> dict[str, Any]:
        """Return the settings as plain values."""


def to_x0(rows: NDArray[Any]) -> NDArray[np.float32]:
    """Turn rows of packs into x_0, float32 (B, C, H, W): the data's scale.

    Pixels, uint8 (B, H, W, C), 0..255, become -1..1. Latents, float16 (B, C, H, W), have it.
    """
    return to_scale(channels_first(rows))


def channels_first(rows: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Return rows of packs as (B, C, H, W), their dtype as it is; bytes are quick to reorder.

    Args:
        rows: pixels, uint8 (B, H, W, C), or latents, float16 (B, C, H, W).
        out: where to put them; a new array by default, unless the rows are so already.
    """
    ordered = rows.transpose(0, 3, 1, 2) if rows.dtype == np.uint8 else rows
    if out is None:
        return np.ascontiguousarray(ordered)
    np.copyto(out, ordered)
    return out


def to_scale(ordered: NDArray[Any]) -> NDArray[np.float32]:
    """Turn what `channels_first` returned into x_0, in memory of its own."""
    scaled = ordered.astype(np.float32)
    if ordered.dtype == np.uint8:
        scaled *= np.float32(1 / 127.5)
        scaled -= np.float32(1)
    return scaled


def to_pixels(x0: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Turn float32 (B, C, H, W), about -1..1, into uint8 (B, H, W, C); the inverse of `to_x0`."""
    levels = np.rint((x0.transpose(0, 2, 3, 1) + 1) * 127.5)
    pixels: NDArray[np.uint8] = np.clip(levels, 0, 255).astype(np.uint8)
    return pixels


def pack_path(packs: Path, transform_id: str, batch: str) -> Path:
    """Return the folder of one pack under `<root>/packs`."""
    return packs / transform_id / batch


@dataclass(frozen=True)
class ChunkInfo:
    """One finished chunk: its number and how many images it holds."""

    chunk: int
    num_rows: int

    @property
    def pixels_file(self) -> str:
        """File name of the pixels."""
        return f"chunk-{self.chunk:06d}.npy"

    @property
    def rows_file(self) -> str:
        """File name of the row keys."""
        return f"rows-{self.chunk:06d}.npy"


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of all numbers of a pack."""

    mean: float
    std: float


class Pack:
    """A complete pack of one batch, read through memory maps. See `Pack.open`."""

    def __init__(self, folder: Path, meta: dict[str, Any]) -> None:
        self.folder = folder
        self.batch: str = meta["ingest_batch"]
        self.inputs: str = meta["inputs"]
        self.noise_space: str = meta["noise_space"]
        self.shape: tuple[int, int, int] = tuple(meta["shape"])
        # Packs that are older than latents have uint8 pixels.
        self.dtype = np.dtype(meta.get("dtype", "uint8"))
        measured = meta.get("moments")
        self.moments = None if measured is None else Moments(**measured)
        infos = self.chunks = [ChunkInfo(**chunk) for chunk in meta["chunks"]]
        self._chunks = [_map_chunk(folder, info, self.shape, self.dtype) for info in infos]
        rows = [np.load(folder / info.rows_file) for info in infos]
        self.sample_rows: NDArray[np.int64] = _one_array(rows)
        self._ends = np.cumsum([info.num_rows for info in infos], dtype=np.int64)

    @classmethod
    def open(cls, packs: Path, transform_id: str, batch: str, how: str | None = None) -> Pack:
        """Open the pack of one batch.

        Args:
            packs: `<root>/packs`.
            transform_id: of its space.
            batch: whose.
            how: what to do if there is none, for the message; that of pixels by default.

        Raises:
            PackMissing: there is none, it is not complete, or a file of it is damaged.
        """
        folder = pack_path(packs, transform_id, batch)
        meta = read_meta(folder)
        if meta is None:
            raise PackMissing(
                f"no complete pack of batch {batch!r} for transform {transform_id}: "
                + (how or f"build it with `python -m pipelines pack --batch {batch}`")
            )
        return cls(folder, meta)

    def __len__(self) -> int:
        return len(self.sample_rows)

    def take(self, indices: NDArray[np.integer]) -> NDArray[Any]:
        """Return the rows at positions in `sample_rows`, (len(indices), *shape) of `dtype`."""
        out = np.empty((len(indices), *self.shape), self.dtype)
        _gather(self._chunks, self._ends, np.asarray(indices), out)
        return out


class PackSet:
    """The packs of several batches under one transform, read as one."""

    def __init__(self, packs: Sequence[Pack]) -> None:
        self.packs = tuple(packs)
        self.noise_space = packs[0].noise_space
        self.shape = packs[0].shape
        self.dtype = packs[0].dtype
        self._chunks = [chunk for pack in packs for chunk in pack._chunks]
        self._ends = np.cumsum([len(chunk) for chunk in self._chunks], dtype=np.int64)
        self.sample_rows = _one_array([pack.sample_rows for pack in packs])
        for pack, end in zip(packs, np.cumsum([len(pack) for pack in packs]), strict=True):
            # Views of the one array: 1e8 keys are 0.8 GB, held once.
            pack.sample_rows = self.sample_rows[end - len(pack) : end]
        ascending = bool((self.sample_rows[1:] > self.sample_rows[:-1]).all())
        self._order = None if ascending else np.argsort(self.sample_rows, kind="stable")
        self._sorted = self.sample_rows if self._order is None else self.sample_rows[self._order]

    @classmethod
    def open(cls, packs: Path, transform: Space, batches: Sequence[str]) -> PackSet:
        """Open the packs of `batches`.

        Raises:
            PackMissing: one of them is absent, incomplete or damaged.
            ValueError: `batches` is empty.
        """
        if not batches:
            raise ValueError("a PackSet needs at least one batch")
        here, transform_id = packs, transform.transform_id
        return cls([Pack.open(here, transform_id, b, transform.how_to_build(b)) for b in batches])

    @property
    def sigma_data(self) -> float | None:
        """Standard deviation of the numbers of all packs, where they were measured: latents."""
        measured = [(len(pack), pack.moments) for pack in self.packs if pack.moments is not None]
        total = sum(count for count, _ in measured)
        if not total or len(measured) < len(self.packs):
            return None
        mean = sum(count * found.mean for count, found in measured) / total
        square = sum(count * (found.std**2 + found.mean**2) for count, found in measured) / total
        return math.sqrt(square - mean**2)

    def __len__(self) -> int:
        return len(self.sample_rows)

    def index_of(self, sample_rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions of samples, shape as given.

        Raises:
            PackMissing: some are not in the packs; the message names the first ones.
        """
        wanted = np.asarray(sample_rows, np.int64)
        if not len(self._sorted):
            found, place = np.zeros(wanted.shape, bool), np.zeros(wanted.shape, np.int64)
        else:
            place = np.minimum(np.searchsorted(self._sorted, wanted), len(self._sorted) - 1)
            found = self._sorted[place] == wanted
        if not found.all():
            missing = wanted[~found]
            first = ", ".join(map(str, missing[:3]))
            raise PackMissing(
                f"{missing.size} samples are not in the packs of "
                f"{', '.join(pack.batch for pack in self.packs)} (sample_row {first}, ...): "
                "the packs are older than the samples; build them again"
            )
        return place if self._order is None else self._order[place]

    def take(self, indices: NDArray[np.integer]) -> NDArray[Any]:
        """Return the rows at positions in `sample_rows`, (len(indices), *shape) of `dtype`."""
        out = np.empty((len(indices), *self.shape), self.dtype)
        _gather(self._chunks, self._ends, np.asarray(indices), out)
        return out


def _one_array(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.int64), *parts])


def _gather(
    chunks: Sequence[NDArray[Any]],
    ends: NDArray[np.int64],
    indices: NDArray[np.integer],
    out: NDArray[Any],
) -> None:
    # In the order of the file, chunk by chunk: neighbours share pages.
    order = np.argsort(indices, kind="stable")
    ascending = indices[order]
    chunk_of = np.searchsorted(ends, ascending, side="right")
    runs = np.flatnonzero(np.diff(chunk_of, prepend=-1, append=len(ends)))
    for first, last in itertools.pairwise(runs.tolist()):
        number = chunk_of[first]
        begin = ends[number] - len(chunks[number])
        out[order[first:last]] = chunks[number][ascending[first:last] - begin]


def read_meta(folder: Path) -> dict[str, Any] | None:
    """Return what a pack's folder says of itself; None if it is not complete."""
    try:
        meta = json.loads((folder / META_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return None
    known = isinstance(meta, dict) and meta.get("format") == PACK_FORMAT
    return meta if known else None


def _map_chunk(
    folder: Path, info: ChunkInfo, shape: tuple[int, int, int], dtype: np.dtype[Any]
) -> NDArray[Any]:
    path = folder / info.pixels_file
    expected = (info.num_rows, *shape)
    try:
        # An empty array cannot be mapped.
        chunk: NDArray[Any] = np.load(path, mmap_mode="r" if info.num_rows else None)
        num_keys = len(np.load(folder / info.rows_file, mmap_mode="r" if info.num_rows else None))
    # A machine that fell may leave a name without bytes, at which numpy says end of file.
    except (OSError, ValueError, EOFError) as error:
        raise PackMissing(f"{path} cannot be read ({error}): build the pack again") from error
    if chunk.shape != expected or chunk.dtype != dtype or num_keys != info.num_rows:
        raise PackMissing(
            f"{path} holds {chunk.dtype} {chunk.shape} and {num_keys} keys instead of {dtype} "
            f"{expected}: build the pack again"
        )
    return chunk
