"""The denoiser's network: a diffusers U-Net over patches of pixels."""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle, silu

from ambient_omni import rng
from ambient_omni.models.config import NetworkConfig
from ambient_omni.models.preconditioning import Denoiser

# diffusers' positional embedding is made for steps 0..1000. ln σ / 4 runs from -1.55 at the
# sampler's lowest level 0.002 to 1.1 at its highest, 80; this makes that about 1000 wide.
_STEPS_PER_UNIT = 400.0


# Waves of ln σ / 4 that tell the pixel branch its level.
_NUM_WAVES = 8


class PixelBranch(nn.Module):
    """Three small convolutions over the pixels themselves, steered by the noise level.

    Patches through a narrow U-Net cannot carry every pixel from input to output, and at low levels
    that is the whole task: there a local, edge-keeping filter is what denoises. For a seventh more
    time this took the demo's held-out loss, summed over levels, from 5.8 to 3.2, and from 0.99 to
    0.43 at σ = 0.05 (20,000 images).

    Args:
        width: channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, width, 3, padding=1)
        self.middle = nn.Conv2d(width, width, 3, padding=1)
        self.leave = nn.Conv2d(width, 3, 3, padding=1)
        self.steer = nn.Sequential(
            nn.Linear(2 * _NUM_WAVES, 64), nn.SiLU(), nn.Linear(64, 4 * width)
        )
        _silence(self.leave)

    def forward(self, scaled: Tensor, noise: Tensor) -> Tensor:
        """Return (B, 3, H, W) of inputs (B, 3, H, W) and ln σ / 4 (B,)."""
        waves = noise[:, None] * torch.arange(1, _NUM_WAVES + 1, device=noise.device)
        steering = self.steer(torch.cat([waves.sin(), waves.cos()], dim=1))[:, :, None, None]
        gain, shift, next_gain, next_shift = steering.chunk(4, dim=1)
        hidden = silu(self.enter(scaled) * (1 + gain) + shift)
        hidden = silu(self.middle(hidden) * (1 + next_gain) + next_shift)
        out: Tensor = self.leave(hidden)
        return out


class PatchedUNet(nn.Module):
    """Cuts images into patches, runs a U-Net over them, and puts the patches together.

    A 32x32 image with patch 4 is an 8x8 grid of 48 channels: a sixteenth of the positions, which
    is what lets a CPU train some hundred images a second. A `PixelBranch` beside it sees to what
    is finer than the patches.

    Args:
        config: widths and depth.
        resolution: side of the images, pixels.
        num_classes: number of class labels; 0 = unconditional.
    """

    def __init__(self, config: NetworkConfig, resolution: int, num_classes: int = 0) -> None:
        super().__init__()
        self.patch = config.patch
        channels, scales = 3 * config.patch**2, len(config.widths)
        down, up = ["DownBlock2D"] * scales, ["UpBlock2D"] * scales
        if config.attention:
            down[-1], up[0] = "AttnDownBlock2D", "AttnUpBlock2D"
        # diffusers' models are untyped.
        self.unet = cast(Any, UNet2DModel)(
            sample_size=resolution // config.patch,
            in_channels=channels,
            out_channels=channels,
            layers_per_block=config.layers_per_block,
            block_out_channels=config.widths,
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            add_attention=config.attention,
            norm_num_groups=config.norm_groups,
            dropout=config.dropout,
            num_class_embeds=num_classes or None,
        )
        self.pixels = PixelBranch(config.pixel_width) if config.pixel_width else None
        # At the start the denoiser is the best linear one (c_skip x): training begins from there.
        _silence(self.unet.conv_out)

    def forward(self, scaled: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return F(scaled, noise), (B, 3, H, W), of inputs (B, 3, H, W), (B,), (B,) or None."""
        patches = pixel_unshuffle(scaled, self.patch)
        out = self.unet(patches, noise * _STEPS_PER_UNIT, class_labels=labels).sample
        image = pixel_shuffle(out, self.patch)
        return image if self.pixels is None else image + self.pixels(scaled, noise)


def _silence(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


def build_denoiser(
    config: NetworkConfig, resolution: int, num_classes: int = 0, seed: int = 0
) -> Denoiser:
    """Return a denoiser whose initial weights depend on the seed and the architecture alone."""
    with rng.torch_seeded(seed, "weights"):
        return Denoiser(PatchedUNet(config, resolution, num_classes))


def num_parameters(module: nn.Module) -> int:
    """Return how many numbers a module learns."""
    return sum(parameter.numel() for parameter in module.parameters())


def device_of(module: nn.Module) -> torch.device:
    """Return where a module's weights are."""
    return next(module.parameters()).device
