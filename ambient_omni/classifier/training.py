"""Training of one fold's network: trusted images against the pool's, noised alike.

Legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import copy
import math
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as nnf

from ambient_omni import rng
from ambient_omni.classifier.config import ClassifierConfig
from ambient_omni.classifier.network import NoiseClassifierNetwork
from ambient_omni.data.packs import to_x0
from ambient_omni.progress import progress

_WARMUP_STEPS = 50
# The curves' ends are judged better when levels just beyond them were trained too.
_MARGIN = 1.25


class Images(Protocol):
    """Images by position: an array in memory or a memory-mapped pack."""

    def __len__(self) -> int: ...

    def take(self, indices: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Return uint8 (len(indices), H, W, C)."""


def train_fold(
    trusted: Images, pool: Images, config: ClassifierConfig, fold: int
) -> NoiseClassifierNetwork:
    """Train the network of one fold on everything but that fold.

    Args:
        trusted: positives.
        pool: the pool without the fold's own images.
        config: the classifier.
        fold: which one; names the random draws.

    Returns:
        The averaged weights, in evaluation mode.
    """
    channels = trusted.take(np.array([0])).shape[-1]
    with rng.torch_seeded(config.seed, "classifier-fold", fold):
        network = NoiseClassifierNetwork(config.network, channels)
        average = copy.deepcopy(network).eval()
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        num_steps = -(-config.num_images // config.batch_size)
        label = f"noise classifier {fold + 1}/{config.num_folds}"
        with progress(label=label, unit="image", total=num_steps * config.batch_size) as bar:
            for step in range(num_steps):
                _set_rate(optimizer, config.learning_rate, step, num_steps)
                x_BCHW, sigma_B = _batch(trusted, pool, config, fold, step)
                _step(network, optimizer, x_BCHW, sigma_B)
                _average(average, network, min(config.ema_decay, step / (step + 1)))
                bar.update(config.batch_size)
    return average


def _batch(
    trusted: Images, pool: Images, config: ClassifierConfig, fold: int, step: int
) -> tuple[Tensor, Tensor]:
    """Return noised images, trusted first, and their levels: both halves under one noise.

    The same level and noise stand on both sides, so that neither can tell them apart.
    """
    draw = rng.generator(config.seed, "classifier-batch", fold, step)
    half = config.batch_size // 2
    pixels = [images.take(draw.integers(len(images), size=half)) for images in (trusted, pool)]
    x0 = to_x0(np.concatenate(pixels))
    x0 = augment(x0, config.augment, draw)
    low, high = math.log(config.sigma_low / _MARGIN), math.log(config.sigma_high * _MARGIN)
    sigma = np.exp(draw.uniform(low, high, half)).astype(np.float32)
    noise = draw.standard_normal((half, *x0.shape[1:]), dtype=np.float32)
    sigmas = np.tile(sigma, 2)
    noised = x0 + sigmas[:, None, None, None] * np.tile(noise, (2, 1, 1, 1))
    return torch.from_numpy(noised), torch.from_numpy(sigmas)


def augment(
    x0_BCHW: NDArray[np.float32], how: str, draw: np.random.Generator
) -> NDArray[np.float32]:
    """Return images flipped, turned and with their colours reordered at random, as `how` says."""
    out = x0_BCHW.copy()
    coins = draw.random((3, len(out))) < 0.5
    if how != "none":
        out[coins[0]] = out[coins[0], :, :, ::-1]
    if how.startswith("geometry"):
        out[coins[1]] = out[coins[1], :, ::-1, :]
        if out.shape[2] == out.shape[3]:
            out[coins[2]] = out[coins[2]].transpose(0, 1, 3, 2)
    if how.endswith("channels"):
        order_BC = draw.random(out.shape[:2]).argsort(axis=1)
        out = np.take_along_axis(out, order_BC[:, :, None, None], axis=1)
    return out


def _step(network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, sigma: Tensor) -> None:
    logits_B = network(x, sigma)
    is_trusted_B = torch.arange(len(x)) < len(x) // 2
    loss = nnf.binary_cross_entropy_with_logits(logits_B, is_trusted_B.float())
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _set_rate(optimizer: torch.optim.Optimizer, peak: float, step: int, num_steps: int) -> None:
    """Linear warm-up, then a cosine to 0."""
    warm = min(1.0, (step + 1) / _WARMUP_STEPS)
    for group in optimizer.param_groups:
        group["lr"] = peak * warm * 0.5 * (1 + math.cos(math.pi * step / num_steps))


@torch.no_grad()
def _average(average: nn.Module, network: nn.Module, decay: float) -> None:
    for mean, new in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(new, 1 - decay)
    for kept, seen in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(seen)


@torch.no_grad()
def grade(
    network: NoiseClassifierNetwork,
    x0_BCHW: NDArray[np.float32],
    sigmas_L: NDArray[np.float64],
    noises_KCHW: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Return (B, L, K) logits: every image at every level under every noise.

    All images and levels share the noises, so that curves of two images, and two levels of one
    curve, differ by what they show and not by their luck.
    """
    x0, noises = torch.from_numpy(x0_BCHW), torch.from_numpy(noises_KCHW)
    out = np.empty((len(x0), len(sigmas_L), len(noises)), np.float32)
    for level, sigma in enumerate(sigmas_L):
        for number, noise in enumerate(noises):
            sigma_B = torch.full((len(x0),), float(sigma))
            out[:, level, number] = network(x0 + float(sigma) * noise, sigma_B).numpy()
    return out


def noise_bank(config: ClassifierConfig, shape_CHW: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the (K, C, H, W) noises that curves are measured under: half, and their mirrors."""
    half = rng.normal((config.num_noises // 2, *shape_CHW), config.seed, "classifier-noise")
    return np.concatenate([half, -half])
