"""What a denoiser is told about an image: class labels, or captions through a text encoder.

Conditions are dropped by a mask that comes with the batch, never by a random number drawn here.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from schemas.errors import BadInput


@dataclass(frozen=True)
class Condition:
    """What B images are conditioned on; parts that a model does not use are None.

    Attributes:
        labels: (B,) int64; the number of classes is the null class.
        text: (B, T, D) states of a text encoder.
        text_mask: (B, T) bool, which tokens there are; None where the encoder pads as it trained.
        pooled: (B, P) summary of the text, for networks that take one.
        time_ids: (B, K) sizes and crops, for networks that take them.
    """

    labels: Tensor | None = None
    text: Tensor | None = None
    text_mask: Tensor | None = None
    pooled: Tensor | None = None
    time_ids: Tensor | None = None

    def to(self, device: torch.device) -> Condition:
        """Return the same on a device."""
        parts = {name: part.to(device, non_blocking=True) for name, part in self._parts().items()}
        return dataclasses.replace(self, **parts)

    def where(self, drop: Tensor, other: Condition) -> Condition:
        """Return `other` where `drop` (B,) bool says so, and this elsewhere."""
        others = other._parts()
        parts = {}
        for name, part in self._parts().items():
            mask = drop.to(part.device, non_blocking=True)
            parts[name] = torch.where(
                mask.reshape(-1, *[1] * (part.ndim - 1)), others[name].to(part.dtype), part
            )
        return dataclasses.replace(self, **parts)

    def take(self, places: Sequence[int]) -> Condition:
        """Return the conditions at the places, which may repeat."""
        parts = {
            name: part[torch.tensor(places).to(part.device, non_blocking=True)]
            for name, part in self._parts().items()
        }
        return dataclasses.replace(self, **parts)

    def and_then(self, other: Condition) -> Condition:
        """Return the conditions of these images, then of `other`'s."""
        others = other._parts()
        parts = {name: torch.cat([part, others[name]]) for name, part in self._parts().items()}
        return dataclasses.replace(self, **parts)

    def _parts(self) -> dict[str, Tensor]:
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: part for name, part in found.items() if part is not None}


class Conditioner(ABC):
    """Turns labels or captions into a `Condition`. Its weights, if any, are frozen."""

    @abstractmethod
    def encode(
        self,
        *,
        labels: Tensor | None = None,
        captions: Sequence[str | None] | None = None,
        drop: Tensor | None = None,
    ) -> Condition:
        """Return the condition of B images.

        Args:
            labels: (B,) int64 class labels; label conditioners read these.
            captions: B captions; caption conditioners read these.
            drop: (B,) bool, which images lose their condition; None for none of them.

        Raises:
            BadInput: labels or captions are needed and missing.
        """

    @abstractmethod
    def null(self, count: int) -> Condition:
        """Return the condition of `count` images about which nothing is said."""

    def to(self, device: torch.device) -> Conditioner:
        """Move the weights to a device, and return this."""
        return self

    @property
    def fingerprint(self) -> str | None:
        """Hash of the weights, for the parents of what is trained with them; None without any."""
        return None


class LabelConditioner(Conditioner):
    """Class labels 0..num_classes-1; the null class is number `num_classes`."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._device = torch.device("cpu")

    def encode(
        self,
        *,
        labels: Tensor | None = None,
        captions: Sequence[str | None] | None = None,
        drop: Tensor | None = None,
    ) -> Condition:
        """Return the labels, with the null class where they are dropped."""
        if labels is None:
            raise BadInput(
                "the model is conditioned on labels and the images have none: ingest with labels, "
                "or set condition.kind to none"
            )
        if drop is not None:
            labels = torch.where(drop.to(labels.device), self.num_classes, labels)
        return Condition(labels=labels)

    def null(self, count: int) -> Condition:
        """Return the null class, `count` times."""
        return Condition(labels=torch.full((count,), self.num_classes, device=self._device))

    def to(self, device: torch.device) -> Conditioner:
        """Make null conditions on a device from now on."""
        self._device = device
        return self


def guided(
    denoiser: nn.Module,
    x_t: Tensor,
    sigma: Tensor,
    condition: Condition,
    null: Condition,
    scale: float,
) -> Tensor:
    """Return the estimate of x_0 under classifier-free guidance, (B, C, H, W).

    D(x; ∅) + scale · (D(x; c) - D(x; ∅)), both from one pass over 2 B inputs. Scale 1 is no
    guidance, and costs one pass over B. Source: Ho and Salimans 2022 (arXiv 2207.12598), equation
    6, with scale = 1 + w, as in diffusers.

    Args:
        denoiser: estimates x_0 from (x_t, σ, condition).
        x_t: (B, C, H, W).
        sigma: (B,).
        condition: of the B images.
        null: what `Conditioner.null(B)` returned.
        scale: 1 = none.
    """
    if scale == 1:
        plain: Tensor = denoiser(x_t, sigma, condition)
        return plain
    both = denoiser(torch.cat([x_t, x_t]), torch.cat([sigma, sigma]), condition.and_then(null))
    told, untold = both.chunk(2)
    combined: Tensor = untold + scale * (told - untold)
    return combined
