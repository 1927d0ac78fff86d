import json

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)

from ambient_omni import rng
from ambient_omni.generation.config import SampleConfig
from ambient_omni.generation.sampling import Sampler
from ambient_omni.models.adapters import save_lora
from ambient_omni.models.objectives import denoising_pair
from ambient_omni.models.pretrained import (
    load_pretrained,
    pretrained_settings,
    save_pipeline,
)
from ambient_omni.models.pretrained_config import LoraConfig, PretrainedConfig
from schemas.errors import BadInput
from tests.data.pipelines import (
    save_ddpm,
    save_stable_diffusion,
    save_stable_diffusion_xl,
    unit_noise,
)

PROMPTS = ("a cat", "a dog")
LATENT = (4, 8, 8)
NUM_STEPS = 8


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory):
    return save_stable_diffusion(tmp_path_factory.mktemp("pipelines") / "sd")


def train(model, steps=3, rate=1e-2):
    """A few steps on random latents, as the trainer makes them."""
    optimizer = torch.optim.AdamW(model.trainable().values(), lr=rate)
    for step in range(steps):
        x0 = rng.torch_normal((2, *LATENT), step, "x0")
        sigma = torch.tensor([0.3, 3.0])
        pair = denoising_pair(
            x0, sigma, torch.zeros(2), rng.torch_normal((2, *LATENT), step, "fresh")
        )
        condition = model.conditioner.encode(captions=PROMPTS)
        error = (model.denoiser(pair.x_t, sigma, condition) - pair.target).square()
        model.loss_weighting(sigma, error.mean(dim=(1, 2, 3))).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    model.denoiser.eval()


def ddim(pipeline):
    """DDIM over timesteps that we can name; and these timesteps' levels."""
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing", clip_sample=False,
        set_alpha_to_one=True,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler.set_timesteps(NUM_STEPS)
    kept = pipeline.scheduler.alphas_cumprod[pipeline.scheduler.timesteps].double()
    return ((1 - kept) / kept).sqrt()


def plain_images(pipeline, guidance=3.0):
    """Images (B, 3, H, W), 0..1, of a StableDiffusionPipeline, and the levels that it took."""
    levels = ddim(pipeline)
    images = pipeline(
        list(PROMPTS),
        guidance_scale=guidance,
        num_inference_steps=NUM_STEPS,
        latents=unit_noise(2, LATENT),
        output_type="pt",
    ).images
    return images, levels


