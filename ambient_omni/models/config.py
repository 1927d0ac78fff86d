"""Settings of the denoiser's network."""

from __future__ import annotations

from pydantic import Field, model_validator

from ambient_omni.config import Frozen


class NetworkConfig(Frozen):
    """A diffusers UNet2DModel that works on patches of pixels."""

    patch: int = Field(
        default=4, ge=1, description="Side of the square of pixels that is one position."
    )
    widths: tuple[int, ...] = Field(
        default=(64, 128), min_length=1, description="Channels per scale."
    )
    pixel_width: int = Field(
        default=16, ge=0, description="Channels of the branch at full resolution; 0 = none."
    )
    layers_per_block: int = Field(default=1, ge=1, description="Residual blocks per scale.")
    attention: bool = Field(default=True, description="Self-attention at the coarsest scale.")
    norm_groups: int = Field(default=16, ge=1, description="Groups of the group norm.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout in the residual blocks.")

    @model_validator(mode="after")
    def _norm_fits(self) -> NetworkConfig:
        odd = [width for width in self.widths if width % self.norm_groups]
        if odd:
            raise ValueError(f"widths {odd} are no multiples of norm_groups {self.norm_groups}")
        return self

    def require_fit(self, resolution: int) -> None:
        """Raise ValueError if images of `resolution` cannot be halved as often as needed."""
        unit = self.patch * 2 ** (len(self.widths) - 1)
        if resolution % unit:
            raise ValueError(
                f"resolution {resolution} is no multiple of {unit} (patch {self.patch}, "
                f"{len(self.widths)} scales)"
            )
