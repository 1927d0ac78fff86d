"""Shard-sequential reading: chunks pass through a buffer, from which samples are drawn.

A process has a window of whole chunks open, its buffer. After as many draws as a chunk has samples
the window moves on by one chunk of a shuffled sequence. Which chunks are open at a step depends on
the seed, the step and the number of processes alone: nothing has to be replayed to resume, and
workers need not talk to each other. Small batches, as references are, stay open all the time.

A sample is drawn among all, exactly as the pack loader does. Where its chunk is not open, one of
the window takes its place, drawn in the same way among those that the level allows; where the
window has none, the sample is read by itself, and the batch counts it. No level is given up. See
docs/decisions/0012-streaming-by-chunks.md for how far that is from the exact draw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ambient_omni import rng
from ambient_omni.data.batches import Batch, BatchMaker, Draw, ImageMemory
from ambient_omni.data.chunks import ChunkReader, prefetch, release
from ambient_omni.data.config import LoaderConfig
from ambient_omni.noise.eligibility import Drawer
from ambient_omni.noise.usable import Usable
from schemas.errors import BadInput


class ChunkSequence:
    """The endless sequence of chunks, and the window of it that a process has open at a step.

    Every epoch is a permutation of all chunks in which those of each batch are spread evenly, so
    that a window has each batch's share of samples as nearly as whole chunks allow.

    Args:
        sizes: (C,) samples per chunk.
        batch: (C,) number of the batch that each chunk belongs to.
        buffer_samples: least number of samples of a window.
        seed: of the run.
        rank: which process.
        num_ranks: how many there are.

    Raises:
        BadInput: there are fewer chunks than processes.
    """

    def __init__(
        self,
        sizes: NDArray[np.int64],
        batch: NDArray[np.int64],
        *,
        buffer_samples: int,
        seed: int,
        rank: int,
        num_ranks: int,
    ) -> None:
        if len(sizes) < num_ranks:
            raise BadInput(
                f"streaming needs a chunk for each of {num_ranks} processes, the packs have "
                f"{len(sizes)}: set loader.kind to pack"
            )
        self._batch, self._seed = batch, seed
        self._rank, self._num_ranks = rank, num_ranks
        self._mean = float(sizes.mean())
        per_rank = math.ceil(len(sizes) / num_ranks)
        self.width = min(max(1, math.ceil(buffer_samples / self._mean)), per_rank)
        self._epochs: dict[int, NDArray[np.int64]] = {}

    def number(self, draws: int) -> int:
        """Return the number of the window that is open after so many draws of this process."""
        return int(draws / self._mean)

    def window(self, number: int) -> tuple[int, ...]:
        """Return the chunks of a window, in the order in which they were opened."""
        open_: dict[int, None] = {}
        # Where one epoch follows another a chunk can come twice; then the window reaches further.
        for k in range(3 * self.width):
            open_.setdefault(self._chunk(self._rank + (number + k) * self._num_ranks))
            if len(open_) == self.width:
                break
        return tuple(open_)

    def _chunk(self, place: int) -> int:
        epoch, within = divmod(place, len(self._batch))
        if epoch not in self._epochs:
            self._epochs = {e: v for e, v in self._epochs.items() if abs(e - epoch) <= 1}
            self._epochs[epoch] = self._order(epoch)
        return int(self._epochs[epoch][within])

    def _order(self, epoch: int) -> NDArray[np.int64]:
        shuffled = rng.permutation(len(self._batch), self._seed, "chunks", epoch)
        batch = self._batch[shuffled]
        # The k-th of a batch's n chunks goes to (k + u) / n of the way.
        by_batch = np.argsort(batch, kind="stable")
        counts = np.bincount(batch)
        rank_in_batch = np.empty(len(batch), np.int64)
        rank_in_batch[by_batch] = np.concatenate([np.arange(count) for count in counts])
        shift = rng.uniform(len(counts), self._seed, "chunk-shift", epoch)
        return shuffled[np.argsort((rank_in_batch + shift[batch]) / counts[batch], kind="stable")]


def resident_batches(sizes: NDArray[np.int64], buffer_samples: int) -> NDArray[np.bool_]:
    """Return which batches stay open: the smallest ones, in half of the buffer.

    Args:
        sizes: (K,) samples per batch.
        buffer_samples: size of the buffer.
    """
    order = np.argsort(sizes, kind="stable")
    resident = np.zeros(len(sizes), bool)
    resident[order] = np.cumsum(sizes[order]) <= buffer_samples / 2
    return resident


class StreamingMaker:
    """Makes one process's batches from its buffer, in the order of steps or not.

    Args:
        maker: what makes batches.
        config: loader settings.
        positions: this process's share of the global batch.

    Raises:
        BadInput: there are fewer chunks than processes.
    """

    def __init__(self, maker: BatchMaker, config: LoaderConfig, positions: range) -> None:
        self._maker, self._positions = maker, positions
        self._reader: ChunkReader = maker.reader
        sizes = np.array(
            [len(self._reader.samples_of(c)) for c in range(len(self._reader.chunks))], np.int64
        )
        packs = maker.data.packs.packs
        batch = np.repeat(np.arange(len(packs)), [len(pack.chunks) for pack in packs])
        per_batch = np.bincount(batch, sizes, len(packs)).astype(np.int64)
        stays = resident_batches(per_batch, config.buffer_samples)[batch]
        self._resident = set(np.flatnonzero(stays).tolist())
        self._streamed = np.flatnonzero(~stays & (sizes > 0))
        self._sequence = self._sequence_of(sizes, batch, config.buffer_samples)
        self._open: tuple[int, ...] | None = None
        self._is_open = np.zeros(len(sizes), bool)
        self._window: NDArray[np.int64] = np.empty(0, np.int64)
        self._drawer: Drawer | None = None

    def batch(self, step: int, out: ImageMemory | None = None) -> Batch:
        """Return the batch of a step, as `BatchMaker.assemble` does.

        Raises:
            SamplesLost: more samples vanished or changed than the settings allow.
        """
        draw, num_outside = self.draw(step)
        return self._maker.assemble(step, draw, self._positions, num_outside, out)

    def draw(self, step: int) -> tuple[Draw, int]:
        """Return this process's draws of a step, and how many are from outside its buffer."""
        self._move_to(self.window(step))
        exact = self._maker.draw(step).at(self._positions)
        index, sigma = exact.index, exact.sigma
        closed = ~self._is_open[self._reader.chunk_of(index)]
        replaced = closed & self._has_eligible(sigma)
        if replaced.any():
            assert self._drawer is not None
            uniform = self._maker.uniform(step, "buffer", self._positions)
            chosen = self._drawer.draw(sigma[replaced], uniform[replaced])
            index = index.copy()
            index[replaced] = self._window[chosen]
        return Draw(index, sigma), int((closed & ~replaced).sum())

    def window(self, step: int) -> tuple[int, ...]:
        """Return the chunks that pass through the buffer at a step; resident ones are beside."""
        return self._window_of(self._number(step))

    def _number(self, step: int) -> int:
        draws = step * len(self._positions)
        return 0 if self._sequence is None else self._sequence.number(draws)

    def _window_of(self, number: int) -> tuple[int, ...]:
        if self._sequence is None:
            return ()
        return tuple(int(self._streamed[place]) for place in self._sequence.window(number))

    def _sequence_of(
        self, sizes: NDArray[np.int64], batch: NDArray[np.int64], buffer_samples: int
    ) -> ChunkSequence | None:
        if not len(self._streamed):
            return None
        size = len(self._positions)
        return ChunkSequence(
            sizes[self._streamed],
            batch[self._streamed],
            buffer_samples=buffer_samples - int(sizes[list(self._resident)].sum()),
            seed=self._maker.seed,
            rank=self._positions.start // size,
            num_ranks=self._maker.batch_size // size,
        )

    def _has_eligible(self, sigma: NDArray[np.float64]) -> NDArray[np.bool_]:
        if self._drawer is None:
            return np.zeros(len(sigma), bool)
        gap = self._drawer.gap()
        return np.ones(len(sigma), bool) if gap is None else ~((sigma > gap[0]) & (sigma < gap[1]))

    def _move_to(self, window: tuple[int, ...]) -> None:
        if window == self._open:
            return
        before = set(self._open or ())
        for chunk in before - set(window):
            release(self._reader.chunks[chunk].path)
        for chunk in set(window) - before:
            prefetch(self._reader.chunks[chunk].path)
        whole = [chunk for chunk in window if self._reader.look_at(chunk)]
        self._is_open[:] = False
        self._is_open[[*self._resident, *whole]] = True
        samples = [self._reader.samples_of(chunk) for chunk in whole]
        self._window = np.sort(np.concatenate([np.empty(0, np.int64), *samples]))
        self._drawer = self._maker.drawer_of(self._window) if len(self._window) else None
        self._open = window


