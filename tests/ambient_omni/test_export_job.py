import json
import os
import re
import signal
import tarfile

import numpy as np
import pyarrow as pa
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from PIL import Image

from ambient_omni.__main__ import main
from ambient_omni.data.config import LatentConfig
from ambient_omni.data.latent_packs import EncodeLatentsJob, encode_batches
from ambient_omni.data.latents import latent_space
from ambient_omni.data.transforms import Transform
from ambient_omni.generation.config import ExportJob, GenerateJob, SampleConfig
from ambient_omni.generation.export_job import export
from ambient_omni.generation.job import generate
from ambient_omni.generation.sampling import Sampler
from ambient_omni.hub import weights_sha256
from ambient_omni.training.checkpoints import load
from ambient_omni.training.trained import load_trained
from ambient_omni.training.trainer import Trainer, TrainingStopped, train
from schemas.errors import BadInput
from schemas.registry import contract
from tests.data.pipelines import save_ddpm, save_stable_diffusion, unit_noise

PROMPTS = ("a cat", "a dog")
NUM_STEPS = 8


def state_policy(root):
    """Write the policy's row; `annotate` of the fixtures writes its levels alone."""
    row = {
        "policy_id": "policy",
        "name": "by blur",
        "kind": "quality_rank",
        "parameters": '{"keep": 0.5}',
        "noise_space": "pixel:8x8:lanczos:center:pm1",
    }
    root.tables.upsert("policies", contract("policies").table([row]), job="tests")


def facts(text):
    """The rows of all tables in a text."""
    return dict(re.findall(r"^\| ([^|]*) \| ([^|]*) \|$", text, flags=re.MULTILINE))


def len_seen(row):
    return json.loads(row["audit"])["samples_seen"]


def run_example(out, monkeypatch):
    """Run the lines of Python on a card, beside the folder, and return their images."""
    code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(out.parent)
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(out.parent))
    names = {}
    exec(code, names)
    return names["images"]


@pytest.fixture
def exported(trainable, config, tmp_path):
    state_policy(trainable)
    run_id = train(trainable, config(num_images=32), show=False)
    return trainable, run_id, export(trainable, ExportJob(run_id=run_id, out=tmp_path / "out"))


