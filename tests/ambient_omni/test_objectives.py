import pytest
import torch

from ambient_omni import rng
from ambient_omni.models.objectives import denoising_pair, squared_error
from ambient_omni.noise.usable import kappa

COUNT = 400_000


def draws(name):
    return rng.torch_normal((COUNT, 1, 1, 1), 0, name)


def pair(x0, sigma, hidden):
    sigma_b, hidden_b = torch.full((COUNT,), sigma), torch.full((COUNT,), hidden)
    return denoising_pair(x0, sigma_b, hidden_b, draws("fresh"), draws("fixed"))


def slope(y, x):
    return float((y * x).mean() / (x * x).mean())


@pytest.mark.parametrize("hidden", [0.0, 0.3, 0.9])
def test_both_objectives_have_the_minimiser_of_the_gaussian_model(hidden):
    scale, sigma = 0.7, 1.1
    made = pair(scale * draws("x0"), sigma, hidden)
    # For x0 ~ N(0, s^2) the posterior mean is linear: s^2 / (s^2 + sigma^2) * x_t.
    best = scale**2 / (scale**2 + sigma**2)
    assert slope(made.target, made.x_t) == pytest.approx(best, abs=0.01)


@pytest.mark.parametrize("hidden", [0.0, 0.3, 0.9])
def test_the_noised_image_is_at_the_level_drawn(hidden):
    x0 = torch.full((COUNT, 1, 1, 1), 0.4)
    x_t = pair(x0, 1.1, hidden).x_t
    assert float(x_t.mean()) == pytest.approx(0.4, abs=0.01)
    assert float(x_t.std()) == pytest.approx(1.1, abs=0.01)


def test_given_image_and_noised_image_the_ambient_target_has_mean_x0():
    x0 = 0.6 * torch.sign(draws("x0"))
    made = pair(x0, 1.1, 0.8)
    error = (made.target - x0).flatten()
    for sign in (-0.6, 0.6):
        chosen = (x0 == sign).flatten()
        order = made.x_t.flatten()[chosen].argsort()
        bins = error[chosen][order][: len(order) // 10 * 10].reshape(10, -1)
        standard_error = bins.std(dim=1) / bins.shape[1] ** 0.5
        assert (bins.mean(dim=1).abs() < 4 * standard_error).all()


def test_the_gated_target_is_the_image_and_has_the_lower_variance():
    x0 = 0.7 * draws("x0")
    gated, ambient = pair(x0, 1.1, 0.0), pair(x0, 1.1, 0.8)
    assert torch.equal(gated.target, x0)
    assert ambient.target.var() > 1.5 * gated.target.var()


def test_without_a_hidden_level_the_fixed_noise_changes_nothing():
    x0, fresh, fixed = (rng.torch_normal((4, 3, 2, 2), 0, name) for name in "abc")
    sigma, nothing = torch.tensor([0.1, 0.5, 1.0, 9.0]), torch.zeros(4)
    with_fixed = denoising_pair(x0, sigma, nothing, fresh, fixed)
    without = denoising_pair(x0, sigma, nothing, fresh)
    assert torch.allclose(with_fixed.x_t, without.x_t)
    assert torch.equal(with_fixed.target, without.target)


def test_the_squared_error_to_the_target_is_the_loss_of_the_papers():
    x0, fresh, fixed, answer = (
        rng.torch_normal((4, 3, 2, 2), 0, name).double() for name in ("x0", "fresh", "fixed", "h")
    )
    sigma, hidden = torch.tensor([0.9, 1.1, 2.0, 5.0]).double(), torch.full((4,), 0.8).double()
    made = denoising_pair(x0, sigma, hidden, fresh, fixed)
    # In the papers the loss is || alpha h + (1 - alpha) x_t - x_n ||^2 with the weight 1 / alpha^2
    # and alpha as here.
    alpha = ((sigma**2 - hidden**2) / sigma**2)[:, None, None, None]
    x_n = x0 + hidden[:, None, None, None] * fixed
    theirs = ((alpha * answer + (1 - alpha) * made.x_t - x_n) ** 2 / alpha**2).mean(dim=(1, 2, 3))
    ours = squared_error(answer, made.target)
    assert torch.allclose(ours, theirs)


@pytest.mark.parametrize("amplification", [1.5, 4.0, 20.0])
def test_at_the_margin_the_ambient_target_scatters_as_far_as_it_may(amplification):
    hidden = 0.8
    sigma = kappa("ambient", amplification) * hidden
    x0 = torch.full((COUNT, 1, 1, 1), 0.4)
    scatter = (pair(x0, sigma, hidden).target - x0).std()
    # x_n is off by hidden; the step, sqrt(sigma^2 - hidden^2) long, is taken back (a - 1)-fold.
    assert float(scatter) == pytest.approx(amplification**0.5 * hidden, rel=0.01)
