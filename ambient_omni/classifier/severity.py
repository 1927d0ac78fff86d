"""What is known beforehand: more damage never makes an image look more trusted.

Cross-entropy alone leaves open how the logits of two bad images stand to one another, and few
images teach it badly. So copies of trusted training images with damage of rising severity are
shown beside every batch, under one noise, and a worse copy with a higher logit costs.

Legend: N images, S severities of a chain, B chains of a batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ambient_omni import rng
from ambient_omni.damage import damage

CHAIN_LENGTH = 4
"""S: an undamaged image and three ever worse copies."""

_MARGIN, _MARGIN_SIGMA = 0.3, 0.3


class Images(Protocol):
    """Images by position: an array in memory or a memory-mapped pack."""

    def __len__(self) -> int: ...

    def take(self, indices: NDArray[np.integer]) -> NDArray[Any]:
        """Return rows: pixels uint8 (N, H, W, C), or x_0 itself as floats (N, C, H, W)."""


@dataclass(frozen=True)
class Plantable:
    """Images that damage is planted in.

    Attributes:
        pixels: their pixels.
        rows_of: what turns damaged pixels into what the classifier sees, the same count.
    """

    pixels: Images
    rows_of: Callable[[NDArray[np.uint8]], NDArray[Any]]


def shown_as_pixels(images: Images) -> Plantable:
    """Return images whose damaged copies the classifier sees as they are."""
    return Plantable(images, lambda pixels: pixels)


def plant_chains(
    images: Plantable,
    ranges: Mapping[str, tuple[float, float]],
    count: int,
    seed: int,
    fold: int,
    weights: Mapping[str, int] | None = None,
) -> NDArray[Any]:
    """Return (count, S, ...) rows: images undamaged first, then ever worse by one kind.

    Severities are drawn evenly in the logarithm for every other chain and evenly for the rest, so
    that both ends of the range are met; what is random in the damage (directions, noise) is the
    same along a chain.
    """
    kinds = kinds_in_turn(ranges, weights or {})
    pixels = images.pixels
    chosen = rng.generator(seed, "chains", fold).integers(len(pixels), size=count)
    chains = []
    for number, image in enumerate(pixels.take(chosen)):
        kind = kinds[number % len(kinds)]
        places = np.sort(rng.uniform(CHAIN_LENGTH - 1, seed, "chain-places", fold, number))
        is_even = _is_even(number, kinds)
        worse = [
            damage(
                kind,
                _severity(ranges[kind], place, is_even=is_even),
                image,
                _chain_draw(seed, fold, number),
            )
            for place in places
        ]
        chains.append(np.stack([image, *worse]))
    rows = images.rows_of(np.concatenate(chains))
    return rows.reshape(count, CHAIN_LENGTH, *rows.shape[1:])


def plant_copies(
    images: Plantable,
    ranges: Mapping[str, tuple[float, float]],
    count: int,
    seed: int,
    fold: int,
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return (count, ...) rows of damaged copies, and the (count,) positions that they show.

    Every kind is met equally often, and severities as in `plant_chains`.
    """
    kinds = list(ranges)
    chosen = rng.generator(seed, "copies", fold).integers(len(images.pixels), size=count)
    copies = []
    for number, image in enumerate(images.pixels.take(chosen)):
        draw = rng.generator(seed, "copy-damage", fold, number)
        kind = kinds[number % len(kinds)]
        severity = _severity(ranges[kind], draw.random(), is_even=_is_even(number, kinds))
        copies.append(damage(kind, severity, image, draw))
    return images.rows_of(np.stack(copies)), chosen


def kinds_in_turn(
    ranges: Mapping[str, tuple[float, float]], weights: Mapping[str, int]
) -> list[str]:
    """Return the kinds in the order in which chains take turns, some of them more than once."""
    return [kind for kind in ranges for _ in range(weights.get(kind, 1))]


def _is_even(number: int, kinds: Sequence[str]) -> bool:
    return bool(number // len(kinds) % 2)


def _severity(ends: tuple[float, float], place: float, *, is_even: bool) -> float:
    low, high = ends
    return low + place * (high - low) if is_even else float(low * (high / low) ** place)


def order_loss(logits_BS: Tensor, sigma_B: Tensor) -> Tensor:
    """Return the mean over neighbours of a chain of max(0, margin - (better - worse)).

    What can be seen of damage falls like sigma^-2, and the margin with it: where nothing can be
    seen nothing is asked for.
    """
    margin_B1 = _MARGIN / (1 + (sigma_B / _MARGIN_SIGMA) ** 2)[:, None]
    drop_BS = logits_BS[:, :-1] - logits_BS[:, 1:]
    loss: Tensor = (margin_B1 - drop_BS).clamp(min=0).mean()
    return loss


def _chain_draw(seed: int, fold: int, number: int) -> np.random.Generator:
    return rng.generator(seed, "chain-damage", fold, number)