def our_images(model, levels, guidance=3.0):
    config = SampleConfig(solver="euler", prompts=PROMPTS, guidance=guidance)
    x0 = Sampler(model, config, LATENT).solve(unit_noise(2, LATENT), levels, range(2))
    return (model.codec.decode(x0) / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_pipeline_that_was_opened_makes_the_images_that_diffusers_makes(
    tmp_path, prediction, guidance
):
    folder = save_stable_diffusion(tmp_path, prediction_type=prediction)
    plain, levels = plain_images(StableDiffusionPipeline.from_pretrained(folder), guidance)
    model = load_pretrained(PretrainedConfig(path=str(folder)))
    model.denoiser.eval()
    assert torch.allclose(our_images(model, levels, guidance), plain, atol=1e-4)


def test_lora_trains_adapters_alone_and_plain_diffusers_loads_them(stable_diffusion, tmp_path):
    base, levels = plain_images(StableDiffusionPipeline.from_pretrained(stable_diffusion))
    config = PretrainedConfig(
        path=str(stable_diffusion), lora=LoraConfig(rank=2, alpha=6, dropout=0.0)
    )
    model = load_pretrained(config)
    before = {name: value.clone() for name, value in model.denoiser.state_dict().items()}
    train(model)
    assert model.weights().keys() == model.trainable().keys()
    assert all("lora" in name for name in model.weights())
    after = model.denoiser.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved
    assert moved <= model.weights().keys()
    save_lora(model, tmp_path / "lora")
    pipeline = StableDiffusionPipeline.from_pretrained(stable_diffusion)
    pipeline.load_lora_weights(tmp_path / "lora")
    plain, _ = plain_images(pipeline)
    assert (plain - base).abs().max() > 1e-2
    assert torch.allclose(our_images(model, levels), plain, atol=1e-4)


def test_adapters_say_nothing_before_they_are_trained(stable_diffusion):
    config = PretrainedConfig(path=str(stable_diffusion))
    adapted = load_pretrained(config.model_copy(update={"lora": LoraConfig(rank=2)}))
    _, levels = plain_images(StableDiffusionPipeline.from_pretrained(stable_diffusion))
    one, other = (our_images(m, levels) for m in (load_pretrained(config), adapted))
    assert torch.equal(one, other)


def test_the_seed_decides_the_adapters(stable_diffusion):
    config = PretrainedConfig(path=str(stable_diffusion), lora=LoraConfig(rank=2))
    one, same, other = (load_pretrained(config, seed=seed).weights() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_full_fine_tuning_saves_a_pipeline_that_plain_diffusers_loads(stable_diffusion, tmp_path):
    config = PretrainedConfig(path=str(stable_diffusion))
    model = load_pretrained(config)
    assert model.weights().keys() == model.denoiser.state_dict().keys()
    train(model, rate=1e-3)
    save_pipeline(model, config, tmp_path / "tuned")
    base, levels = plain_images(StableDiffusionPipeline.from_pretrained(stable_diffusion))
    plain, _ = plain_images(DiffusionPipeline.from_pretrained(tmp_path / "tuned"))
    assert (plain - base).abs().max() > 1e-3
    assert torch.allclose(our_images(model, levels), plain, atol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_stable_diffusion_xl_is_opened_and_tuned_too(tmp_path, guidance):
    folder = save_stable_diffusion_xl(tmp_path / "xl")
    base, levels = plain_images(StableDiffusionXLPipeline.from_pretrained(folder), guidance)
    config = PretrainedConfig(path=str(folder), lora=LoraConfig(rank=2))
    model = load_pretrained(config)
    assert torch.allclose(our_images(model, levels, guidance), base, atol=1e-4)
    train(model)
    save_lora(model, tmp_path / "lora")
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    pipeline.load_lora_weights(tmp_path / "lora")
    tuned, _ = plain_images(pipeline, guidance)
    assert (tuned - base).abs().max() > 1e-2
    assert torch.allclose(our_images(model, levels, guidance), tuned, atol=1e-4)


def test_an_image_of_stable_diffusion_xl_is_told_its_size(tmp_path):
    config = PretrainedConfig(path=str(save_stable_diffusion_xl(tmp_path)))
    model = load_pretrained(config, resolution=32)
    told = model.conditioner.encode(captions=["a cat", "a dog", "a cat"])
    assert told.time_ids.tolist() == [[32, 32, 0, 0, 32, 32]] * 3
    assert torch.equal(told.text[0], told.text[2])
    dropped = model.conditioner.encode(
        captions=["a cat", "a dog"], drop=torch.tensor([True, False])
    )
    assert not dropped.text[0].any()
    assert not dropped.pooled[0].any()
    assert torch.equal(dropped.pooled[1], told.pooled[1])
    assert model.conditioner.width == told.text.shape[-1]
    assert model.conditioner.fingerprint


def test_text_encoder_and_vae_stay_frozen(stable_diffusion):
    model = load_pretrained(PretrainedConfig(path=str(stable_diffusion)))
    frozen = [*model.conditioner.encoder.parameters(), *model.codec.vae.parameters()]
    assert not any(parameter.requires_grad for parameter in frozen)


def test_an_unconditional_pipeline_makes_the_images_that_diffusers_makes(tmp_path):
    folder = save_ddpm(tmp_path)
    model = load_pretrained(PretrainedConfig(path=str(folder)))
    model.denoiser.eval()
    pipeline = DDPMPipeline.from_pretrained(folder)
    levels = ddim(pipeline)
    shape = (3, 8, 8)
    ours = Sampler(model, SampleConfig(solver="euler"), shape).solve(
        unit_noise(2, shape), levels, range(2)
    )
    x = unit_noise(2, shape)
    with torch.no_grad():
        for t in pipeline.scheduler.timesteps:
            x = pipeline.scheduler.step(pipeline.unet(x, t).sample, t, x).prev_sample
    # Untrained, it makes values of up to the highest level, 157.
    assert (ours - x).abs().max() < 1e-4 * x.abs().max()


def test_the_settings_of_a_pipeline_are_read_without_its_weights(stable_diffusion, tmp_path):
    settings = pretrained_settings(PretrainedConfig(path=str(stable_diffusion)))
    assert settings.parameterisation.kind == "epsilon"
    assert settings.parameterisation.schedule.scheduler_config == {
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
    }
    assert settings.x0_shape == LATENT
    assert settings.latents.vae == settings.condition.text_encoder == str(stable_diffusion)
    unconditional = pretrained_settings(PretrainedConfig(path=str(save_ddpm(tmp_path))))
    assert unconditional.condition.kind == "none"
    assert unconditional.latents is None


def test_lora_of_a_network_for_which_diffusers_has_none_is_refused(tmp_path):
    config = PretrainedConfig(path=str(save_ddpm(tmp_path)), lora=LoraConfig())
    with pytest.raises(BadInput, match="diffusers loads no LoRA into a UNet2DModel"):
        load_pretrained(config)


def test_target_modules_that_are_not_there_are_refused(stable_diffusion):
    lora = LoraConfig(target_modules=("nothing",))
    with pytest.raises(BadInput, match=r"target_modules.*nothing"):
        load_pretrained(PretrainedConfig(path=str(stable_diffusion), lora=lora))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("model_index.json", {"_class_name": "FluxPipeline"}, "is a FluxPipeline; what can be"),
        ("scheduler/scheduler_config.json", {"prediction_type": "odd"}, "prediction_type odd"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "zero_snr"),
        ("unet/config.json", {"sample_size": [8, 16]}, "no square sample_size"),
    ],
)
def test_a_pipeline_that_does_not_fit_is_refused(tmp_path, file, change, message):
    path = save_stable_diffusion(tmp_path) / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BadInput, match=message):
        load_pretrained(PretrainedConfig(path=str(tmp_path)))


def test_pickled_weights_are_refused(tmp_path):
    unet = save_stable_diffusion(tmp_path) / "unet"
    model = load_pretrained(PretrainedConfig(path=str(tmp_path)))
    torch.save(model.plain_network.state_dict(), unet / "diffusion_pytorch_model.bin")
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(BadInput, match="cannot be loaded"):
        load_pretrained(PretrainedConfig(path=str(tmp_path)))


def test_a_hub_id_has_to_be_pinned():
    with pytest.raises(BadInput, match="pin it with revision"):
        load_pretrained(PretrainedConfig(path="owner/model"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 9}, "reads 9 channels and says 4: inpainting"),
        ({"out_channels": 8}, "reads 4 channels and says 8"),
        ({"class_embed_type": "timestep"}, "is told classes"),
    ],
)
def test_networks_of_another_use_are_refused_before_they_are_loaded(tmp_path, change, message):
    folder = save_stable_diffusion(tmp_path / "sd")
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(BadInput, match=message):
        pretrained_settings(PretrainedConfig(path=str(folder)))
