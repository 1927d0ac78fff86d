"""A trained model as a pipeline of diffusers, which samples from it without this project.

Where a pipeline class of diffusers fits, the folder is one of these and holds no code:

    UNet2DModel, unconditional, pixels           epsilon, v, x0         DDIMPipeline
    DiTTransformer2DModel, labels, latents       epsilon, v, x0         DiTPipeline
    UNet2DConditionModel, captions, latents      edm, epsilon, v, x0    StableDiffusionPipeline

Everything else carries `exported_pipeline.py`, and `patched_unet.py` with that network; diffusers
runs them when it is told `trust_remote_code=True`. EDM needs no code of its own for its levels:
with data divided by σ_d, its network says -v, and diffusers' EDM schedulers are that algebra.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch

from ambient_omni.generation import exported_pipeline
from ambient_omni.generation.config import SampleConfig
from ambient_omni.generation.exported_pipeline import ExportedPipeline
from ambient_omni.generation.sampling import level_range
from ambient_omni.models import patched_unet
from ambient_omni.models.model import Model
from ambient_omni.models.networks import LabelDiT
from ambient_omni.models.patched_unet import PatchedUNet
from ambient_omni.models.preconditioning import Parameterisation
from ambient_omni.models.text import CaptionConditioner
from ambient_omni.noise.priors import Prior
from schemas.errors import BadInput

_D: Any = diffusers  # untyped

# DiTPipeline says "no label" with this number, whatever the number of labels.
_DIT_NULL = 1000

# A level that is a timestep but for rounding is that timestep.
_ROUNDING = 1e-6

_PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        pipeline: name of the class that opens it.
        has_code: whether opening it needs `trust_remote_code=True`.
    """

    pipeline: str
    has_code: bool


def export_pipeline(
    model: Model,
    folder: Path,
    *,
    label_names: Sequence[str] = (),
    prior: Prior | None = None,
) -> Exported:
    """Write a model as a pipeline folder of diffusers, in safetensors.

    Args:
        model: in evaluation mode; with its codec if it works on latents.
        folder: where to; made if it is not there.
        label_names: of the model's classes, in their order.
        prior: what the model was trained with: its ends are where sampling begins and stops;
            under DDPM's schedulers, which always go down to σ = 0, where it begins.

    Raises:
        BadInput: the model works on latents and has no codec.
    """
    network = model.plain_network
    if model.codec is None and network.config.in_channels != 3:
        raise BadInput("a model of latents is exported with its VAE: open it with its codec")
    names = {str(number): name for number, name in enumerate(label_names)}
    scheduler = _scheduler(model.parameterisation, prior)
    pipeline = _plain_pipeline(model, scheduler, names) or _own_pipeline(
        model, scheduler, names, prior
    )
    has_code = isinstance(pipeline, ExportedPipeline)
    pipeline.save_pretrained(folder, safe_serialization=True)
    if has_code:
        _add_code(folder, network)
    elif isinstance(pipeline, _D.DiTPipeline):
        # The class reads it there, and does not write it.
        _change_index(folder, id2label=names)
    return Exported("DiffusionPipeline" if has_code else type(pipeline).__name__, has_code)


def _scheduler(parameterisation: Parameterisation, prior: Prior | None) -> Any:
    """Return the diffusers scheduler that speaks a parameterisation's language."""
    if parameterisation.kind == "flow":
        return _D.FlowMatchEulerDiscreteScheduler()
    if parameterisation.kind == "edm":
        low, high = level_range(SampleConfig(), parameterisation, prior)
        return _D.EDMDPMSolverMultistepScheduler(
            sigma_min=low, sigma_max=high, sigma_data=parameterisation.sigma_data
        )
    return _D.DDIMScheduler(
        **_timesteps(parameterisation, prior),
        prediction_type=_PREDICTIONS[parameterisation.kind],
        # From the last timestep down to σ = 0, and never clipped on the way: the network was
        # trained on whole distributions, not on clipped ones.
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=False,
    )


