"""The batch of each step as a pure function of (seed, step, position)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ambient_omni import rng
from ambient_omni.data.chunks import ChunkReader, SamplesLost
from ambient_omni.data.config import SamplingConfig
from ambient_omni.data.drawing import Pool
from ambient_omni.data.packs import channels_first, to_scale
from ambient_omni.data.training_data import TrainingData
from ambient_omni.noise.eligibility import Drawer, outside_gap, require_every_level
from ambient_omni.noise.usable import Objective, hidden_level
from schemas.errors import BadInput

if TYPE_CHECKING:
    from ambient_omni.noise.priors import Prior


class BatchSettings(Protocol):
    """What a batch depends on, as a training config has it."""

    @property
    def batch_size(self) -> int:
        """Images per step, over all processes."""

    @property
    def seed(self) -> int:
        """Seed of the run."""

    @property
    def prior(self) -> Prior:
        """Distribution of levels."""

    @property
    def objective(self) -> Objective:
        """Which target is learned."""

    @property
    def kappa(self) -> float:
        """Margin above sigma_min."""

    @property
    def horizontal_flip(self) -> bool | None:
        """Mirror half of the images; None: if they are pixels."""

    @property
    def sampling(self) -> SamplingConfig:
        """Which of the eligible samples is drawn."""


@dataclass(frozen=True)
class Draw:
    """The global draw of one step: `index` (B,) into the training data, `sigma` (B,) float64.

    Every sigma is a float32 number, so that the level which a network sees is the level at which
    the sample was found usable.
    """

    index: NDArray[np.int64]
    sigma: NDArray[np.float64]

    def at(self, positions: range) -> Draw:
        """Return the draws of some positions."""
        here = slice(positions.start, positions.stop)
        return Draw(self.index[here], self.sigma[here])


@dataclass(frozen=True)
class Batch:
    """What one process trains on in one step; b images of the global batch.

    x0, fresh, fixed (b, C, H, W) float32, -1..1 and standard normal; sigma, hidden (b,) float32;
    labels (b,) int64; drop_condition (b,) bool, where the condition is left out; index (b,) int64
    into the training data; sample_rows (b,) int64; noise_seeds (b,) uint64, the number of the draw
    in the run (step · batch size + position), which with the run's seed addresses `fresh`;
    num_outside_buffer, images that a streaming loader had to read from outside its buffer.
    """

    x0: Tensor
    sigma: Tensor
    hidden: Tensor
    fresh: Tensor
    fixed: Tensor | None
    labels: Tensor | None
    captions: tuple[str, ...] | None
    drop_condition: Tensor | None
    index: Tensor
    sample_rows: Tensor
    sample_ids: tuple[str, ...]
    noise_seeds: Tensor
    num_outside_buffer: int = 0

    def __len__(self) -> int:
        return len(self.sigma)

    def with_x0(self) -> Batch:
        """Return the batch with stored numbers turned into x_0; see `BatchMaker.assemble`."""
        return replace(self, x0=torch.from_numpy(to_scale(self.x0.numpy())))

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with what a network reads on `device`; names of samples stay."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if field.name in _FOR_NETWORKS and (value := getattr(self, field.name)) is not None
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class ImageMemory:
    """Where a batch's images go, (b, C, H, W): x0 as packs store it, fresh noise as float32."""

    x0: NDArray[Any]
    fresh: NDArray[np.float32]


_FOR_NETWORKS = frozenset({"x0", "sigma", "hidden", "fresh", "fixed", "labels", "drop_condition"})


# Redraws of a lost sample, each of which finds a lost one again, before the level is given up.
_MAX_REPLACEMENTS = 100


