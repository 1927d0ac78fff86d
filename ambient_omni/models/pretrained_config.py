"""Settings of fine-tuning."""

from __future__ import annotations

from pydantic import Field

from ambient_omni.config import Frozen


class LoraConfig(Frozen):
    """Low-rank adapters beside frozen weights (Hu et al. 2021, arXiv 2106.09685)."""

    rank: int = Field(default=16, ge=1, description="Rank of an adapter.")
    alpha: int | None = Field(
        default=None, ge=1, description="The adapter counts alpha / rank; none = the rank."
    )
    target_modules: tuple[str, ...] = Field(
        default=("to_q", "to_k", "to_v", "to_out.0"),
        min_length=1,
        description="Endings of the names of the layers that get one.",
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Of what an adapter sees.")


class PretrainedConfig(Frozen):
    """A pipeline of diffusers to go on from. It brings network, parameterisation, VAE and text.

    A hub id is downloaded once to the hub's cache; with HF_HUB_OFFLINE=1 only the cache is read.
    """

    path: str = Field(description="Folder of a pipeline, or its hub id owner/name.")
    revision: str | None = Field(
        default=None, description="Commit, tag or branch of a hub id, which needs one."
    )
    lora: LoraConfig | None = Field(
        default=None, description="Train adapters only; none = train all of the network."
    )
