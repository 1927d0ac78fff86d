import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, DiffusionPipeline

from ambient_omni import rng
from ambient_omni.data.config import LatentConfig
from ambient_omni.data.latents import LatentCodec
from ambient_omni.generation.config import SampleConfig
from ambient_omni.generation.export import export_pipeline
from ambient_omni.generation.sampling import Sampler, start_deviation
from ambient_omni.models.config import (
    ConditionConfig,
    DiTConfig,
    LossWeightConfig,
    ParameterisationConfig,
    PatchedUNetConfig,
    UNet2DConditionConfig,
    UNet2DConfig,
)
from ambient_omni.models.model import build_model
from ambient_omni.noise.levels import BetaSchedule
from ambient_omni.noise.priors import DdpmPrior, LogNormalPrior
from schemas.errors import BadInput
from tests.data.pipelines import save_stable_diffusion

# Sixteen pipelines are opened in a process that imports diffusers afresh.
pytestmark = pytest.mark.slow

PIXELS, LATENTS = (3, 8, 8), (4, 8, 8)
LABELS = ("ant", "bee", "cat")
PROMPTS = ("a cat", "a dog")
# Divides 1000: otherwise DDIM of diffusers steps from a level that it did not step to.
NUM_STEPS = 5

NETWORKS = {
    "patched": PatchedUNetConfig(patch=2, widths=(8,), norm_groups=4),
    "unet2d": UNet2DConfig(
        widths=(8, 16), layers_per_block=1, attention_scales=1, norm_groups=4, head_dim=4
    ),
    "dit": DiTConfig(layers=2, heads=2, head_dim=8),
    "unet2d_condition": UNet2DConditionConfig(
        widths=(8, 16), layers_per_block=1, attention_scales=1, norm_groups=4, heads=2
    ),
}

# network, parameterisation, condition, in latents, and what opens it. "own" carries code.
KINDS = {
    "unet2d-epsilon": ("unet2d", "epsilon", "none", False, "DDIMPipeline"),
    "unet2d-v": ("unet2d", "v", "none", False, "DDIMPipeline"),
    "unet2d-x0": ("unet2d", "x0", "none", False, "DDIMPipeline"),
    "dit-v-label-latents": ("dit", "v", "label", True, "DiTPipeline"),
    "text-epsilon-latents": ("unet2d_condition", "epsilon", "caption", True, "SD"),
    "text-edm-latents": ("unet2d_condition", "edm", "caption", True, "SD"),
    "patched-edm": ("patched", "edm", "none", False, "own"),
    "patched-flow-label": ("patched", "flow", "label", False, "own"),
    "patched-v": ("patched", "v", "none", False, "own"),
    "unet2d-edm-label": ("unet2d", "edm", "label", False, "own"),
    "unet2d-flow-latents": ("unet2d", "flow", "none", True, "own"),
    "dit-flow": ("dit", "flow", "none", False, "own"),
    "dit-edm-label-latents": ("dit", "edm", "label", True, "own"),
    "text-flow-latents": ("unet2d_condition", "flow", "caption", True, "own"),
    "text-v": ("unet2d_condition", "v", "caption", False, "own"),
    "masked-text-edm-latents": ("unet2d_condition", "edm", "caption", True, "own"),
}
CLASSES = {"SD": "StableDiffusionPipeline", "own": "ExportedPipeline"}

# Opens each folder with diffusers where this project cannot be imported, and samples from it.
PLAIN = """
import json, sys
sys.modules["ambient_omni"] = None
sys.modules["schemas"] = None
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

def levels(scheduler):
    if hasattr(scheduler, "alphas_cumprod"):
        kept = scheduler.alphas_cumprod[scheduler.timesteps].double()
        return ((1 - kept) / kept).sqrt()
    known = scheduler.sigmas[:-1].double()
    return known / (1 - known) if "FlowMatch" in type(scheduler).__name__ else known

tensors, classes = {}, {}
for name, (folder, arguments) in json.loads(sys.argv[1]).items():
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    tensors[name] = pipeline(generator=noise, output_type="pt", **arguments).images.contiguous()
    tensors[name + ".levels"] = levels(pipeline.scheduler)
    classes[name] = type(pipeline).__name__
assert not any(module.startswith("ambient_omni.") for module in sys.modules)
save_file(tensors, sys.argv[2], {name: made for name, made in classes.items()})
"""


