"""A whole model: the denoiser, its conditioner, its codec and the weighting of its loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ambient_omni import rng
from ambient_omni.data.latents import LatentCodec
from ambient_omni.models.conditions import Conditioner, LabelConditioner
from ambient_omni.models.config import (
    ConditionConfig,
    LossWeightConfig,
    NetworkConfig,
    ParameterisationConfig,
)
from ambient_omni.models.networks import build_network
from ambient_omni.models.preconditioning import SIGMA_DATA, Denoiser, Parameterisation
from ambient_omni.models.text import CaptionConditioner
from ambient_omni.models.weighting import build_weighting
from schemas.errors import BadInput


class ModelSettings(Protocol):
    """The settings that a model is built from, wherever they stand (in a `TrainConfig`)."""

    @property
    def network(self) -> NetworkConfig:
        """Which network."""

    @property
    def parameterisation(self) -> ParameterisationConfig:
        """What it says."""

    @property
    def condition(self) -> ConditionConfig:
        """What it is told."""

    @property
    def loss_weight(self) -> LossWeightConfig:
        """How much each level counts."""


@dataclass
class Model:
    """A denoiser and what belongs to it.

    Attributes:
        denoiser: maps (x_t, σ, condition) to an estimate of x_0; what is trained, averaged, saved.
        conditioner: turns labels or captions into conditions; frozen. None: unconditional.
        codec: turns latents into images; frozen, not needed to train. None: pixels.
        parameterisation: of the denoiser; the same object as `denoiser.parameterisation`.
        loss_weighting: maps σ (B,) and squared error (B,) to the loss (B,). Where it has
            parameters they are trained along and saved, but not averaged.
    """

    denoiser: nn.Module
    conditioner: Conditioner | None
    codec: LatentCodec | None
    parameterisation: Parameterisation
    loss_weighting: nn.Module

    @property
    def plain_network(self) -> Any:
        """The module of diffusers inside: a U-Net or a transformer."""
        network: Any = self.denoiser.network
        return network.transformer if hasattr(network, "transformer") else network.unet

    def on_accelerator(self) -> Model:
        """Move everything to the machine's GPU, if it has one, and return this."""
        device = torch.accelerator.current_accelerator(check_available=True)
        if device is not None:
            self.denoiser.to(device)
            self.loss_weighting.to(device)
            if self.conditioner is not None:
                self.conditioner.to(device)
            if self.codec is not None:
                self.codec.to(device)
        return self

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the denoiser's parameters that are trained: all of them, or its adapters."""
        named = self.denoiser.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    def weights(self) -> dict[str, Tensor]:
        """Return the denoiser's tensors that checkpoints and averages keep, by name.

        All of them; the adapters alone where everything else is frozen.
        """
        state: dict[str, Tensor] = self.denoiser.state_dict()
        trainable = self.trainable()
        if len(trainable) in (0, sum(1 for _ in self.denoiser.parameters())):
            return state
        return {name: tensor for name, tensor in state.items() if name in trainable}


def build_model(
    settings: ModelSettings,
    x0_shape: tuple[int, int, int],
    *,
    num_classes: int = 0,
    seed: int = 0,
    sigma_data: float | None = None,
    codec: LatentCodec | None = None,
) -> Model:
    """Return an untrained model; its weights depend on the seed and the architecture alone.

    Args:
        settings: network, parameterisation, condition and loss weight.
        x0_shape: (C, H, W) of what is denoised: `Transform.x0_shape` or `LatentSpace.x0_shape`.
        num_classes: number of the classes in the data; needed for `condition.kind` label.
        seed: of the initial weights.
        sigma_data: standard deviation of the data (`PackSet.sigma_data`), for settings that do
            not state one; 0.5 where neither does. Keep `model.parameterisation.sigma_data` with
            the weights.
        codec: of a model of latents, for those who decode.

    Raises:
        BadInput: the network does not fit the images or the condition, there are no classes, or
            the text encoder cannot be used.
    """
    stated = settings.parameterisation.sigma_data
    parameterisation = Parameterisation(
        settings.parameterisation, stated or sigma_data or SIGMA_DATA
    )
    conditioner = build_conditioner(settings.condition, num_classes)
    with rng.torch_seeded(seed, "weights"):
        network = build_network(
            settings.network,
            x0_shape,
            conditioner.num_classes if isinstance(conditioner, LabelConditioner) else 0,
            conditioner.width if isinstance(conditioner, CaptionConditioner) else 0,
        )
    return Model(
        denoiser=Denoiser(network, parameterisation),
        conditioner=conditioner,
        codec=codec,
        parameterisation=parameterisation,
        loss_weighting=build_weighting(settings.loss_weight, parameterisation, seed),
    )


def build_conditioner(config: ConditionConfig, num_classes: int = 0) -> Conditioner | None:
    """Return what turns labels or captions into conditions; None where there are none.

    Raises:
        BadInput: labels are asked for and there are no classes, or the text encoder cannot be
            used.
    """
    match config.kind:
        case "none":
            return None
        case "caption":
            return CaptionConditioner.open(config)
        case "label":
            if not num_classes:
                raise BadInput(
                    "condition.kind is label and the data have no labels: ingest with labels"
                )
            return LabelConditioner(num_classes)
