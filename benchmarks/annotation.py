"""``python -m benchmarks.annotation``: how right and how quick the annotators are.

One noise classifier is trained on natural photographs (`benchmarks.photos`): trusted photos against
a pool of other photos with damage of every kind and severity. Everything is measured on tiles of
held-out photos, which no network and no head has seen:

* the annotators against the exhaustive search, and the search against a second run of itself;
* whether the worse of two copies of one tile gets the higher level;
* whether noise of known strength is found where algebra says.

Long steps keep their results under ``~/.cache/ambient-omni/bench/annotation``: stopped and started
again, it goes on. Remove the folder to measure anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ambient_omni import rng
from ambient_omni.classifier.annotators import (
    Curves,
    ExhaustiveSearch,
    Grid,
    Reading,
    make_annotator,
)
from ambient_omni.classifier.calibration import Calibration, calibrate
from ambient_omni.classifier.config import (
    ClassifierConfig,
    ExhaustiveConfig,
    GridConfig,
    HeadConfig,
    SequentialConfig,
)
from ambient_omni.classifier.grader import Fold, NoiseClassifier
from ambient_omni.classifier.head import Head, HeadAnnotator, octaves_apart, train_head
from ambient_omni.classifier.network import NoiseClassifierNetwork
from ambient_omni.classifier.training import Sides, grade, noise_bank, train_fold
from ambient_omni.data.packs import to_x0
from benchmarks import photos
from benchmarks.common import cache_folder, record
from benchmarks.known_noise import ON_TOP, crossings_of_carried_noise, gaussian_model
from schemas.ids import canonical_hash, hash_fraction

CLASSIFIER = ClassifierConfig.model_validate(
    {
        "num_images": 60_000,
        "augment": "geometry",
        "num_levels": 20,
        "num_noises": 2,
        "order": {"num_chains": 2_000},
    }
)
HEAD = HeadConfig(
    num_steps=3_000,
    batch_size=32,
    levels_per_image=6,
    max_median_octaves=1.0,
    max_check_images=24,
    check=ExhaustiveConfig(num_levels=128, num_noises=4, num_bins=64),
)
READING = Reading()
SEARCH = ExhaustiveConfig(num_levels=512, num_noises=4)
NUM_SEARCHED = 48
NUM_PAIRS = 200


def main() -> None:
    torch.set_num_threads(1)
    accuracy()
    concordance()
    known_noise()


# -- the classifier ---------------------------------------------------------------------------


@cache
def classifier() -> NoiseClassifier:
    """Return one fold: held-out photos are unseen by any, so a second would tell no more."""
    pool = _pool()
    grades = _is_first_half(pool.tiles)
    file = _file("classifier", CLASSIFIER.model_dump(mode="json"), ".pt")
    config = CLASSIFIER
    if not file.exists():
        sides = Sides(photos.load("trusted"), pool.tiles.at(~grades))
        torch.save(train_fold(sides, config, 0).state_dict(), file)
    network = NoiseClassifierNetwork(config.network, 3)
    network.load_state_dict(torch.load(file))
    network.eval()
    return NoiseClassifier(config, "tiles", [Fold(network, _calibration(network))], "benchmark")


def _calibration(network: NoiseClassifierNetwork) -> Calibration:
    file = _file("calibration", CLASSIFIER.model_dump(mode="json"), ".npz")
    if not file.exists():
        graded = _pool().tiles
        graded = graded.at(_is_first_half(graded))
        noises = noise_bank(CLASSIFIER, (3, photos.TILE, photos.TILE))
        found = calibrate(
            *(
                _graded(network, _some(tiles, 400), CLASSIFIER, noises)
                for tiles in (photos.load("validation"), graded)
            )
        )
        np.savez(file, scale=found.scale, offset=found.offset)
    with np.load(file) as kept:
        return Calibration(kept["scale"], kept["offset"])


def _graded(network, tiles: photos.Tiles, config: ClassifierConfig, noises) -> NDArray[np.float32]:
    return np.concatenate(
        [grade(network, to_x0(part), config.sigmas, noises) for part in _parts(tiles.pixels)]
    )


def _pool() -> photos.Damaged:
    return photos.damaged_mix(photos.load("pool"), undamaged_fraction=0.2, seed=0)


def _is_first_half(tiles: photos.Tiles) -> NDArray[np.bool_]:
    """Say which tiles the network grades: the photos that it did not train on."""
    return np.array([hash_fraction(photo, "classifier-fold") < 0.5 for photo in tiles.photos])


# -- accuracy and speed ------------------------------------------------------------------------


def accuracy() -> None:
    """Compare every annotator with the search, and the search with itself."""
    mix = searched()
    x0, names = to_x0(mix.tiles.pixels), mix.tiles.names()
    first, second = (search(run) for run in (0, 1))
    truth = READING.crossings(first).sigma_min
    repeat = _error(READING.crossings(second).sigma_min, truth)
    constant = _error_of_constants(truth, mix.kind)
    print(f"search against its repeat: {_told(repeat)}; best constant a source: {_told(constant)}")
    found = {name: annotator.curves(x0, names) for name, annotator in annotators().items()}
    errors = {name: _error(READING.crossings(c).sigma_min, truth) for name, c in found.items()}
    for name, error in errors.items():
        print(f"{name}: {_told(error)}; {found[name].evaluations.mean():.1f} evaluations")
    best, curves = errors["head"], found["head"]
    p50, p95 = float(np.median(best)), float(np.quantile(best, 0.95))
    others = "; ".join(f"{name} {_told(error)}" for name, error in errors.items())
    note = (
        f"{len(x0)} tiles of held-out photos, mixed damage; search of {SEARCH.num_levels} x "
        f"{SEARCH.num_noises}; its repeat {_told(repeat)}; best constant a source "
        f"{_told(constant)}; {others}"
    )
    record(
        "annotation_evaluations",
        float(curves.evaluations.max()),
        unit="network evaluations per image",
        goal=8,
        better="lower",
        compared_with=f"{first.evaluations[0]} of the exhaustive search",
        spread="the same for every image",
        note="amortised head",
    )
    record(
        "annotation_error_p50",
        p50,
        unit="octaves",
        goal=max(0.1, 2 * float(np.median(repeat))),
        better="lower",
        compared_with="the exhaustive search; the goal is twice its own repeat, or 0.1",
        spread=f"quartiles {np.quantile(best, 0.25):.3f} .. {np.quantile(best, 0.75):.3f}",
        note=note,
    )
    record(
        "annotation_error_p95",
        p95,
        unit="octaves",
        goal=0.5,
        better="lower",
        compared_with="the exhaustive search",
        spread=f"largest {best.max():.2f}; the search's own repeat {np.quantile(repeat, 0.95):.3f}",
        note=note,
    )
    speed(x0, names)


def searched() -> photos.Damaged:
    """Return the held-out tiles, mixed damage, that are searched exhaustively."""
    return photos.damaged_mix(_some(photos.load("held_out"), NUM_SEARCHED), 0.1, seed=1)


def search(run: int) -> Curves:
    """Return one run of the search, kept on disk."""
    mix = searched()
    file = _file(f"search-{run}", [SEARCH.model_dump(), NUM_SEARCHED, _classifier_key()], ".npz")
    if not file.exists():
        found = ExhaustiveSearch(classifier(), SEARCH, 0, run=run).curves(
            to_x0(mix.tiles.pixels), mix.tiles.names()
        )
        np.savez(file, *(found.sigmas, found.logits, found.logit_standard_error, found.evaluations))
    with np.load(file) as kept:
        return Curves(*(kept[f"arr_{i}"] for i in range(4)))


def annotators() -> dict[str, object]:
    """Return every quick annotator by name."""
    sequential = make_annotator(SequentialConfig(), classifier(), seed=0)
    pilot = _some(_pool().tiles.at(_is_first_half(_pool().tiles)), 128)
    sequential.learn_prior(to_x0(pilot.pixels), pilot.names())
    return {
        "head": HeadAnnotator(classifier(), [head()]),
        "grid of 4 x 2": Grid(classifier(), GridConfig(num_levels=4, num_noises=2), 0),
        "bisection": sequential,
        "grid of 20 x 4": Grid(classifier(), GridConfig(num_noises=4), 0),
    }


@cache
def head() -> Head:
    """Return the head: distilled on pool photos that the network did not train on."""
    tiles = _pool().tiles
    tiles = tiles.at(_is_first_half(tiles))
    file = _file("head", [HEAD.model_dump(mode="json"), _classifier_key()], ".head")
    if not file.exists():
        is_check = np.array([hash_fraction(p, "head-check") < 0.2 for p in tiles.photos])
        x0 = to_x0(tiles.pixels)
        trained = train_head(
            classifier(), x0, tiles.names(), is_check, HEAD, READING, seed=0, fold=0
        )
        torch.save(trained, file)
    return torch.load(file, weights_only=False)


def speed(x0, names: list[str]) -> None:
    """Time the published search and the head side by side, per image."""
    published = ExhaustiveSearch(classifier(), ExhaustiveConfig(), 0)
    quick = HeadAnnotator(classifier(), [head()])
    few = 4
    many_x0, many_names = np.concatenate([x0] * 4), names * 4
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
    tiles = _some(photos.load("held_out"), NUM_PAIRS)
    lines, rates = [], {}
    for kind in photos.SEVERITIES:
        places = rng.generator(0, "pairs", kind).random((2, len(tiles)))
        copies = [photos.damaged_at(tiles, kind, p, seed=7) for p in places]
        # JPEG has whole qualities and scaling whole sizes: two severities can give the same pixels.
        differ = (copies[0].pixels != copies[1].pixels).any(axis=(1, 2, 3))
        one, other = (_levels(c, kind, p)[differ] for c, p in zip(copies, places, strict=True))
        is_worse = (places[1] > places[0])[differ]
        is_right = np.where(one == other, 0.5, (other > one) == is_worse)
        rates[kind] = float(is_right.mean())
        lines.append(f"{kind} {rates[kind]:.3f} of {len(one)} (ties {np.mean(one == other):.2f})")
        print(lines[-1])
    clean = _levels(tiles, "clean", np.zeros(len(tiles)))
    near_zero = float(np.mean(clean <= CLASSIFIER.sigma_low * 2))
    record(
        "annotation_rank_correlation",
        min(rates.values()),
        unit="share of pairs ranked rightly, worst kind",
        goal=0.95,
        better="higher",
        compared_with="true severity, two copies of one tile of a held-out photo",
        spread="; ".join(lines),
        note=f"{len(tiles)} pairs a kind, severities evenly over {photos.SEVERITIES}; ties count "
        "half, pairs of the same pixels are left out; tiles with an RMS step below "
        f"{photos.LEAST_STEP} grey levels are left out; of the undamaged tiles "
        f"{np.mean(clean == 0):.0%} get sigma_min 0 and {near_zero:.0%} at most "
        f"{CLASSIFIER.sigma_low * 2}",
    )


def _levels(tiles: photos.Tiles, kind: str, places) -> NDArray[np.float64]:
    """Return sigma_min by the classifier's grid, null as infinite; kept on disk."""
    config = GridConfig()
    key = [kind, canonical_hash(np.round(places, 6).tolist()), config.model_dump()]
    key.append(_classifier_key())
    file = _file("levels", key, ".npy")
    if not file.exists():
        grid = Grid(classifier(), config, 0)
        found = READING.crossings(grid.curves(to_x0(tiles.pixels), tiles.names())).sigma_min
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
        note=f"noise of {ON_TOP} on top, Gaussian images: level {level:.3f}, the best classifier's "
        f"{truth:.3f}: {100 * abs(level / truth - 1):.0f} % off (to reach: 20 %)",
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


def _some(tiles: photos.Tiles, count: int) -> photos.Tiles:
    order = rng.permutation(len(tiles), 0, "annotation-benchmark")
    return tiles.at(np.sort(order[:count]))


def _parts(pixels) -> list:
    return [pixels[start : start + 256] for start in range(0, len(pixels), 256)]


def _classifier_key() -> str:
    return canonical_hash(CLASSIFIER.model_dump(mode="json"))


def _file(name: str, key: object, suffix: str) -> Path:
    return cache_folder("annotation") / f"{name}-{canonical_hash(key)}{suffix}"


def _seconds(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


if __name__ == "__main__":
    main()
