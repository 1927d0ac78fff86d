"""Low-rank adapters (LoRA) through peft, in the format of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ambient_omni import rng
from ambient_omni.models.model import Model
from ambient_omni.models.pretrained_config import LoraConfig
from schemas.errors import BadInput


def add_adapters(unet: Any, lora: LoraConfig, seed: int) -> None:
    """Freeze a U-Net of diffusers and put adapters beside its layers.

    Raises:
        BadInput: the network takes none in diffusers, or has no layer of the given names.
    """
    from peft import LoraConfig as PeftConfig

    if not hasattr(unet, "add_adapter"):
        raise BadInput(
            f"diffusers loads no LoRA into a {type(unet).__name__}: "
            "leave out init_from.lora to train all of it"
        )
    unet.requires_grad_(False)
    wanted = PeftConfig(
        r=lora.rank,
        lora_alpha=lora.alpha or lora.rank,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        init_lora_weights="gaussian",
    )
    try:
        with rng.torch_seeded(seed, "lora"):
            unet.add_adapter(wanted)
    except ValueError as error:
        raise BadInput(
            f"init_from.lora.target_modules: {' '.join(str(error).split())[:200]}"
        ) from error


def has_adapters(model: Model) -> bool:
    """Say whether a model consists of adapters beside frozen weights."""
    return hasattr(model.plain_network, "peft_config")


def save_lora(model: Model, folder: Path) -> None:
    """Write the adapters as `load_lora_weights` of diffusers reads them, in safetensors."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    unet = model.plain_network
    (adapter,) = unet.peft_config.values()
    convert: Any = convert_state_dict_to_diffusers
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=convert(get_peft_model_state_dict(unet)),
        # Without it diffusers would take the rank for alpha.
        unet_lora_adapter_metadata=adapter.to_dict(),
    )
