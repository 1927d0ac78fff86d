"""What a delivered sample costs when 2 % of the pool may be used, over when all of it may.

A loader that rejects reads fifty samples to deliver one. Ours draws the level first: the cost is
that of the samples delivered. Both sides draw levels above one floor from the same prior and read
the same pack; only the share of the pool that is usable there differs.
"""

from __future__ import annotations

import numpy as np

from ambient_omni import LevelThenSampleBatchSampler, UsableLevels, rng
from ambient_omni.data.packs import Pack, PackSet, to_x0
from ambient_omni.noise.priors import LogNormalPrior
from benchmarks.common import interleaved, ratio_of_rounds, record
from benchmarks.loader_vs_best_peer import TRANSFORM, data_folder
from benchmarks.peers.loader_side import BATCH

NUM_STEPS, ROUNDS = 30, 15
SHARES = {"2 %": 0.02, "100 %": 1.0}


def main() -> None:
    """Record loader_flatness."""
    packs = PackSet([Pack.open(data_folder() / "packs", TRANSFORM.transform_id, "bench")])
    chance = rng.generator(0, "usable").random(len(packs))

    def reader(share: float):
        levels = UsableLevels(np.where(chance < share, 0.0, np.nan))
        sampler = LevelThenSampleBatchSampler(levels, LogNormalPrior(), BATCH, num_steps=NUM_STEPS)

        def read() -> None:
            for step in range(NUM_STEPS):
                to_x0(packs.take(sampler.draw(step)[0]))

        return read

    times = interleaved({name: reader(share) for name, share in SHARES.items()}, ROUNDS)
    ratio, spread = ratio_of_rounds(times["2 %"], times["100 %"])
    each = min(times["100 %"]) / NUM_STEPS / BATCH * 1e6
    record(
        "loader_flatness",
        ratio,
        unit="ratio",
        goal=1.1,
        better="lower",
        compared_with="the same reading with the whole pool usable",
        spread=spread,
        note=f"2 % of {len(packs)} images usable; {each:.1f} µs an image in one process, draw, "
        f"read and conversion",
    )


if __name__ == "__main__":
    main()
