"""Networks that see a window of an image and are told its side and its noise level.

Legend: B batch, C channels, s side of a window, E embedding, F features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from ambient_omni.models.preconditioning import Parameterisation
from ambient_omni.windows.config import WindowNetworkConfig

CENTRE = 2
"""Side of the square in the middle that a `CentreDenoiser` speaks about."""

_EMBEDDING = 64
_FREQUENCIES = 16
_LAGS = (1, 2, 3, 4, 8, 16)
_AROUND = (2, 4, 8, 16, 32, 64)
_LEAST_SIDE = 4  # a scale is halved as long as this much would be left to halve


class Trunk(nn.Module):
    """Residual blocks on a window, halved as long as it is large enough: one for all sizes.

    It has as many scales as the largest window can be halved to, so that the coarsest features see
    all of it. A small window passes fewer halvings; the blocks are told its side.

    Args:
        config: sizes.
        channels: C.
        largest: side of the largest window.
    """

    def __init__(self, config: WindowNetworkConfig, channels: int, largest: int) -> None:
        super().__init__()
        count = max(len(config.widths), 1 + math.ceil(math.log2(max(largest / _LEAST_SIDE, 1))))
        widths = [*config.widths, *[config.widths[-1]] * count][:count]
        self.embed = nn.Sequential(
            nn.Linear(4 * _FREQUENCIES, _EMBEDDING), nn.SiLU(), nn.Linear(_EMBEDDING, _EMBEDDING)
        )
        self.stems = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in zip([channels, *widths], widths, strict=False)
        )
        self.blocks = nn.ModuleList(_Block(width) for width in widths)
        self.widths = tuple(widths)

    def forward(self, x_BCss: Tensor, sigma_B: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the features of each scale, (B, F, side, side), and the embedding (B, E)."""
        side = x_BCss.new_full((len(x_BCss),), float(x_BCss.shape[-1]))
        embedding = self.embed(
            torch.cat([_waves(side.log2() / 8), _waves((sigma_B + 1e-3).log() / 8)], 1)
        )
        h, found = x_BCss, []
        for number, (stem, block) in enumerate(zip(self.stems, self.blocks, strict=True)):
            if number and h.shape[-1] >= _LEAST_SIDE:
                h = nnf.avg_pool2d(h, 2, ceil_mode=True)
            h = block(stem(h), embedding)
            found.append(h)
        return found, embedding


