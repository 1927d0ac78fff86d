"""``python -m benchmarks.annotation``: how right and how quick the annotators are.

A noise classifier is trained on natural photographs (`benchmarks.photos`): trusted photos against
a pool of other photos with damage of every kind and severity; once for each seed. Everything is
measured on tiles of held-out photos, which no network and no head has seen, each seed on its own:

* the annotators against the exhaustive search, and the search against a second run of itself;
* whether the worse of two copies of one tile gets the higher level, also for a kind of damage
  that the classifier never saw;
* whether noise of known strength is found where algebra says.

Long steps keep their results under ``~/.cache/ambient-omni/bench/annotation``: stopped and started
again, it goes on. Remove the folder to measure anew.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from ambient_omni import rng
from ambient_omni.classifier.annotators import (
    Annotator,
    Curves,
    ExhaustiveSearch,
    Reading,
)
from ambient_omni.classifier.bisection import Bisection
from ambient_omni.classifier.config import (
    ExhaustiveConfig,
    GridConfig,
    HeadConfig,
    SequentialConfig,
)
from ambient_omni.classifier.head import Head, HeadAnnotator, Lessons, octaves_apart, train_head
from ambient_omni.classifier.severity import shown_as_pixels
from ambient_omni.data.packs import to_x0
from benchmarks import photos
from benchmarks.common import record
from benchmarks.known_noise import (
    NUM_TILES,
    ON_TOP,
    crossings_of_carried_noise,
    gaussian_model,
)
from benchmarks.photo_classifier import CLASSIFIER, Bench, classifier, grid, some
from schemas.ids import hash_fraction

HEAD = HeadConfig(
    num_steps=3_000,
    batch_size=32,
    levels_per_image=6,
    max_median_octaves=1.0,
    max_check_images=64,
    check=ExhaustiveConfig(num_levels=128, num_noises=4, num_bins=64),
)
READING = Reading()
SEARCH = ExhaustiveConfig(num_levels=256, num_noises=4, num_bins=64)
SEEDS = (0,)
SEEDS_OF_PAIRS = (0, 1, 2)  # these need no head and no search
NUM_SEARCHED = 200  # tiles a seed
NUM_REPEATED = 100  # of them, searched a second time
NUM_PAIRS = 150  # a kind and a seed
LEFT_OUT = "motion_blur"


def main() -> None:
    torch.set_num_threads(1)
    steps = {f.__name__: f for f in (accuracy, concordance, known_noise, unseen_kind)}
    for name in sys.argv[1:] or steps:
        steps[name]()


# -- accuracy and speed ------------------------------------------------------------------------


def accuracy() -> None:
    """Compare every annotator with the search, and the search with itself."""
    runs = [_compared(Bench(seed)) for seed in SEEDS]
    errors = {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}
    for name, error in errors.items():
        print(f"{name}: {_told(error)}")
    best, repeat = errors["head"], errors["the search's own repeat"]
    note = (
        f"{len(best)} tiles of held-out photos, mixed damage, {len(SEEDS)} seeds of classifier and "
        f"head (by seed: {', '.join(_told(run['head']) for run in runs)}); search of "
        f"{SEARCH.num_levels} x {SEARCH.num_noises}; "
    ) + "; ".join(f"{name} {_told(error)}" for name, error in errors.items())
    first = Bench(SEEDS[0])
    tiles = searched(first).tiles
    x0, names = to_x0(tiles.pixels), tiles.names()
    record(
        "annotation_evaluations",
        float(annotators(first)["head"].curves(x0, names).evaluations.max()),
        unit="network evaluations per image",
        goal=8,
        better="lower",
        compared_with=f"{SEARCH.num_levels * SEARCH.num_noises} of the exhaustive search",
        spread="the same for every image",
        note=f"amortised head, then {HEAD.num_looks} pairs of noisings",
    )
    record(
        "annotation_error_p50",
        float(np.median(best)),
        unit="octaves",
        goal=max(0.1, 2 * float(np.median(repeat))),
        better="lower",
        compared_with="the exhaustive search; the goal is twice its own repeat, or 0.1",
        spread=f"quartiles {np.quantile(best, 0.25):.3f} .. {np.quantile(best, 0.75):.3f}",
        note=note,
    )
    record(
        "annotation_error_p95",
        float(np.quantile(best, 0.95)),
        unit="octaves",
        goal=0.5,
        better="lower",
        compared_with="the exhaustive search",
        spread=f"largest {best.max():.2f}; the search's own repeat {np.quantile(repeat, 0.95):.3f}",
        note=note,
    )
    speed(first, x0, names)


def _compared(bench: Bench) -> dict[str, NDArray[np.float64]]:
    """Return the errors in octaves on one seed's tiles, by who answered."""
    mix = searched(bench)
    truth = READING.crossings(search(bench, 0)).sigma_min
    again = READING.crossings(search(bench, 1)).sigma_min
    x0, names = to_x0(mix.tiles.pixels), mix.tiles.names()
    errors = {
        "the search's own repeat": _error(again, truth[:NUM_REPEATED]),
        "best constant per source": _error_of_constants(truth, mix.kind),
    }
    for name, annotator in annotators(bench).items():
        errors[name] = _error(READING.crossings(annotator.curves(x0, names)).sigma_min, truth)
    return errors


