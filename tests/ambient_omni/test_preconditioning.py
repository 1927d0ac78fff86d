import pytest
import torch
from torch import nn

from ambient_omni.models.preconditioning import Denoiser, coefficients, loss_weight

SIGMA = torch.logspace(-3, 2, 21, dtype=torch.float64)


class Zero(nn.Module):
    def forward(self, scaled, noise, labels=None):
        return torch.zeros_like(scaled)


def test_the_network_sees_inputs_of_unit_variance():
    variance = coefficients(SIGMA, 0.5).into ** 2 * (SIGMA**2 + 0.5**2)
    assert torch.allclose(variance, torch.ones_like(SIGMA))


def test_the_networks_target_has_unit_variance():
    # (x0 - c_skip x_t) / c_out, with var(x0) = 0.25 and x_t = x0 + sigma z.
    c = coefficients(SIGMA, 0.5)
    variance = ((1 - c.skip) ** 2 * 0.25 + c.skip**2 * SIGMA**2) / c.out**2
    assert torch.allclose(variance, torch.ones_like(SIGMA))


def test_the_skip_is_the_best_linear_denoiser():
    c = coefficients(SIGMA, 0.5)
    assert torch.allclose(c.skip, 0.25 / (0.25 + SIGMA**2))


def test_the_loss_weight_undoes_the_output_scale():
    assert torch.allclose(
        loss_weight(SIGMA, 0.5) * coefficients(SIGMA, 0.5).out ** 2, torch.ones_like(SIGMA)
    )


def test_a_silent_network_denoises_gaussian_data_as_well_as_can_be():
    x_t = torch.ones(2, 3, 4, 4)
    out = Denoiser(Zero())(x_t, torch.tensor([0.5, 2.0]))
    assert out[:, 0, 0, 0].tolist() == pytest.approx([0.5, 0.25 / 4.25])
