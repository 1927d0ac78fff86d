"""Whole runs from a pipeline of diffusers: latents, captions, LoRA, resume."""

import json

import pytest
import torch

from ambient_omni.data.config import LatentConfig
from ambient_omni.data.latent_packs import EncodeLatentsJob, encode_batches
from ambient_omni.data.latents import latent_space
from ambient_omni.data.transforms import Transform
from ambient_omni.training import checkpoints
from ambient_omni.training.models import settled
from ambient_omni.training.run_record import RunRecord
from ambient_omni.training.trained import load_trained
from ambient_omni.training.trainer import train
from schemas.errors import BadInput
from schemas.registry import contract
from tests.data.pipelines import save_ddpm, save_stable_diffusion

BIG = Transform(resolution=16)
FEW = {"num_images": 48, "evaluate_every_images": 24, "held_out": {"sigmas": (1.0,)}}


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory):
    return save_stable_diffusion(tmp_path_factory.mktemp("pipelines") / "sd")


@pytest.fixture
def captioned(trainable, tiny, stable_diffusion):
    """The root with captions, and latents of the pipeline's VAE under policy "latent"."""
    latents = LatentConfig(vae=str(stable_diffusion))
    space = latent_space(latents, BIG)
    for batch in ("ref", "pool"):
        rows = trainable.tables.read("samples", where={"ingest_batch": batch}).to_pylist()
        for number, row in enumerate(rows):
            row["caption"] = ("a cat", "a dog")[number % 2]
        table, part = contract("samples").table(rows), {"ingest_batch": batch}
        trainable.tables.commit("samples", table, slice=part, inputs={"c": 1}, job="tests")
        keys = [row["sample_row"] for row in rows]
        tiny.build_pack(trainable, batch, keys, BIG)
        levels = [0.0 if batch == "ref" else 0.7] * len(keys)
        tiny.annotate(trainable, batch, keys, levels, policy_id="latent", transform=space)
    job = EncodeLatentsJob(batches=("ref", "pool"), latents=latents, transform=BIG)
    encode_batches(trainable, job, show=False)
    return trainable


def tuned(config, pipeline, lora, **changes):
    settings = {
        "policy_id": "latent",
        "transform": BIG,
        "init_from": {"path": str(pipeline), "lora": lora},
        **FEW,
    }
    return config(**{**settings, **changes})


def newest(root, run_id):
    return checkpoints.load(checkpoints.steps(root.runs / run_id / "checkpoints")[0])


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_a_captioned_pipeline_is_tuned_on_latents_whole_or_by_adapters(
    captioned, config, stable_diffusion, lora
):
    wanted = tuned(config, stable_diffusion, lora, samples={"num_images": 2, "prompts": ["a cat"]})
    run_id = train(captioned, wanted, show=False)
    found = newest(captioned, run_id)
    names = list(found.tensors("model"))
    assert all("lora" in name for name in names) == (lora is not None)
    assert {name.rsplit(".", 1)[0] for name in found.tensors("optimizer")} == {
        f"denoiser.{name}" for name in names
    }
    model = load_trained(captioned, run_id)
    assert model.x0_shape == (4, 8, 8)
    assert model.config.condition.kind == "caption"
    assert found.parents["noise_space"].startswith("latent:4x8x8:")
    row = captioned.tables.read("training_runs", where={"run_id": run_id}).to_pylist()[0]
    audit = json.loads(row["audit"])
    assert audit["draws_below_floor"] == 0
    assert audit["draws"] == 48
    assert (captioned.runs / run_id / "samples.png").exists()


def test_adapters_resume_with_the_same_bits(captioned, config, stable_diffusion):
    wanted = tuned(config, stable_diffusion, {"rank": 2, "dropout": 0.1})
    run = RunRecord.of(captioned, wanted)
    train(captioned, wanted, show=False)
    last, *_ = checkpoints.steps(run.checkpoints)
    expected = {group: checkpoints.load(last).tensors(group) for group in ("model", "ema")}
    checkpoints.prune(run.checkpoints, ["step-00000003"])
    run.write("interrupted")
    assert train(captioned, wanted, show=False) == run.run_id
    found = newest(captioned, run.run_id)
    assert found.step == 6
    for group, tensors in expected.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, found.tensors(group)[name]), name


def test_an_unconditional_pixel_pipeline_is_tuned(trainable, config, tmp_path):
    pipeline = save_ddpm(tmp_path / "ddpm")
    wanted = config(**FEW, init_from={"path": str(pipeline)})
    model = load_trained(trainable, train(trainable, wanted, show=False))
    assert model.config.parameterisation.kind == "epsilon"
    assert model.config.latents is None


def test_settings_that_the_pipeline_brings_are_not_to_be_given_otherwise(
    trainable, config, tmp_path
):
    pipeline = save_ddpm(tmp_path / "ddpm")
    wanted = config(init_from={"path": str(pipeline)}, parameterisation={"kind": "flow"})
    with pytest.raises(BadInput, match="parameterisation is what the pipeline"):
        train(trainable, wanted, show=False)


def test_other_weights_in_the_same_folder_make_another_run(trainable, config, tmp_path):
    pipeline = save_ddpm(tmp_path / "ddpm")
    wanted = config(**FEW, init_from={"path": str(pipeline)})
    before = RunRecord.of(trainable, wanted).run_id
    file = next((pipeline / "unet").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert RunRecord.of(trainable, wanted).run_id != before


def test_a_network_beside_a_pipeline_is_refused_for_it_would_do_nothing(
    trainable, config, tmp_path
):
    start = {"path": str(save_ddpm(tmp_path / "ddpm"))}
    with pytest.raises(BadInput, match="leave out network beside init_from"):
        RunRecord.of(trainable, config(init_from=start, network={"kind": "dit", "layers": 1}))


def test_a_prior_over_another_schedule_is_refused(trainable, config, tmp_path):
    start = {"path": str(save_stable_diffusion(tmp_path / "sd"))}
    with pytest.raises(BadInput, match=r"prior.schedule \(linear.*the parameterisation's \(scaled"):
        settled(config(init_from=start, prior={"kind": "ddpm", "lowest": 0.1}))
    slow = {"kind": "v", "schedule": {"beta_end": 0.01}}
    with pytest.raises(BadInput, match=r"prior.schedule"):
        settled(config(prior={"kind": "ddpm"}, parameterisation=slow))
