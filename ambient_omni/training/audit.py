"""Proof of obedience: what levels each kind of sample was used at, counted as training goes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ambient_omni.data.training_data import TrainingData
from ambient_omni.noise.soft import lowest_accepted, rate_of_slope
from ambient_omni.noise.usable import CHUNK
from ambient_omni.training.seen import SeenSamples

# Edges of the buckets of sigma_min: 0, then octaves, then null.
_MIN_EDGES = np.array([0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, np.inf])
# Edges of the levels: octaves around those that images are sensitive to.
_LEVEL_EDGES = np.r_[0.0, 2.0 ** np.arange(-7, 6), np.inf]

_SUMS = ("draws", "draws_below_floor", "draws_through_window", "draws_outside_buffer")


@dataclass(frozen=True)
class Audited:
    """What the audit holds a run to, of N samples: the table's own levels, not the drawing index.

    sigma_min (N,), NaN = at no high level; window (N,), 0 = none; floor_of: from places (B,) to
    floors (B,): no sample may be used below its floor and outside its window. It is κ·sigma_min, or
    under soft floors the level below which a sample is as good as never accepted. `groups`: kind
    (source, label) to names and (N,) numbers.
    """

    sample_rows: NDArray[np.int64]
    sigma_min: NDArray[np.floating]
    window: NDArray[np.floating]
    floor_of: Callable[[NDArray[np.int64]], NDArray[np.float64]]
    groups: Mapping[str, tuple[tuple[str, ...], NDArray[np.integer]]] = field(default_factory=dict)

    @classmethod
    def of(cls, data: TrainingData, kappa: float, *, soft: bool = False) -> Audited:
        """Return what a run on `data` is held to.

        Args:
            data: what it trains on.
            kappa: margin of its objective.
            soft: floors are soft: below the floor is where a sample is accepted less than once in
                a million (`soft.LEAST_ACCEPTANCE`); with a window, floors stay hard.
        """
        levels = data.annotations
        groups: dict[str, tuple[tuple[str, ...], NDArray[np.integer]]] = {
            "source": (data.source_names, data.sources)
        }
        if data.labels is not None:
            groups["label"] = (data.label_names, data.labels)

        # Of the samples drawn alone: 1e8 floors would be 0.8 GB.
        def hard_floor(index: NDArray[np.int64]) -> NDArray[np.float64]:
            minimum = levels.sigma_min[index].astype(np.float64)
            return np.where(np.isnan(minimum), np.inf, kappa * minimum)

        def soft_floor(index: NDArray[np.int64]) -> NDArray[np.float64]:
            assert levels.slope is not None
            assert data.threshold is not None
            slope = np.where(levels.sigma_max[index] > 0, np.nan, levels.slope[index])
            rate = rate_of_slope(slope, data.threshold)
            return lowest_accepted(levels.sigma_min[index], rate, data.threshold)

        floor_of = soft_floor if soft else hard_floor
        return cls(data.sample_rows, levels.sigma_min, levels.sigma_max, floor_of, groups)


class Audit:
    """Counts draws by sigma_min bucket and level, by source and label, and those below the floor.

    Each process counts what it trains on; `merged` adds the processes up.
    """

    def __init__(self, audited: Audited) -> None:
        self._audited = audited
        self._samples = np.zeros(len(bucket_names()), np.int64)
        for here in _chunks(len(audited.sample_rows)):
            self._samples += np.bincount(
                _bucket_of(audited.sigma_min[here]), minlength=len(self._samples)
            )
        self._counts = np.zeros((len(bucket_names()), len(_LEVEL_EDGES) - 1), np.int64)
        self._below_floor = 0
        self._through_window = 0
        self._outside_buffer = 0
        self._lowest_ratio = np.inf
        self._drawn = {kind: dict.fromkeys(names, 0) for kind, (names, _) in audited.groups.items()}
        self.seen = SeenSamples()

    def add(
        self, index: NDArray[np.int64], sigma: NDArray[np.float64], num_outside_buffer: int = 0
    ) -> None:
        """Count the draws of one step.

        Args:
            index: (B,) places in the training data.
            sigma: (B,) levels.
            num_outside_buffer: how many a streaming loader had to draw from beyond its buffer.
        """
        audited = self._audited
        self._outside_buffer += num_outside_buffer
        above = sigma >= audited.floor_of(index)
        inside = sigma <= audited.window[index]
        self._below_floor += int((~above & ~inside).sum())
        self._through_window += int((~above & inside).sum())
        minimum = audited.sigma_min[index]
        gated = above & (minimum > 0)
        if gated.any():
            ratio = float((sigma[gated] / minimum[gated]).min())
            self._lowest_ratio = min(self._lowest_ratio, ratio)
        level = np.searchsorted(_LEVEL_EDGES, sigma, side="right") - 1
        np.add.at(self._counts, (_bucket_of(minimum), level), 1)
        for kind, (names, numbers) in audited.groups.items():
            for number, count in zip(*np.unique(numbers[index], return_counts=True), strict=True):
                self._drawn[kind][names[number]] += int(count)
        self.seen.add(audited.sample_rows[index])

    def state(self) -> dict[str, Any]:
        """Return the counts as JSON values; what was seen is beside them, in `seen`."""
        lowest = self._lowest_ratio
        return {
            "draws": int(self._counts.sum()),
            "draws_below_floor": self._below_floor,
            "draws_through_window": self._through_window,
            "draws_outside_buffer": self._outside_buffer,
            "lowest_sigma_over_sigma_min": lowest if np.isfinite(lowest) else None,
            "draws_per_sigma_min_and_sigma": self._counts.tolist(),
            "draws_per": self._drawn,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned, also when samples or sources were excluded since."""
        self._counts[:] = state["draws_per_sigma_min_and_sigma"]
        self._below_floor = state["draws_below_floor"]
        self._through_window = state["draws_through_window"]
        self._outside_buffer = state["draws_outside_buffer"]
        lowest = state["lowest_sigma_over_sigma_min"]
        self._lowest_ratio = np.inf if lowest is None else lowest
        for kind, drawn in self._drawn.items():
            drawn.update(state["draws_per"].get(kind, {}))

    def report(
        self, state: Mapping[str, Any] | None = None, seen: SeenSamples | None = None
    ) -> dict[str, Any]:
        """Return the audit of a run from what all processes counted and saw; or this one alone."""
        state = self.state() if state is None else state
        seen = self.seen if seen is None else seen
        num_seen, seen_by_group = self._seen_here(seen)
        rest = {name: value for name, value in state.items() if name != "draws_per"}
        groups = {
            f"per_{kind}": _per_group(
                names, numbers, seen_by_group[kind], state["draws_per"].get(kind, {})
            )
            for kind, (names, numbers) in self._audited.groups.items()
        }
        return {
            **rest,
            "samples_seen": len(seen),
            "samples_seen_and_excluded_since": len(seen) - num_seen,
            "sigma_min_buckets": bucket_names(),
            "samples_per_sigma_min": self._samples.tolist(),
            "sigma_edges": [float(edge) for edge in _LEVEL_EDGES[1:-1]],
            **groups,
        }

    def _seen_here(self, seen: SeenSamples) -> tuple[int, dict[str, NDArray[np.int64]]]:
        """Return how many of the samples were seen, and how many of each group."""
        audited = self._audited
        total = 0
        found = {
            kind: np.zeros(len(names), np.int64) for kind, (names, _) in audited.groups.items()
        }
        for here in _chunks(len(audited.sample_rows)):
            was_seen = seen.has(audited.sample_rows[here])
            total += int(was_seen.sum())
            for kind, (names, numbers) in audited.groups.items():
                found[kind] += np.bincount(numbers[here][was_seen], minlength=len(names))
        return total, found


