"""The space and the untrained model of a run's settings."""

from __future__ import annotations

from ambient_omni.data.latents import LatentCodec, LatentSpace, latent_space
from ambient_omni.data.transforms import Transform
from ambient_omni.hub import find_part, weights_sha256
from ambient_omni.models.config import (
    ConditionConfig,
    ParameterisationConfig,
    PatchedUNetConfig,
    usual_prior,
)
from ambient_omni.models.model import Model, build_model
from ambient_omni.models.pretrained import (
    load_pretrained,
    pretrained_settings,
    text_encoder_sha256,
)
from ambient_omni.noise.priors import DdpmPrior
from ambient_omni.training.config import TrainConfig
from schemas.errors import BadInput

Space = Transform | LatentSpace


def settled(config: TrainConfig) -> TrainConfig:
    """Return a config with what its pretrained pipeline prescribes filled in.

    Raises:
        BadInput: there is no such pipeline, or the config asks for something else.
    """
    if config.init_from is None:
        return require_one_schedule(config)
    found = pretrained_settings(config.init_from)
    dropout = config.condition.dropout
    prescribed = {
        "parameterisation": found.parameterisation,
        "latents": found.latents,
        "condition": found.condition.model_copy(update={"dropout": dropout}),
    }
    unsaid = {
        "parameterisation": ParameterisationConfig(),
        "latents": None,
        "condition": ConditionConfig(dropout=dropout),
    }
    for name, value in prescribed.items():
        if getattr(config, name) not in (value, unsaid[name]):
            raise BadInput(
                f"{name} is what the pipeline {config.init_from.path} was made with: leave it out "
                "beside init_from"
            )
    if config.network != PatchedUNetConfig():
        raise BadInput(
            f"the network is that of the pipeline {config.init_from.path}: leave out network "
            "beside init_from"
        )
    said_prior = "prior" in config.model_fields_set
    prior = config.prior if said_prior else usual_prior(found.parameterisation)
    return require_one_schedule(config.model_copy(update={**prescribed, "prior": prior}))


def require_one_schedule(config: TrainConfig) -> TrainConfig:
    """Return a settled config whose prior draws timesteps of the schedule that its network is told.

    Raises:
        BadInput: the two are of different schedules, whose timesteps are other levels.
    """
    prior, form = config.prior, config.parameterisation
    if isinstance(prior, DdpmPrior) and form.has_timesteps and prior.schedule != form.schedule:
        raise BadInput(
            f"prior.schedule ({prior.schedule.shape}, beta {prior.schedule.beta_start:g} to "
            f"{prior.schedule.beta_end:g}) is not the parameterisation's ({form.schedule.shape}, "
            f"{form.schedule.beta_start:g} to {form.schedule.beta_end:g}), so that its levels have "
            "other timesteps there: give both the same"
        )
    return config


def space_of(config: TrainConfig) -> Space:
    """Return what σ is measured in: the pixels of a transform, or the latents of an autoencoder.

    Raises:
        BadInput: there is no such autoencoder, or the resolution does not fit it.
    """
    if config.latents is None:
        return config.transform
    return latent_space(config.latents, config.transform)


def new_model(config: TrainConfig, num_classes: int, sigma_data: float | None = None) -> Model:
    """Return the model that a run begins with.

    Args:
        config: the run, settled.
        num_classes: of the data; 0 if the run is not conditioned on labels.
        sigma_data: standard deviation of the data, for settings that do not state one.

    Raises:
        BadInput: the parts do not fit each other or the images.
    """
    if config.init_from is not None:
        return load_pretrained(
            config.init_from,
            config.loss_weight,
            seed=config.seed,
            sigma_data=sigma_data,
            resolution=config.transform.resolution,
        )
    codec = None if config.latents is None else LatentCodec.open(config.latents)
    return build_model(
        config,
        space_of(config).x0_shape,
        num_classes=num_classes,
        seed=config.seed,
        sigma_data=sigma_data,
        codec=codec,
    )


def frozen_weights(config: TrainConfig) -> dict[str, str]:
    """Return the hashes of the weights that a run takes from elsewhere, by what they are.

    `pretrained` is the network that it begins with, `text_encoder` what reads its captions. An
    autoencoder is in the noise space.
    """
    found = {}
    if config.init_from is not None:
        start = config.init_from
        found["pretrained"] = weights_sha256(find_part(start.path, "unet", start.revision))
    if config.condition.kind == "caption":
        found["text_encoder"] = text_encoder_sha256(config.condition, config.init_from)
    return found
