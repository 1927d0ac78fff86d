"""How far the streaming loader's draws are from exact ones; prints the table of decision 0012.

A thousand chunks of a thousand samples, 5 % of them usable at every level, the others with
ln σ_min ~ N(0, 1), shifted per chunk by N(0, h²): h = 0 is a pool that was shuffled before it was
packed, h = 1 and 2 are sources that lie chunk by chunk.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ambient_omni import rng
from ambient_omni.data.streaming import ChunkSequence, deviation
from ambient_omni.noise.usable import Usable
from benchmarks.common import record

NUM_CHUNKS, CHUNK_SAMPLES, NUM_EPOCHS = 1000, 1000, 5
LEVELS = (0.05, 0.3, 1.0, 3.0)
CASES = ((16_384, 0.0), (16_384, 1.0), (65_536, 0.0), (65_536, 1.0), (65_536, 2.0))


def main() -> None:
    """Record streaming_deviation."""
    found = {case: deviations(*case) for case in CASES}
    for (buffer, shift), values in found.items():
        cells = " | ".join(f"{100 * value:.1f} %" for value in values)
        print(f"| {buffer} | {shift:g} | {cells} |")
    worst = found[65_536, 1.0]
    record(
        "streaming_deviation",
        100 * max(worst),
        unit="%",
        goal=5.0,
        better="lower",
        compared_with="the exact draw: total variation, the worst of four levels",
        spread=f"at sigma {LEVELS}: " + ", ".join(f"{100 * value:.1f} %" for value in worst),
        note="buffer of 65,536 of 1,000,000 samples, levels shifted per chunk by one e-fold",
    )


def deviations(buffer_samples: int, shift: float) -> list[float]:
    """Return the total variation at each of `LEVELS`."""
    usable, chunk = pool(shift)
    sequence = ChunkSequence(
        np.bincount(chunk),
        np.zeros(NUM_CHUNKS, np.int64),
        buffer_samples=buffer_samples,
        seed=0,
        rank=0,
        num_ranks=1,
    )
    return [
        deviation(usable, chunk, sequence, level, NUM_EPOCHS).total_variation for level in LEVELS
    ]


def pool(shift: float) -> tuple[Usable, NDArray[np.int64]]:
    """Return the levels of all samples and the chunk of each."""
    draw = rng.generator(0, "streamed pool")
    count, chunk = NUM_CHUNKS * CHUNK_SAMPLES, np.repeat(np.arange(NUM_CHUNKS), CHUNK_SAMPLES)
    level = draw.normal(0.0, 1.0, count) + draw.normal(0.0, shift, NUM_CHUNKS)[chunk]
    sigma_min = np.where(draw.random(count) < 0.05, 0.0, np.exp(level))
    return Usable.of(sigma_min, np.zeros(count)), chunk


if __name__ == "__main__":
    main()
