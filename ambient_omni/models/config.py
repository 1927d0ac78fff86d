"""Settings of the denoiser: its network, its condition, its parameterisation and loss weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from ambient_omni.config import Frozen
from ambient_omni.noise.levels import BetaSchedule
from ambient_omni.noise.priors import DdpmPrior, FlowPrior, LogNormalPrior

_Dropout = Annotated[float, Field(ge=0, lt=1, description="Dropout inside the network's blocks.")]
_Widths = Annotated[tuple[int, ...], Field(min_length=1, description="Channels per scale.")]


def _require_multiple(resolution: int, unit: int, why: str) -> None:
    if resolution % unit:
        raise ValueError(f"resolution {resolution} is no multiple of {unit} ({why})")


def _require_groups(widths: tuple[int, ...], groups: int) -> None:
    odd = [width for width in widths if width % groups]
    if odd:
        raise ValueError(f"widths {odd} are no multiples of norm_groups {groups}")


def _require_heads(widths: tuple[int, ...], unit: int, name: str) -> None:
    # diffusers rounds down, to narrower heads or to none at all.
    odd = [width for width in widths if width % unit]
    if odd:
        raise ValueError(f"widths {odd} attend and are no multiples of {name} {unit}")


class PatchedUNetConfig(Frozen):
    """A diffusers UNet2DModel that works on patches of pixels: what a CPU can train."""

    kind: Literal["patched_unet"] = "patched_unet"
    patch: int = Field(
        default=4, ge=1, description="Side of the square of pixels that is one position."
    )
    widths: _Widths = (64, 128)
    pixel_width: int = Field(
        default=16, ge=0, description="Channels of the branch at full resolution; 0 = none."
    )
    layers_per_block: int = Field(default=1, ge=1, description="Residual blocks per scale.")
    attention: bool = Field(default=True, description="Self-attention at the coarsest scale.")
    norm_groups: int = Field(default=16, ge=1, description="Groups of the group norm.")
    dropout: _Dropout = 0.0

    @model_validator(mode="after")
    def _norm_fits(self) -> PatchedUNetConfig:
        _require_groups(self.widths, self.norm_groups)
        return self

    def require_fit(self, resolution: int) -> None:
        """Raise ValueError if images of `resolution` cannot be halved as often as needed."""
        unit = self.patch * 2 ** (len(self.widths) - 1)
        _require_multiple(resolution, unit, f"patch {self.patch}, {len(self.widths)} scales")


class _PlainUNetConfig(Frozen):
    widths: _Widths = (128, 256, 256)
    layers_per_block: int = Field(default=2, ge=1, description="Residual blocks per scale.")
    attention_scales: int = Field(
        default=2, ge=0, description="How many of the coarsest scales attend."
    )
    norm_groups: int = Field(default=32, ge=1, description="Groups of the group norm.")
    dropout: _Dropout = 0.0

    @model_validator(mode="after")
    def _norm_fits(self) -> _PlainUNetConfig:
        _require_groups(self.widths, self.norm_groups)
        if self.attention_scales > len(self.widths):
            raise ValueError(
                f"attention_scales {self.attention_scales} is more than the {len(self.widths)} "
                "scales of widths"
            )
        return self

    @property
    def attending(self) -> tuple[int, ...]:
        """Widths of the scales that attend."""
        return self.widths[len(self.widths) - self.attention_scales :]

    def require_fit(self, resolution: int) -> None:
        """Raise ValueError if images of `resolution` cannot be halved as often as needed."""
        _require_multiple(resolution, 2 ** (len(self.widths) - 1), f"{len(self.widths)} scales")


class UNet2DConfig(_PlainUNetConfig):
    """A plain diffusers UNet2DModel: unconditional, or with class labels."""

    kind: Literal["unet2d"] = "unet2d"
    head_dim: int = Field(default=8, ge=1, description="Channels per attention head.")

    @model_validator(mode="after")
    def _heads_fit(self) -> UNet2DConfig:
        _require_heads(self.attending, self.head_dim, "head_dim")
        return self


class UNet2DConditionConfig(_PlainUNetConfig):
    """A plain diffusers UNet2DConditionModel: captions through cross-attention."""

    kind: Literal["unet2d_condition"] = "unet2d_condition"
    heads: int = Field(default=8, ge=1, description="Attention heads at every scale.")

    @model_validator(mode="after")
    def _heads_fit(self) -> UNet2DConditionConfig:
        # The middle attends to the captions whatever the scales do.
        _require_heads((*self.attending, self.widths[-1]), self.heads, "heads")
        return self


class DiTConfig(Frozen):
    """A plain diffusers DiTTransformer2DModel: unconditional, or with class labels."""

    kind: Literal["dit"] = "dit"
    patch: int = Field(default=2, ge=1, description="Side of a patch.")
    layers: int = Field(default=12, ge=1, description="Transformer blocks.")
    heads: int = Field(default=6, ge=1, description="Attention heads.")
    head_dim: int = Field(default=64, ge=1, description="Channels per attention head.")
    dropout: _Dropout = 0.0

    @model_validator(mode="after")
    def _positions_fit(self) -> DiTConfig:
        width = self.heads * self.head_dim
        if width % 4:
            raise ValueError(
                f"heads x head_dim is {width}, no multiple of 4 (sine and cosine, down and across)"
            )
        return self

    def require_fit(self, resolution: int) -> None:
        """Raise ValueError if images of `resolution` cannot be cut into patches."""
        _require_multiple(resolution, self.patch, f"patch {self.patch}")


def _kind_of(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    return "patched_unet" if kind is None else str(kind)


NetworkConfig = Annotated[
    Annotated[PatchedUNetConfig, Tag("patched_unet")]
    | Annotated[UNet2DConfig, Tag("unet2d")]
    | Annotated[DiTConfig, Tag("dit")]
    | Annotated[UNet2DConditionConfig, Tag("unet2d_condition")],
    Discriminator(_kind_of),
]
"""Any network; settings without a `kind` are those of a `PatchedUNetConfig`."""


class ConditionConfig(Frozen):
    """What the denoiser is told about an image beside its noise level."""

    kind: Literal["none", "label", "caption"] = "none"
    text_encoder: str | None = Field(
        default=None,
        description="caption only: folder or hub id of a text encoder and its tokenizer, or of a "
        "pipeline that has them in text_encoder/ and tokenizer/.",
    )
    revision: str | None = Field(default=None, description="Of a hub id: branch, tag or commit.")
    max_tokens: int | None = Field(
        default=None, ge=2, description="Captions are cut there; none: the tokenizer's own length."
    )
    dropout: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Share of the images that are trained without their condition, for guidance.",
    )

    @model_validator(mode="after")
    def _captions_need_an_encoder(self) -> ConditionConfig:
        if (self.kind == "caption") != (self.text_encoder is not None):
            raise ValueError(
                "condition.kind caption and condition.text_encoder belong together: "
                f"got kind {self.kind} and text_encoder {self.text_encoder}"
            )
        return self


class ParameterisationConfig(Frozen):
    """What the network is trained to say about an image; the levels are σ in each case."""

    kind: Literal["edm", "epsilon", "v", "x0", "flow"] = "edm"
    sigma_data: float | None = Field(
        default=None,
        gt=0,
        description="Standard deviation of the data; none: 0.5 in pixels, and in latents what was "
        "measured when their packs were made. edm scales by it; the others measure it only.",
    )
    schedule: BetaSchedule = Field(
        default=BetaSchedule(),
        description="epsilon, v and x0: the DDPM schedule whose timesteps the network is told.",
    )

    @property
    def has_timesteps(self) -> bool:
        """Whether the network is told timesteps of the schedule."""
        return self.kind in ("epsilon", "v", "x0")


def usual_prior(config: ParameterisationConfig) -> LogNormalPrior | DdpmPrior | FlowPrior:
    """Return the prior that models of a parameterisation are usually trained with.

    EDM's log-normal, uniform timesteps of the schedule, or logit-normal time of rectified flow.
    """
    if config.has_timesteps:
        return DdpmPrior(schedule=config.schedule)
    return FlowPrior() if config.kind == "flow" else LogNormalPrior()


class LossWeightConfig(Frozen):
    """How much each noise level counts in the loss."""

    kind: Literal["natural", "min_snr", "learned"] = Field(
        default="natural",
        description="natural: plain squared error of what the network says (EDM's weight under "
        "edm); min_snr: at most gamma times that of the image; learned: EDM2's uncertainty.",
    )
    gamma: float = Field(default=5.0, gt=0, description="min_snr only.")
    num_features: int = Field(default=128, ge=1, description="learned only: Fourier features.")
