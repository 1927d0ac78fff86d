"""Training of one fold's network: trusted images against the pool's, noised alike.

Legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as nnf

from ambient_omni import rng
from ambient_omni.classifier.annotators import Noises
from ambient_omni.classifier.config import ClassifierConfig
from ambient_omni.classifier.network import NoiseClassifierNetwork
from ambient_omni.classifier.severity import (
    CHAIN_LENGTH,
    Images,
    Plantable,
    order_loss,
    plant_chains,
    shown_as_pixels,
)
from ambient_omni.data.packs import to_x0
from ambient_omni.progress import progress

_WARMUP_STEPS = 50
# The curves' ends are judged better when levels just beyond them were trained too.
_MARGIN = 1.25
_BATCH = "classifier-batch"


@dataclass(frozen=True)
class Sides:
    """Positives and negatives of one training, and what is kept aside to stop it.

    Attributes:
        trusted: positives.
        pool: the pool without the fold's own images.
        stop_trusted: positives that only decide when to stop; no twin of one is in `trusted`.
        stop_pool: negatives that only decide when to stop.
        damaged: how damage is planted in `trusted`; by default they are pixels.
        carried_noise: (len(pool),) standard deviation of the white noise that each pool image
            already carries. It counts as part of the level: such an image is noised up to the
            level, not on top of what it has. None where the images are what they are.
    """

    trusted: Images
    pool: Images
    stop_trusted: Images | None = None
    stop_pool: Images | None = None
    damaged: Plantable | None = None
    carried_noise: NDArray[np.float64] | None = None


def train_fold(sides: Sides, config: ClassifierConfig, fold: int) -> NoiseClassifierNetwork:
    """Train the network of one fold on everything but that fold.

    Args:
        sides: what it learns to tell apart.
        config: the classifier.
        fold: which one; names the random draws.

    Returns:
        The averaged weights that told the images kept aside best, in evaluation mode; the last
        ones where none were kept aside.
    """
    channels = to_x0(sides.trusted.take(np.array([0]))).shape[1]
    with rng.torch_seeded(config.seed, "classifier-fold", fold):
        network = NoiseClassifierNetwork(config.network, channels)
        average = copy.deepcopy(network).eval()
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        chains = _chains(sides, config, fold)
        num_steps = -(-config.num_images // config.batch_size)
        stop = _Stopping(sides, config, fold, num_steps)
        label = f"noise classifier {fold + 1}/{config.num_folds}"
        with progress(label=label, unit="image", total=num_steps * config.batch_size) as bar:
            for step in range(num_steps):
                _set_rate(optimizer, config.learning_rate, step, num_steps)
                batch = _batch(sides, config, rng.generator(config.seed, _BATCH, fold, step))
                ordered = None if chains is None else _ordered(chains, config, fold, step)
                _step(network, optimizer, batch, ordered, config.order.weight)
                _average(average, network, min(config.ema_decay, step / (step + 1)))
                bar.update(config.batch_size)
                if stop.is_reached(average, step + 1):
                    break
    return stop.best_of(average)


class _Stopping:
    """Keeps the weights that tell images kept aside best; stops when they were long ago."""

    def __init__(self, sides: Sides, config: ClassifierConfig, fold: int, num_steps: int) -> None:
        self._every = max(1, num_steps // config.stopping.num_checks)
        self._patience = config.stopping.patience
        self._batches: list[tuple[Tensor, Tensor]] = []
        self._best: dict[str, Tensor] | None = None
        self._lowest, self._waited = math.inf, 0
        if sides.stop_trusted is not None and sides.stop_pool is not None:
            aside = Sides(sides.stop_trusted, sides.stop_pool)
            plain = config.model_copy(update={"augment": "none"})
            for number in range(config.stopping.num_batches):
                draw = rng.generator(config.seed, "classifier-stopping", fold, number)
                self._batches.append(_batch(aside, plain, draw))

    def is_reached(self, average: NoiseClassifierNetwork, num_steps_done: int) -> bool:
        """Measure from time to time; say whether nothing was gained for too long."""
        if not self._batches or num_steps_done % self._every:
            return False
        loss = self._loss(average)
        self._waited += 1
        if loss < self._lowest:
            self._lowest, self._waited = loss, 0
            self._best = {k: v.clone() for k, v in average.state_dict().items()}
        return self._waited >= self._patience

    def best_of(self, average: NoiseClassifierNetwork) -> NoiseClassifierNetwork:
        """Return the network with the best weights that were measured."""
        if self._best is not None:
            average.load_state_dict(self._best)
        return average

    @torch.no_grad()
    def _loss(self, network: NoiseClassifierNetwork) -> float:
        return sum(_cross_entropy(network(x, sigma)).item() for x, sigma in self._batches)


def _cross_entropy(logits_B: Tensor) -> Tensor:
    """Return the loss of a batch whose first half is trusted."""
    is_trusted_B = (torch.arange(len(logits_B)) < len(logits_B) // 2).to(logits_B)
    return nnf.binary_cross_entropy_with_logits(logits_B, is_trusted_B)


def _batch(
    sides: Sides, config: ClassifierConfig, draw: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return noised images, trusted first, and their levels: both halves under one noise.

    The same level and noise stand on both sides, so that neither can tell them apart.
    """
    half = config.batch_size // 2
    trusted = sides.trusted.take(draw.integers(len(sides.trusted), size=half))
    chosen = draw.integers(len(sides.pool), size=half)
    x0 = np.concatenate([to_x0(trusted), to_x0(sides.pool.take(chosen))])
    x0 = augment(x0, config.augment, draw)
    sigma = _draw_sigmas(config, half, draw)
    noise = draw.standard_normal((half, *x0.shape[1:]), dtype=np.float32)
    amplitude = np.tile(sigma, 2)
    if sides.carried_noise is not None:
        missing = np.square(sigma) - np.square(sides.carried_noise[chosen])
        amplitude[half:] = np.sqrt(np.maximum(missing, 0))
    noised = x0 + amplitude[:, None, None, None] * np.tile(noise, (2, 1, 1, 1))
    return torch.from_numpy(noised), torch.from_numpy(np.tile(sigma, 2))


