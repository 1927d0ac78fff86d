"""What the denoiser learns at a level: one target for both objectives.

B batch, C channels, H height, W width. Every level is (B,).

*Gated*: at a usable level, plain denoising towards x_0. *Ambient*: the network sees the image only
through x_n = x_0 + σ_min z with z fixed for the sample. Given (x_0, x_t) the ambient target has
mean x_0: gated is ambient with its extra noise averaged out, and with hidden level 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DenoisingPair:
    """Input x_t and target of the denoiser, both (B, C, H, W)."""

    x_t: Tensor
    target: Tensor


def denoising_pair(
    x0: Tensor, sigma: Tensor, hidden: Tensor, fresh: Tensor, fixed: Tensor | None = None
) -> DenoisingPair:
    """Noise images to level σ and say what the denoiser should answer.

        x_n    = x_0 + σ_n z            σ_n = `hidden`, z = `fixed`
        x_t    = x_n + sqrt(σ² - σ_n²) ε            ε = `fresh`
        target = x_n - σ_n² / (σ² - σ_n²) · (x_t - x_n)

    With σ_n = 0 this is x_t = x_0 + σ ε and target x_0. Plain squared error to this target, with
    the weight that the level has anyway, is the ambient loss of "How much is a noisy image worth"
    (arXiv 2411.02780) and of Ambient Diffusion Omni (arXiv 2506.10038): their weight
    σ⁴/(σ²-σ_n²)² and their mixing of x_t into the prediction fold into it.

    Args:
        x0: (B, C, H, W), -1..1.
        sigma: (B,), positive.
        hidden: (B,), 0 ≤ hidden < sigma.
        fresh: standard normal, shape of x0, new at every draw.
        fixed: standard normal, shape of x0, the same whenever a sample is drawn; it belongs to the
            stored image, so whatever augments the image has to augment it. None if no level hides.
    """
    if fixed is None:
        return DenoisingPair(torch.addcmul(x0, sigma[:, None, None, None], fresh), x0)
    spread = (sigma**2 - hidden**2)[:, None, None, None]
    step = spread.sqrt() * fresh
    level = hidden[:, None, None, None]
    x_n = x0 + level * fixed
    return DenoisingPair(x_n + step, x_n - level**2 / spread * step)


def squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the squared error per image, mean over C, H and W, shape (B,)."""
    return (predicted - target).square().mean(dim=(1, 2, 3))
