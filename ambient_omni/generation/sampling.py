"""Generation: the deterministic Heun sampler, and grids of what it makes."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ambient_omni import rng
from ambient_omni.data.packs import to_pixels
from ambient_omni.generation.config import SampleConfig
from ambient_omni.models.networks import device_of
from ambient_omni.models.preconditioning import Denoiser
from ambient_omni.noise.levels import edm_grid
from ambient_omni.progress import progress
from ambient_omni.training.trained import load_trained
from schemas.root import Root, write_json

# Images of a grid that somebody looks at.
_GRID_IMAGES = 100


@torch.no_grad()
def heun(denoiser: Denoiser, noise: Tensor, sigmas: Tensor, labels: Tensor | None = None) -> Tensor:
    """Solve the probability-flow ODE dx/dσ = (x - D(x; σ)) / σ from the first level down to 0.

    Source: Karras et al. 2022 (EDM), algorithm 1.

    Args:
        denoiser: estimates x_0 from (x, σ, labels).
        noise: (B, C, H, W), standard normal.
        sigmas: (n,) descending positive levels; 0 is appended.
        labels: (B,) class labels.

    Returns:
        x_0, (B, C, H, W).
    """
    levels = torch.cat([sigmas, sigmas.new_zeros(1)]).to(noise)
    x = noise * levels[0]
    for now, after in itertools.pairwise(levels):
        slope = (x - denoiser(x, now.expand(len(x)), labels)) / now
        euler: Tensor = x + (after - now) * slope
        if after == 0:
            return euler
        slope_after = (euler - denoiser(euler, after.expand(len(x)), labels)) / after
        x = x + (after - now) * (slope + slope_after) / 2
    return x


def sample_images(
    denoiser: Denoiser,
    config: SampleConfig,
    shape: tuple[int, int, int],
    *,
    num_classes: int = 0,
    batch_size: int = 64,
    show: bool = False,
) -> NDArray[np.uint8]:
    """Generate uint8 images (num_images, H, W, C).

    Image i depends on the seed and on i alone, so that a longer list begins with a shorter one's
    images. With classes, image i has label i modulo their number.

    Args:
        denoiser: a trained one.
        config: seed, number of images, and the sampler's levels.
        shape: (H, W, C) of an image.
        num_classes: 0 = unconditional.
        batch_size: images at once.
        show: draw a progress bar.
    """
    height, width, channels = shape
    device = device_of(denoiser)
    sigmas = torch.from_numpy(
        edm_grid(config.num_steps, config.lowest, config.highest, config.rho)
    ).to(device, torch.float32)
    out = np.empty((config.num_images, *shape), np.uint8)
    with progress(total=config.num_images, label="sampling", unit="images", show=show) as bar:
        for start in range(0, config.num_images, batch_size):
            rows = range(start, min(start + batch_size, config.num_images))
            z = rng.normal_rows(rows, (channels, height, width), config.seed, "sampling")
            labels = torch.tensor(rows, device=device) % num_classes if num_classes else None
            x0 = heun(denoiser, torch.from_numpy(z).to(device), sigmas, labels)
            out[rows.start : rows.stop] = to_pixels(x0.float().cpu().numpy())
            bar.update(len(rows))
    return out


def generate(root: Root, run_id: str, out: Path, config: SampleConfig, *, show: bool = True) -> int:
    """Generate images with a run's selected checkpoint: one PNG each, a grid, and their parents.

    Args:
        root: where the run is.
        run_id: which one.
        out: folder for ``000000.png``..., ``grid.png`` and ``generate.json``.
        config: seed, number of images and sampler.
        show: draw a progress bar.

    Returns:
        The number of images.

    Raises:
        BadInput: there is no such run, or it has no checkpoint yet.
        CheckpointRefused: the checkpoint is damaged.
    """
    model = load_trained(root, run_id)
    shape = model.config.transform.shape
    classes = len(model.label_names)
    images = sample_images(model.denoiser, config, shape, num_classes=classes, show=show)
    save_grid(images[:_GRID_IMAGES], out / "grid.png")
    for number, image in enumerate(images):
        Image.fromarray(image).save(out / f"{number:06d}.png")
    parents = {**model.parents, "checkpoint": model.checkpoint.name, "sampler": config.model_dump()}
    write_json(out / "generate.json", parents)
    return len(images)


def save_grid(images: NDArray[np.uint8], path: Path, *, scale: int = 2, gap: int = 2) -> None:
    """Write images (N, H, W, 3) as one PNG, in rows of about the square root of N.

    Args:
        images: uint8.
        path: where to.
        scale: every pixel becomes this many, so that small images can be looked at.
        gap: white pixels between images.
    """
    count, height, width, _ = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    big = images.repeat(scale, axis=1).repeat(scale, axis=2)
    step_y, step_x = height * scale + gap, width * scale + gap
    canvas = np.full((rows * step_y - gap, columns * step_x - gap, 3), 255, np.uint8)
    for number, image in enumerate(big):
        top, left = step_y * (number // columns), step_x * (number % columns)
        canvas[top : top + height * scale, left : left + width * scale] = image
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(canvas).save(path)
