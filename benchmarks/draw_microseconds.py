"""Microseconds a draw takes, in batches, among 1e7 and 1e8 samples; and the memory of 1e8.

Levels as a classifier finds them: a tenth usable everywhere, a tenth never, the rest log-normal; a
tenth of the samples has a window as well.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from ambient_omni import rng
from ambient_omni.noise.eligibility import EligibilityIndex, as_float32
from ambient_omni.noise.priors import LogNormalPrior
from ambient_omni.noise.usable import CHUNK, Usable
from benchmarks.common import record

NUM_SAMPLES = 100_000_000
BATCH, ROUNDS = 256, 400
WINDOWED = 0.1


def levels(num_samples: int, windowed: float) -> tuple[np.ndarray, np.ndarray]:
    """Return sigma_min float64 and sigma_max float32, as `read_annotations` returns them."""
    sigma_min, sigma_max = np.empty(num_samples), np.zeros(num_samples, np.float32)
    windows = np.array([0.05, 0.15, 0.2, 0.35, 0.55], np.float32)
    for begin in range(0, num_samples, CHUNK):
        end = min(begin + CHUNK, num_samples)
        draw = rng.generator(0, "levels", begin)
        kind, part = draw.random(end - begin), np.exp(draw.normal(-0.5, 1, end - begin))
        part[kind < 0.1], part[kind > 0.9] = 0, np.nan
        sigma_min[begin:end] = part
        some = draw.random(end - begin) < windowed
        sigma_max[begin:end] = np.where(some, draw.choice(windows, end - begin), 0)
    return sigma_min, sigma_max


def anonymous_bytes() -> int:
    """Return the private memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def measure(num_samples: int, windowed: float) -> dict[str, float]:
    """Build the index and time draws in batches."""
    before = anonymous_bytes()
    sigma_min, sigma_max = levels(num_samples, windowed)
    began = time.perf_counter()
    index = EligibilityIndex(Usable.of(sigma_min, sigma_max))
    built = time.perf_counter() - began
    memory, prior = anonymous_bytes() - before, LogNormalPrior()
    times = []
    for step in range(ROUNDS):
        sigma = as_float32(prior.sigma_of(rng.uniform(BATCH, 0, "level", step)))
        uniform = rng.uniform(BATCH, 0, "sample", step)
        began = time.perf_counter()
        index.draw(sigma, uniform)
        times.append((time.perf_counter() - began) / BATCH * 1e6)
    low, high = np.quantile(times, [0.1, 0.9])
    return {
        "median": statistics.median(times),
        "low": float(low),
        "high": float(high),
        "gigabytes": memory / 1e9,
        "build_sec": built,
    }


def in_child(windowed: float) -> dict[str, float]:
    """Measure in a fresh process, whose memory is this alone."""
    command = [sys.executable, "-m", "benchmarks.draw_microseconds", str(windowed)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(zip(_FIELDS, map(float, done.stdout.split()), strict=True))


_FIELDS = ("median", "low", "high", "gigabytes", "build_sec")


def main() -> None:
    """Record draw_microseconds and draw_memory."""
    if len(sys.argv) > 1:
        found = measure(NUM_SAMPLES, float(sys.argv[1]))
        print(*(found[name] for name in _FIELDS))
        return
    found, half = in_child(WINDOWED), in_child(0.5)
    record(
        "draw_microseconds",
        found["median"],
        unit="µs",
        goal=2,
        better="lower",
        compared_with=f"one draw among 1e8 samples, in batches of {BATCH}",
        spread=f"median of {ROUNDS} batches, 10 % .. 90 %: {found['low']:.3g} .. "
        f"{found['high']:.3g}",
        note=f"a tenth of the samples has a window; with half of them {half['median']:.3g} µs; "
        "levels and uniform numbers are drawn outside the timing",
        packages=("numpy",),
    )
    record(
        "draw_memory",
        found["gigabytes"],
        unit="GB",
        goal=2,
        better="lower",
        compared_with="annotations and index of 1e8 samples, beside their int64 sample_row",
        spread=f"with windows on half of the samples {half['gigabytes']:.3g} GB",
        note="private memory, resident: sigma_min float64, sigma_max float32, orders uint32; "
        f"built in {found['build_sec'] / 10:.2f} s per 1e7 samples",
        packages=("numpy",),
    )


if __name__ == "__main__":
    main()