def _draw_sigmas(
    config: ClassifierConfig, count: int, draw: np.random.Generator
) -> NDArray[np.float32]:
    low, high = math.log(config.sigma_low / _MARGIN), math.log(config.sigma_high * _MARGIN)
    return np.exp(draw.uniform(low, high, count)).astype(np.float32)


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


def _chains(sides: Sides, config: ClassifierConfig, fold: int) -> NDArray[Any] | None:
    if config.order.weight == 0:
        return None
    order = config.order
    damaged = sides.damaged or shown_as_pixels(sides.trusted)
    return plant_chains(damaged, order.ranges, order.num_chains, config.seed, fold, order.weights)


def _ordered(
    chains: NDArray[Any], config: ClassifierConfig, fold: int, step: int
) -> tuple[Tensor, Tensor]:
    """Return noised chains (B S, C, H, W), each under one noise, and their (B S,) levels."""
    draw = rng.generator(config.seed, "classifier-chains", fold, step)
    chosen = chains[draw.integers(len(chains), size=config.order.chains_per_batch)]
    length = chosen.shape[1]
    x0 = to_x0(chosen.reshape(-1, *chosen.shape[2:]))
    sigma = np.repeat(_draw_sigmas(config, len(chosen), draw), length)
    noise = draw.standard_normal((len(chosen), *x0.shape[1:]), dtype=np.float32)
    noised = x0 + sigma[:, None, None, None] * np.repeat(noise, length, axis=0)
    return torch.from_numpy(noised), torch.from_numpy(sigma)


def _step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor],
    ordered: tuple[Tensor, Tensor] | None,
    order_weight: float,
) -> None:
    x, sigma = batch
    count = len(x)
    if ordered is not None:
        x, sigma = torch.cat([x, ordered[0]]), torch.cat([sigma, ordered[1]])
    logits = network(x, sigma)
    loss = _cross_entropy(logits[:count])
    if ordered is not None:
        chains_BS = logits[count:].view(-1, CHAIN_LENGTH)
        loss = loss + order_weight * order_loss(chains_BS, sigma[count::CHAIN_LENGTH])
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


def grade(
    network: NoiseClassifierNetwork,
    x0_NCHW: NDArray[np.float32],
    config: ClassifierConfig,
    *,
    first: int = 0,
) -> NDArray[np.float32]:
    """Return (N, L, K) logits: every image at every level, under K noises of its own.

    Noises that images share would move all their answers alike, and a calibration would take that
    for the network's. Places have noises, not images: a damaged copy at the place of its original
    is graded under the same ones.

    Args:
        network: that grades.
        x0_NCHW: images in [-1, 1].
        config: levels, number of noises, seed.
        first: the place of the first image, where these are a part of more.
    """
    shape, places = x0_NCHW.shape[1:], np.arange(first, first + len(x0_NCHW))
    half, levels = config.num_noises // 2, config.sigmas
    out = np.empty((len(x0_NCHW), len(levels), 2 * half), np.float32)
    sigmas_BQ = np.broadcast_to(np.repeat(levels, 2), (len(x0_NCHW), 2 * len(levels)))
    for number in range(half):
        noise = rng.normal_rows(places, shape, config.seed, "classifier-own-noise", number)
        said = answer(network, x0_NCHW, sigmas_BQ, [noise, -noise] * len(levels))
        out[..., number], out[..., half + number] = said[:, ::2], said[:, 1::2]
    return out


@torch.no_grad()
def answer(
    network: NoiseClassifierNetwork,
    x0_BCHW: NDArray[np.float32],
    sigmas_BQ: NDArray[np.floating],
    noises_Q: Noises,
) -> NDArray[np.float32]:
    """Return (B, Q) raw logits: image b at its level q under noise q.

    One question of all images is one pass: a batch fills a CPU's caches or a GPU.

    Args:
        network: that answers.
        x0_BCHW: images in [-1, 1].
        sigmas_BQ: levels.
        noises_Q: shared by the images, or of each.
    """
    device = next(network.parameters()).device
    x0 = torch.from_numpy(x0_BCHW).to(device)
    # Copied: levels are often a broadcast view, which torch does not take.
    sigmas = torch.tensor(np.ascontiguousarray(sigmas_BQ), dtype=torch.float32, device=device)
    out = torch.empty(sigmas.shape, device=device)
    for number, noise in enumerate(noises_Q):
        sigma_B = sigmas[:, number]
        noised = x0 + sigma_B[:, None, None, None] * torch.from_numpy(noise).to(device)
        out[:, number] = network(noised, sigma_B)
    said: NDArray[np.float32] = out.cpu().numpy()
    return said
