"""A U-Net over patches, as a model of diffusers. It needs torch and diffusers alone.

An exported pipeline carries this file, as it is, beside the weights.
B batch, C channels, H height, W width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import ModelMixin, UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle, silu

if TYPE_CHECKING:  # diffusers' models are untyped

    class _Model(nn.Module):
        pass
else:

    class _Model(ModelMixin, ConfigMixin):
        pass


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
        width: channels inside.
        channels: of the images.
    """

    def __init__(self, width: int, channels: int = 3) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.middle = nn.Conv2d(width, width, 3, padding=1)
        self.leave = nn.Conv2d(width, channels, 3, padding=1)
        self.steer = nn.Sequential(
            nn.Linear(2 * _NUM_WAVES, 64), nn.SiLU(), nn.Linear(64, 4 * width)
        )
        _silence(self.leave)

    def forward(self, scaled: Tensor, noise: Tensor) -> Tensor:
        """Return (B, C, H, W) of inputs (B, C, H, W) and ln σ / 4 (B,)."""
        waves = noise[:, None] * torch.arange(1, _NUM_WAVES + 1, device=noise.device)
        turned = torch.cat([waves.sin(), waves.cos()], dim=1).to(scaled.dtype)
        steering = self.steer(turned)[:, :, None, None]
        gain, shift, next_gain, next_shift = steering.chunk(4, dim=1)
        hidden = silu(self.enter(scaled) * (1 + gain) + shift)
        hidden = silu(self.middle(hidden) * (1 + next_gain) + next_shift)
        out: Tensor = self.leave(hidden)
        return out


class PatchedUNet(_Model):
    """Cuts images into patches, runs a U-Net over them, and puts the patches together.

    A 32x32 image with patch 4 is an 8x8 grid of 48 channels: a sixteenth of the positions, which
    is what lets a CPU train some hundred images a second. A `PixelBranch` beside it sees to what
    is finer than the patches.

    Args:
        sample_size: side of the images, pixels.
        in_channels: of the images.
        patch: side of a patch, pixels.
        widths: channels per scale.
        pixel_width: channels of the branch at full resolution; 0 = none.
        layers_per_block: residual blocks per scale.
        attention: self-attention at the coarsest scale.
        norm_groups: groups of the group norm.
        dropout: in the residual blocks.
        num_classes: class labels beside the null class; 0 = unconditional.
    """

    # diffusers' schedulers cannot sample it in any case, so it is told ln σ / 4 throughout.
    wants_log_sigma = True

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sample_size: int,
        in_channels: int = 3,
        patch: int = 4,
        widths: tuple[int, ...] = (64, 128),
        pixel_width: int = 16,
        layers_per_block: int = 1,
        attention: bool = True,
        norm_groups: int = 16,
        dropout: float = 0.0,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        self.patch = patch
        positions, scales = in_channels * patch**2, len(widths)
        down, up = ["DownBlock2D"] * scales, ["UpBlock2D"] * scales
        if attention:
            down[-1], up[0] = "AttnDownBlock2D", "AttnUpBlock2D"
        inner: Any = UNet2DModel
        self.unet = inner(
            sample_size=sample_size // patch,
            in_channels=positions,
            out_channels=positions,
            layers_per_block=layers_per_block,
            block_out_channels=tuple(widths),
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            add_attention=attention,
            norm_num_groups=norm_groups,
            dropout=dropout,
            num_class_embeds=num_classes + 1 if num_classes else None,
        )
        self.pixels = PixelBranch(pixel_width, in_channels) if pixel_width else None
        # At the start the denoiser is the best linear one (c_skip x): training begins from there.
        _silence(self.unet.conv_out)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """Return (F,), (B, C, H, W), of scaled inputs (B, C, H, W) and ln σ / 4 (B,).

        Called as diffusers' own networks are, with `return_dict` False.
        """
        assert not return_dict
        patches = pixel_unshuffle(sample, self.patch)
        steps = timestep * _STEPS_PER_UNIT
        out = self.unet(patches, steps, class_labels=class_labels, return_dict=False)[0]
        image = pixel_shuffle(out, self.patch)
        return (image if self.pixels is None else image + self.pixels(sample, timestep),)


def _silence(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
