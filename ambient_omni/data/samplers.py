"""Level, then sample, for any dataset of PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset, IterableDataset, Sampler, default_collate, get_worker_info

from ambient_omni import rng
from ambient_omni.data.usable_levels import UsableLevels
from ambient_omni.noise.eligibility import outside_gap, require_every_level
from ambient_omni.noise.timesteps import TimestepLevels
from ambient_omni.noise.usable import Levels


class PriorLike(Protocol):
    """A distribution of levels: a prior of this package, or `TimestepLevels`."""

    def sigma_of(self, uniform: Levels) -> Levels:
        """Turn uniform numbers in [0, 1) into levels, elementwise."""

    def cdf(self, sigma: ArrayLike) -> Levels:
        """Return the share of levels at or below σ, elementwise."""


class LevelIndex(int):
    """An index into a dataset, as any other, that knows the level drawn with it.

    `sigma` is the level; `timestep` the scheduler's timestep, None where there is no scheduler.
    """

    sigma: float
    timestep: float | None

    def __new__(cls, index: int, sigma: float, timestep: float | None = None) -> LevelIndex:
        """Make one of an index, a level and perhaps a timestep."""
        made = super().__new__(cls, index)
        made.sigma, made.timestep = sigma, timestep
        return made

    def __getnewargs__(self) -> tuple[int, float, float | None]:  # type: ignore[override]
        return int(self), self.sigma, self.timestep


class LevelThenSampleBatchSampler(Sampler[list[int]]):
    """A `batch_sampler` whose indices carry their levels; see `WithLevels`.

    The batch of a step is a function of (seed, step, position), so a run resumes with
    `start_step`, and processes share a global batch through `positions`.

    Args:
        levels: of the samples of the dataset.
        prior: what levels are drawn from; `TimestepLevels` for a diffusers scheduler.
        batch_size: of the global batch.
        num_steps: end of the run.
        seed: of the run.
        start_step: first step.
        positions: this process's share of the global batch; all of it by default.

    Raises:
        NoEligibleSample: some level of the prior has no sample that may be used.
    """

    def __init__(
        self,
        levels: UsableLevels,
        prior: PriorLike,
        batch_size: int,
        *,
        num_steps: int,
        seed: int = 0,
        start_step: int = 0,
        positions: range | None = None,
    ) -> None:
        require_every_level(levels, prior, len(levels))
        self._levels, self._prior = levels, prior
        # accelerate reads these two of every batch sampler.
        self.batch_size, self.drop_last = batch_size, True
        self.num_steps, self.seed, self.start_step = num_steps, seed, start_step
        self._positions = range(batch_size) if positions is None else positions

    def __len__(self) -> int:
        return self.num_steps - self.start_step

    def __iter__(self) -> Iterator[list[int]]:
        return map(self.batch, range(self.start_step, self.num_steps))

    def batch(self, step: int) -> list[int]:
        """Return the indices of a step, each a `LevelIndex`."""
        index, sigma = self.draw(step)
        steps: list[Any] = [None] * len(index)
        if isinstance(self._prior, TimestepLevels):
            steps = self._prior.timestep_of(sigma).tolist()
        return list(map(LevelIndex, index.tolist(), sigma.tolist(), steps))

    def draw(self, step: int) -> tuple[NDArray[np.int64], Levels]:
        """Return the samples (b,) and levels (b,) of a step."""
        here = slice(self._positions.start, self._positions.stop)
        sigma = self._prior.sigma_of(rng.uniform(self.batch_size, self.seed, "level", step))
        sigma = outside_gap(sigma[here], self._levels.gap())
        uniform = rng.uniform(self.batch_size, self.seed, "sample", step)[here]
        return self._levels.draw(sigma, uniform), sigma


class WithLevels(Dataset[dict[str, Any]]):
    """A dataset of dicts whose items also have `sigma`, `timestep` (if any) and `index`.

    Args:
        dataset: map-style; its items are dicts, or become the value of `item`.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not isinstance(index, LevelIndex):
            raise TypeError("WithLevels is read through a LevelThenSampleBatchSampler")
        item = self._dataset[int(index)]
        known = dict(item) if isinstance(item, dict) else {"item": item}
        # float32: the type that the level was drawn in.
        levels: dict[str, Any] = {"sigma": np.float32(index.sigma), "index": int(index)}
        if index.timestep is not None:
            levels["timestep"] = index.timestep
        return {**known, **levels}


class LevelThenSampleIterable(IterableDataset[Any]):
    """The batches of a `LevelThenSampleBatchSampler` as an iterable dataset, for any workers.

    Use it as ``DataLoader(iterable, batch_size=None, num_workers=n)``: worker w makes every n-th
    batch, and the loader takes them in turn, so that their order does not depend on n.

    Args:
        dataset: map-style; see `WithLevels`.
        sampler: what draws.
        collate: makes a batch of items.
    """

    def __init__(
        self,
        dataset: Any,
        sampler: LevelThenSampleBatchSampler,
        collate: Callable[[list[Any]], Any] = default_collate,
    ) -> None:
        self._dataset, self._sampler, self._collate = WithLevels(dataset), sampler, collate

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, every = (0, 1) if worker is None else (worker.id, worker.num_workers)
        sampler = self._sampler
        for step in range(sampler.start_step + first, sampler.num_steps, every):
            yield self._collate([self._dataset[index] for index in sampler.batch(step)])
