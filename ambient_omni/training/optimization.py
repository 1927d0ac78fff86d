"""The optimizer; learning rate and moving average as functions of the images seen."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from ambient_omni.training.config import EmaConfig, OptimizerConfig


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """Return AdamW over the parameters; its learning rate is set before every step."""
    return torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(config: OptimizerConfig, images_seen: int, num_images: int) -> float:
    """Return the learning rate of the step that begins after `images_seen` images.

    Args:
        config: peak, warm-up and decay.
        images_seen: images of the steps before.
        num_images: the run's budget, where a cosine ends at 0.
    """
    warmup = min(1.0, (images_seen + 1) / config.warmup_images) if config.warmup_images else 1.0
    return config.learning_rate * warmup * _decay(config, images_seen, num_images)


def _decay(config: OptimizerConfig, images_seen: int, num_images: int) -> float:
    if config.decay == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, images_seen / num_images)))
    if config.decay == "inverse_sqrt":
        return 1 / math.sqrt(max(1.0, images_seen / config.decay_images))
    return 1.0


def ema_decay(config: EmaConfig, images_seen: int, batch_size: int) -> float:
    """Return the weight of the old average after a step that brings it to `images_seen` images.

    β = 0.5^(batch / half-life). The half-life warms up with the images seen, so that the random
    initial weights are forgotten. Source: Karras et al. 2022 (EDM), training configuration.
    """
    half_life = min(config.half_life_images, images_seen * config.warmup_ratio)
    return float(0.5 ** (batch_size / half_life))