def searched(bench: Bench) -> photos.Damaged:
    """Return the held-out tiles, mixed damage, that are searched exhaustively."""
    return photos.damaged_mix(bench.held_out(NUM_SEARCHED), 0.1, seed=1)


def search(bench: Bench, run: int) -> Curves:
    """Return one run of the search, kept on disk; the second run is of fewer tiles."""
    tiles = searched(bench).tiles
    count = len(tiles) if run == 0 else NUM_REPEATED
    file = bench.file(f"search-{run}", [SEARCH.model_dump(), count], ".npz")
    if not file.exists():
        found = ExhaustiveSearch(classifier(bench), SEARCH, bench.seed, run=run).curves(
            to_x0(tiles.pixels[:count]), tiles.names()[:count]
        )
        np.savez(file, *(found.sigmas, found.logits, found.logit_standard_error, found.evaluations))
    with np.load(file) as kept:
        return Curves(*(kept[f"arr_{i}"] for i in range(4)))


@cache
def annotators(bench: Bench) -> dict[str, Annotator]:
    """Return every quick annotator by name."""
    asked, seed = classifier(bench), bench.seed
    sequential = Bisection(asked, SequentialConfig(), seed)
    pilot = some(bench.pool(graded=True).tiles, 128)
    sequential.learn_prior(to_x0(pilot.pixels), pilot.names())
    return {
        "head": HeadAnnotator(asked, [head(bench)], seed=seed),
        "head without looks": HeadAnnotator(asked, [_without_looks(head(bench))], seed=seed),
        "grid of 4 x 2": grid(bench, GridConfig(num_levels=4, num_noises=2)),
        "bisection": sequential,
        "grid of 20 x 4": grid(bench, GridConfig(num_noises=4)),
    }


@cache
def head(bench: Bench) -> Head:
    """Return the head: distilled on pool photos that the network did not train on."""
    file = bench.file("head", HEAD.model_dump(mode="json"), ".head")
    if not file.exists():
        tiles = bench.pool(graded=True).tiles
        is_check = np.array([hash_fraction(p, "head-check") < 0.2 for p in tiles.photos])
        learn, check = tiles.at(~is_check), tiles.at(is_check)
        lessons = Lessons.of(
            (learn.pixels, learn.names()),
            (check.pixels, check.names()),
            shown_as_pixels(learn),
            bench.config.order.ranges,
            HEAD.num_copies,
            bench.seed,
            0,
        )
        trained = train_head(classifier(bench), lessons, HEAD, READING, seed=bench.seed, fold=0)
        torch.save(trained, file)
    return torch.load(file, weights_only=False)


