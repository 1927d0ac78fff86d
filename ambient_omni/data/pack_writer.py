"""Writing packs: chunk by chunk, side by side, invisible until complete."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ambient_omni.data.packs import (
    META_FILE,
    PACK_FORMAT,
    ChunkInfo,
    Moments,
    Pack,
    Space,
    pack_path,
    read_meta,
)
from schemas.root import write_json


class ChunkWriter:
    """Writes one chunk image by image, in constant memory. Use as a context manager.

    The files appear under their names only when the block ends without an error.
    """

    def __init__(
        self, folder: Path, chunk: int, shape: tuple[int, int, int], dtype: str = "uint8"
    ) -> None:
        self._folder = folder
        self._info = ChunkInfo(chunk, 0)
        self._shape, self._dtype = shape, np.dtype(dtype)
        self._rows: list[int] = []
        # A task that is tried again, or twice at once, must not write into the other's file.
        self._partial = folder / f".{self._info.pixels_file}.{uuid.uuid4().hex}.partial"

    def __enter__(self) -> ChunkWriter:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = self._partial.open("wb")
        self._header_bytes = self._write_header(0)
        return self

    def add(self, sample_row: int, pixels: NDArray[Any]) -> None:
        """Append one image, of the space's row shape and type.

        Raises:
            ValueError: the shape or type is another.
        """
        if pixels.dtype != self._dtype or pixels.shape != self._shape:
            raise ValueError(
                f"expected {self._dtype} {self._shape}, got {pixels.dtype} {pixels.shape}"
            )
        self._file.write(pixels.tobytes())
        self._rows.append(sample_row)

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        try:
            if error_type is None:
                self._finish()
        finally:
            self._file.close()
            self._partial.unlink(missing_ok=True)

    @property
    def info(self) -> ChunkInfo:
        """What was written; known after the block."""
        return self._info

    def _finish(self) -> None:
        # numpy pads the header so that the length of the first axis can grow in place.
        assert self._write_header(len(self._rows)) == self._header_bytes
        self._file.flush()
        os.fsync(self._file.fileno())
        self._info = ChunkInfo(self._info.chunk, len(self._rows))
        rows_partial = self._partial.with_suffix(".rows")
        with rows_partial.open("wb") as file:
            np.save(file, np.array(self._rows, np.int64))
            file.flush()
            os.fsync(file.fileno())
        rows_partial.rename(self._folder / self._info.rows_file)
        self._partial.rename(self._folder / self._info.pixels_file)

    def _write_header(self, num_rows: int) -> int:
        self._file.seek(0)
        kind = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": kind, "fortran_order": False, "shape": (num_rows, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, header)
        return self._file.tell()


@dataclass(frozen=True)
class PackWriter:
    """Builds the pack of one batch. Picklable: `chunk` in the tasks, `begin`/`finish` outside.

    Args:
        packs: `<root>/packs`.
        transform: what made the rows.
        batch: name of the ingest batch.
        inputs: fingerprint of what the rows were made from; another one makes the pack stale.
    """

    packs: Path
    transform: Space
    batch: str
    inputs: str

    @property
    def folder(self) -> Path:
        """Where the pack lies."""
        return pack_path(self.packs, self.transform.transform_id, self.batch)

    def is_current(self) -> bool:
        """Say whether a complete pack from the same inputs is there."""
        meta = read_meta(self.folder)
        return meta is not None and meta["inputs"] == self.inputs

    def begin(self, *, resume: bool = False) -> None:
        """Declare the pack incomplete until `finish`.

        Args:
            resume: keep the chunks of a build that was stopped, if it was from the same inputs;
                `finished` says which ones there are.
        """
        # `finish` removes it, as every file that is not part of the pack.
        mark = self.folder / f".building-{self.inputs}"
        if resume and not mark.exists():
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / META_FILE).unlink(missing_ok=True)
        if resume:
            mark.touch()

    def finished(self, number: int, num_rows: int) -> ChunkInfo | None:
        """Return a chunk that a stopped build has finished, or None."""
        info = ChunkInfo(number, num_rows)
        # The pixels take their name last, so where they are the keys are too.
        if not (self.folder / info.pixels_file).exists():
            return None
        try:
            keys = np.load(self.folder / info.rows_file)
        except (OSError, ValueError, EOFError):  # written anew
            return None
        return info if len(keys) == num_rows else None

    def chunk(self, number: int) -> ChunkWriter:
        """Return the writer of one chunk; number chunks as the shards, in sample_row order."""
        return ChunkWriter(self.folder, number, self.transform.shape, self.transform.row_dtype)

    def finish(self, chunks: Sequence[ChunkInfo], moments: Moments | None = None) -> Pack:
        """Declare the pack complete, remove what an earlier build left, and open it.

        Args:
            chunks: what was written.
            moments: of the numbers in it, where they are measured.

        Raises:
            PackMissing: a chunk is not on disk with the stated rows.
        """
        ordered = sorted(chunks, key=lambda chunk: chunk.chunk)
        meta = {
            "format": PACK_FORMAT,
            "transform": self.transform.model_dump(),
            "noise_space": self.transform.noise_space,
            "ingest_batch": self.batch,
            "inputs": self.inputs,
            "shape": self.transform.shape,
            "dtype": self.transform.row_dtype,
            "moments": None if moments is None else asdict(moments),
            "chunks": [asdict(chunk) for chunk in ordered],
        }
        pack = Pack(self.folder, meta)
        self._remove_leftovers(ordered)
        write_json(self.folder / META_FILE, meta)
        return pack

    def _remove_leftovers(self, chunks: Sequence[ChunkInfo]) -> None:
        keep = {name for chunk in chunks for name in (chunk.pixels_file, chunk.rows_file)}
        for path in self.folder.iterdir():
            if path.name not in keep and path.name != META_FILE:
                path.unlink()
