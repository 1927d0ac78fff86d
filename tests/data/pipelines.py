"""Tiny diffusers pipelines with random weights, made without a network."""

import json
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMPipeline,
    DDPMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from ambient_omni import rng

TOKENS, WIDTH = 8, 16


def tokenizer(folder):
    """CLIP's tokenizer over single letters."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *[f"{x}</w>" for x in letters]]
    folder.mkdir(parents=True, exist_ok=True)
    words = folder / "vocab.json"
    words.write_text(json.dumps({token: number for number, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(words),
        str(folder / "merges.txt"),
        model_max_length=TOKENS,
        pad_token="<|endoftext|>",
    )


def text_encoder(vocabulary_size, kind=CLIPTextModel):
    return kind(
        CLIPTextConfig(
            vocab_size=vocabulary_size,
            hidden_size=WIDTH,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            projection_dim=WIDTH,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )


def vae(**changes: Any):
    """Two pixels a latent; latents of about unit scale."""
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        **changes,
    )


def text_unet(**changes: Any):
    settings = {"cross_attention_dim": WIDTH, **changes}
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
        norm_num_groups=4,
        **settings,
    )


def save_stable_diffusion(folder, **scheduler: Any):
    """Write a StableDiffusionPipeline of 16x16 pixels; changes are the scheduler's."""
    tokens = tokenizer(folder / "made")
    with rng.torch_seeded(0, "tiny-pipeline"):
        pipeline = StableDiffusionPipeline(
            vae=vae(),
            text_encoder=text_encoder(len(tokens)),
            tokenizer=tokens,
            unet=text_unet(),
            scheduler=PNDMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                skip_prk_steps=True,
                steps_offset=1,
                **scheduler,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


def save_stable_diffusion_xl(folder):
    """Write a StableDiffusionXLPipeline of 16x16 pixels."""
    tokens = tokenizer(folder / "made")
    with rng.torch_seeded(0, "tiny-pipeline"):
        pipeline = StableDiffusionXLPipeline(
            vae=vae(),
            text_encoder=text_encoder(len(tokens)),
            text_encoder_2=text_encoder(len(tokens), CLIPTextModelWithProjection),
            tokenizer=tokens,
            tokenizer_2=tokens,
            unet=text_unet(
                cross_attention_dim=2 * WIDTH,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                # Six sizes and the summary.
                projection_class_embeddings_input_dim=6 * 8 + WIDTH,
            ),
            scheduler=EulerDiscreteScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
            ),
        )
    pipeline.save_pretrained(folder)
    return folder


def save_ddpm(folder, **scheduler: Any):
    """Write an unconditional DDPMPipeline of 8x8 pixels."""
    with rng.torch_seeded(0, "tiny-pipeline"):
        unet = UNet2DModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
        )
    DDPMPipeline(unet, DDPMScheduler(clip_sample=False, **scheduler)).save_pretrained(folder)
    return folder


def unit_noise(count, shape, seed=0):
    """The noise that our sampler begins with, for pipelines of diffusers."""
    return torch.from_numpy(rng.normal_rows(range(count), shape, seed, "sampling"))
