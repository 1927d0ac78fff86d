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

from ambient_omni.models.conditions import Condition
from ambient_omni.models.config import (
    DiTConfig,
    NetworkConfig,
    PatchedUNetConfig,
    UNet2DConditionConfig,
    UNet2DConfig,
)
from ambient_omni.models.patched_unet import PatchedUNet
from schemas.errors import BadInput


class LabelUNet(nn.Module):
    """A plain diffusers UNet2DModel or a `PatchedUNet`, with class labels or without.

    Args:
        unet: called with what diffusers' pipelines pass; reachable as `.unet`.
    """

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet
        self.wants_log_sigma: bool = getattr(unet, "wants_log_sigma", False)

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
            return LabelUNet(_patched_unet(config, channels, side, num_classes))
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


def _patched_unet(
    config: PatchedUNetConfig, channels: int, side: int, num_classes: int
) -> PatchedUNet:
    unet: PatchedUNet = PatchedUNet(
        sample_size=side,
        in_channels=channels,
        num_classes=num_classes,
        **config.model_dump(exclude={"kind"}),
    )
    return unet


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


def num_parameters(module: nn.Module) -> int:
    """Return how many numbers a module learns."""
    return sum(parameter.numel() for parameter in module.parameters())


def device_of(module: nn.Module) -> torch.device:
    """Return where a module's weights are."""
    return next(module.parameters()).device
