"""The denoiser's network: diffusers' own modules, each behind the same call.

A network is called with the scaled input (B, C, H, W), the timestep (B,) in the convention of
diffusers' schedulers, and a `Condition` or None; it returns (B, C, H, W). The plain module inside
is reachable as `.unet` or `.transformer`, and can be saved and sampled by diffusers alone.
At the start every network says 0.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from diffusers.models.embeddings import LabelEmbedding
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle, silu

from ambient_omni import rng
from ambient_omni.models.conditions import Condition
from ambient_omni.models.config import (
    DiTConfig,
    NetworkConfig,
    PatchedUNetConfig,
    UNet2DConditionConfig,
    UNet2DConfig,
)
from ambient_omni.models.preconditioning import Denoiser
from schemas.errors import BadInput

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
        channels: of the images.
        resolution: side of the images, pixels.
        num_classes: class labels beside the null class; 0 = unconditional.
    """

    # diffusers' schedulers cannot sample it in any case, so it is told ln σ / 4 throughout.
    wants_log_sigma = True

    def __init__(
        self, config: PatchedUNetConfig, channels: int, resolution: int, num_classes: int = 0
    ) -> None:
        super().__init__()
        self.patch = config.patch
        positions, scales = channels * config.patch**2, len(config.widths)
        down, up = ["DownBlock2D"] * scales, ["UpBlock2D"] * scales
        if config.attention:
            down[-1], up[0] = "AttnDownBlock2D", "AttnUpBlock2D"
        # diffusers' models are untyped.
        self.unet = cast(Any, UNet2DModel)(
            sample_size=resolution // config.patch,
            in_channels=positions,
            out_channels=positions,
            layers_per_block=config.layers_per_block,
            block_out_channels=config.widths,
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            add_attention=config.attention,
            norm_num_groups=config.norm_groups,
            dropout=config.dropout,
            num_class_embeds=num_classes + 1 if num_classes else None,
        )
        self.pixels = PixelBranch(config.pixel_width, channels) if config.pixel_width else None
        # At the start the denoiser is the best linear one (c_skip x): training begins from there.
        _silence(self.unet.conv_out)

    def forward(self, scaled: Tensor, noise: Tensor, condition: Condition | None = None) -> Tensor:
        """Return F(scaled, noise), (B, C, H, W), of inputs (B, C, H, W) and ln σ / 4 (B,)."""
        labels = None if condition is None else condition.labels
        patches = pixel_unshuffle(scaled, self.patch)
        out = self.unet(patches, noise * _STEPS_PER_UNIT, class_labels=labels).sample
        image = pixel_shuffle(out, self.patch)
        return image if self.pixels is None else image + self.pixels(scaled, noise)


class LabelUNet(nn.Module):
    """A plain diffusers UNet2DModel, with class labels or without.

    Args:
        unet: called with what diffusers' pipelines pass; reachable as `.unet`.
    """

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, scaled: Tensor, noise: Tensor, condition: Condition | None = None) -> Tensor:
        """Return F(scaled, noise), (B, C, H, W); noise (B,) is passed as the timestep."""
        labels = None if condition is None else condition.labels
        out: Tensor = self.unet(scaled, noise, class_labels=labels, return_dict=False)[0]
        return out


class LabelDiT(nn.Module):
    """A plain diffusers DiTTransformer2DModel, with class labels or without.

    diffusers' own label dropout draws from torch's global generator; it is switched off, since
    labels are dropped by the batch's mask. Without classes every image has the null class.

    Args:
        transformer: reachable as `.transformer`.
    """

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer
        for module in transformer.modules():
            if isinstance(module, LabelEmbedding):
                module.dropout_prob = 0.0

    def forward(self, scaled: Tensor, noise: Tensor, condition: Condition | None = None) -> Tensor:
        """Return F(scaled, noise), (B, C, H, W); noise (B,) is passed as the timestep."""
        if condition is None or condition.labels is None:
            labels = torch.zeros(len(scaled), dtype=torch.int64, device=scaled.device)
        else:
            labels = condition.labels
        out: Tensor = self.transformer(scaled, noise, labels, return_dict=False)[0]
        return out


class TextUNet(nn.Module):
    """A plain diffusers UNet2DConditionModel, told the states of a text encoder.

    Args:
        unet: reachable as `.unet`.
    """

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, scaled: Tensor, noise: Tensor, condition: Condition | None = None) -> Tensor:
        """Return F(scaled, noise), (B, C, H, W); noise (B,) is passed as the timestep."""
        if condition is None or condition.text is None:
            raise ValueError("a TextUNet needs the states of a text encoder")
        added = {"text_embeds": condition.pooled, "time_ids": condition.time_ids}
        out: Tensor = self.unet(
            scaled,
            noise,
            encoder_hidden_states=condition.text,
            encoder_attention_mask=condition.text_mask,
            added_cond_kwargs=None if condition.pooled is None else added,
            return_dict=False,
        )[0]
        return out


