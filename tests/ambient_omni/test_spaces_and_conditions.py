"""Whole runs on latents, labels and captions, as small as they can be."""

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from transformers import CLIPTextModel

from ambient_omni.data.annotations import NoiseSpaceMismatch
from ambient_omni.data.batches import BatchMaker
from ambient_omni.data.config import LatentConfig
from ambient_omni.data.latent_packs import EncodeLatentsJob, encode_batches
from ambient_omni.data.latents import latent_space
from ambient_omni.data.packs import PackSet
from ambient_omni.data.training_data import READ_TABLES, open_training_data
from ambient_omni.data.transforms import Transform
from ambient_omni.evaluation import evaluate, read_heldout
from ambient_omni.hub import weights_sha256
from ambient_omni.noise.levels import BetaSchedule, flow_time_of_sigma
from ambient_omni.noise.priors import DdpmPrior, FlowPrior, LogNormalPrior
from ambient_omni.noise.usable import Usable
from ambient_omni.training.models import settled
from ambient_omni.training.run_record import RunRecord
from ambient_omni.training.trained import load_trained
from ambient_omni.training.trainer import train
from schemas.errors import BadInput, CheckpointRefused
from schemas.registry import contract
from tests.data.pipelines import save_stable_diffusion
from tests.data.tiny_vae import save_tiny_vae

TRANSFORM = Transform(resolution=8)
NETWORK = {"widths": (8, 8), "layers_per_block": 1, "attention_scales": 1, "norm_groups": 4}
PLAIN = {"kind": "unet2d", "head_dim": 4, **NETWORK}


def describe(root, **columns):
    """Give every sample a label or a caption."""
    samples = root.tables.read("samples")
    for batch in ("ref", "pool"):
        rows = [row for row in samples.to_pylist() if row["ingest_batch"] == batch]
        for number, row in enumerate(rows):
            row.update({name: words[number % len(words)] for name, words in columns.items()})
        root.tables.commit(
            "samples",
            contract("samples").table(rows),
            slice={"ingest_batch": batch},
            inputs={"described": sorted(columns)},
            job="tests",
        )


@pytest.fixture
def latent_run(trainable, tiny, config, tmp_path):
    """A root whose levels and packs are of latents, and the settings of a run on them."""
    latents = LatentConfig(vae=save_tiny_vae(tmp_path / "vae"))
    job = EncodeLatentsJob(batches=("ref", "pool"), latents=latents, transform=TRANSFORM)
    encode_batches(trainable, job, show=False)
    space = latent_space(latents, TRANSFORM)
    for batch in ("ref", "pool"):
        rows = trainable.tables.read("samples", where={"ingest_batch": batch})["sample_row"]
        sigma_min = [0.0] * 12 if batch == "ref" else [0.2, 0.5, 1.0, None] * 5
        tiny.annotate(trainable, batch, rows.to_numpy(), sigma_min, "latent-policy", space)
    return trainable, config(
        policy_id="latent-policy",
        latents=latents.model_dump(),
        network=PLAIN,
        parameterisation={"kind": "flow"},
        batch_size=4,
        num_images=12,
        evaluate_every_images=12,
    )


def test_a_run_on_latents_obeys_latent_levels_and_measures_their_loss(latent_run):
    root, settings = latent_run
    run_id = train(root, settings, show=False)
    loss = evaluate(root, run_id, "trusted")
    packs = PackSet.open(root.packs, latent_space(settings.latents, TRANSFORM), ["ref", "pool"])
    assert loss.sigma_data == pytest.approx(packs.sigma_data, rel=1e-6)
    assert np.isfinite(loss.total)
    assert read_heldout(root.runs / run_id)["validation"].num_images == 4
    assert load_trained(root, run_id).x0_shape == (3, 4, 4)


def test_levels_of_pixels_are_refused_for_latents(latent_run):
    root, settings = latent_run
    with pytest.raises(NoiseSpaceMismatch, match="policy with noise_space: latent"):
        train(root, settings.model_copy(update={"policy_id": "policy"}), show=False)


def test_latents_are_not_mirrored_and_asking_for_it_is_refused(latent_run):
    root, settings = latent_run
    with pytest.raises(BadInput, match="a mirrored latent is not the latent"):
        train(root, settings.model_copy(update={"horizontal_flip": True}), show=False)


SHORT = {"batch_size": 4, "num_images": 12, "evaluate_every_images": 12}


def test_a_run_on_labels_measures_the_loss_of_labelled_images(trainable, config):
    describe(trainable, label=("cat", "dog"))
    settings = config(
        **SHORT, network=PLAIN, condition={"kind": "label"}, parameterisation={"kind": "v"}
    )
    run_id = train(trainable, settings, show=False)
    assert load_trained(trainable, run_id).label_names == ("cat", "dog")
    assert np.isfinite(evaluate(trainable, run_id, "trusted").total)