@dataclass(frozen=True)
class Deviation:
    """How far drawing from buffers is from drawing among all, at one level, in the long run.

    total_variation: between the frequencies of samples, in [0, 1]: the part of the draws that lands
    on other samples than it should. outside: share of the draws that no buffer could serve; those
    are exact and count as such.
    """

    total_variation: float
    outside: float


def deviation(
    usable: Usable,
    chunk: NDArray[np.int64],
    sequence: ChunkSequence,
    sigma: float,
    num_epochs: int = 20,
) -> Deviation:
    """Compute the frequencies that the windows of some epochs give the samples usable at σ.

    All samples of a chunk that are usable at σ are drawn equally often, so chunks are enough.

    Args:
        usable: N samples of the chunks that pass through the buffer, none resident.
        chunk: (N,) chunk of each.
        sequence: of the chunks.
        sigma: the level.
        num_epochs: how many; the first has no window before it, which weighs less among many.
    """
    num_chunks = int(chunk.max()) + 1
    eligible = np.bincount(chunk[usable.at(sigma)], minlength=num_chunks)
    exact = eligible / eligible.sum()
    drawn, outside, num_windows = np.zeros(num_chunks), 0.0, num_chunks * num_epochs
    for number in range(num_windows):
        window = list(sequence.window(number))
        closed = 1 - exact[window].sum()
        if eligible[window].any():
            drawn[window] += exact[window] * (1 + closed / exact[window].sum())
        else:
            drawn += exact
            outside += closed
    drawn /= num_windows
    return Deviation(float(np.abs(drawn - exact).sum() / 2), outside / num_windows)
