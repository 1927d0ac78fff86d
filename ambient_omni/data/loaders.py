"""One `Batch` per step for one process, prepared by any number of workers."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator

from torch.utils.data import DataLoader, Dataset

from ambient_omni.data.batches import Batch, BatchMaker
from ambient_omni.data.config import LoaderConfig


def make_loader(
    maker: BatchMaker,
    config: LoaderConfig,
    *,
    start_step: int,
    num_steps: int,
    positions: range,
) -> Iterable[Batch]:
    """Return the batches of steps `start_step` to `num_steps` - 1, for one process.

    The same (seed, step, position) gives the same row whatever the number of workers.

    Args:
        maker: what draws and makes batches; it knows the seed and the global batch size.
        config: how to read.
        start_step: first step, where a run that resumes goes on.
        num_steps: end of the run.
        positions: this process's share of the global batch.
    """
    steps = range(start_step, num_steps)
    source = _Steps(maker, positions)
    if config.num_workers == 0:
        return _InProcess(source, steps)
    return DataLoader(
        source,
        sampler=steps,
        batch_size=None,
        num_workers=config.num_workers,
        prefetch_factor=config.prefetch,
        # Workers share the parent's memory: nothing is copied to them.
        multiprocessing_context="fork",
        worker_init_fn=_ignore_interrupts,
    )


class _Steps(Dataset[Batch]):
    """The batch of a step, by the step's number."""

    def __init__(self, maker: BatchMaker, positions: range) -> None:
        self._maker, self._positions = maker, positions

    def __getitem__(self, step: int) -> Batch:
        return self._maker.batch(step, self._maker.draw(step), self._positions)


class _InProcess(Iterable[Batch]):
    def __init__(self, source: _Steps, steps: range) -> None:
        self._source, self._steps = source, steps

    def __iter__(self) -> Iterator[Batch]:
        return map(self._source.__getitem__, self._steps)


def _ignore_interrupts(_: int) -> None:
    # Ctrl-C reaches the whole group; the trainer's process decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
