"""One `Batch` per step for one process, prepared by any number of workers."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ambient_omni.data.batches import Batch, BatchMaker, ImageMemory
from ambient_omni.data.config import LoaderConfig
from ambient_omni.data.slots import Slots
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
        self._maker, self.positions = maker, positions
        streaming = config.kind == "streaming"
        self._streaming = StreamingMaker(maker, config, positions) if streaming else None

    def __getitem__(self, step: int) -> Batch | AmbientOmniError:
        return self.make(step)

    def make(self, step: int, out: ImageMemory | None = None) -> Batch | AmbientOmniError:
        """Return the batch of a step, its images in `out`."""
        try:
            if self._streaming is not None:
                return self._streaming.batch(step, out)
            draw = self._maker.draw(step).at(self.positions)
            return self._maker.assemble(step, draw, self.positions, out=out)
        except AmbientOmniError as error:
            return error

    def slots(self, config: LoaderConfig) -> tuple[Slots, Slots]:
        """Return memory for x0 and for fresh noise on their way out of workers."""
        shape = (len(self.positions), *self._maker.x0_shape)
        workers, prefetch = config.num_workers, config.prefetch
        stored = self._maker.data.packs.dtype
        fresh = Slots(shape, np.dtype(np.float32), workers, prefetch)
        return Slots(shape, stored, workers, prefetch), fresh


@dataclass(frozen=True)
class _Sent:
    """A batch on its way out of a worker: the slot of its images, and the rest as arrays.

    Each tensor would cross through a shared file of its own; arrays cross as bytes.
    """

    slot: int
    rest: dict[str, Any]

    @classmethod
    def of(cls, batch: Batch, slot: int) -> _Sent:
        """Pack a batch whose x0 and fresh noise are in a slot."""
        values = {field.name: getattr(batch, field.name) for field in fields(batch)}
        del values["x0"], values["fresh"]
        arrays = {n: v.numpy() if isinstance(v, Tensor) else v for n, v in values.items()}
        return cls(slot, arrays)

    def batch(self, x0: Slots, fresh: Slots) -> Batch:
        """Unpack it; its x0 is in the slot until `Batch.with_x0`."""
        rest: dict[str, Any] = {
            name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            for name, value in self.rest.items()
        }
        noise = torch.from_numpy(fresh[self.slot]).clone()
        return Batch(x0=torch.from_numpy(x0[self.slot]), fresh=noise, **rest)


class _Sending(Dataset["_Sent | AmbientOmniError"]):
    """What a worker sends for a step."""

    def __init__(self, source: _Steps, x0: Slots, fresh: Slots) -> None:
        self._source, self._x0, self._fresh = source, x0, fresh

    def __getitem__(self, step: int) -> _Sent | AmbientOmniError:
        slot = self._x0.next()
        made = self._source.make(step, ImageMemory(self._x0[slot], self._fresh[slot]))
        return _Sent.of(made, slot) if isinstance(made, Batch) else made


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

    def _made(self) -> Iterator[Batch | AmbientOmniError]:
        if self._config.num_workers == 0:
            yield from map(self._source.__getitem__, self._steps)
            return
        x0, fresh = self._source.slots(self._config)
        sent = DataLoader(
            _Sending(self._source, x0, fresh),
            sampler=self._steps,
            batch_size=None,
            num_workers=self._config.num_workers,
            prefetch_factor=self._config.prefetch,
            # Workers share the parent's memory: nothing is copied to them.
            multiprocessing_context="fork",
            worker_init_fn=_ignore_interrupts,
            # Else default_convert would turn arrays into tensors before they are sent.
            collate_fn=_as_it_is,
        )
        for one in sent:
            yield one.batch(x0, fresh) if isinstance(one, _Sent) else one


def _as_it_is(sent: Any) -> Any:
    return sent


def _ignore_interrupts(_: int) -> None:
    # Ctrl-C reaches the whole group, as does a scheduler's SIGTERM; the trainer's process decides
    # when to stop, and torch ends workers whose trainer is gone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
