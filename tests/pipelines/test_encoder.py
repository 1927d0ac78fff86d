import numpy as np
import pytest
import torch
from PIL import Image

from ambient_omni import rng
from pipelines.encoders import EncoderConfig, load_encoder
from pipelines.encoders.base import _weights_path
from pipelines.encoders.efficientnet_lite0 import (
    NUM_FEATURES,
    EfficientNetLite0,
    SamePadConv2d,
    fold_batch_norms,
)

SMALL = EncoderConfig(resolution=64)


def random_images(count, shape=(40, 56, 3)):
    return [
        rng.generator(seed, "test-encoder").integers(0, 256, shape, dtype=np.uint8)
        for seed in range(count)
    ]


def test_the_packaged_weights_fit_the_architecture_exactly():
    network = EfficientNetLite0()
    network.load_state_dict(torch.load(_weights_path(), weights_only=True), strict=True)
    learned = sum(p.numel() for p in network.parameters())
    assert learned == 4_652_008


def test_folding_batch_norms_changes_no_feature():
    weights = torch.load(_weights_path(), weights_only=True)
    plain, folded = EfficientNetLite0().eval(), EfficientNetLite0().eval()
    for network in (plain, folded):
        network.load_state_dict(weights)
    folded = fold_batch_norms(folded)
    x_BCHW = torch.from_numpy(rng.normal((2, 3, 64, 64), 0, "test-fold"))
    with torch.inference_mode():
        assert torch.allclose(plain(x_BCHW), folded(x_BCHW), atol=1e-4)
    assert not [m for m in folded.modules() if isinstance(m, torch.nn.BatchNorm2d)]


@pytest.mark.parametrize(("size", "kernel", "stride"), [(7, 3, 2), (8, 3, 2), (8, 5, 2), (9, 5, 1)])
def test_same_padding_gives_ceil_and_puts_the_odd_pixel_last(size, kernel, stride):
    conv = SamePadConv2d(1, 1, kernel, stride, bias=False)
    torch.nn.init.ones_(conv.weight)
    out = conv(torch.ones(1, 1, size, size))
    assert out.shape[-1] == -(-size // stride)
    before, after = conv._padding(size, 0)
    assert after - before in (0, 1)


def test_images_of_any_size_give_finite_features():
    images = [np.zeros((1, 1, 3), np.uint8), *random_images(2), np.full((500, 3, 3), 255, np.uint8)]
    found = load_encoder(SMALL).embed(images)
    assert found.shape == (4, NUM_FEATURES)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    # ReLU6 before the pooling.
    assert found.min() >= 0
    assert found.max() <= 6


def test_no_images_give_no_rows():
    assert load_encoder(SMALL).embed([]).shape == (0, NUM_FEATURES)


def test_a_vector_depends_on_its_own_image_alone():
    encoder, images = load_encoder(SMALL), random_images(40)
    together = encoder.embed(images)
    assert np.allclose(together[[3, 39]], encoder.embed([images[3], images[39]]), atol=1e-4)


def test_the_view_is_the_central_square():
    wide = np.zeros((64, 128, 3), np.uint8)
    wide[:, 32:96] = 200
    assert (load_encoder(SMALL).view(wide) == 200).all()


def test_features_know_a_shifted_image_from_another_one():
    encoder = load_encoder(SMALL)
    base, other = (
        np.asarray(Image.fromarray(i).resize((64, 64), Image.Resampling.BICUBIC))
        for i in random_images(2, (6, 6, 3))
    )
    a, b, c = encoder.embed([base, np.roll(base, 1, axis=0), other])
    assert np.linalg.norm(a - b) < np.linalg.norm(a - c)


def test_the_version_names_the_resolution_and_changes_with_it():
    assert SMALL.encoder_version.startswith("efficientnet-lite0-64-")
    assert SMALL.encoder_version != EncoderConfig(resolution=96).encoder_version
    assert SMALL.encoder_version == EncoderConfig(resolution=64).encoder_version


def test_one_process_loads_the_weights_once():
    assert load_encoder(SMALL) is load_encoder(EncoderConfig(resolution=64))


def test_vectors_are_what_they_were_when_the_code_version_was_set():
    y, x = np.indices((64, 64))
    shading = np.stack([2 * x + y, 255 - 3 * y, 128 + x - y], axis=2).clip(0, 255)
    found = load_encoder(SMALL).embed([shading.astype(np.uint8)])[0]
    assert found[[265, 403, 661, 113]] == pytest.approx([5.8225, 4.2528, 3.6158, 3.235], rel=1e-3)
    assert found.sum() == pytest.approx(178.19, rel=1e-3)
