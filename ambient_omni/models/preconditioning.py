"""Parameterisations: what stands between a network and a denoiser.

Each way to train a diffusion model is the same form here,

    D(x; σ) = skip · x + out · F(into · x, noise)          x = x_0 + σ z

so that there is one target, one set of usable levels and one sampler for all of them. `into · x` is
what the plain model of that kind sees: √ᾱ x_0 + √(1-ᾱ) z under a DDPM schedule, (1-t) x_0 + t z
under rectified flow. `noise` is what diffusers' schedulers of that kind pass as the timestep.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ambient_omni.models.conditions import Condition
from ambient_omni.models.config import ParameterisationConfig

# Standard deviation of images in [-1, 1], by convention (EDM).
SIGMA_DATA = 0.5

# Rectified flow tells its networks 1000 t (diffusers' flow-matching schedulers).
_FLOW_TIMESTEPS = 1000.0


@dataclass(frozen=True)
class Coefficients:
    """D(x; σ) = skip · x + out · F(into · x, noise); each (B,), float32."""

    skip: Tensor
    out: Tensor
    into: Tensor
    noise: Tensor


class Parameterisation(nn.Module):
    """The coefficients of one way to train, as a function of the level. It learns nothing.

        edm      skip = σ_d²/(σ²+σ_d²)   out = σ σ_d/√(σ²+σ_d²)   into = 1/√(σ²+σ_d²)   ln σ / 4
        epsilon  skip = 1                out = -σ                 into = 1/√(1+σ²)      t(σ)
        v        skip = 1/(1+σ²)         out = -σ/√(1+σ²)         into = 1/√(1+σ²)      t(σ)
        x0       skip = 0                out = 1                  into = 1/√(1+σ²)      t(σ)
        flow     skip = 1/(1+σ)          out = -σ/(1+σ)           into = 1/(1+σ)        1000 σ/(1+σ)

    t(σ) is the timestep of the schedule, see `BetaSchedule.timestep_of_sigma`.
    Sources: Karras et al. 2022 (EDM), table 1 and section 5; Ho et al. 2020 for ε; Salimans and Ho
    2022 (arXiv 2202.00512), section 4 for v; Liu et al. 2022 (arXiv 2209.03003) for rectified flow.

    Args:
        config: which one.
        sigma_data: standard deviation of the data.

    Raises:
        BadInput: the schedule does not end at a finite σ.
    """

    log_sigmas: Tensor

    def __init__(
        self,
        config: ParameterisationConfig | None = None,
        sigma_data: float = SIGMA_DATA,
    ) -> None:
        super().__init__()
        self.config = config or ParameterisationConfig()
        self.sigma_data = sigma_data
        self._form = _FORMS[self.config.kind]
        self._table = torch.zeros(0)
        if self.config.has_timesteps:
            self._table = torch.from_numpy(self.config.schedule.sigmas.copy()).log().float()
        self.register_buffer("log_sigmas", self._table, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Parameterisation:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # Follows its module to a device, but not to half precision, which holds no 1000 levels.
        self.log_sigmas = self._table.to(self.log_sigmas.device)
        return self

    @property
    def kind(self) -> str:
        """Which one it is."""
        return self.config.kind

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Lowest and highest σ that has a timestep; (0, inf) where every one has.

        Outside of it the network is told timesteps that no scheduler uses.
        """
        if not self.config.has_timesteps:
            return 0.0, float("inf")
        sigmas = self.config.schedule.sigmas
        return float(sigmas[0]), float(sigmas[-1])

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """Return the coefficients at levels σ, shape (B,), in σ's type."""
        return self._form(self, sigma)

    def natural_weight(self, sigma: Tensor) -> Tensor:
        """Return the weight 1/out² of the squared error of x_0, shape (B,).

        With it the loss is the plain squared error of the network's own output: ‖F - F*‖².
        """
        return self.coefficients(sigma).out ** -2

    def timestep(self, sigma: Tensor) -> Tensor:
        """Return the schedule's timestep of each level, shape (B,).

        `BetaSchedule.timestep_of_sigma` on the device of the levels.
        """
        table, x = self.log_sigmas.to(sigma.dtype), sigma.log()
        right = torch.searchsorted(table, x).clamp(1, len(table) - 1)
        low = table[right - 1]
        return right - 1 + (x - low) / (table[right] - low)


def edm_weight(sigma: Tensor, sigma_data: float = SIGMA_DATA) -> Tensor:
    """Return EDM's weight of the squared error of x_0, (σ²+σ_d²)/(σ σ_d)², shape (B,).

    The yardstick of held-out losses, whatever a model was trained with.
    """
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def _edm(p: Parameterisation, sigma: Tensor) -> Coefficients:
    data = p.sigma_data
    total = sigma**2 + data**2
    return Coefficients(
        skip=data**2 / total,
        out=sigma * data * total.rsqrt(),
        into=total.rsqrt(),
        noise=sigma.log() / 4,
    )


def _epsilon(p: Parameterisation, sigma: Tensor) -> Coefficients:
    return Coefficients(
        torch.ones_like(sigma), -sigma, (1 + sigma**2).rsqrt(), noise=p.timestep(sigma)
    )


def _v(p: Parameterisation, sigma: Tensor) -> Coefficients:
    into = (1 + sigma**2).rsqrt()
    return Coefficients(skip=into**2, out=-sigma * into, into=into, noise=p.timestep(sigma))


def _x0(p: Parameterisation, sigma: Tensor) -> Coefficients:
    return Coefficients(
        torch.zeros_like(sigma),
        torch.ones_like(sigma),
        (1 + sigma**2).rsqrt(),
        noise=p.timestep(sigma),
    )


def _flow(_: Parameterisation, sigma: Tensor) -> Coefficients:
    into = 1 / (1 + sigma)
    time = sigma * into
    return Coefficients(skip=into, out=-time, into=into, noise=_FLOW_TIMESTEPS * time)


_FORMS: dict[str, Callable[[Parameterisation, Tensor], Coefficients]] = {
    "edm": _edm,
    "epsilon": _epsilon,
    "v": _v,
    "x0": _x0,
    "flow": _flow,
}


class Denoiser(nn.Module):
    """A network under a parameterisation: maps (x_t, σ) to an estimate of x_0.

    Everything but the network itself is done in float32, also under autocast: at σ = 80 the input
    is scaled by 1/80 and the answer is the small difference that is left.

    Args:
        network: see `networks.Network`.
        parameterisation: what the network is trained to say; EDM's in pixels by default.
    """

    def __init__(
        self, network: nn.Module, parameterisation: Parameterisation | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.parameterisation = parameterisation or Parameterisation()
        # A network that is not sampled by diffusers' schedulers may ask for ln σ / 4 throughout.
        self._wants_log_sigma: Any = getattr(network, "wants_log_sigma", False)

    def forward(self, x_t: Tensor, sigma: Tensor, condition: Condition | None = None) -> Tensor:
        """Return the estimate of x_0, (B, C, H, W) float32.

        Args:
            x_t: (B, C, H, W) float32, x_0 + σ z.
            sigma: (B,) float32, positive.
            condition: of B images; None for an unconditional model.
        """
        c = self.parameterisation.coefficients(sigma)
        noise = sigma.log() / 4 if self._wants_log_sigma else c.noise
        raw = self.network(c.into[:, None, None, None] * x_t, noise, condition)
        skipped = c.skip[:, None, None, None] * x_t
        return torch.addcmul(skipped, c.out[:, None, None, None], raw.float())