class CropClassifierNetwork(nn.Module):
    """Logit of P(in domain) of a crop, from two views.

    One is fixed: how much positions differ at a distance, which tells textures apart without
    learning. The other is the mean and spread of learned features at every scale.

    Args:
        config: sizes.
        channels: C.
        sizes: sides of the crops.
    """

    def __init__(self, config: WindowNetworkConfig, channels: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.trunk = Trunk(config, channels, max(sizes))
        num_pooled = (1 + 2 * len(_LAGS)) * channels + 2 * sum(self.trunk.widths)
        # Features differ by orders of magnitude, and with the size: their running scale is
        # measured, a size at a time.
        self.scales = nn.ModuleDict(
            {str(size): nn.BatchNorm1d(num_pooled, affine=False) for size in sizes}
        )
        last = nn.Linear(config.hidden, 1)
        nn.init.zeros_(last.weight)
        self.read = nn.Sequential(
            nn.Linear(num_pooled + _EMBEDDING, config.hidden), nn.SiLU(), last
        )

    def forward(self, crops_BCss: Tensor) -> Tensor:
        """Return (B,) logits of crops in the data's scale, of one of the network's sizes."""
        scales, embedding = self.trunk(crops_BCss, crops_BCss.new_zeros(len(crops_BCss)))
        pooled = [
            part
            for h in scales
            for part in (h.mean((2, 3)), (h.var((2, 3), unbiased=False) + 1e-5).sqrt())
        ]
        features = torch.cat([structure_functions(crops_BCss), *pooled], 1)
        features = self.scales[str(crops_BCss.shape[-1])](features)
        logits: Tensor = self.read(torch.cat([features, embedding], 1))[:, 0]
        return logits


def structure_functions(x_BCss: Tensor) -> Tensor:
    """Return how much positions differ at a distance, per channel, (B, F).

    ln 2 Var(x), and for each lag d, down and across, ln E(x(p) - x(p + d))² - ln 2 Var(x): 0 where
    positions a lag apart know nothing of each other, as in shuffled crops. Ratios, because crops
    differ far more in contrast than in grain. 0 where the window is no larger than the lag.
    """
    # Half a grey level: what rounding leaves of a flat crop is no texture.
    least = 1.5e-5
    contrast = (2 * x_BCss.var((2, 3), unbiased=False) + least).log()
    found = [contrast]
    for lag in _LAGS:
        for axis in (2, 3):
            length = x_BCss.shape[axis] - lag
            if length <= 0:
                found.append(torch.zeros_like(contrast))
                continue
            apart = x_BCss.narrow(axis, lag, length) - x_BCss.narrow(axis, 0, length)
            found.append((apart.square().mean((2, 3)) + least).log() - contrast)
    return torch.cat(found, 1)


class CentreDenoiser(nn.Module):
    """Estimate of the middle of x_0 from a noised window, under EDM's parameterisation.

    Beside learned features it is given the means around the middle, which are the best there is in
    flat regions and cost no learning.

    Args:
        config: sizes.
        channels: C.
        largest: side of the image.
        sigma_data: standard deviation of the data.
    """

    def __init__(
        self, config: WindowNetworkConfig, channels: int, largest: int, sigma_data: float
    ) -> None:
        super().__init__()
        self.parameterisation = Parameterisation(sigma_data=sigma_data)
        self.trunk = Trunk(config, channels, largest)
        num_learned = CENTRE**2 * (channels + sum(self.trunk.widths)) + self.trunk.widths[-1]
        num_features = len(_AROUND) * channels + num_learned + _EMBEDDING
        last = nn.Linear(2 * config.hidden, channels * CENTRE**2)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.read = nn.Sequential(nn.Linear(num_features, 2 * config.hidden), nn.SiLU(), last)

    def forward(self, x_BCss: Tensor, sigma_B: Tensor) -> Tensor:
        """Return (B, C, 2, 2) estimates for windows x_0 + sigma z."""
        c = self.parameterisation.coefficients(sigma_B)
        wide = (slice(None), None, None, None)
        scaled = x_BCss * c.into[wide]
        scales, embedding = self.trunk(scaled, sigma_B)
        parts = [centre(h).flatten(1) for h in (scaled, *scales)]
        parts += [means_around(scaled), scales[-1].mean((2, 3)), embedding]
        read = self.read(torch.cat(parts, 1))
        said = read.view(len(x_BCss), x_BCss.shape[1], CENTRE, CENTRE)
        result: Tensor = centre(x_BCss) * c.skip[wide] + c.out[wide] * said
        return result


def means_around(x_BCss: Tensor) -> Tensor:
    """Return the means of squares around the middle, wider and wider, (B, F)."""
    side, found = x_BCss.shape[-1], []
    for width in _AROUND:
        start = max(0, (side - width) // 2)
        found.append(x_BCss[:, :, start : side - start, start : side - start].mean((2, 3)))
    return torch.cat(found, 1)


def centre(x_BCss: Tensor) -> Tensor:
    """Return the middle of windows, (B, C, 2, 2); one position alone stands for all four."""
    side = x_BCss.shape[-1]
    if side == 1:
        return x_BCss.expand(-1, -1, CENTRE, CENTRE)
    start = (side - CENTRE) // 2
    return x_BCss[:, :, start : start + CENTRE, start : start + CENTRE]


class _Block(nn.Module):
    """Two convolutions whose features are scaled and shifted by the embedding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.modulate = nn.Linear(_EMBEDDING, 2 * width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        with torch.no_grad():
            self.second.weight.mul_(0.3)  # begin close to the identity

    def forward(self, x_BFss: Tensor, embedding_BE: Tensor) -> Tensor:
        scale, shift = self.modulate(embedding_BE)[:, :, None, None].chunk(2, 1)
        h = nnf.silu(self.first(self.norm(x_BFss)) * (1 + scale) + shift)
        result: Tensor = nnf.silu(x_BFss + self.second(h))
        return result


def _waves(value_B: Tensor) -> Tensor:
    frequencies = torch.linspace(0, math.log(40), _FREQUENCIES, device=value_B.device).exp()
    angles = value_B[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)