def build_network(
    config: NetworkConfig, x0_shape: tuple[int, int, int], num_classes: int = 0, text_width: int = 0
) -> nn.Module:
    """Return a network for x_0 of shape (C, H, W), on torch's global random numbers.

    Args:
        config: which one.
        x0_shape: (C, H, W), H = W.
        num_classes: class labels beside the null class; 0 = none.
        text_width: width of the text encoder's states; 0 = no captions.

    Raises:
        BadInput: the network cannot take the condition, or does not fit the images.
    """
    _require_condition(config, num_classes, text_width)
    channels, side, _ = x0_shape
    try:
        config.require_fit(side)
    except ValueError as error:
        raise BadInput(f"network {config.kind}: {error}") from error
    match config:
        case PatchedUNetConfig():
            return PatchedUNet(config, channels, side, num_classes)
        case UNet2DConfig():
            return LabelUNet(_plain_unet(config, channels, side, num_classes))
        case DiTConfig():
            return LabelDiT(_plain_dit(config, channels, side, num_classes))
        case UNet2DConditionConfig():
            return TextUNet(_plain_text_unet(config, channels, side, text_width))


def _require_condition(config: NetworkConfig, num_classes: int, text_width: int) -> None:
    takes_text = config.kind == "unet2d_condition"
    if bool(text_width) != takes_text or (takes_text and num_classes):
        asked = "captions" if text_width else "labels" if num_classes else "no condition"
        raise BadInput(
            f"network {config.kind} does not take {asked}: captions need network.kind "
            "unet2d_condition and condition.kind caption; labels or nothing the other kinds"
        )


def _plain_unet(config: UNet2DConfig, channels: int, side: int, num_classes: int) -> Any:
    plain = len(config.widths) - config.attention_scales
    down = ("DownBlock2D",) * plain + ("AttnDownBlock2D",) * config.attention_scales
    unet = cast(Any, UNet2DModel)(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=config.layers_per_block,
        block_out_channels=config.widths,
        down_block_types=down,
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
        add_attention=config.attention_scales > 0,
        attention_head_dim=config.head_dim,
        norm_num_groups=config.norm_groups,
        dropout=config.dropout,
        num_class_embeds=num_classes + 1 if num_classes else None,
    )
    _silence(unet.conv_out)
    return unet


def _plain_dit(config: DiTConfig, channels: int, side: int, num_classes: int) -> Any:
    dit = cast(Any, DiTTransformer2DModel)(
        num_attention_heads=config.heads,
        attention_head_dim=config.head_dim,
        in_channels=channels,
        out_channels=channels,
        num_layers=config.layers,
        dropout=config.dropout,
        sample_size=side,
        patch_size=config.patch,
        # diffusers adds the null class itself.
        num_embeds_ada_norm=num_classes,
    )
    # Peebles and Xie 2022 (DiT), section 3.2: every block begins as the identity.
    for block in dit.transformer_blocks:
        _silence(block.norm1.linear)
    _silence(dit.proj_out_1)
    _silence(dit.proj_out_2)
    return dit


def _plain_text_unet(
    config: UNet2DConditionConfig, channels: int, side: int, text_width: int
) -> Any:
    plain = len(config.widths) - config.attention_scales
    down = ("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",) * config.attention_scales
    unet = cast(Any, UNet2DConditionModel)(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=config.layers_per_block,
        block_out_channels=config.widths,
        down_block_types=down,
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
        # diffusers means the number of heads here, whatever it is called.
        attention_head_dim=config.heads,
        cross_attention_dim=text_width,
        norm_num_groups=config.norm_groups,
        dropout=config.dropout,
    )
    _silence(unet.conv_out)
    return unet


def _silence(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


def build_denoiser(
    config: NetworkConfig, resolution: int, num_classes: int = 0, seed: int = 0
) -> Denoiser:
    """Return an EDM denoiser of pixels; its weights depend on seed and architecture alone."""
    with rng.torch_seeded(seed, "weights"):
        return Denoiser(build_network(config, (3, resolution, resolution), num_classes))


def num_parameters(module: nn.Module) -> int:
    """Return how many numbers a module learns."""
    return sum(parameter.numel() for parameter in module.parameters())


def device_of(module: nn.Module) -> torch.device:
    """Return where a module's weights are."""
    return next(module.parameters()).device
