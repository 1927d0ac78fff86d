import numpy as np
import pytest
import torch

from ambient_omni import rng
from ambient_omni.classifier.severity import (
    CHAIN_LENGTH,
    Plantable,
    kinds_in_turn,
    order_loss,
    plant_chains,
    plant_copies,
)

RANGES = {"gaussian_blur": (0.4, 3.0), "sensor_noise": (2.0, 70.0)}


class Pictures:
    def __init__(self, count: int) -> None:
        draw = rng.generator(0, "test-severity")
        self.pixels = draw.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, indices):
        return self.pixels[indices]


def plain(pictures):
    return Plantable(pictures, lambda pixels: pixels)


def test_a_chain_begins_undamaged_and_only_gets_worse():
    pictures = Pictures(5)
    chains = plant_chains(plain(pictures), RANGES, count=40, seed=0, fold=0).astype(float)
    assert chains.shape == (40, CHAIN_LENGTH, 16, 16, 3)
    first = chains[:, 0]
    assert all((first[i] == pictures.pixels).all(axis=(1, 2, 3)).any() for i in range(40))
    away = np.square(chains - chains[:, :1]).mean(axis=(2, 3, 4))
    assert (np.diff(away, axis=1) >= -0.5).all()  # rounding to grey levels


def test_chains_are_addressed_by_seed_and_fold():
    one, again, other = (
        plant_chains(plain(Pictures(5)), RANGES, count=6, seed=0, fold=fold) for fold in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_chains_are_shown_as_the_classifier_sees_images():
    halves = Plantable(Pictures(5), lambda pixels: pixels[:, ::2, ::2, 0].astype(np.float16))
    chains = plant_chains(halves, RANGES, count=4, seed=0, fold=0)
    pixels = plant_chains(plain(Pictures(5)), RANGES, count=4, seed=0, fold=0)
    np.testing.assert_array_equal(chains, pixels[:, :, ::2, ::2, 0])


def test_a_kind_named_with_more_weight_stands_in_more_chains():
    assert kinds_in_turn(RANGES, {"sensor_noise": 2}) == [
        "gaussian_blur",
        "sensor_noise",
        "sensor_noise",
    ]


def test_damaged_copies_are_of_the_images_they_name():
    pictures = Pictures(5)
    blur = {"gaussian_blur": (0.3, 0.4)}
    rows, chosen = plant_copies(plain(pictures), blur, count=7, seed=0, fold=0)
    away = np.abs(rows[:, None].astype(float) - pictures.pixels).mean(axis=(2, 3, 4))
    assert len(rows) == 7
    np.testing.assert_array_equal(away.argmin(axis=1), chosen)
    assert (away.min(axis=1) > 0).all()


def test_a_chain_whose_logits_fall_by_the_margin_costs_nothing():
    falling = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    assert order_loss(falling, torch.tensor([0.02])).item() == 0


def test_a_worse_copy_with_a_higher_logit_costs_its_gap_and_the_margin():
    rising = torch.tensor([[0.0, 0.6, 0.6 - 9, 0.6 - 18]])
    # The margin at sigma 0.3 is half of 0.3.
    cost = order_loss(rising, torch.tensor([0.3])).item()
    assert cost == pytest.approx((0.6 + 0.15) / 3)


def test_where_nothing_can_be_seen_hardly_anything_is_asked_for():
    equal = torch.zeros(1, 4)
    low, high = (order_loss(equal, torch.tensor([sigma])).item() for sigma in (0.02, 10.0))
    assert high < low / 500