def merged(states: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the counts of several processes as one."""
    first, *others = states
    total = dict(first)
    for other in others:
        for name in _SUMS:
            total[name] += other[name]
        counts = np.add(
            total["draws_per_sigma_min_and_sigma"], other["draws_per_sigma_min_and_sigma"]
        )
        total["draws_per_sigma_min_and_sigma"] = counts.tolist()
        ratios = [total["lowest_sigma_over_sigma_min"], other["lowest_sigma_over_sigma_min"]]
        total["lowest_sigma_over_sigma_min"] = min(
            (ratio for ratio in ratios if ratio is not None), default=None
        )
        total["draws_per"] = {
            # A process that resumed also counts for sources that were excluded since.
            kind: {name: n + other["draws_per"][kind].get(name, 0) for name, n in drawn.items()}
            for kind, drawn in total["draws_per"].items()
        }
    return total


def bucket_names() -> list[str]:
    """Return the names of the sigma_min buckets: "0", half-open octaves, "null"."""
    names = [f"{low:g}..{high:g}" for low, high in itertools.pairwise(_MIN_EDGES)]
    return ["0", *names, "null"]


def _per_group(
    names: tuple[str, ...],
    numbers: NDArray[np.integer],
    seen: NDArray[np.int64],
    drawn: Mapping[str, int],
) -> dict[str, dict[str, float]]:
    samples = np.bincount(numbers, minlength=len(names))
    num_samples, num_draws = max(1, len(numbers)), max(1, sum(drawn.values()))
    out: dict[str, dict[str, float]] = {}
    for place, name in enumerate(names):
        draws = drawn.get(name, 0)
        expected = samples[place] / num_samples
        out[name] = {
            "samples": int(samples[place]),
            "samples_seen": int(seen[place]),
            "draws": draws,
            # 1 = drawn as often as its share of the samples; the skew that annotations bring.
            "draws_over_share": float(draws / num_draws / expected) if expected else 0.0,
        }
    # Sources and labels of which every sample was excluded since.
    gone: dict[str, dict[str, float]] = {
        name: {"samples": 0, "samples_seen": 0, "draws": count} for name, count in drawn.items()
    }
    return {**{name: value for name, value in gone.items() if name not in out}, **out}


def _chunks(count: int) -> Iterator[slice]:
    for start in range(0, count, CHUNK):
        yield slice(start, start + CHUNK)


def _bucket_of(sigma_min: NDArray[np.floating]) -> NDArray[np.int64]:
    bucket = np.searchsorted(_MIN_EDGES, sigma_min, side="left")
    return np.where(np.isnan(sigma_min), len(_MIN_EDGES), bucket).astype(np.int64)
