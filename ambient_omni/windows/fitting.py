"""The one training loop of this room: steps, a falling rate, averaged weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from ambient_omni.progress import progress
from ambient_omni.windows.config import CropClassifierConfig, ReceptiveFieldConfig
from schemas.errors import TrainingFailed

Network = TypeVar("Network", bound=nn.Module)

_WARMUP_STEPS = 50


def fit(
    network: Network,
    loss_of_step: Callable[[Network, int], Tensor],
    config: CropClassifierConfig | ReceptiveFieldConfig,
    num_steps: int,
    label: str,
) -> Network:
    """Train a network and return its averaged weights, in evaluation mode.

    Raises:
        TrainingFailed: the loss is not finite.
    """
    average = copy.deepcopy(network).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    for step in progress(range(num_steps), label=label, unit="step"):
        warm = min(1.0, (step + 1) / _WARMUP_STEPS)
        rate = config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / num_steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of_step(network, step)
        if not math.isfinite(loss.item()):
            raise TrainingFailed(f"{label}: no finite loss at step {step}: lower learning_rate")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        _average(average, network, min(config.ema_decay, step / (step + 1)))
    return average


@torch.no_grad()
def _average(average: nn.Module, network: nn.Module, decay: float) -> None:
    for mean, new in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(new, 1 - decay)
    for kept, seen in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(seen)