def _timesteps(parameterisation: Parameterisation, prior: Prior | None) -> dict[str, Any]:
    """Return the schedule for a scheduler's constructor, without timesteps above the prior's end.

    Their first betas alone: what is left means the same, and sampling begins at the last of them.
    """
    schedule = parameterisation.config.schedule
    _, highest = level_range(SampleConfig(), parameterisation, prior)
    count = int((schedule.sigmas <= highest * (1 + _ROUNDING)).sum())
    if count == schedule.num_timesteps:
        return schedule.scheduler_config
    whole = _D.DDPMScheduler(**schedule.scheduler_config)
    return {"num_train_timesteps": count, "trained_betas": whole.betas[:count].tolist()}


def _plain_pipeline(model: Model, scheduler: Any, names: dict[str, str]) -> Any:
    """Return a pipeline of one of diffusers' own classes; None if none of them fits."""
    network, form = model.plain_network, model.parameterisation
    if model.codec is None:
        fits = type(network) is _D.UNet2DModel and model.conditioner is None
        return _D.DDIMPipeline(network, scheduler) if fits and form.config.has_timesteps else None
    if model.codec.shift:
        return None
    if isinstance(model.denoiser.network, LabelDiT):
        fits = form.config.has_timesteps and 0 < len(names) <= _DIT_NULL
        if not fits:
            return None
        padded = _padded_dit(network, len(names))
        return _D.DiTPipeline(padded, model.codec.vae, scheduler)
    conditioner = model.conditioner
    if not isinstance(conditioner, CaptionConditioner) or conditioner.takes_mask:
        return None
    if form.kind == "flow":
        return None
    return _D.StableDiffusionPipeline(
        vae=model.codec.vae,
        text_encoder=conditioner.encoder,
        tokenizer=_tokenizer(conditioner),
        unet=network,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _own_pipeline(
    model: Model, scheduler: Any, names: dict[str, str], prior: Prior | None
) -> ExportedPipeline:
    network, form, conditioner = model.plain_network, model.parameterisation, model.conditioner
    captioned = conditioner if isinstance(conditioner, CaptionConditioner) else None
    null = len(names) if names else 0 if isinstance(model.denoiser.network, LabelDiT) else None
    lowest, highest = level_range(SampleConfig(), form, prior)
    return ExportedPipeline(
        network=network,
        scheduler=scheduler,
        vae=None if model.codec is None else model.codec.vae,
        text_encoder=None if captioned is None else captioned.encoder,
        tokenizer=None if captioned is None else _tokenizer(captioned),
        family="ddpm" if form.config.has_timesteps else form.kind,
        told="log_sigma" if getattr(network, "wants_log_sigma", False) else "timestep",
        id2label=names,
        null_label=null,
        takes_mask=captioned is not None and captioned.takes_mask,
        sigma_min=lowest,
        sigma_max=highest,
        sigma_data=form.sigma_data,
    )


def _tokenizer(conditioner: CaptionConditioner) -> Any:
    """Return the tokenizer, with the length that captions were padded to as its own."""
    tokenizer = copy.deepcopy(conditioner.tokenizer)
    tokenizer.model_max_length = conditioner.max_tokens
    return tokenizer


def _padded_dit(dit: Any, num_classes: int) -> Any:
    """Return the same DiT with room for 1000 labels, the null label last.

    DiTPipeline asks for label 1000 where it means none. The labels that are not there get the null
    label's embedding.
    """
    if num_classes == _DIT_NULL:
        return dit
    padded = type(dit).from_config({**dit.config, "num_embeds_ada_norm": _DIT_NULL})
    state = {}
    for name, tensor in dit.state_dict().items():
        if name.endswith("class_embedder.embedding_table.weight"):
            null = tensor[-1:].expand(_DIT_NULL + 1 - num_classes, -1)
            tensor = torch.cat([tensor[:-1], null])
        state[name] = tensor
    padded.load_state_dict(state)
    return padded.eval()


def _add_code(folder: Path, network: Any) -> None:
    """Put the code into the folder, and name it where diffusers looks for its name."""
    shutil.copyfile(exported_pipeline.__file__, folder / "pipeline.py")
    _change_index(folder, _class_name=["pipeline", ExportedPipeline.__name__])
    if isinstance(network, PatchedUNet):
        shutil.copyfile(patched_unet.__file__, folder / "network" / "patched_unet.py")
        _change_index(folder, network=["patched_unet", PatchedUNet.__name__])


def _change_index(folder: Path, **changes: Any) -> None:
    index = folder / "model_index.json"
    content = {**json.loads(index.read_text()), **changes}
    index.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