def _without_looks(head: Head) -> Head:
    return replace(head, check=replace(head.check, look_offsets=np.zeros(0)))


def speed(bench: Bench, x0, names: list[str]) -> None:
    """Time the published search and the head side by side, per image."""
    published = ExhaustiveSearch(classifier(bench), ExhaustiveConfig(), 0)
    quick = HeadAnnotator(classifier(bench), [head(bench)], seed=bench.seed)
    few = 4
    many_x0, many_names = np.concatenate([x0] * 2), names * 2
    ratios = []
    quick.curves(many_x0, many_names)
    for _ in range(3):
        slow = _seconds(lambda: published.curves(x0[:few], names[:few])) / few
        fast = _seconds(lambda: quick.curves(many_x0, many_names)) / len(many_x0)
        ratios.append(slow / fast)
    record(
        "annotation_speedup",
        float(np.median(ratios)),
        unit="ratio",
        goal=500,
        better="higher",
        compared_with="the exhaustive search of 2048 levels x 4 noisings, same network, one core",
        spread=f"median of 3 rounds, {min(ratios):.0f} .. {max(ratios):.0f}",
        note=f"search of {few} images in batches of 256 questions, head on {len(many_x0)} images; "
        "distilling the head is not counted: it costs as much as searching about "
        f"{HEAD.num_steps * HEAD.batch_size * (HEAD.levels_per_image + 3) / 8192:.0f} images",
    )


# -- ranks -------------------------------------------------------------------------------------


def concordance() -> None:
    """Say how often the worse of two copies of one tile gets the higher level, per kind."""
    kinds = tuple(photos.SEVERITIES)
    found = {k: np.concatenate([_ranked(Bench(seed), k) for seed in SEEDS_OF_PAIRS]) for k in kinds}
    rates = {kind: float(right.mean()) for kind, right in found.items()}
    lines = [
        f"{kind} {rates[kind]:.3f} of {len(right)} (ties {np.mean(right == 0.5):.2f})"
        for kind, right in found.items()
    ]
    print("; ".join(lines))
    tiles = np.concatenate([_undamaged_tiles(Bench(seed)) for seed in SEEDS_OF_PAIRS])
    pool = np.concatenate([_undamaged_pool(Bench(seed)) for seed in SEEDS_OF_PAIRS])
    record(
        "annotation_rank_correlation",
        min(rates.values()),
        unit="share of pairs ranked rightly, worst kind",
        goal=0.95,
        better="higher",
        compared_with="true severity, two copies of one tile of a held-out photo",
        spread="; ".join(lines),
        note=f"{NUM_PAIRS} pairs a kind and seed, {len(SEEDS_OF_PAIRS)} seeds, severities evenly "
        f"over {photos.SEVERITIES}; ties count half, pairs of the same pixels are left out; tiles "
        f"with an RMS step below {photos.LEAST_STEP} grey levels are left out; "
        f"{_clean_told(pool)} of the {len(pool)} clean images in the pool, {_clean_told(tiles)} "
        f"of the {len(tiles)} "
        "undamaged held-out tiles",
    )


def unseen_kind() -> None:
    """Say how often pairs are ranked rightly whose kind of damage the classifier never saw."""
    right = _ranked(Bench(SEEDS[0], LEFT_OUT), LEFT_OUT)
    record(
        "annotation_unseen_kind",
        float(right.mean()),
        unit="share of pairs ranked rightly",
        goal=0.5,
        better="higher",
        compared_with="true severity; 0.5 is chance",
        spread=f"{len(right)} pairs",
        note=f"{LEFT_OUT} stands in neither the pool nor the chains of this classifier",
    )


