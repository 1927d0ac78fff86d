import numpy as np
import pytest
import torch
from torch import nn

from ambient_omni import rng
from ambient_omni.evaluation import evaluate, heldout_loss, read_heldout
from ambient_omni.training.trainer import train
from schemas.errors import NotEnoughReferences


class Linear(nn.Module):
    """Answers gain * x_t."""

    def __init__(self, gain):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, x, sigma, labels=None):
        return self.gain * x


def pictures(count):
    return 0.5 * rng.normal((count, 3, 8, 8), 0, "pictures")


def names(count):
    return [f"{i:064x}" for i in range(count)]


def test_the_loss_of_the_best_linear_denoiser_is_that_of_the_gaussian_model():
    for sigma in (0.3, 1.0):
        denoiser = Linear(0.25 / (0.25 + sigma**2))
        losses = heldout_loss(denoiser, pictures(200), names(200), [sigma])
        # Posterior variance s^2 sigma^2 / (s^2 + sigma^2), times its inverse, the EDM weight.
        assert losses.mean() == pytest.approx(1, abs=0.02)


def test_noise_depends_on_image_and_level_not_on_order_or_company():
    x0, ids, denoiser = pictures(10), names(10), Linear(0.5)
    whole = heldout_loss(denoiser, x0, ids, [0.3, 1.0])
    order = rng.permutation(10, 0, "order")
    shuffled = heldout_loss(denoiser, x0[order], [ids[i] for i in order], [1.0])
    assert np.allclose(shuffled[:, 0], whole[order, 1], rtol=1e-5)


def test_paired_noisings_cancel_what_is_odd_in_the_noise():
    # With D(x) = 0.9 x the error is a constant, an odd and an even part in the noise.
    x0, denoiser = np.ones((200, 1, 2, 2), np.float32), Linear(0.9)
    pairs = heldout_loss(denoiser, x0, names(200), [0.1], num_noises=2)
    single = heldout_loss(denoiser, x0, names(200), [0.1], num_noises=1)
    assert pairs.std() < 0.7 * single.std()


def test_evaluating_a_run_adds_a_set_beside_the_others(trainable, config):
    run_id = train(trainable, config(), show=False)
    evaluate(trainable, run_id, "trusted")
    found = read_heldout(trainable.runs / run_id)
    assert sorted(found) == ["trusted", "validation"]
    assert found["trusted"].num_images == 8
    loss = found["trusted"]
    assert loss.total == pytest.approx(sum(loss.weighted))
    assert np.allclose(np.mean(loss.per_image, axis=0), loss.weighted)
    weight = [(sigma**2 + 0.25) / (0.5 * sigma) ** 2 for sigma in loss.sigmas]
    assert np.allclose(np.array(loss.unweighted) * weight, loss.weighted)
    with pytest.raises(NotEnoughReferences, match="'evaluation' is empty"):
        evaluate(trainable, run_id)


def test_the_number_of_images_is_bounded_and_they_are_chosen_by_content(trainable, config):
    small = config(held_out={"sigmas": (1.0,), "num_noises": 1, "max_images": 2})
    run_id = train(trainable, small, show=False)
    assert read_heldout(trainable.runs / run_id)["validation"].num_images == 2
