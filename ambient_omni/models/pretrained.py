"""Fine-tuning: a pipeline of diffusers becomes a `Model`, whole or under LoRA, and goes back.

A pipeline says in its scheduler what its network predicts and at which levels. That is all that
the method needs: the levels are σ, as everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn

from ambient_omni.data.config import LatentConfig
from ambient_omni.data.latents import LatentCodec
from ambient_omni.hub import find_part, read_json, weights_sha256
from ambient_omni.models.adapters import add_adapters
from ambient_omni.models.conditions import Conditioner
from ambient_omni.models.config import (
    ConditionConfig,
    LossWeightConfig,
    ParameterisationConfig,
)
from ambient_omni.models.model import Model
from ambient_omni.models.networks import LabelUNet, TextUNet
from ambient_omni.models.preconditioning import SIGMA_DATA, Denoiser, Parameterisation
from ambient_omni.models.pretrained_config import PretrainedConfig
from ambient_omni.models.text import CaptionConditioner
from ambient_omni.models.two_encoders import TwoEncoderConditioner
from ambient_omni.models.weighting import build_weighting
from ambient_omni.noise.levels import BetaSchedule
from schemas.errors import BadInput
from schemas.ids import canonical_hash

_MODEL_INDEX = "model_index.json"
_UNCONDITIONAL = ("DDPMPipeline", "DDIMPipeline")
_TWO_ENCODERS = "StableDiffusionXLPipeline"
_CAPTIONED = ("StableDiffusionPipeline", _TWO_ENCODERS)
_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}


@dataclass(frozen=True)
class PretrainedSettings:
    """What a pipeline prescribes, read from its configs alone.

    Attributes:
        pipeline: name of its class in diffusers.
        parameterisation: what its network predicts, over which schedule.
        condition: captions through its text encoder, or none.
        latents: its VAE; None for one that works on pixels.
        x0_shape: (C, H, W) that its network was made for.
    """

    pipeline: str
    parameterisation: ParameterisationConfig
    condition: ConditionConfig
    latents: LatentConfig | None
    x0_shape: tuple[int, int, int]


def pretrained_settings(config: PretrainedConfig) -> PretrainedSettings:
    """Read what a pipeline prescribes; no weights are loaded.

    Raises:
        BadInput: there is no such pipeline, it is of another kind, or its schedule has no σ.
    """
    unet = _part(config, "unet")
    kind = _kind(config, unet.parent)
    values = read_json(unet / "config.json")
    side = values.get("sample_size")
    if not isinstance(side, int):
        raise BadInput(f"{config.path}: its network has no square sample_size, but {side}")
    channels = values.get("in_channels", 4)
    if values.get("out_channels", channels) != channels:
        raise BadInput(
            f"{config.path}: its network reads {channels} channels and says "
            f"{values['out_channels']}: inpainting and learned variances cannot be fine-tuned"
        )
    if values.get("num_class_embeds") is not None or values.get("class_embed_type") is not None:
        raise BadInput(
            f"{config.path}: its network is told classes, which no setting says: it cannot be "
            "fine-tuned"
        )
    captioned = kind in _CAPTIONED
    return PretrainedSettings(
        pipeline=kind,
        parameterisation=parameterisation_of(
            read_json(_part(config, "scheduler") / "scheduler_config.json")
        ),
        condition=ConditionConfig(
            kind="caption", text_encoder=config.path, revision=config.revision
        )
        if captioned
        else ConditionConfig(),
        latents=LatentConfig(vae=config.path, revision=config.revision) if captioned else None,
        x0_shape=(int(str(channels)), side, side),
    )


def parameterisation_of(scheduler: Mapping[str, Any]) -> ParameterisationConfig:
    """Read a parameterisation from a diffusers scheduler's config.

    Raises:
        BadInput: the scheduler says nothing that a σ can be made of.
    """
    name = str(scheduler.get("_class_name", ""))
    prediction = scheduler.get("prediction_type", "epsilon")
    if name.startswith("EDM") and prediction == "epsilon":
        return ParameterisationConfig(kind="edm", sigma_data=scheduler["sigma_data"])
    if name.startswith("FlowMatch"):
        return ParameterisationConfig(kind="flow")
    if name.startswith("EDM") or prediction not in _PREDICTIONS:
        raise BadInput(
            f"the scheduler {name} has prediction_type {prediction}; "
            f"known are {', '.join(_PREDICTIONS)}, EDM's epsilon and flow matching"
        )
    return ParameterisationConfig.model_validate(
        {"kind": _PREDICTIONS[prediction], "schedule": BetaSchedule.of_scheduler(scheduler)}
    )


def load_pretrained(
    config: PretrainedConfig,
    loss_weight: LossWeightConfig | None = None,
    *,
    seed: int = 0,
    sigma_data: float | None = None,
    resolution: int | None = None,
) -> Model:
    """Open a pipeline as a model to train, on the CPU in float32.

    Without LoRA all of the network is trained; with it the adapters alone, and the model's
    `weights` are the adapters'. An adapter says 0 at the start. VAE and text encoder stay frozen.

    Args:
        config: which pipeline, and the adapters.
        loss_weight: how much each level counts; the network's own plain error by default.
        seed: of the adapters' weights.
        sigma_data: standard deviation of the data, where the pipeline does not say it.
        resolution: side of the images, pixels; none = what the pipeline was made for.

    Raises:
        BadInput: there is no such pipeline, it is of another kind, or cannot take adapters.
    """
    settings = pretrained_settings(config)
    stated = settings.parameterisation.sigma_data
    parameterisation = Parameterisation(
        settings.parameterisation, stated or sigma_data or SIGMA_DATA
    )
    unet = _load_unet(config, settings)
    if config.lora is not None:
        add_adapters(unet, config.lora, seed)
    codec = None if settings.latents is None else _codec(settings.latents)
    network: nn.Module = LabelUNet(unet) if codec is None else TextUNet(unet)
    return Model(
        denoiser=Denoiser(network, parameterisation).train(),
        conditioner=_conditioner(config, settings, codec, resolution),
        codec=codec,
        parameterisation=parameterisation,
        loss_weighting=build_weighting(loss_weight or LossWeightConfig(), parameterisation, seed),
    )


def text_encoder_sha256(condition: ConditionConfig, start: PretrainedConfig | None = None) -> str:
    """Return the `fingerprint` of a conditioner of captions, without loading it.

    Args:
        condition: with its text encoder.
        start: the pipeline that is fine-tuned, which may have two of them.

    Raises:
        BadInput: there is no such encoder, or it has no safetensors.
    """
    assert condition.text_encoder is not None  # checked by the config
    first = weights_sha256(find_part(condition.text_encoder, "text_encoder", condition.revision))
    if start is None or pretrained_settings(start).pipeline != _TWO_ENCODERS:
        return first
    return canonical_hash([first, weights_sha256(_part(start, "text_encoder_2"))])


def save_pipeline(model: Model, config: PretrainedConfig, folder: Path) -> None:
    """Write the whole pipeline that a model was fine-tuned from, with the network it has now.

    Raises:
        BadInput: a part of the pipeline is gone, or has no safetensors.
    """
    from diffusers import DiffusionPipeline

    local = Path(config.path).expanduser()
    try:
        pipeline = cast(Any, DiffusionPipeline).from_pretrained(
            local if local.is_dir() else config.path,
            revision=config.revision,
            unet=model.plain_network,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        raise BadInput(
            f"the pipeline {config.path} cannot be loaded: {' '.join(str(error).split())[:200]}"
        ) from error
    pipeline.save_pretrained(folder, safe_serialization=True)


def _part(config: PretrainedConfig, part: str) -> Path:
    if config.revision is None and not Path(config.path).expanduser().is_dir():
        raise BadInput(
            f"{config.path} is no folder; if it is a hub id, pin it with revision: the same "
            "settings have to mean the same weights tomorrow"
        )
    found = find_part(config.path, part, config.revision)
    if found.name != part:
        raise BadInput(f"{config.path} has no {part}: it is no pipeline that can be fine-tuned")
    return found


def _kind(config: PretrainedConfig, folder: Path) -> str:
    kind = str(read_json(folder / _MODEL_INDEX).get("_class_name"))
    if kind not in (*_UNCONDITIONAL, *_CAPTIONED):
        known = ", ".join((*_CAPTIONED, *_UNCONDITIONAL))
        raise BadInput(f"{config.path} is a {kind}; what can be fine-tuned is a {known}")
    return kind


def _codec(config: LatentConfig) -> LatentCodec:
    codec = LatentCodec.open(config)
    if getattr(codec.vae.config, "latents_mean", None) is not None:
        raise BadInput(
            f"the VAE of {config.vae} scales each channel of its latents by itself (latents_mean): "
            "levels cannot be measured in them; use a pipeline with one scaling_factor"
        )
    return codec


def _conditioner(
    config: PretrainedConfig,
    settings: PretrainedSettings,
    codec: LatentCodec | None,
    resolution: int | None,
) -> Conditioner | None:
    if codec is None:
        return None
    if settings.pipeline != _TWO_ENCODERS:
        return CaptionConditioner.open(settings.condition)
    scale = 2 ** (len(codec.vae.config.block_out_channels) - 1)
    return TwoEncoderConditioner.of_pipeline(
        lambda part: _part(config, part), resolution or settings.x0_shape[1] * scale
    )


def _load_unet(config: PretrainedConfig, settings: PretrainedSettings) -> Any:
    from diffusers import UNet2DConditionModel, UNet2DModel

    captioned = settings.condition.kind == "caption"
    kind: Any = UNet2DConditionModel if captioned else UNet2DModel
    try:
        unet = kind.from_pretrained(_part(config, "unet"), use_safetensors=True)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"the network of {config.path} cannot be loaded: {' '.join(str(error).split())[:200]}"
        ) from error
    return unet.float()
