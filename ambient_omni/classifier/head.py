"""An amortised annotator: one evaluation of the clean image gives its whole curve.

Where it is far off, a few looks of the classifier itself move it: `classifier.looks`.

What the classifier says of an image at a level, averaged over noise, is a function of the image.
So a network learns it by least squares on single noisings: their mean is the minimiser, and no
exhaustive search is needed for training. One is needed for the check: on images that the head did
not learn from, its levels are compared with those of the oracle, and a head that is too far off is
refused.

Legend: N images, B batch, L levels, F features, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ambient_omni import rng
from ambient_omni.classifier.annotators import (
    Curves,
    ExhaustiveSearch,
    Images,
    Oracle,
    Reading,
)
from ambient_omni.classifier.config import HeadConfig
from ambient_omni.classifier.cosines import Cosines, mean_powers, peakedness
from ambient_omni.classifier.looks import ask_pairs, errors_of_looks, look
from ambient_omni.classifier.network import PatchFeatures, ReadByLevel
from ambient_omni.classifier.severity import Plantable, plant_copies
from ambient_omni.classifier.training import augment
from ambient_omni.data.packs import to_x0
from ambient_omni.progress import progress
from schemas.errors import ClassifierRefused

Floats = NDArray[np.float64]

# Errors weigh as shares of the logit down to here: on the flat end a small error is many octaves.
_WEIGHT_FLOOR = 0.3
_IMAGES_AT_ONCE = 32

NUM_LEVELS = 64
"""Levels that a head answers at."""


class HeadNetwork(nn.Module):
    """Curve of a clean image: its cosine powers and patch features, read at every level.

    Noise of level sigma adds sigma^2 to the mean power of each cosine coefficient. So the power
    that the classifier will see at a level is known from the clean image, and the head starts from
    that; what the classifier's CNN makes of noise has to be learned.
    """

    def __init__(self, config: HeadConfig, channels: int = 3) -> None:
        super().__init__()
        self.num_channels = channels
        self.cosines = Cosines(channels)
        self.patches = PatchFeatures(config.patch, config.widths, dropout=0.0, channels=channels)
        num_noised = self.cosines.num_features + self.cosines.num_bands
        num_clean = self.cosines.num_features + self.patches.num_features
        self.noised_scale = nn.BatchNorm1d(num_noised, affine=False, momentum=0.05)
        self.clean_scale = nn.BatchNorm1d(num_clean, affine=False, momentum=0.05)
        self.read = ReadByLevel(num_noised + num_clean, config.hidden, dropout=0.0)

    def forward(self, x0_BCHW: Tensor, sigma_BL: Tensor) -> Tensor:
        """Return (B, L) mean logits of clean images at levels, each image at its own."""
        found, num_levels = self.cosines(x0_BCHW), sigma_BL.shape[1]
        # The level that the patch features are told of is a formality: the image is clean.
        learned_BF = self.patches(x0_BCHW, sigma_BL.new_full((1,), 0.01))
        clean_BF = self.clean_scale(torch.cat([peakedness(found, 1e-3), learned_BF], 1))
        power_BF, bands, size = (
            mean_powers(found),
            self.cosines.band_powers(found),
            x0_BCHW.shape[2:],
        )
        noised_BLF = torch.stack(
            [self._at_level(power_BF, bands, sigma_B, size) for sigma_B in sigma_BL.T], 1
        )
        noised_NF = self.noised_scale(noised_BLF.flatten(0, 1))
        features = torch.cat([noised_NF, clean_BF.repeat_interleave(num_levels, 0)], 1)
        logits: Tensor = self.read(features, sigma_BL.flatten()).view(-1, num_levels)
        return logits

    def _at_level(
        self, power_BF: Tensor, bands: Sequence[Tensor], sigma_B: Tensor, size: Sequence[int]
    ) -> Tensor:
        """Return (B, F + G): about what the classifier's fixed view will be on average."""
        excess_BF = self.cosines.excess(power_BF + sigma_B[:, None] ** 2, sigma_B, size)
        shares_BG = self.cosines.quiet_shares(bands, sigma_B, added=1.0)
        return torch.cat([excess_BF, self.cosines.stillness(shares_BG, size)], 1)


@dataclass(frozen=True)
class Check:
    """How far a head is from the oracle on images that it did not learn from.

    Attributes:
        num_images: that were compared.
        median_octaves: of |log2 sigma_min - log2 oracle's|; levels below the lowest count as it,
            null as the highest.
        p95_octaves: 95th percentile.
        logit_error: (L,) root mean square error of the curve, at the classifier's levels.
        look_offsets: (K,) by how much each look is off, in bent logits; none without looks.
        look_spread: standard deviation of a look about that.
    """

    num_images: int
    median_octaves: float
    p95_octaves: float
    logit_error: Floats
    look_offsets: Floats
    look_spread: float