def test_an_export_is_sampled_by_plain_diffusers_and_says_what_it_is(exported, monkeypatch):
    root, run_id, out = exported
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(out.parent))
    row = root.tables.read("training_runs", where={"run_id": run_id}).to_pylist()[0]
    pipeline = DiffusionPipeline.from_pretrained(out, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    model = load_trained(root, run_id)
    theirs = pipeline(2, latents=unit_noise(2, (3, 8, 8)), num_inference_steps=5, output_type="pt")
    config = SampleConfig(num_steps=5, solver="dpm++2m")
    ours = Sampler(model.model, config, model.x0_shape, prior=model.config.prior).x0(range(2))
    assert torch.allclose((ours / 2 + 0.5).clamp(0, 1), theirs.images, atol=1e-3)
    card = (out / "README.md").read_text()
    said = facts(card)
    assert said["folder"] == str(len_seen(row))
    assert said["images drawn up to the checkpoint"] == said["images drawn by the run"] == "32"
    assert said["run"] == f"`{run_id}`"
    assert said["noise_annotations"] == str(json.loads(row["table_versions"])["noise_annotations"])
    assert "Of the run's 32 draws, 0 were below the floor" in card
    assert 'Policy `policy` ("by blur")' in card
    assert "4 images were held out, and 5 were usable at no level." in card
    assert [image.size for image in run_example(out, monkeypatch)] == [(8, 8)] * 2
    assert not re.search(r"TODO|TBD|placeholder|\[.*more information.*\]", card, re.IGNORECASE)


def test_a_card_counts_what_the_audit_counts(exported):
    root, run_id, out = exported
    audit = json.loads(
        root.tables.read("training_runs", where={"run_id": run_id}).to_pylist()[0]["audit"]
    )
    card = (out / "README.md").read_text()
    samples, draws = (
        {name: int(count) for name, count in facts(card.split(head)[1].split("\n\n")[0]).items()}
        for head in ("| sigma_min | samples |", "| sigma | draws |")
    )
    names = audit["sigma_min_buckets"]
    assert samples == dict(zip(names, audit["samples_per_sigma_min"], strict=True))
    assert sum(draws.values()) == audit["draws"] == 32
    picture = np.asarray(Image.open(out / "noise_histogram.png"))
    assert picture.shape[2] == 3
    assert picture.min() < 100 < picture.max()


def test_a_card_of_an_earlier_checkpoint_says_how_far_that_one_came(trainable, config, tmp_path):
    state_policy(trainable)
    wanted = config(num_images=32, evaluate_every_images=16, keep_checkpoints=9)
    run_id = train(trainable, wanted, show=False)
    row = trainable.tables.read("training_runs", where={"run_id": run_id}).to_pylist()[0]
    (other,) = {"step-00000002", "step-00000004"} - {row["checkpoint"].split("/")[-1]}
    job = ExportJob(run_id=run_id, out=tmp_path / "out", checkpoint=f"checkpoints/{other}")
    said = facts((export(trainable, job) / "README.md").read_text())
    assert said["checkpoint"] == other
    assert said["images drawn up to the checkpoint"] == {"2": "16", "4": "32"}[other[-1]]
    assert said["images drawn by the run"] == "32"
    assert "held-out loss, summed over levels" not in said


def test_an_export_does_not_write_over_anything(exported, tmp_path):
    root, run_id, out = exported
    with pytest.raises(BadInput, match="is there already"):
        export(root, ExportJob(run_id=run_id, out=out))
    with pytest.raises(BadInput, match="has no checkpoint none"):
        export(root, ExportJob(run_id=run_id, out=tmp_path / "other", checkpoint="none"))
    assert not (tmp_path / "other").exists()
    assert not list(tmp_path.glob(".*partial"))


def test_a_run_whose_policy_nobody_knows_is_not_exported(trainable, config, tmp_path):
    run_id = train(trainable, config(num_images=8), show=False)
    with pytest.raises(BadInput, match="policy policy is not in the table policies"):
        export(trainable, ExportJob(run_id=run_id, out=tmp_path / "out"))


def test_export_is_a_command(exported, tmp_path, capsys):
    root, run_id, _ = exported
    file = tmp_path / "export.yaml"
    file.write_text(f"run_id: {run_id}\nout: {tmp_path / 'again'}\n")
    arguments = ["export", "--config", str(file), "--root", str(root.path)]
    assert main([*arguments, "--dry-run"]) == 0
    assert not (tmp_path / "again").exists()
    assert main(arguments) == 0
    assert str(tmp_path / "again") in capsys.readouterr().out
    assert (tmp_path / "again" / "README.md").exists()


@pytest.fixture
def captioned(root, make_batch, images, tiny, tmp_path):
    """A root with captioned images of 16 pixels, as latents of a tiny Stable Diffusion."""
    pipeline = save_stable_diffusion(tmp_path / "sd")
    transform, vae = Transform(resolution=16), LatentConfig(vae=str(pipeline))
    space = latent_space(vae, transform)
    for number, (batch, role) in enumerate((("ref", "reference"), ("pool", "pool"))):
        samples = make_batch(root, batch, images(8, side=16, seed=number), role=role)
        captions = pa.array([PROMPTS[row % 2] for row in range(8)])
        samples = samples.set_column(samples.schema.names.index("caption"), "caption", captions)
        part = {"ingest_batch": batch}
        root.tables.commit("samples", samples, slice=part, inputs={"told": True}, job="tests")
        rows = samples["sample_row"].to_numpy()
        tiny.build_pack(root, batch, rows, transform=transform)
        levels = [0.0] * 8 if batch == "ref" else [0.5, None] * 4
        tiny.annotate(root, batch, rows, levels, transform=space)
        if batch == "ref":
            tiny.define_set(root, "trusted", rows[4:])
            tiny.define_set(root, "validation", rows[:4])
    job = EncodeLatentsJob(batches=("ref", "pool"), latents=vae, transform=transform)
    encode_batches(root, job, show=False)
    state_policy(root)
    return root, pipeline


def settings_for(pipeline, **changes):
    return {
        "init_from": {"path": str(pipeline), **changes},
        "prior": {"kind": "ddpm", "schedule": STABLE_DIFFUSION},
        "horizontal_flip": False,
        "optimizer": {"learning_rate": 0.02, "warmup_images": 0},
        "samples": {"num_images": 2, "num_steps": 3, "prompts": PROMPTS, "guidance": 2.0},
    }


STABLE_DIFFUSION = {"shape": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def images_of(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        list(PROMPTS),
        num_inference_steps=NUM_STEPS,
        latents=unit_noise(2, (4, 8, 8)),
        output_type="pt",
    )
    return made.images


def test_a_lora_run_trains_adapters_alone_and_leaves_as_lora_weights(
    captioned, config, tmp_path, monkeypatch
):
    root, base = captioned
    before = weights_sha256(base / "unet")
    lora = {"rank": 2, "alpha": 4, "target_modules": ["to_q", "to_v"]}
    wanted = config(transform={"resolution": 16}, num_images=24, **settings_for(base, lora=lora))
    run_id = train(root, wanted, show=False)
    row = root.tables.read("training_runs", where={"run_id": run_id}).to_pylist()[0]
    assert json.loads(row["audit"])["draws_below_floor"] == 0
    kept = (root.path / row["checkpoint"] / "ema.safetensors").stat().st_size
    assert kept < 0.2 * (base / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert weights_sha256(base / "unet") == before

    out = export(root, ExportJob(run_id=run_id, out=tmp_path / "lora"))
    assert {path.name for path in out.iterdir()} == {
        "README.md", "noise_histogram.png", "pytorch_lora_weights.safetensors",
    }  # fmt: skip
    assert 'pipe.load_lora_weights("lora")' in (out / "README.md").read_text()
    assert 'pipe(prompt="a caption", guidance_scale=2)' in (out / "README.md").read_text()
    assert run_example(out, monkeypatch)[0].size == (16, 16)
    plain = StableDiffusionPipeline.from_pretrained(base)
    untuned = images_of(plain)
    plain.load_lora_weights(out)
    tuned = images_of(plain)
    assert (tuned - untuned).abs().max() > 1e-3
    # And the same weights here: the adapted network says the same.
    ours = load_trained(root, run_id).model
    x, t = unit_noise(2, (4, 8, 8)), torch.tensor([100.0, 900.0])
    told = ours.conditioner.encode(captions=PROMPTS)
    with torch.no_grad():
        theirs = plain.unet(x, t, encoder_hidden_states=told.text).sample
        assert torch.allclose(ours.denoiser.network(x, t, told), theirs, atol=1e-5)


def test_a_lora_run_that_was_stopped_ends_with_the_adapters_it_would_have_had(
    captioned, config, monkeypatch
):
    root, base = captioned
    lora = {"rank": 2, "dropout": 0.2}
    wanted = config(transform={"resolution": 16}, num_images=32, **settings_for(base, lora=lora))
    run_id = train(root, wanted, show=False)
    (root.runs / run_id).rename(root.path / "whole")
    ordinary = Trainer._step

    def step(self, batch):
        ordinary(self, batch)
        if self._done.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "_step", step)
    with pytest.raises(TrainingStopped):
        train(root, wanted, show=False)
    monkeypatch.setattr(Trainer, "_step", ordinary)
    assert train(root, wanted, show=False) == run_id
    last = "checkpoints/step-00000004"
    whole, resumed = (load(path / last) for path in (root.path / "whole", root.runs / run_id))
    for group in ("model", "ema"):
        one, other = whole.tensors(group), resumed.tensors(group)
        assert all("lora" in name for name in one)
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_tuned_run_makes_images_of_prompts(captioned, config, tmp_path):
    root, base = captioned
    wanted = config(transform={"resolution": 16}, num_images=8, **settings_for(base))
    run_id = train(root, wanted, show=False)
    samples = SampleConfig(num_images=3, num_steps=2, prompts=PROMPTS, guidance=3.0)
    job = GenerateJob(run_id=run_id, out=tmp_path / "made", samples=samples, format="tar")
    assert generate(root, job, show=False) == 3
    with tarfile.open(tmp_path / "made" / "000000.tar") as tar:
        told = tar.extractfile("00000002.txt").read().decode()
        assert told == json.load(tar.extractfile("00000002.json"))["text"] == PROMPTS[0]
    out = export(root, ExportJob(run_id=run_id, out=tmp_path / "tuned"))
    assert images_of(DiffusionPipeline.from_pretrained(out)).shape == (2, 3, 16, 16)


def test_an_unconditional_pipeline_is_tuned_and_leaves_as_what_it_was(trainable, config, tmp_path):
    state_policy(trainable)
    base = save_ddpm(tmp_path / "ddpm")
    wanted = config(num_images=16, init_from={"path": str(base)}, prior={"kind": "ddpm"})
    run_id = train(trainable, wanted, show=False)
    out = export(trainable, ExportJob(run_id=run_id, out=tmp_path / "tuned"))
    pipeline = DiffusionPipeline.from_pretrained(out)
    assert type(pipeline).__name__ == "DDPMPipeline"
    assert weights_sha256(out / "unet") != weights_sha256(base / "unet")
