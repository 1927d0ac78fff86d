"""Local cosine transforms of noised images, read in units of the noise; nothing is learned.

Legend: B batch, C channels, H height, W width, F coefficients, G bands of coefficients, P places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

COSINE_WINDOWS = ((4, 2), (8, 4), (8, 8))
"""Sides and strides of the cosine transforms. The last are the blocks of a JPEG that begins at the
corner: beside the second, which also sees what lies across their edges, they give it away."""

_BANDS_OF_SIDE = {4: 4, 8: 7}
# Spread of the sigmoid of a standard normal: what noise alone varies by, of 1/2.
_QUIET_SPREAD = 0.208


class Cosines(nn.Module):
    """The coefficients of all windows, and what they say beside noise of a level."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self._channels = channels
        mix = _decorrelation(channels)
        for number, (side, _) in enumerate(COSINE_WINDOWS):
            self.register_buffer(f"cosines_{number}", _cosine_filters(side, mix), persistent=False)
            self.register_buffer(f"bands_{number}", _bands(side, channels), persistent=False)
        self.num_features = sum(channels * side**2 for side, _ in COSINE_WINDOWS)
        self.num_bands = sum(channels * _BANDS_OF_SIDE[side] for side, _ in COSINE_WINDOWS)

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        """Return the coefficients of each window, (B, its F, P)."""
        return [
            nnf.conv2d(x_BCHW, self.get_buffer(f"cosines_{number}"), stride=stride).flatten(2)
            for number, (_, stride) in enumerate(COSINE_WINDOWS)
        ]

    def excess(self, power_BF: Tensor, sigma_B: Tensor, size: Sequence[int]) -> Tensor:
        """Return how far powers are above that of the noise, in units of what noise varies by.

        The mean of n squared coefficients of white noise of level sigma is sigma^2, with relative
        standard deviation sqrt(2 / n). The result is asinh of the excess in that unit: linear for
        what the noise nearly hides, as nearly everything is at high levels, logarithmic above.

        Args:
            power_BF: mean powers.
            sigma_B: the level.
            size: height and width of the images.
        """
        roots = _roots_of_places(size, [self._channels * side**2 for side, _ in COSINE_WINDOWS])
        relative_BF = (power_BF / sigma_B[:, None] ** 2 - 1) / math.sqrt(2)
        result: Tensor = (relative_BF * power_BF.new_tensor(roots)).asinh()
        return result

    def band_powers(self, found: Sequence[Tensor]) -> list[Tensor]:
        """Return the mean power of bands of like frequency at each place, (B, its G, P)."""
        return [self.get_buffer(f"bands_{n}") @ c.square() for n, c in enumerate(found)]

    def quiet_shares(self, bands: Sequence[Tensor], sigma_B: Tensor, added: float = 0.0) -> Tensor:
        """Return the share of places where a band shows nothing but noise, (B, G).

        A place counts by the sigmoid of how far the band's mean power is above sigma^2 there, in
        units of what noise varies by: about half for noise alone, 0 for what stands out. A few
        strong edges, which rule the mean power, do not move it; where blur or JPEG left nothing,
        it shows even in an image that has them.

        Args:
            bands: their powers.
            sigma_B: the level.
            added: power that noise will still add, in units of sigma^2: 1 for
                those of a clean image.
        """
        shares = []
        for number, power_BGP in enumerate(bands):
            weights_GF = self.get_buffer(f"bands_{number}")
            spread_G1 = (2 * weights_GF.square().sum(1, keepdim=True)).sqrt()
            relative_BGP = power_BGP / sigma_B.square()[:, None, None]
            shares.append(torch.sigmoid((1 - added - relative_BGP) / spread_G1).mean(2))
        return torch.cat(shares, 1)

    def stillness(self, share_BG: Tensor, size: Sequence[int]) -> Tensor:
        """Return how far quiet shares are from those of noise alone, as `excess` does."""
        counts = [self._channels * _BANDS_OF_SIDE[side] for side, _ in COSINE_WINDOWS]
        roots = share_BG.new_tensor(_roots_of_places(size, counts))
        result: Tensor = ((share_BG - 0.5) / _QUIET_SPREAD * roots).asinh()
        return result


def mean_powers(found: Sequence[Tensor]) -> Tensor:
    """Return E c^2 over places, (B, F)."""
    return torch.cat([c.square().mean(2) for c in found], 1)


def peakedness(found: Sequence[Tensor], least: float = 0.0) -> Tensor:
    """Return ln of (E|c|)^2 / E c^2, (B, F): ln 2/pi for Gaussians, less where few are large.

    Args:
        found: coefficients.
        least: keeps it finite where all are 0.
    """
    magnitude_BF = torch.cat([c.abs().mean(2) for c in found], 1)
    result: Tensor = (magnitude_BF.square() / (mean_powers(found) + 1e-6) + least).log()
    return result


def _roots_of_places(size: Sequence[int], counts: Sequence[int]) -> list[float]:
    """Return the square root of the number of places of a window, `counts` times for each."""
    places = (
        math.prod((length - side) // stride + 1 for length in size)
        for side, stride in COSINE_WINDOWS
    )
    return [math.sqrt(n) for n, count in zip(places, counts, strict=True) for _ in range(count)]


def _bands(side: int, channels: int) -> Tensor:
    """Return the (G, C side^2) means over coefficients of like frequency, channel by channel."""
    count = _BANDS_OF_SIDE[side]
    order = torch.arange(side)[:, None] + torch.arange(side)[None, :]
    band = (order.flatten() * count // (side + 1)).clamp(max=count - 1)
    one = nnf.one_hot(band, count).T.float()
    means = (one / one.sum(1, keepdim=True)).contiguous()
    return torch.kron(torch.eye(channels), means)


def _decorrelation(channels: int) -> Tensor:
    """Return a (C, C) mix with rows of length 1, so that white noise keeps its power in each.

    For RGB: brightness and the two colour differences in which JPEG rounds (ITU-R BT.601).
    """
    if channels != 3:
        return torch.eye(channels)
    mix = torch.tensor(
        [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
    )
    return nnf.normalize(mix, dim=1)


def _cosine_filters(side: int, mix_CC: Tensor) -> Tensor:
    """Return the (C side^2, C, side, side) filters of a 2-D DCT-II per mixed channel, of length 1.

    Source: Ahmed, Natarajan, Rao, Discrete Cosine Transform, 1974.
    """
    frequency, place = torch.arange(side)[:, None], torch.arange(side)[None, :]
    one = torch.cos(math.pi * (place + 0.5) * frequency / side) * math.sqrt(2 / side)
    one[0] /= math.sqrt(2)
    two = torch.einsum("ai,bj->abij", one, one).reshape(side**2, side, side)
    filters = torch.einsum("oc,kij->okcij", mix_CC, two)
    return filters.reshape(-1, len(mix_CC), side, side)