def build(kind, pipeline_folder):
    network, parameterisation, condition, in_latents, _ = KINDS[kind]
    captions = {"text_encoder": str(pipeline_folder)} if condition == "caption" else {}
    settings = SimpleNamespace(
        network=NETWORKS[network],
        # Ends at σ = 2.5: a network that learned nothing makes values of that size.
        parameterisation=ParameterisationConfig(
            kind=parameterisation, schedule=BetaSchedule(beta_start=1e-5, beta_end=4e-3)
        ),
        condition=ConditionConfig(kind=condition, **captions),
        loss_weight=LossWeightConfig(),
    )
    model = build_model(
        settings,
        LATENTS if in_latents else PIXELS,
        num_classes=len(LABELS) if condition == "label" else 0,
        codec=LatentCodec.open(LatentConfig(vae=str(pipeline_folder))) if in_latents else None,
    )
    if kind.startswith("masked"):
        # As encoders are that were trained with padding masked, T5's among them.
        model.conditioner.takes_mask = True
    with rng.torch_seeded(1, "trained"), torch.no_grad():
        for parameter in model.denoiser.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
    model.denoiser.eval()
    return model


def call_of(kind):
    """Arguments of the plain pipeline's call."""
    condition, guided = KINDS[kind][2], {"guidance_scale": 2.0, "num_inference_steps": NUM_STEPS}
    if condition == "label":
        return {"class_labels": [1, 2], **guided}
    if condition == "caption":
        return {"prompt": list(PROMPTS), **guided}
    return {"batch_size": 2, "num_inference_steps": NUM_STEPS}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Of each kind: the model, its export, and what plain diffusers made of it elsewhere."""
    from safetensors import safe_open

    home = tmp_path_factory.mktemp("exports")
    pipeline_folder = save_stable_diffusion(home / "sd")
    models, exports, calls = {}, {}, {}
    for kind in KINDS:
        models[kind] = build(kind, pipeline_folder)
        names = LABELS if KINDS[kind][2] == "label" else ()
        exports[kind] = export_pipeline(models[kind], home / kind, label_names=names)
        calls[kind] = (str(home / kind), call_of(kind))
    out = home / "made.safetensors"
    subprocess.run(
        [sys.executable, "-c", PLAIN, json.dumps(calls), str(out)],
        check=True,
        cwd=home,
        env={**os.environ, "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1"},
    )
    with safe_open(out, "pt") as file:
        made = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        classes = file.metadata()
    return SimpleNamespace(
        home=home, models=models, exports=exports, made=made, classes=classes
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_plain_diffusers_makes_of_an_export_what_we_make_of_the_model(plain, kind):
    _, parameterisation, condition, in_latents, pipeline = KINDS[kind]
    assert plain.classes[kind] == CLASSES.get(pipeline, pipeline)
    assert plain.exports[kind].has_code == (pipeline == "own")
    shape = LATENTS if in_latents else PIXELS
    config = SampleConfig(
        solver="dpm++2m" if parameterisation == "edm" else "euler",
        guidance=1.0 if condition == "none" else 2.0,
        labels=LABELS[1:] if condition == "label" else (),
        prompts=PROMPTS if condition == "caption" else (),
    )
    model = plain.models[kind]
    sampler = Sampler(model, config, shape, LABELS if condition == "label" else ())
    noise = torch.randn((2, *shape), generator=torch.Generator().manual_seed(0))
    x0 = sampler.solve(noise, plain.made[f"{kind}.levels"], range(2))
    ours = ((model.codec.decode(x0) if in_latents else x0) / 2 + 0.5).clamp(0, 1)
    # An image in which everything is black or white would hide differences.
    assert ((ours > 0.01) & (ours < 0.99)).float().mean() > 0.2
    assert (ours - plain.made[kind]).abs().max() < 3e-4


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_holds_safetensors_and_no_pickles(plain, kind):
    weights = [path for path in (plain.home / kind).rglob("*") if path.stat().st_size > 20_000]
    assert weights
    assert all(path.suffix in (".safetensors", ".py") for path in weights)
    assert not list((plain.home / kind).rglob("*.bin"))


def test_sampling_begins_and_stops_where_the_prior_was_cut(plain, tmp_path):
    prior = LogNormalPrior(lowest=0.05, highest=20.0)
    export_pipeline(plain.models["text-edm-latents"], tmp_path / "edm", prior=prior)
    edm = json.loads((tmp_path / "edm" / "scheduler" / "scheduler_config.json").read_text())
    assert (edm["sigma_min"], edm["sigma_max"]) == (0.05, 20.0)
    export_pipeline(plain.models["dit-flow"], tmp_path / "flow", prior=prior)
    flow = json.loads((tmp_path / "flow" / "model_index.json").read_text())
    assert (flow["sigma_min"], flow["sigma_max"]) == (0.05, 20.0)


def test_no_timestep_above_the_end_of_the_prior_is_sampled(plain, tmp_path):
    model = plain.models["unet2d-v"]
    table = model.parameterisation.config.schedule.sigmas
    prior = DdpmPrior(schedule=model.parameterisation.config.schedule, highest=table[499])
    export_pipeline(model, tmp_path / "cut", prior=prior)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "cut")
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    made = pipeline(2, generator=noise, num_inference_steps=NUM_STEPS, output_type="np").images
    times = pipeline.scheduler.timesteps
    assert times.tolist() == [499, 399, 299, 199, 99]
    started = torch.randn((2, *PIXELS), generator=torch.Generator().manual_seed(0))
    sampler = Sampler(model, SampleConfig(solver="euler"), PIXELS)
    ours = sampler.solve(started, torch.from_numpy(table[times.numpy()]), range(2))
    ours = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert np.abs(ours - made).max() < 3e-4


@pytest.mark.parametrize("kind", ["patched-edm", "patched-flow-label"])
def test_sampling_from_low_levels_begins_with_the_deviation_of_the_data(
    plain, tmp_path, kind, monkeypatch
):
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path))
    model, noise = plain.models[kind], rng.torch_normal((2, *PIXELS), 0, "start")
    export_pipeline(model, tmp_path / "low", label_names=LABELS, prior=LogNormalPrior(highest=0.5))
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "low", trust_remote_code=True)
    begun = pipeline._begin(2, None, noise, NUM_STEPS, {})
    into = 1.5 if "flow" in kind else 1.0
    expected = start_deviation(0.5, model.parameterisation) / into * noise
    assert torch.allclose(begun, expected, atol=1e-5)
    with pytest.raises(ValueError, match="not told captions"):
        pipeline(prompt="a cat")
    if "label" in kind:
        with pytest.raises(ValueError, match=r"this model has \['ant', 'bee', 'cat'\]"):
            pipeline(class_labels=["dog"])


def test_code_that_an_export_carries_is_run_only_when_it_is_trusted(plain):
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(plain.home / "patched-edm")


def test_an_export_of_ddpm_opens_as_ddpm_pipeline_too(plain):
    folder = plain.home / "unet2d-epsilon"
    for kind in (DDIMPipeline, DDPMPipeline):
        pipeline = kind.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        assert pipeline(num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 3)


def test_labels_are_asked_for_by_name(plain, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(plain.home / "modules"))
    dit = DiffusionPipeline.from_pretrained(plain.home / "dit-v-label-latents")
    assert dit.get_label_ids(["cat", "ant"]) == [2, 0]


def test_a_model_of_latents_without_its_vae_is_refused(plain, tmp_path):
    model = plain.models["unet2d-flow-latents"]
    without = type(model)(**{**vars(model), "codec": None})
    with pytest.raises(BadInput, match="with its codec"):
        export_pipeline(without, tmp_path)
    assert not list(tmp_path.iterdir())


def test_numbers_of_labels_do_not_change_what_a_padded_dit_says(plain):
    padded = DiffusionPipeline.from_pretrained(plain.home / "dit-v-label-latents").transformer
    dit = plain.models["dit-v-label-latents"].denoiser.network.transformer
    x, t = rng.torch_normal((4, *LATENTS), 0, "x"), torch.tensor([5.0, 10.0, 500.0, 999.0])
    with torch.no_grad():
        known = dit(x, t, torch.tensor([0, 1, 2, 3])).sample
        asked = padded(x, t, torch.tensor([0, 1, 2, 1000])).sample
    assert np.abs((known - asked).numpy()).max() < 1e-6