@dataclass(frozen=True)
class Head:
    """A distilled network and its check."""

    network: HeadNetwork
    check: Check


class HeadAnnotator:
    """Asks heads instead of the classifier; every image the head of the fold that may grade it.

    Levels cost a head next to nothing, so it answers at many: between few levels a reading
    interpolates.
    """

    def __init__(
        self,
        classifier: Oracle,
        heads: Sequence[Head],
        *,
        seed: int,
        reading: Reading | None = None,
    ) -> None:
        """Take one head a fold.

        Args:
            classifier: what the heads were distilled from, and what their looks ask.
            heads: by fold.
            seed: names the noises of the looks.
            reading: where the looks take a curve's crossing to be.
        """
        self._classifier, self._heads = classifier, tuple(heads)
        self._seed = seed
        self._reading = reading or Reading()

    def curves(self, x0_BCHW: Images, sample_ids: Sequence[str]) -> Curves:
        """Return curves at `NUM_LEVELS` levels.

        The standard error is that of the looks' posterior; without looks, the check's.
        """
        alone = self._alone(x0_BCHW, sample_ids)
        checks = [head.check for head in self._heads]
        if not len(checks[0].look_offsets):
            return alone
        folds = self._classifier.folds_of(sample_ids)
        return look(
            alone,
            ask_pairs(self._classifier, x0_BCHW, sample_ids, self._seed),
            scale_octaves_B=np.array([check.median_octaves for check in checks])[folds],
            offset_BK=np.stack([check.look_offsets for check in checks])[folds],
            spread_B=np.array([check.look_spread for check in checks])[folds],
            reading=self._reading,
        )

    def _alone(self, x0_BCHW: Images, sample_ids: Sequence[str]) -> Curves:
        known, folds = self._classifier.sigmas, self._classifier.folds_of(sample_ids)
        sigmas = dense_levels(known)
        logits = np.empty((len(x0_BCHW), len(sigmas)), np.float32)
        errors = np.empty_like(logits)
        for number, head in enumerate(self._heads):
            mine = np.flatnonzero(folds == number)
            errors[mine] = np.interp(np.log(sigmas), np.log(known), head.check.logit_error)
            for start in range(0, len(mine), _IMAGES_AT_ONCE):
                part = mine[start : start + _IMAGES_AT_ONCE]
                logits[part] = evaluate_head(head.network, x0_BCHW[part], sigmas)
        return Curves(sigmas, logits, errors, np.ones(len(x0_BCHW), np.int32))


@torch.no_grad()
def evaluate_head(network: HeadNetwork, x0_BCHW: Images, sigmas_L: Floats) -> NDArray[np.float32]:
    """Return (B, L) float32 logits."""
    device = next(network.parameters()).device
    sigma_BL = torch.from_numpy(sigmas_L).float().to(device).expand(len(x0_BCHW), -1)
    said: NDArray[np.float32] = (
        network(torch.from_numpy(x0_BCHW).to(device), sigma_BL).cpu().numpy()
    )
    return said


@dataclass(frozen=True)
class Lessons:
    """What a head learns from, and then what checks it.

    Attributes:
        x0: (N, C, H, W) images.
        sample_ids: their names; a copy has that of the image it shows, and so its fold.
        is_check: (N,) those that only check.
    """

    x0: Images
    sample_ids: list[str]
    is_check: NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        learn: tuple[NDArray[Any], Sequence[str]],
        check: tuple[NDArray[Any], Sequence[str]],
        plantable: Plantable,
        ranges: Mapping[str, tuple[float, float]],
        num_copies: int,
        seed: int,
        fold: int,
    ) -> Lessons:
        """Put images, damaged copies of those to learn from, and those to check together.

        Args:
            learn: rows of packs, with their names.
            check: others; no image's twin is on both sides.
            plantable: the images of `learn`, in the same order.
            ranges: mildest and worst severity by kind of damage.
            num_copies: how many copies.
            seed: names the random draws.
            fold: which head it is for.
        """
        rows, names = learn
        parts, ids = [to_x0(rows)], list(names)
        if num_copies:
            copies, shown = plant_copies(plantable, ranges, num_copies, seed, fold)
            parts.append(to_x0(copies))
            ids += [names[i] for i in shown]
        is_check = np.arange(len(ids) + len(check[1])) >= len(ids)
        x0 = np.concatenate([*parts, to_x0(check[0])])
        return cls(x0, [*ids, *check[1]], is_check)