def test_a_run_on_captions_measures_the_loss_of_captioned_images(trainable, config, tmp_path):
    describe(trainable, caption=("a cat", "a dog", ""))
    condition = {"kind": "caption", "text_encoder": str(save_stable_diffusion(tmp_path / "sd"))}
    network = {"kind": "unet2d_condition", "heads": 2, **NETWORK}
    settings = config(
        **SHORT, network=network, condition=condition, parameterisation={"kind": "epsilon"},
        samples={"num_images": 2, "num_steps": 3, "prompts": ("a cat",)},
    )  # fmt: skip
    run_id = train(trainable, settings, show=False)
    assert np.isfinite(evaluate(trainable, run_id, "trusted").total)
    # Another encoder in its place: the same settings are another run, and this one cannot be used.
    encoder = tmp_path / "sd" / "text_encoder"
    frozen = load_trained(trainable, run_id).parents["frozen_weights"]
    assert frozen == {"text_encoder": weights_sha256(encoder)}
    replaced = CLIPTextModel.from_pretrained(encoder)
    replaced.get_input_embeddings().weight.data += 1
    replaced.save_pretrained(encoder)
    assert RunRecord.of(trainable, settings).run_id != run_id
    with pytest.raises(CheckpointRefused, match="was made with text_encoder"):
        load_trained(trainable, run_id)


def test_a_caption_that_is_missing_stops_a_run_before_it_begins(trainable, config, tmp_path):
    condition = {"kind": "caption", "text_encoder": str(save_stable_diffusion(tmp_path / "sd"))}
    network = {"kind": "unet2d_condition", "heads": 2, **NETWORK}
    with pytest.raises(BadInput, match="caption"):
        train(trainable, config(**SHORT, network=network, condition=condition), show=False)


def test_a_run_is_not_decoded_by_another_autoencoder(latent_run):
    root, settings = latent_run
    run_id = train(root, settings, show=False)
    save_tiny_vae(Path(settings.latents.vae), seed=5)
    with pytest.raises(CheckpointRefused, match="was made with noise_space"):
        load_trained(root, run_id)


def test_a_run_keeps_the_deviation_of_its_data_when_latents_are_encoded_anew(latent_run):
    root, settings = latent_run
    run_id = train(root, settings, show=False)
    before = load_trained(root, run_id).model.parameterisation.sigma_data
    run = RunRecord.of(root, settings)
    run.write("interrupted")
    space = latent_space(settings.latents, TRANSFORM)
    for file in (root.packs / space.transform_id).glob("*/meta.json"):
        meta = json.loads(file.read_text())
        meta["moments"]["std"] *= 1.001
        file.write_text(json.dumps(meta))
    assert train(root, settings, show=False) == run_id
    assert load_trained(root, run_id).model.parameterisation.sigma_data == before


def test_a_checkpoint_of_another_run_is_not_taken_for_this_one(trainable, config):
    one, other = (train(trainable, config(num_images=8, seed=n), show=False) for n in (1, 2))
    path = trainable.runs / other / "checkpoints" / "step-00000001"
    with pytest.raises(CheckpointRefused, match="was made with run_id"):
        load_trained(trainable, one, path)


KINDS = ("edm", "epsilon", "v", "x0", "flow")


def test_a_prior_that_is_left_out_is_the_usual_one_of_the_parameterisation(config, tmp_path):
    slow = {"beta_end": 0.01}
    assert config().prior == LogNormalPrior()
    assert config(parameterisation={"kind": "flow"}).prior == FlowPrior()
    ddpm = config(parameterisation={"kind": "v", "schedule": slow}).prior
    assert ddpm == DdpmPrior(schedule=BetaSchedule(beta_end=0.01))
    stated = config(parameterisation={"kind": "v"}, prior={"mean": -1.0})
    assert stated.prior == LogNormalPrior(mean=-1.0)
    assert type(stated).model_validate(stated.model_dump()) == stated
    pipeline = {"path": str(save_stable_diffusion(tmp_path / "sd"))}
    found = settled(config(init_from=pipeline))
    assert found.prior.schedule == found.parameterisation.schedule != BetaSchedule()
    assert settled(found) == found
    assert settled(config(init_from=pipeline, prior={})).prior == LogNormalPrior()
    with pytest.raises(ValidationError, match=r"parameterisation\.kind"):
        config(parameterisation={"kind": "mine"})


def test_the_same_annotation_gives_the_same_usable_set_under_each_parameterisation(
    trainable, config
):
    versions = trainable.tables.versions(READ_TABLES)
    makers = []
    for kind in KINDS:
        settings = config(
            parameterisation={"kind": kind}, prior={}, network=PLAIN, objective="ambient"
        )
        data = open_training_data(trainable, settings, versions)
        makers.append(BatchMaker(data, settings))
    draws = [maker.draw(3) for maker in makers]
    for maker, draw in zip(makers, draws, strict=True):
        assert np.array_equal(draw.index, draws[0].index)
        assert np.array_equal(draw.sigma, draws[0].sigma)
        assert np.array_equal(maker.usable.at(0.6), makers[0].usable.at(0.6))


def test_a_floor_is_the_same_in_sigma_in_timesteps_and_in_flow_time():
    schedule, usable = BetaSchedule(), Usable.of([0.0, 0.3, 1.7, np.nan], [0.0, 0.0, 0.2, 0.0])
    by_sigma = np.stack([usable.at(sigma) for sigma in schedule.sigmas])
    first = [None if not column.any() else int(column.argmax()) for column in by_sigma.T]
    assert first[3] is None
    for sample, floor in ((1, 0.3), (2, 1.7)):
        above = by_sigma[:, sample] & (schedule.sigmas > 0.2)
        step = schedule.timestep_of_sigma(floor)
        assert above.argmax() == np.ceil(step)
        time = flow_time_of_sigma(schedule.sigmas)
        assert np.array_equal(above, time >= flow_time_of_sigma(floor))