class BatchMaker:
    """Makes the batch of any step, in any order, on any number of processes.

    All randomness is addressed by (seed, step, position in the global batch), so that a run that
    was killed goes on with the numbers it would have had.

    Args:
        data: what is trained on.
        config: what a batch depends on.
        condition_dropout: share of the images whose condition is left out.

    Raises:
        NoEligibleSample: some level of the prior has no sample that may be used.
    """

    def __init__(
        self, data: TrainingData, config: BatchSettings, condition_dropout: float = 0.0
    ) -> None:
        self.data = data
        self._config = config
        self._dropout = condition_dropout
        self._flips = _flips(data, config.horizontal_flip)
        self._pool = Pool.of(data, config.sampling, config.objective, config.kappa)
        self.usable = self._pool.usable
        self.drawer = self._pool.drawer(config.prior)
        require_every_level(self.drawer, config.prior, len(data))
        self.reader = ChunkReader(data)

    @property
    def batch_size(self) -> int:
        """Images per step, over all processes."""
        return self._config.batch_size

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self._config.seed

    @property
    def x0_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of x_0."""
        packs = self.data.packs
        if packs.dtype != np.uint8:
            return packs.shape
        height, width, channels = packs.shape
        return channels, height, width

    @property
    def num_unreachable(self) -> int:
        """How many samples are never drawn: no level of the prior may use them."""
        return self._pool.reach().num_unreachable(self._config.prior)

    def drawer_of(self, index: NDArray[np.integer]) -> Drawer:
        """Return what draws among some samples, by their place in `index`."""
        return self._pool.take(index).drawer(self._config.prior)

    def draw(self, step: int) -> Draw:
        """Draw the levels of a step, then a sample for each: the same on every process."""
        size, seed = self._config.batch_size, self._config.seed
        sigma = self._config.prior.sigma_of(rng.uniform(size, seed, "level", step))
        sigma = outside_gap(sigma, self.drawer.gap())
        return Draw(self.drawer.draw(sigma, rng.uniform(size, seed, "sample", step)), sigma)

    def batch(self, step: int, draw: Draw, positions: range) -> Batch:
        """Return the images and noise of some positions of a step's global batch.

        Args:
            step: number of the step.
            draw: what `draw(step)` returned.
            positions: this process's share.

        Raises:
            SamplesLost: samples vanished or changed since the run opened.
        """
        return self.assemble(step, draw.at(positions), positions).with_x0()

    def assemble(
        self,
        step: int,
        draw: Draw,
        positions: range,
        num_outside: int = 0,
        out: ImageMemory | None = None,
    ) -> Batch:
        """Return the batch of draws that are those of `positions` already.

        Its x0 is what the packs store, (b, C, H, W), until `Batch.with_x0`: bytes are a quarter of
        the numbers that they become, and on the way out of a worker memory is what costs. x0 and
        `fresh` are in `out`, or in new memory.
        """
        config, data, sigma = self._config, self.data, draw.sigma
        index = self._present(step, draw, positions)
        rows = self.reader.take(index)
        shape = self.x0_shape
        hidden = hidden_level(sigma, self.usable.floor_of(index), config.objective, config.kappa)
        fixed = self._fixed_noise(index, shape) if hidden.any() else None
        if self._flips:
            mirrored = self.uniform(step, "flip", positions) < 0.5
            rows[mirrored] = rows[mirrored, :, ::-1]
            if fixed is not None:
                # It belongs to the stored image, so it is mirrored with it.
                fixed[mirrored] = fixed[mirrored, :, :, ::-1]
        x0 = channels_first(rows, None if out is None else out.x0)
        noise = None if out is None else out.fresh
        fresh = rng.normal_rows(positions, shape, config.seed, "noise", step, out=noise)
        return Batch(
            x0=torch.from_numpy(x0),
            sigma=torch.from_numpy(sigma.astype(np.float32)),
            hidden=torch.from_numpy(hidden.astype(np.float32)),
            fresh=torch.from_numpy(fresh),
            fixed=None if fixed is None else torch.from_numpy(fixed),
            labels=self._labels(index),
            captions=None if data.captions is None else data.captions.take(index),
            drop_condition=self._dropped(step, positions),
            index=torch.from_numpy(index),
            sample_rows=torch.from_numpy(data.sample_rows[index]),
            sample_ids=data.sample_ids.names(index),
            noise_seeds=torch.from_numpy(self._noise_seeds(step, positions)),
            num_outside_buffer=num_outside,
        )

    def _present(self, step: int, draw: Draw, positions: range) -> NDArray[np.int64]:
        """Return the samples drawn, others at the same levels in place of lost ones."""
        index = draw.index.copy()
        for attempt in range(_MAX_REPLACEMENTS):
            lost = self.reader.missing(index)
            if not lost.any():
                return index
            uniform = self.uniform(step, f"replacement-{attempt}", positions)
            index[lost] = self.drawer.draw(draw.sigma[lost], uniform[lost])
        raise SamplesLost(
            f"at sigma {draw.sigma[lost][0]:.4g} next to all usable samples are lost: bring the "
            "pack back and resume"
        )

    def uniform(self, step: int, purpose: str, positions: range) -> NDArray[np.float64]:
        """Return the uniform numbers of some positions of a step for one purpose."""
        whole = rng.uniform(self._config.batch_size, self._config.seed, purpose, step)
        return whole[positions.start : positions.stop]

    def _labels(self, index: NDArray[np.int64]) -> Tensor | None:
        labels = self.data.labels
        return None if labels is None else torch.from_numpy(labels[index].astype(np.int64))

    def _noise_seeds(self, step: int, positions: range) -> NDArray[np.uint64]:
        return np.arange(positions.start, positions.stop, dtype=np.uint64) + np.uint64(
            step * self._config.batch_size
        )

    def _dropped(self, step: int, positions: range) -> Tensor | None:
        if not self._dropout:
            return None
        return torch.from_numpy(self.uniform(step, "condition-dropout", positions) < self._dropout)

    def _fixed_noise(self, index: NDArray[np.int64], shape: Sequence[int]) -> NDArray[np.float32]:
        # Not keyed by the run's seed: two runs that hid an image behind different noise would
        # together give it away.
        return rng.normal_rows(self.data.sample_ids.noise_keys(index), shape, 0, "fixed-noise")


def _flips(data: TrainingData, asked: bool | None) -> bool:
    """Say whether images are mirrored.

    Raises:
        BadInput: latents are to be mirrored.
    """
    pixels = data.packs.dtype == np.uint8
    if asked and not pixels:
        raise BadInput(
            "horizontal_flip: a mirrored latent is not the latent of the mirrored image; leave the "
            "setting out, and ingest mirrored images if they are wanted"
        )
    return pixels if asked is None else asked
