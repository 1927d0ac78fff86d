import math

import numpy as np
import pytest
import torch

from ambient_omni import rng
from ambient_omni.classifier.cosines import COSINE_WINDOWS, Cosines, mean_powers, peakedness
from ambient_omni.damage import damage
from ambient_omni.data.packs import to_x0

SIZE = (32, 32)


@pytest.fixture(scope="module")
def cosines():
    return Cosines(3)


def noise(count, sigma, purpose="cosines"):
    return sigma * rng.torch_normal((count, 3, *SIZE), 0, purpose)


def quiet(cosines, x, sigma, **how):
    return cosines.quiet_shares(cosines.band_powers(cosines(x)), sigma, **how)


def test_the_transform_keeps_the_power_of_white_noise_in_every_coefficient(cosines):
    found = cosines(noise(200, 0.3))
    assert [c.shape[1] for c in found] == [3 * side**2 for side, _ in COSINE_WINDOWS]
    powers = mean_powers(found).mean(0)
    # The fewest places are 16, in 200 images: 3 % for one of 432, four times that for all.
    assert powers == pytest.approx(np.full(cosines.num_features, 0.09), rel=0.12)


def test_noise_alone_shows_no_excess_half_of_its_places_are_quiet_and_its_peaks_are_gaussian(
    cosines,
):
    x, sigma = noise(200, 0.3), torch.full((200,), 0.3)
    found = cosines(x)
    excess = cosines.excess(mean_powers(found), sigma, SIZE).mean(0)
    shares = quiet(cosines, x, sigma)
    assert shares.shape == (200, cosines.num_bands)
    assert excess.abs().max() < 0.3
    assert shares.mean(0) == pytest.approx(np.full(cosines.num_bands, 0.515), abs=0.025)
    assert cosines.stillness(shares, SIZE).mean(0).abs().max() < 1
    windows = peakedness(found).mean(0).split([c.shape[1] for c in found])
    assert windows[0].mean().item() == pytest.approx(math.log(2 / math.pi), abs=0.02)


def test_what_noise_will_add_to_a_clean_image_is_counted_as_it_will_be(cosines):
    gradient = torch.linspace(-0.8, 0.8, 32).expand(1, 3, 32, 32).clone()
    gradient[..., 10:14, :] += 0.4
    sigma = torch.full((1,), 0.1)
    noised = gradient + noise(100, 0.1)
    seen = quiet(cosines, noised, sigma).mean(0)
    told = quiet(cosines, gradient, sigma, added=1.0)[0]
    assert np.corrcoef(seen, told)[0, 1] > 0.98
    assert (seen - told).abs().max() < 0.12


def test_jpeg_leaves_more_places_with_nothing_but_noise_on_its_own_grid(cosines):
    draw = rng.generator(0, "test-cosines")
    image = draw.integers(96, 160, (32, 32, 3), dtype=np.uint8)
    images = np.stack([image, damage("jpeg", 80.0, image, draw)])
    x = torch.from_numpy(to_x0(images)) + noise(1, 0.05)
    shares = quiet(cosines, x, torch.full((2,), 0.05))
    own_grid = shares[:, -3 * 7 :].view(2, 3, 7)
    assert (own_grid[1, :, -1] > own_grid[0, :, -1] + 0.2).all()


def test_four_channels_are_not_mixed():
    latents = Cosines(4)
    x = torch.zeros(1, 4, 8, 8)
    x[:, 2] = 1.0
    bands = latents.band_powers(latents(x))
    assert latents.num_bands == 4 * (4 + 7 + 7)
    assert [b.view(1, 4, -1).sum((0, 2)).gt(1e-6).tolist() for b in bands] == [
        [False, False, True, False]
    ] * 3
