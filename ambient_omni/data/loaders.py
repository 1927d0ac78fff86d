"""One `Batch` per step for one process, prepared by any number of workers."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator

from torch.utils.data import DataLoader, Dataset

from ambient_omni.data.batches import Batch, BatchMaker
from ambient_omni.data.config import LoaderConfig
from ambient_omni.data.streaming import StreamingMaker
from schemas.errors import AmbientOmniError


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

    Raises:
        BadInput: streaming, and there are fewer chunks than processes.
        SamplesLost: while it is read, more samples vanished or changed than the settings allow.
    """
    maker.reader.max_missing = config.max_missing_samples
    return _Loader(_Steps(maker, config, positions), config, range(start_step, num_steps))


class _Steps(Dataset["Batch | AmbientOmniError"]):
    """The batch of a step, by the step's number; an error is a value, to cross processes whole."""

    def __init__(self, maker: BatchMaker, config: LoaderConfig, positions: range) -> None:
        self._maker, self._positions = maker, positions
        streaming = config.kind == "streaming"
        self._streaming = StreamingMaker(maker, config, positions) if streaming else None

    def __getitem__(self, step: int) -> Batch | AmbientOmniError:
        try:
            if self._streaming is not None:
                return self._streaming.batch(step)
            draw = self._maker.draw(step).at(self._positions)
            return self._maker.assemble(step, draw, self._positions)
        except AmbientOmniError as error:
            return error


class _Loader(Iterable[Batch]):
    def __init__(self, source: _Steps, config: LoaderConfig, steps: range) -> None:
        self._source, self._config, self._steps = source, config, steps

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[Batch]:
        for made in self._made():
            if isinstance(made, AmbientOmniError):
                raise made
            yield made.with_x0()

    def _made(self) -> Iterable[Batch | AmbientOmniError]:
        if self._config.num_workers == 0:
            return map(self._source.__getitem__, self._steps)
        return DataLoader(
            self._source,
            sampler=self._steps,
            batch_size=None,
            num_workers=self._config.num_workers,
            prefetch_factor=self._config.prefetch,
            # Workers share the parent's memory: nothing is copied to them.
            multiprocessing_context="fork",
            worker_init_fn=_ignore_interrupts,
        )


def _ignore_interrupts(_: int) -> None:
    # Ctrl-C reaches the whole group; the trainer's process decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
