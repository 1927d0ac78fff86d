"""How much each noise level counts: weights of the squared error of x_0.

The loss of an image is weighting(σ, mean squared error of x_0). Weights are given in the space of
x_0, where all parameterisations meet; 1/out² turns them into weights of a network's own output.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ambient_omni import rng
from ambient_omni.models.config import LossWeightConfig
from ambient_omni.models.preconditioning import Parameterisation


class NaturalWeight(nn.Module):
    """1/out²: the plain squared error of what the network says. EDM's weight under edm."""

    def __init__(self, parameterisation: Parameterisation) -> None:
        super().__init__()
        self.parameterisation = parameterisation

    def forward(self, sigma: Tensor, squared_error: Tensor) -> Tensor:
        """Return the loss of each image, (B,), from its level and squared error of x_0, (B,)."""
        return self.parameterisation.natural_weight(sigma) * squared_error


class MinSnrWeight(nn.Module):
    """min(1/σ², γ), the same loss for every parameterisation.

    1/σ² is the signal-to-noise ratio of data of unit scale, and the weight of x_0 under which the
    noise is learned evenly; γ keeps low levels from taking all of the gradient.
    Source: Hang et al. 2023 (arXiv 2303.09556), section 3.4: for x_0 min(SNR, γ), for ε
    min(SNR, γ)/SNR, for v min(SNR, γ)/(SNR + 1), which are one weight of the error of x_0.
    """

    def __init__(self, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, sigma: Tensor, squared_error: Tensor) -> Tensor:
        """Return the loss of each image, (B,), from its level and squared error of x_0, (B,)."""
        return (sigma**-2).clamp(max=self.gamma) * squared_error


class LearnedWeight(nn.Module):
    """λ(σ) · error / exp(u(σ)) + u(σ), with λ the natural weight and u learned along.

    At its minimum u(σ) = ln E[λ · error | σ], so that every level gives a gradient of the same
    size, whatever is left to learn there. u is linear in Fourier features of ln σ / 4 and 0 at the
    start, where this is the natural loss.
    Source: Karras et al. 2024 (EDM2, arXiv 2312.02696), section 3 and equation 14.

    Args:
        parameterisation: gives λ.
        num_features: cosines of random frequency and phase.
        seed: of the frequencies and phases.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(
        self, parameterisation: Parameterisation, num_features: int = 128, seed: int = 0
    ) -> None:
        super().__init__()
        self.parameterisation = parameterisation
        frequencies = rng.torch_normal(num_features, seed, "loss-weight-frequencies")
        phases = torch.from_numpy(rng.uniform(num_features, seed, "loss-weight-phases")).float()
        self.register_buffer("frequencies", 2 * math.pi * frequencies)
        self.register_buffer("phases", 2 * math.pi * phases)
        self.gains = nn.Parameter(torch.zeros(num_features))
        self.offset = nn.Parameter(torch.zeros(1))

    def log_error(self, sigma: Tensor) -> Tensor:
        """Return u(σ), (B,): the logarithm of the weighted error that is expected at σ."""
        waves = (sigma.log() / 4)[:, None] * self.frequencies + self.phases
        # √2 gives the features unit variance. A product and a sum, since autocast would do a matrix
        # product in half precision, and the exponential of that is off by percents.
        return (math.sqrt(2) * waves.cos() * self.gains).sum(dim=1) + self.offset

    def forward(self, sigma: Tensor, squared_error: Tensor) -> Tensor:
        """Return the loss of each image, (B,), from its level and squared error of x_0, (B,)."""
        expected = self.log_error(sigma)
        return (
            self.parameterisation.natural_weight(sigma) * squared_error / expected.exp() + expected
        )


def build_weighting(
    config: LossWeightConfig, parameterisation: Parameterisation, seed: int = 0
) -> nn.Module:
    """Return the weighting of a config: called with σ (B,) and squared error (B,)."""
    if config.kind == "min_snr":
        return MinSnrWeight(config.gamma)
    if config.kind == "learned":
        return LearnedWeight(parameterisation, config.num_features, seed)
    return NaturalWeight(parameterisation)
