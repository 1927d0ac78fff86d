import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ambient_omni import rng
from ambient_omni.data.annotations import NoiseSpaceMismatch, read_annotations
from ambient_omni.data.config import LatentConfig
from ambient_omni.data.latent_packs import EncodeLatentsJob, encode_batches
from ambient_omni.data.latents import LatentCodec, latent_space
from ambient_omni.data.pack_writer import PackWriter
from ambient_omni.data.packs import PackMissing, PackSet, to_x0
from ambient_omni.data.transforms import Transform
from ambient_omni.hub import weights_sha256
from schemas.errors import BadInput
from tests.data.tiny_vae import NUM_CHANNELS, save_tiny_vae

TRANSFORM = Transform(resolution=8)


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return save_tiny_vae(tmp_path_factory.mktemp("vae"))


@pytest.fixture
def pixels(root):
    """A pixel pack of two chunks."""
    return build(root, [5, 2])


def build(root, chunk_sizes, inputs="one"):
    images = rng.generator(0, "latents").integers(
        0, 256, (sum(chunk_sizes), 8, 8, 3), dtype=np.uint8
    )
    writer = PackWriter(root.packs, TRANSFORM, "b", inputs)
    writer.begin()
    infos, start = [], 0
    for number, size in enumerate(chunk_sizes):
        with writer.chunk(number) as chunk:
            for row in range(start, start + size):
                chunk.add(row, images[row])
        infos.append(chunk.info)
        start += size
    writer.finish(infos)
    return images


def job(vae, **changes):
    latents = LatentConfig(vae=vae)
    return EncodeLatentsJob(batches=("b",), latents=latents, transform=TRANSFORM, **changes)


def encode(root, vae, **changes):
    return encode_batches(root, job(vae, **changes), show=False)[0]


def test_latents_are_the_scaled_mode_of_the_posterior_and_decode_to_images(vae):
    codec = LatentCodec.open(LatentConfig(vae=vae))
    x0 = rng.torch_normal((2, 3, 8, 8), 0, "x0")
    mode = codec.vae.encode(x0).latent_dist.mode()
    latents = codec.encode(x0)
    assert torch.allclose(latents, (mode - 0.1) * 0.5)
    assert torch.allclose(codec.decode(latents), codec.vae.decode(mode).sample, atol=1e-5)
    assert not latents.requires_grad


def test_the_space_of_latents_names_weights_scale_and_pixels(vae, tmp_path):
    space = latent_space(LatentConfig(vae=vae), TRANSFORM)
    assert space.x0_shape == space.shape == (NUM_CHANNELS, 4, 4)
    assert TRANSFORM.noise_space in space.noise_space
    assert space.vae_sha256 == LatentCodec.open(LatentConfig(vae=vae)).vae_sha256
    others = [
        latent_space(LatentConfig(vae=save_tiny_vae(tmp_path / "a", seed=1)), TRANSFORM),
        latent_space(LatentConfig(vae=save_tiny_vae(tmp_path / "b", scaling_factor=1)), TRANSFORM),
        latent_space(LatentConfig(vae=save_tiny_vae(tmp_path / "c", shift_factor=0)), TRANSFORM),
        latent_space(LatentConfig(vae=vae), Transform(resolution=8, filter="box")),
        TRANSFORM,
    ]
    assert len({other.noise_space for other in (space, *others)}) == 6
    assert len({other.transform_id for other in (space, *others)}) == 6


def test_the_same_weights_elsewhere_and_in_other_files_are_the_same_space(vae, tmp_path):
    pipeline = tmp_path / "pipeline"
    shutil.copytree(vae, pipeline / "vae")
    assert latent_space(LatentConfig(vae=str(pipeline)), TRANSFORM) == latent_space(
        LatentConfig(vae=vae), TRANSFORM
    )
    tensors = sorted(load_file(pipeline / "vae" / "diffusion_pytorch_model.safetensors").items())
    split = tmp_path / "split"
    split.mkdir()
    save_file(dict(tensors[::2]), split / "model-1-of-2.safetensors")
    save_file(dict(tensors[1::2]), split / "model-2-of-2.safetensors")
    assert weights_sha256(split) == weights_sha256(pipeline / "vae")


def test_changed_weights_in_the_same_folder_are_another_space(tmp_path):
    config = LatentConfig(vae=save_tiny_vae(tmp_path / "vae"))
    before = latent_space(config, TRANSFORM)
    save_tiny_vae(tmp_path / "vae", seed=1)
    assert latent_space(config, TRANSFORM) != before


