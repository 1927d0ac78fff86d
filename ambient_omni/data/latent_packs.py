"""Packs of latents, encoded from the packs of pixels once, before anybody trains on them."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from tqdm import tqdm

from ambient_omni.config import Frozen
from ambient_omni.data.config import LatentConfig
from ambient_omni.data.latents import LatentCodec, latent_space
from ambient_omni.data.pack_writer import PackWriter
from ambient_omni.data.packs import ChunkInfo, Moments, Pack, to_x0
from ambient_omni.data.transforms import Transform
from ambient_omni.progress import progress
from schemas.errors import BadInput
from schemas.root import Root

_LOG = logging.getLogger(__name__)

# Rows whose moments are taken at once: 128 MB in float64 for latents of 4x32x32.
_ROWS = 4096


class EncodeLatentsJob(Frozen):
    """What `encode-latents` does."""

    batches: tuple[str, ...] = Field(min_length=1, description="Ingest batches with pixel packs.")
    latents: LatentConfig
    transform: Transform = Transform()
    batch_size: int = Field(default=16, ge=1, description="Images encoded at once.")


def encode_batches(root: Root, job: EncodeLatentsJob, *, show: bool = True) -> list[Pack]:
    """Make the latent packs of batches; those that are current are left alone.

    Args:
        root: where the packs are.
        job: which batches, which autoencoder.
        show: draw a progress bar.

    Returns:
        A pack per batch. Killed and called again, it goes on with the chunk that it was at.

    Raises:
        BadInput: the autoencoder cannot be used, or makes numbers that float16 does not hold.
        PackMissing: a batch has no complete pack of pixels.
        JobAlreadyRunning: another process encodes the same batch.
    """
    space = latent_space(job.latents, job.transform)
    writers = []
    for batch in job.batches:
        source = Pack.open(root.packs, job.transform.transform_id, batch)
        writers.append((source, PackWriter(root.packs, space, batch, source.inputs)))
    if not all(writer.is_current() for _, writer in writers):
        device = torch.accelerator.current_accelerator(check_available=True)
        codec = LatentCodec.open(job.latents).to(device or torch.device("cpu"))
        for source, writer in writers:
            with root.lock(f"encode-latents-{space.transform_id}", source.batch):
                if not writer.is_current():
                    _Encoding(source, writer, codec, job.batch_size).run(show)
    return [Pack.open(root.packs, space.transform_id, batch) for batch in job.batches]


@dataclass(frozen=True)
class _Encoding:
    """The latent pack of one batch in the making."""

    source: Pack
    writer: PackWriter
    codec: LatentCodec
    batch_size: int

    def run(self, show: bool) -> None:
        """Write what is missing, measure all of it, and declare the pack complete."""
        source, writer = self.source, self.writer
        writer.begin(resume=True)
        found = [writer.finished(chunk.chunk, chunk.num_rows) for chunk in source.chunks]
        infos, start = [], 0
        with progress(
            total=len(source),
            initial=sum(info.num_rows for info in found if info is not None),
            label=f"encoding {source.batch}",
            unit="images",
            show=show,
        ) as bar:
            for chunk, info in zip(source.chunks, found, strict=True):
                places = np.arange(start, start + chunk.num_rows)
                infos.append(info or self._chunk(chunk.chunk, places, bar))
                start += chunk.num_rows
        moments = _moments(writer, infos)
        writer.finish(infos, moments)
        _LOG.info("%s: latents of mean %.4g, sigma %.4g", source.batch, moments.mean, moments.std)

    def _chunk(self, number: int, places: NDArray[np.int64], bar: tqdm[Any]) -> ChunkInfo:
        with self.writer.chunk(number) as out:
            for first in range(0, len(places), self.batch_size):
                here = places[first : first + self.batch_size]
                rows = self.source.sample_rows[here]
                x0 = torch.from_numpy(to_x0(self.source.take(here)))
                with np.errstate(over="ignore"):  # infinite numbers are looked for next
                    latents = self.codec.encode(x0).cpu().numpy().astype(np.float16)
                _require_finite(latents, rows)
                for row, latent in zip(rows, latents, strict=True):
                    out.add(int(row), latent)
                bar.update(len(here))
        return out.info


def _require_finite(latents: NDArray[np.float16], rows: NDArray[np.int64]) -> None:
    bad = ~np.isfinite(latents).all(axis=(1, 2, 3))
    if bad.any():
        raise BadInput(
            f"the latent of sample_row {rows[bad][0]} is not finite in float16: look at the image, "
            "or use another autoencoder"
        )


def _moments(writer: PackWriter, infos: Sequence[ChunkInfo]) -> Moments:
    """Return the moments of all chunks, also of those that a stopped build has written."""
    count, total, square = 0, 0.0, 0.0
    for info in infos:
        rows = np.load(writer.folder / info.pixels_file, mmap_mode="r" if info.num_rows else None)
        for first in range(0, len(rows), _ROWS):
            values = rows[first : first + _ROWS].astype(np.float64)
            count, total = count + values.size, total + float(values.sum())
            square += float((values**2).sum())
    if not count:
        raise BadInput(f"batch {writer.batch} holds no image: there is nothing to encode")
    mean = total / count
    return Moments(mean, math.sqrt(max(square / count - mean**2, 0.0)))