def train_head(
    classifier: Oracle,
    lessons: Lessons,
    config: HeadConfig,
    reading: Reading,
    *,
    seed: int,
    fold: int,
) -> Head:
    """Distil the head of one fold and check it.

    Args:
        classifier: the teacher.
        lessons: images that the fold may grade; it never trained on any of them.
        config: the head.
        reading: how curves become levels in the check.
        seed: names the random draws.
        fold: which one.

    Raises:
        ClassifierRefused: the head's levels are too far from the oracle's.
    """
    network = _distil(classifier, lessons, config, seed, fold)
    held = np.flatnonzero(lessons.is_check)[: config.max_check_images]
    names = [lessons.sample_ids[i] for i in held]
    check = check_head(network, classifier, lessons.x0[held], names, config, reading, seed)
    if check.median_octaves > config.max_median_octaves:
        raise ClassifierRefused(
            f"the head of fold {fold} is {check.median_octaves:.2f} octaves off the exhaustive "
            f"search in the median of {check.num_images} images (allowed: "
            f"{config.max_median_octaves}): distil longer (num_steps), or annotate with a grid"
        )
    return Head(network, check)


def check_head(
    network: HeadNetwork,
    classifier: Oracle,
    x0_BCHW: Images,
    sample_ids: Sequence[str],
    config: HeadConfig,
    reading: Reading,
    seed: int,
) -> Check:
    """Compare a head with the exhaustive search on some images."""
    oracle = ExhaustiveSearch(classifier, config.check, seed)
    truth = oracle.curves(x0_BCHW, sample_ids)
    dense = dense_levels(classifier.sigmas)
    said = evaluate_head(network, x0_BCHW, dense)
    answer = Curves(dense, said, np.zeros_like(said), truth.evaluations)
    residual = answer.at(classifier.sigmas).logits - truth.at(classifier.sigmas).logits
    levels = [reading.crossings(curves).sigma_min for curves in (answer, truth)]
    error = np.abs(octaves_apart(levels[0], levels[1], classifier.sigmas))
    ask = ask_pairs(classifier, x0_BCHW, sample_ids, seed)
    offsets, spread = errors_of_looks(answer, truth, ask, config.num_looks, reading)
    return Check(
        len(x0_BCHW),
        float(np.median(error)),
        float(np.quantile(error, 0.95)),
        np.sqrt(np.mean(residual.astype(np.float64) ** 2, axis=0)),
        offsets,
        spread,
    )


def dense_levels(sigmas_L: Floats) -> Floats:
    """Return `NUM_LEVELS` levels over the same range."""
    return np.geomspace(sigmas_L[0], sigmas_L[-1], NUM_LEVELS)


def octaves_apart(one: Floats, other: Floats, sigmas_L: Floats) -> Floats:
    """Return log2(one / other) of levels; below the lowest level counts as it, null as the top."""
    inside = [
        np.clip(np.where(np.isnan(level), np.inf, level), sigmas_L[0], sigmas_L[-1])
        for level in (one, other)
    ]
    apart: Floats = np.log2(inside[0] / inside[1])
    return apart


def _distil(
    classifier: Oracle, lessons: Lessons, config: HeadConfig, seed: int, fold: int
) -> HeadNetwork:
    x0_NCHW, sample_ids = lessons.x0, lessons.sample_ids
    learn = np.flatnonzero(~lessons.is_check)
    with rng.torch_seeded(seed, "head", fold):
        network = HeadNetwork(config, x0_NCHW.shape[1]).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=0.02)
    # A warm-up of exactly one step would divide by zero within: no whole number of steps gives it.
    warmup = 0.05 + 0.51 / config.num_steps
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.num_steps, pct_start=warmup
    )
    low, high = np.log(classifier.sigmas[[0, -1]])
    steps = progress(range(config.num_steps), label=f"head {fold + 1}", unit="step")
    for step in steps:
        draw = rng.generator(seed, "head-batch", fold, step)
        chosen = learn[draw.integers(len(learn), size=config.batch_size)]
        x0 = augment(x0_NCHW[chosen], "geometry", draw)
        places = draw.random((config.batch_size, config.levels_per_image))
        sigmas_BQ = np.exp(low + places * (high - low))
        noises = draw.standard_normal((config.levels_per_image, *x0.shape[1:]), dtype=np.float32)
        target = classifier.ask(x0, [sample_ids[i] for i in chosen], sigmas_BQ, noises)
        said = network(torch.from_numpy(x0), torch.from_numpy(sigmas_BQ).float())
        # Weights come of the answer, not of the target: then the mean stays the minimiser.
        weight = (said.detach().abs() + _WEIGHT_FLOOR) ** -2
        loss = (weight * (said - torch.from_numpy(target).float()) ** 2).mean()
        if not math.isfinite(loss.item()):
            raise ClassifierRefused(
                f"the head's loss is not finite at step {step}: lower its learning_rate"
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()