def test_what_is_no_autoencoder_is_refused(vae, tmp_path):
    with pytest.raises(BadInput, match="no multiple of 2"):
        latent_space(LatentConfig(vae=vae), Transform(resolution=9))
    with pytest.raises(BadInput, match="there is no folder"):
        latent_space(LatentConfig(vae=str(tmp_path / "nowhere")), TRANSFORM)
    with pytest.raises(BadInput, match=r"config\.json is missing"):
        latent_space(LatentConfig(vae=str(tmp_path)), TRANSFORM)
    copy = tmp_path / "copy"
    shutil.copytree(vae, copy)
    (copy / "diffusion_pytorch_model.safetensors").rename(copy / "diffusion_pytorch_model.bin")
    with pytest.raises(BadInput, match="pickled weights are not read"):
        latent_space(LatentConfig(vae=str(copy)), TRANSFORM)
    (copy / "config.json").write_text(json.dumps({"_class_name": "VQModel"}))
    with pytest.raises(BadInput, match="is a VQModel"):
        LatentCodec.open(LatentConfig(vae=str(copy)))


def test_a_latent_pack_holds_what_the_codec_makes_of_each_sample(root, pixels, vae):
    pack = encode(root, vae, batch_size=3)
    space = latent_space(LatentConfig(vae=vae), TRANSFORM)
    assert pack.noise_space == space.noise_space
    assert pack.dtype == np.float16
    expected = LatentCodec.open(LatentConfig(vae=vae)).encode(torch.from_numpy(to_x0(pixels)))
    packs = PackSet.open(root.packs, space, ["b"])
    x0 = to_x0(packs.take(packs.index_of(np.array([6, 0, 5]))))
    assert x0.dtype == np.float32
    assert np.allclose(x0, expected[[6, 0, 5]], atol=2e-3)


def test_the_standard_deviation_of_the_latents_is_measured(root, pixels, vae):
    encode(root, vae)
    packs = PackSet.open(root.packs, latent_space(LatentConfig(vae=vae), TRANSFORM), ["b", "b"])
    values = packs.packs[0].take(np.arange(7)).astype(np.float64)
    assert packs.sigma_data == pytest.approx(values.std(), rel=1e-6)
    assert PackSet.open(root.packs, TRANSFORM, ["b"]).sigma_data is None


def test_encoding_goes_on_where_it_was_stopped_and_does_nothing_twice(
    root, pixels, vae, monkeypatch
):
    encoded = []
    real = LatentCodec.encode

    def dying(self, x0):
        if len(encoded) == 3:
            raise KeyboardInterrupt
        encoded.append(len(x0))
        return real(self, x0)

    monkeypatch.setattr(LatentCodec, "encode", dying)
    with pytest.raises(KeyboardInterrupt):
        encode(root, vae, batch_size=2)
    space = latent_space(LatentConfig(vae=vae), TRANSFORM)
    with pytest.raises(PackMissing, match="encode-latents"):
        PackSet.open(root.packs, space, ["b"])
    encoded.clear()
    whole = encode(root, vae, batch_size=2)
    # The first chunk, five images, was finished.
    assert encoded == [2]
    assert len(whole) == 7
    assert whole.moments == encode(root, vae, batch_size=1).moments
    assert encoded == [2]


def test_new_pixels_are_encoded_anew(root, pixels, vae):
    encode(root, vae)
    build(root, [3], inputs="two")
    assert len(encode(root, vae)) == 3


def test_latents_that_float16_cannot_hold_are_refused(root, pixels, tmp_path):
    huge = save_tiny_vae(tmp_path / "huge", scaling_factor=1e9)
    with pytest.raises(BadInput, match=r"sample_row 0 is not finite"):
        encode(root, huge)


def test_encoding_without_pixels_says_what_to_do(root, vae):
    with pytest.raises(PackMissing, match="python -m pipelines pack"):
        encode(root, vae)


def test_levels_measured_in_pixels_are_refused_in_latents_and_the_way_there_is_said(trainable, vae):
    table = trainable.tables.open("noise_annotations")
    rows = table.read(["sample_row"], {"ingest_batch": ["ref"]})["sample_row"].to_numpy()
    space = latent_space(LatentConfig(vae=vae), TRANSFORM).noise_space
    with pytest.raises(NoiseSpaceMismatch, match=r"levels in pixel.*noise_space: latent:3x4x4"):
        read_annotations(table, "policy", ["ref"], rows, space)
