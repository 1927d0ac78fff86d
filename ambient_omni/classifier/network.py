"""The time-conditional network that tells trusted images from the pool's, both noised.

Legend: B batch, C channels, H height, W width, F features.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from ambient_omni.classifier.config import ClassifierNetworkConfig
from ambient_omni.classifier.cosines import Cosines, mean_powers, peakedness

SIGMA_DATA = 0.5
_EMBEDDING = 32
_CONDITION = 64


class NoiseClassifierNetwork(nn.Module):
    """Logit of P(trusted) from two views of a noised image.

    What damage changes first is how much power stands at which spatial frequency. So one view is
    fixed: mean power and peakedness of the coefficients of local cosine transforms, in units of
    the noise, and in how many places bands of them show nothing but noise. It needs no learning
    and makes short training possible. The other, a small CNN on patches, learns what such averages
    miss: above about sigma = 1 damage shows only in structures that many pixels share. Both are
    read by layers that know the level.

    Args:
        config: sizes.
        channels: C of the images.
    """

    def __init__(self, config: ClassifierNetworkConfig, channels: int = 3) -> None:
        super().__init__()
        self.cosines = Cosines(channels)
        self.patches = PatchFeatures(config.patch, config.widths, config.dropout, channels)
        # Features differ by orders of magnitude; their running scale is not learned, only measured.
        num_fixed = 2 * self.cosines.num_features + self.cosines.num_bands
        self.fixed_scale = nn.BatchNorm1d(num_fixed, affine=False, momentum=0.05)
        self.learned_scale = nn.BatchNorm1d(self.patches.num_features, affine=False, momentum=0.05)
        num_features = num_fixed + self.patches.num_features
        self.read = ReadByLevel(num_features, config.hidden, config.dropout)

    def forward(self, x_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
        """Return (B,) logits for noised images x_t = x_0 + sigma z, x_0 in [-1, 1]."""
        found, size = self.cosines(x_BCHW), x_BCHW.shape[2:]
        views = [
            self.cosines.excess(mean_powers(found), sigma_B, size),
            peakedness(found),
            self.cosines.stillness(
                self.cosines.quiet_shares(self.cosines.band_powers(found), sigma_B), size
            ),
        ]
        fixed_BF = self.fixed_scale(torch.cat(views, 1))
        learned_BF = self.learned_scale(self.patches(x_BCHW, sigma_B))
        logits: Tensor = self.read(torch.cat([fixed_BF, learned_BF], 1), sigma_B)
        return logits


class PatchFeatures(nn.Module):
    """Mean and spread over positions of what a small CNN on patches finds."""

    def __init__(
        self, patch: int, widths: tuple[int, ...], dropout: float, channels: int = 3
    ) -> None:
        super().__init__()
        self._patch = patch
        self.level = _level_embedding()
        self.stem = nn.Conv2d(channels * patch**2, widths[0], 3, padding=1)
        self.halvings = nn.ModuleList(
            nn.Conv2d(a, b, 2, stride=2) for a, b in itertools.pairwise(widths)
        )
        self.blocks = nn.ModuleList(_Residual(width, dropout) for width in widths)
        self.num_features = 2 * widths[-1]

    def forward(self, x_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
        """Return (B, num_features); `sigma_B` may have length 1."""
        level_BE = self.level(_fourier(sigma_B.log() / 4))
        scale_B111 = (sigma_B**2 + SIGMA_DATA**2).rsqrt()[:, None, None, None]
        h = self.stem(nnf.pixel_unshuffle(x_BCHW * scale_B111, self._patch))
        h = self.blocks[0](h, level_BE)
        for halve, block in zip(self.halvings, list(self.blocks)[1:], strict=True):
            h = block(halve(h), level_BE)
        h = nnf.silu(h)
        # Mean and spread over positions: damage is a property of the texture, not of a place.
        return torch.cat([h.mean((2, 3)), (h.var((2, 3), unbiased=False) + 1e-5).sqrt()], 1)


class ReadByLevel(nn.Module):
    """Two layers that turn features into a logit, knowing the level."""

    def __init__(self, num_features: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.level = _level_embedding()
        self.hidden = nn.ModuleList(
            _Conditioned(num_in, hidden, dropout) for num_in in (num_features, hidden)
        )
        self.out = nn.Linear(hidden, 1)
        self.offset = nn.Linear(_CONDITION, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, features_BF: Tensor, sigma_B: Tensor) -> Tensor:
        """Return (B,) logits."""
        level_BE = self.level(_fourier(sigma_B.log() / 4))
        h = features_BF
        for layer in self.hidden:
            h = layer(h, level_BE)
        logits: Tensor = (self.out(h) + self.offset(level_BE))[:, 0]
        return logits


class _Residual(nn.Module):
    """Two convolutions whose features are scaled and shifted by the level."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.modulate = nn.Linear(_CONDITION, 2 * width)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        with torch.no_grad():
            self.second.weight.mul_(0.3)  # begin close to the identity

    def forward(self, x_BCHW: Tensor, level_BE: Tensor) -> Tensor:
        scale, shift = self.modulate(level_BE)[:, :, None, None].chunk(2, 1)
        h = nnf.silu(self.first(self.norm(x_BCHW)) * (1 + scale) + shift)
        result: Tensor = x_BCHW + self.second(self.dropout(h))
        return result


class _Conditioned(nn.Module):
    """A linear layer whose features are scaled and shifted by the level."""

    def __init__(self, num_in: int, num_out: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(num_in, num_out)
        self.modulate = nn.Linear(_CONDITION, 2 * num_out)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BF: Tensor, level_BE: Tensor) -> Tensor:
        scale, shift = self.modulate(level_BE).chunk(2, 1)
        h: Tensor = self.dropout(nnf.silu(self.linear(x_BF) * (1 + scale) + shift))
        return h


def _level_embedding() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(_EMBEDDING, _CONDITION),
        nn.SiLU(),
        nn.Linear(_CONDITION, _CONDITION),
        nn.SiLU(),
    )


def _fourier(c_noise_B: Tensor) -> Tensor:
    """Return (B, _EMBEDDING) cosines and sines of c_noise = ln(sigma) / 4."""
    frequencies = torch.linspace(0, math.log(100), _EMBEDDING // 2).exp()
    angles = c_noise_B[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)
