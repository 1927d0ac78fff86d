"""EDM preconditioning: what stands between a network and a denoiser.

Source: Karras et al. 2022 (EDM), table 1 and section 5.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

# Standard deviation of images in [-1, 1], by convention (EDM).
SIGMA_DATA = 0.5


@dataclass(frozen=True)
class Coefficients:
    """D(x; σ) = skip · x + out · F(into · x, noise); each (B,), float32."""

    skip: Tensor
    out: Tensor
    into: Tensor
    noise: Tensor


def coefficients(sigma: Tensor, sigma_data: float = SIGMA_DATA) -> Coefficients:
    """Return the coefficients at levels σ, shape (B,).

    c_skip = σ_d²/(σ²+σ_d²), c_out = σ σ_d/√(σ²+σ_d²), c_in = 1/√(σ²+σ_d²), c_noise = ln σ / 4.
    """
    total = sigma**2 + sigma_data**2
    return Coefficients(
        skip=sigma_data**2 / total,
        out=sigma * sigma_data / total.sqrt(),
        into=1 / total.sqrt(),
        noise=sigma.log() / 4,
    )


def loss_weight(sigma: Tensor, sigma_data: float = SIGMA_DATA) -> Tensor:
    """Return the EDM weight of the squared error, (σ²+σ_d²)/(σ σ_d)² = 1 / c_out², shape (B,)."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


class Denoiser(nn.Module):
    """A network under EDM preconditioning: maps (x_t, σ) to an estimate of x_0.

    Args:
        network: called as network(scaled input (B, C, H, W), c_noise (B,), labels (B,) or None).
        sigma_data: standard deviation of the data.
    """

    def __init__(self, network: nn.Module, sigma_data: float = SIGMA_DATA) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data

    def forward(self, x_t: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the estimate of x_0, (B, C, H, W), from x_t (B, C, H, W) and σ (B,)."""
        c = coefficients(sigma, self.sigma_data)
        raw = self.network(c.into[:, None, None, None] * x_t, c.noise, labels)
        x0_hat: Tensor = c.skip[:, None, None, None] * x_t + c.out[:, None, None, None] * raw
        return x0_hat
