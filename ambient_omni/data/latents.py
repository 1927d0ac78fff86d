"""Latents of an AutoencoderKL: the codec, and the noise space that it makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor

from ambient_omni.config import Frozen
from ambient_omni.data.config import LatentConfig
from ambient_omni.data.transforms import Transform
from ambient_omni.hub import find_part, read_json, weights_sha256
from schemas.errors import BadInput
from schemas.ids import canonical_hash


class LatentSpace(Frozen):
    """The latents of one autoencoder over one pixel transform: the counterpart of `Transform`.

    Everything that decides the numbers is in its id and its noise space: a level that was found in
    pixels, under another autoencoder or another scale, is refused here.

    A mirrored image is not a mirrored latent, so latents are never flipped: mirrored images have
    to be ingested as a batch of their own.
    """

    transform: Transform = Field(description="What makes the pixels.")
    vae_sha256: str = Field(description="Of the autoencoder's weights.")
    scaling_factor: float = Field(gt=0, description="x_0 = (z - shift) · scaling_factor.")
    shift: float = Field(description="See scaling_factor.")
    channels: int = Field(ge=1, description="Of a latent.")
    downscale: int = Field(ge=1, description="Pixels per position, along a side.")

    @property
    def transform_id(self) -> str:
        """Hash of everything that decides the latents."""
        return canonical_hash(self.model_dump())

    @property
    def noise_space(self) -> str:
        """What σ is measured in."""
        channels, side, _ = self.shape
        return (
            f"latent:{channels}x{side}x{side}:{self.vae_sha256[:16]}:"
            f"({self.shift:g},{self.scaling_factor:g}):{self.transform.noise_space}"
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a row of a pack, float16."""
        side = self.transform.resolution // self.downscale
        return (self.channels, side, side)

    @property
    def row_dtype(self) -> str:
        """Type of a row: latents of about unit scale keep three digits, beside noise of any σ."""
        return "float16"

    def how_to_build(self, batch: str) -> str:
        """Say what makes the pack of a batch."""
        return (
            f"pack its pixels, then encode them with `python -m ambient_omni encode-latents` and "
            f"batches: [{batch}]"
        )

    @property
    def x0_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of x_0."""
        return self.shape


class LatentCodec:
    """A frozen AutoencoderKL with the scale of its latents. See `LatentCodec.open`.

    Args:
        vae: of diffusers.
        vae_sha256: hash of its weights.
    """

    def __init__(self, vae: Any, vae_sha256: str) -> None:
        self.vae = vae.eval().requires_grad_(False)
        self.vae_sha256 = vae_sha256
        self.scaling_factor, self.shift = _scale(vae.config)

    @classmethod
    def open(cls, config: LatentConfig) -> LatentCodec:
        """Load an autoencoder, on the CPU in float32.

        Raises:
            BadInput: there is none, it is of another kind, or its weights are no safetensors.
        """
        from diffusers import AutoencoderKL

        folder = _vae_folder(config)
        try:
            vae = cast(Any, AutoencoderKL).from_pretrained(folder, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise BadInput(
                f"the autoencoder {config.vae} cannot be loaded: "
                f"{' '.join(str(error).split())[:200]}"
            ) from error
        return cls(vae.float(), weights_sha256(folder))

    def to(self, device: torch.device) -> LatentCodec:
        """Move the weights to a device, and return this."""
        self.vae.to(device)
        return self

    @torch.no_grad()
    def encode(self, x0: Tensor) -> Tensor:
        """Return scaled latents (B, c, h, w) of images (B, 3, H, W), -1..1, both float32.

        The mode of the posterior: a sample would add noise that no level accounts for.
        """
        latents: Tensor = self.vae.encode(x0.to(self._device)).latent_dist.mode()
        return (latents - self.shift) * self.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, 3, H, W), about -1..1, of scaled latents (B, c, h, w), float32."""
        plain = latents.to(self._device).float() / self.scaling_factor + self.shift
        images: Tensor = self.vae.decode(plain).sample
        return images

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self.vae.parameters()).device
        return device


def latent_space(config: LatentConfig, transform: Transform) -> LatentSpace:
    """Return the space of an autoencoder's latents, without loading the autoencoder.

    Raises:
        BadInput: there is no such autoencoder, or the resolution does not fit it.
    """
    folder = _vae_folder(config)
    values = read_json(folder / "config.json")
    widths = values.get("block_out_channels", ())
    downscale = 2 ** (len(widths) - 1) if isinstance(widths, list) else 1
    if transform.resolution % downscale:
        raise BadInput(
            f"resolution {transform.resolution} is no multiple of {downscale}, the pixels per "
            f"latent of {config.vae}: choose another transform.resolution"
        )
    scaling_factor, shift = _scale(values)
    return LatentSpace(
        transform=transform,
        vae_sha256=weights_sha256(folder),
        scaling_factor=scaling_factor,
        shift=shift,
        channels=int(str(values.get("latent_channels", 4))),
        downscale=downscale,
    )


def _scale(values: Any) -> tuple[float, float]:
    """Return (scaling_factor, shift) of an autoencoder's config, with diffusers' defaults."""
    return float(values.get("scaling_factor") or 0.18215), float(values.get("shift_factor") or 0.0)


def _vae_folder(config: LatentConfig) -> Path:
    folder = find_part(config.vae, "vae", config.revision)
    kind = read_json(folder / "config.json").get("_class_name")
    if kind != "AutoencoderKL":
        raise BadInput(f"{config.vae} is a {kind}, not an AutoencoderKL")
    return folder
