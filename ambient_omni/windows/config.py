"""Settings of crop classifiers and receptive fields; no torch, so that recipes can name them."""

from __future__ import annotations

import itertools
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from ambient_omni.config import Frozen
from ambient_omni.data.config import LatentConfig
from ambient_omni.data.transforms import Transform

Side = Annotated[int, Field(ge=2, multiple_of=2)]


class WindowNetworkConfig(Frozen):
    """Size of a network that sees windows; see `windows.network.Trunk`."""

    widths: tuple[int, ...] = Field(
        default=(24, 48, 64), min_length=1, description="Channels per scale; the last one repeats."
    )
    hidden: int = Field(default=96, ge=1, description="Width of the head.")


class _Trained(Frozen):
    network: WindowNetworkConfig = WindowNetworkConfig()
    batch_size: int = Field(default=128, ge=2, multiple_of=2)
    learning_rate: float = Field(default=2e-3, gt=0, description="Peak; falls to 0 by a cosine.")
    weight_decay: float = Field(default=0.01, ge=0)
    ema_decay: float = Field(default=0.98, ge=0, lt=1, description="Average of the weights.")
    seed: int = 0


def _ascending(values: tuple[float, ...]) -> tuple[float, ...]:
    if any(low >= high for low, high in itertools.pairwise(values)):
        raise ValueError(f"{values} must ascend")
    return values


class CropClassifierConfig(_Trained):
    """One network for all crop sizes, domain against foreign; K of them, cross-fitted."""

    sizes: tuple[Side, ...] = Field(
        default=(4, 8, 12, 16, 24),
        min_length=1,
        description="Sides of the crops, even. Those as large as the image are left out: whether "
        "the whole image looks right is the floor's question.",
    )
    num_crops: int = Field(default=60_000, ge=1, description="Crops drawn per network.")
    num_folds: int = Field(default=2, ge=2, le=16, description="Networks; each skips its fold.")
    planted_share: float = Field(
        default=0.125,
        gt=0,
        lt=0.5,
        description="Share of the foreign side that is shuffled crops of the domain: what the "
        "positive control looks for.",
    )
    bar: float = Field(
        default=0.4,
        gt=0,
        lt=1,
        description="Total variation that shuffled held-out crops of the largest size must exceed "
        "by two standard errors.",
    )
    crops_per_image: int = Field(
        default=4, ge=1, description="Of an image that calibrates or measures."
    )
    max_graded_images: int = Field(default=256, ge=8, description="That calibrate a fold.")

    @field_validator("sizes")
    @classmethod
    def _sizes_ascend(cls, sizes: tuple[float, ...]) -> tuple[float, ...]:
        return _ascending(sizes)

    def sizes_in(self, side: int) -> tuple[int, ...]:
        """Return the sizes that are smaller than an image."""
        return tuple(size for size in self.sizes if size < side)


class ReceptiveFieldConfig(_Trained):
    """How much context denoising needs at each level.

    A network sees a window and says what its central 2 x 2 positions were. The published
    tolerance, 0.001 of the unit-normalised loss, is finer than a short training or a few hundred
    images can tell: there `relative` reads the tolerance as a share of full context's own loss,
    which also treats low and high levels alike.
    """

    sigmas: tuple[float, ...] = Field(
        default=(0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.55, 0.7, 1.0),
        min_length=2,
        description="Levels, ascending.",
    )
    contexts: tuple[Side, ...] = Field(
        default=(2, 4, 6, 8, 12, 16, 24, 32, 48, 64),
        min_length=1,
        description="Sides of the windows, even; those below the image's side, and the image.",
    )
    num_windows: int = Field(default=200_000, ge=1, description="Windows drawn.")
    num_noises: int = Field(
        default=8, ge=2, multiple_of=2, description="Noisings per image and level, in ± pairs."
    )
    max_images: int = Field(default=512, ge=8, description="Held-out images that measure.")
    tolerance: float = Field(default=1e-3, gt=0, description="Excess of the loss that counts as 0.")
    relative: bool = Field(default=False, description="Tolerance as a share of the loss.")

    @model_validator(mode="after")
    def _values_ascend(self) -> ReceptiveFieldConfig:
        _ascending(self.sigmas)
        _ascending(self.contexts)
        if self.sigmas[0] <= 0:
            raise ValueError("sigmas must be positive")
        return self

    def contexts_in(self, side: int) -> tuple[int, ...]:
        """Return the windows' sides in an image, full context last."""
        return (*(c for c in self.contexts if c < side), side)


class WindowsJob(Frozen):
    """What `python -m pipelines windows` does."""

    foreign_batches: tuple[str, ...] = Field(min_length=1, description="Ingest batches.")
    reference_set: str = Field(default="trusted", description="The domain.")
    transform: Transform = Transform()
    latents: LatentConfig | None = Field(
        default=None, description="Measure in this autoencoder's latents; none: in pixels."
    )
    crops: CropClassifierConfig = CropClassifierConfig()
    receptive_field: ReceptiveFieldConfig = ReceptiveFieldConfig()
