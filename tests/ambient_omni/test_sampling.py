import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ambient_omni import rng
from ambient_omni.generation.config import SampleConfig
from ambient_omni.generation.sampling import generate, heun, sample_images, save_grid
from ambient_omni.models.config import NetworkConfig
from ambient_omni.models.networks import build_denoiser
from ambient_omni.noise.levels import edm_grid
from ambient_omni.training.trainer import train


class Gaussian(nn.Module):
    """The exact denoiser of x0 ~ N(0, scale^2)."""

    scale = 0.7

    def forward(self, x, sigma, labels=None):
        return (self.scale**2 / (self.scale**2 + sigma**2))[:, None, None, None] * x


def test_the_sampler_solves_the_ode_of_gaussian_data():
    noise = rng.torch_normal((4, 1, 2, 2), 0, "noise").double()
    made = heun(Gaussian(), noise, torch.from_numpy(edm_grid(200, 1e-4, 10.0)))
    # The flow scales x with the standard deviation of the noised data, sqrt(s^2 + sigma^2).
    exact = noise * 10 * 0.7 / (0.7**2 + 10**2) ** 0.5
    assert torch.allclose(made, exact, rtol=1e-3)


def test_the_samplers_error_falls_with_the_square_of_its_steps():
    noise = torch.ones(1, 1, 1, 1).double()
    exact = 10 * 0.7 / (0.7**2 + 10**2) ** 0.5
    errors = [
        abs(float(heun(Gaussian(), noise, torch.from_numpy(edm_grid(n, 1e-5, 10.0)))) - exact)
        for n in (40, 80)
    ]
    assert errors[0] / errors[1] > 3


def test_image_i_depends_on_the_seed_and_on_i_alone():
    denoiser = build_denoiser(NetworkConfig(patch=2, widths=(8,), norm_groups=4), 8)
    few, many, other = (
        sample_images(denoiser, SampleConfig(num_images=n, num_steps=3, seed=s), (8, 8, 3))
        for n, s in ((2, 0), (5, 0), (2, 1))
    )
    assert np.array_equal(few, many[:2])
    assert not np.array_equal(few, other)


def test_the_batch_size_does_not_change_the_images():
    denoiser = build_denoiser(NetworkConfig(patch=2, widths=(8,), norm_groups=4), 8)
    config = SampleConfig(num_images=5, num_steps=3)
    one, other = (sample_images(denoiser, config, (8, 8, 3), batch_size=n) for n in (2, 5))
    assert np.abs(one.astype(int) - other).max() <= 1


def test_a_grid_shows_every_image(tmp_path):
    images = np.full((5, 4, 4, 3), 10, np.uint8)
    save_grid(images, tmp_path / "grid.png", scale=2, gap=1)
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (2 * 9 - 1, 3 * 9 - 1, 3)
    assert (grid[..., 0] == 10).sum() == 5 * 8 * 8


def test_generate_writes_images_a_grid_and_their_parents(trainable, config, tmp_path):
    run_id = train(trainable, config(), show=False)
    out = tmp_path / "out"
    assert (
        generate(trainable, run_id, out, SampleConfig(num_images=3, num_steps=2), show=False) == 3
    )
    assert sorted(path.name for path in out.glob("*.png")) == [
        "000000.png",
        "000001.png",
        "000002.png",
        "grid.png",
    ]
    assert json.loads((out / "generate.json").read_text())["policy_id"] == "policy"
    assert Image.open(out / "000000.png").size == (8, 8)


def test_too_few_levels_are_refused():
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        SampleConfig(num_steps=1)
