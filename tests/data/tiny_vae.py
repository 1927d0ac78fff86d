"""A real AutoencoderKL of a few thousand random weights."""

from diffusers import AutoencoderKL

from ambient_omni import rng

NUM_CHANNELS = 3


def save_tiny_vae(folder, seed=0, **changes):
    """Save one with two pixels per latent to `folder`; return it as a string."""
    with rng.torch_seeded(seed, "tiny-vae"):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(4, 8),
            latent_channels=NUM_CHANNELS,
            norm_num_groups=2,
            **{"scaling_factor": 0.5, "shift_factor": 0.1, **changes},
        )
    vae.save_pretrained(folder)
    return str(folder)
