"""What is known beforehand: more damage never makes an image look more trusted.

Cross-entropy alone leaves open how the logits of two bad images stand to one another, and few
images teach it badly. So copies of trusted training images with damage of rising severity are
shown beside every batch, under one noise, and a worse copy with a higher logit costs.

Legend: N images, S severities of a chain, B chains of a batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

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

    def take(self, indices: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Return uint8 (len(indices), H, W, C)."""


def plant_chains(
    images: Images,
    ranges: Mapping[str, tuple[float, float]],
    count: int,
    seed: int,
    fold: int,
) -> NDArray[np.uint8]:
    """Return uint8 (count, S, H, W, C): images undamaged first, then ever worse by one kind.

    Severities are drawn evenly in the logarithm for every other chain and evenly for the rest, so
    that both ends of the range are met; what is random in the damage (directions, noise) is the
    same along a chain.
    """
    kinds = list(ranges)
    chosen = rng.generator(seed, "chains", fold).integers(len(images), size=count)
    chains = []
    for number, image in enumerate(images.take(chosen)):
        kind = kinds[number % len(kinds)]
        places = np.sort(rng.uniform(CHAIN_LENGTH - 1, seed, "chain-places", fold, number))
        low, high = ranges[kind]
        is_even = number // len(kinds) % 2
        severities = low + places * (high - low) if is_even else low * (high / low) ** places
        worse = [
            damage(kind, float(severity), image, _chain_draw(seed, fold, number))
            for severity in severities
        ]
        chains.append(np.stack([image, *worse]))
    return np.stack(chains)


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