def _clean_told(levels) -> str:
    near = CLASSIFIER.sigma_low * 2
    return f"sigma_min is 0 for {np.mean(levels == 0):.0%}, at most {near} for " + (
        f"{np.mean(levels <= near):.0%}"
    )


def _ranked(bench: Bench, kind: str) -> NDArray[np.float64]:
    """Return 1 for each pair of copies that is ranked rightly, 1/2 for ties, 0 for the rest."""
    tiles = bench.held_out(NUM_PAIRS)
    places = rng.generator(bench.seed, "pairs", kind).random((2, len(tiles)))
    copies = [photos.damaged_at(tiles, kind, p, seed=7) for p in places]
    # JPEG has whole qualities and scaling whole sizes: two severities can give the same pixels.
    differ = (copies[0].pixels != copies[1].pixels).any(axis=(1, 2, 3))
    one, other = (_levels(bench, c, [kind, n])[differ] for n, c in enumerate(copies))
    is_worse = (places[1] > places[0])[differ]
    return np.where(one == other, 0.5, (other > one) == is_worse)


def _undamaged_tiles(bench: Bench) -> NDArray[np.float64]:
    return _levels(bench, bench.held_out(NUM_PAIRS), "held out")


def _undamaged_pool(bench: Bench) -> NDArray[np.float64]:
    """Return the levels of pool images without damage, which the network did not train on."""
    pool = bench.pool(graded=True)
    return _levels(bench, some(pool.tiles.at(pool.kind == ""), NUM_PAIRS), "pool")


def _levels(bench: Bench, tiles: photos.Tiles, what: object) -> NDArray[np.float64]:
    """Return sigma_min by the classifier's grid, null as infinite; kept on disk."""
    config = GridConfig()
    file = bench.file("levels", [what, len(tiles), config.model_dump()], ".npy")
    if not file.exists():
        curves = grid(bench, config).curves(to_x0(tiles.pixels), tiles.names())
        found = READING.crossings(curves).sigma_min
        np.save(file, np.where(np.isnan(found), np.inf, found))
    return np.load(file)


# -- known noise -------------------------------------------------------------------------------


def known_noise() -> None:
    """Compare the levels of noise of known strength with the true ones."""
    found = crossings_of_carried_noise()
    medians = {strength: float(np.nanmedian(levels)) for strength, levels in found.items()}
    errors = {strength: abs(level / strength - 1) for strength, level in medians.items()}
    level, truth = gaussian_model()
    told = ", ".join(f"{strength}: {level:.4f}" for strength, level in medians.items())
    record(
        "annotation_known_noise",
        100 * max(errors.values()),
        unit="% off the true level, worst strength",
        goal=5,
        better="lower",
        compared_with="photos that carry Gaussian noise, noised up to the level",
        spread=f"median level by strength {told}",
        note=f"{NUM_TILES} tiles of held-out photos, a pool and a classifier a strength; noise of "
        f"{ON_TOP} on top, Gaussian images: level {level:.3f}, the best classifier's {truth:.3f}: "
        f"{100 * abs(level / truth - 1):.0f} % off (to reach: 20 %)",
    )


# -- small things ------------------------------------------------------------------------------


def _error(found, truth) -> NDArray[np.float64]:
    return np.abs(octaves_apart(found, truth, CLASSIFIER.sigmas))


def _error_of_constants(truth, kinds) -> NDArray[np.float64]:
    """Return the errors of the best constant per source: the median level of its images."""
    inside = np.log2(np.clip(np.nan_to_num(truth, nan=np.inf), *CLASSIFIER.sigmas[[0, -1]]))
    medians = {kind: np.median(inside[kinds == kind]) for kind in set(kinds)}
    return np.abs(inside - np.array([medians[kind] for kind in kinds]))


def _told(error) -> str:
    return f"p50 {np.median(error):.3f}, p95 {np.quantile(error, 0.95):.3f}"


def _seconds(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


if __name__ == "__main__":
    main()
