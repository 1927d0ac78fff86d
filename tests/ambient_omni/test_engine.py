"""The step: every way to run it gives the same numbers, and a checkpoint holds all of its state."""

import contextlib
import dataclasses

import pytest
import torch
from torch import nn

from ambient_omni import rng
from ambient_omni.data.batches import Batch
from ambient_omni.training import checkpoints
from ambient_omni.training.averages import WeightAverage
from ambient_omni.training.distribution import make_accelerator
from ambient_omni.training.engine import Engine
from ambient_omni.training.models import new_model
from schemas.errors import BadInput, CheckpointRefused

NETWORK = {"patch": 2, "widths": (16,), "attention": False, "norm_groups": 4}


def batch_of(step, size=8, sigma=None):
    shape = (size, 3, 8, 8)
    levels = 0.1 + torch.from_numpy(rng.uniform(size, step, "sigma")).float()
    return Batch(
        x0=rng.torch_normal(shape, step, "x0").clamp(-1, 1),
        sigma=levels if sigma is None else torch.full((size,), sigma),
        hidden=torch.zeros(size),
        fresh=rng.torch_normal(shape, step, "fresh"),
        fixed=None,
        labels=None,
        captions=None,
        drop_condition=None,
        index=torch.arange(size),
        sample_rows=torch.arange(size),
        sample_ids=tuple(map(str, range(size))),
        noise_seeds=torch.arange(size),
    )


@pytest.fixture
def engine(config):
    """`engine(**settings)`: one that begins with the weights of seed 0."""

    def make(**settings):
        wanted = config(**settings)
        return Engine(new_model(wanted, 0), wanted, make_accelerator(wanted))

    return make


def test_what_a_launcher_sets_by_default_changes_no_step(engine, monkeypatch):
    plain = run(engine(), 2)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "eager")
    assert run(engine(), 2) == plain


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_sharding_by_somebody_else_is_refused(config, monkeypatch, name):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(BadInput, match=f"set to use {name}.*distribution to fsdp"):
        make_accelerator(config())


def run(engine, steps, start=0):
    return [engine.step(number, batch_of(number)) for number in range(start, start + steps)]


def weights(engine):
    return torch.cat([w.detach().float().flatten() for w in engine.model.weights().values()])


def saved(engine, folder):
    groups, state = engine.state()
    return checkpoints.load(checkpoints.save(folder, 1, groups, {}, {"engine": state}))


@pytest.mark.parametrize("micro", [1, 2, 3, 8])
def test_accumulated_gradients_are_those_of_the_whole_batch(engine, micro):
    whole, parts = engine(batch_size=24), engine(batch_size=24, micro_batch_size=micro)
    for step in range(3):
        batch = batch_of(step, 24)
        one, other = whole.step(step, batch), parts.step(step, batch)
        assert other.loss == pytest.approx(one.loss, rel=1e-5)
        assert other.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-4)
    assert torch.allclose(weights(parts), weights(whole), atol=1e-4)


def test_micro_batches_that_do_not_divide_the_batch_are_refused(config):
    with pytest.raises(ValueError, match="no multiple of micro_batch_size 3"):
        config(micro_batch_size=3)


def test_bf16_trains_float32_weights_close_to_those_of_full_precision(engine):
    full, half = engine(), engine(precision="bf16")
    one, other = run(full, 5), run(half, 5)
    assert [r.loss for r in other] == pytest.approx([r.loss for r in one], rel=0.05)
    assert [r.loss for r in other] != [r.loss for r in one]
    assert {w.dtype for w in half.model.weights().values()} == {torch.float32}


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU for fp16")
def test_fp16_without_a_gpu_is_said_at_once(config):
    with pytest.raises(BadInput, match="fp16 needs a GPU: use bf16, or no"):
        make_accelerator(config(precision="fp16"))


def test_the_state_of_the_gradient_scaler_is_saved_and_restored(engine, tmp_path):
    one, other = engine(), engine()
    one._accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=512.0, growth_interval=7)
    run(one, 2)
    found = saved(one, tmp_path)
    other._accelerator.scaler = torch.amp.GradScaler("cpu")
    other.load(found)
    assert other._accelerator.scaler.state_dict() == found.state["engine"]["scaler"]
    assert found.state["engine"]["scaler"]["scale"] == 512.0
    one._accelerator.scaler = other._accelerator.scaler = None


def test_fp16_under_sharding_is_refused(config):
    with pytest.raises(ValueError, match="fsdp does not train in fp16: use bf16"):
        config(distribution="fsdp", precision="fp16")


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_network_gives_the_same_losses_and_names(engine, backend):
    # inductor, the default, takes half a minute to compile even the smallest network.
    network = {"kind": "dit", "layers": 1, "heads": 1, "head_dim": 8}
    plain = engine(network=network)
    compiled = engine(network=network, compile=True, compile_backend=backend)
    one, other = run(plain, 3), run(compiled, 3)
    assert [r.loss for r in other] == pytest.approx([r.loss for r in one], rel=1e-5)
    assert compiled.model.weights().keys() == plain.model.weights().keys()


def test_gradients_are_clipped_to_the_stated_norm(engine):
    wild = engine(optimizer={"gradient_clip": 1e-6, "learning_rate": 1.0, "epsilon": 1.0})
    before = weights(wild).clone()
    result = wild.step(0, batch_of(0))
    assert result.gradient_norm > 1e-3
    # Under an epsilon of 1, AdamW moves a weight by about its clipped gradient.
    assert (weights(wild) - before).norm() < 1e-4


EVERYTHING = {
    "network": {**NETWORK, "dropout": 0.2},
    "loss_weight": {"kind": "learned", "num_features": 8},
    "power_ema": {"sigma_rels": (0.05, 0.1)},
    "optimizer": {"warmup_images": 0, "learning_rate": 0.01},
}


def test_an_engine_goes_on_from_its_saved_state_with_the_same_bits(engine, tmp_path):
    one, other = engine(**EVERYTHING), engine(**EVERYTHING, seed=5)
    run(one, 4)
    other.load(saved(one, tmp_path))
    # The seed says which dropout follows.
    other._config = one._config
    assert run(one, 3, start=4) == run(other, 3, start=4)
    for group, tensors in one.state()[0].items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, other.state()[0][group][name]), f"{group} {name}"
    assert {"loss_weighting", "power-0.05", "power-0.1"} <= one.state()[0].keys()


def test_a_learned_loss_weight_is_trained_along_and_not_averaged(engine):
    learned = engine(**EVERYTHING)
    before = learned.model.loss_weighting.log_error(torch.ones(1)).item()
    run(learned, 5)
    assert learned.model.loss_weighting.log_error(torch.ones(1)).item() != before
    assert not any("loss_weighting" in name for name in learned.ema.tensors)


@pytest.mark.parametrize("group", ["ema", "model", "optimizer", "power-0.05", "loss_weighting"])
def test_a_checkpoint_without_one_of_its_parts_is_refused_and_nothing_changes(
    engine, tmp_path, group
):
    one, other = engine(**EVERYTHING), engine(**EVERYTHING, seed=5)
    run(one, 2)
    groups, state = one.state()
    del groups[group]
    found = checkpoints.load(checkpoints.save(tmp_path, 1, groups, {}, {"engine": state}))
    before = weights(other).clone()
    with pytest.raises(CheckpointRefused, match=f"saved without '{group}'"):
        other.load(found)
    assert torch.equal(weights(other), before)


def test_a_checkpoint_of_another_network_is_refused_and_nothing_changes(engine, tmp_path):
    one, other = engine(network={**NETWORK, "widths": (20,)}), engine()
    found, before = saved(one, tmp_path), weights(other).clone()
    with pytest.raises(CheckpointRefused, match=r"does not fit the network: \d+ tensors differ"):
        other.load(found)
    assert torch.equal(weights(other), before)


def test_averages_stand_in_for_the_weights_within_a_block_only(engine):
    one = engine()
    run(one, 3)
    live, averaged = weights(one).clone(), one.ema.tensors
    kept = {name: tensor.clone() for name, tensor in averaged.items()}
    with one.averaged() as model:
        assert not model.denoiser.training
        for name, tensor in kept.items():
            assert torch.equal(model.weights()[name], tensor)
    assert torch.equal(weights(one), live)
    assert one.model.denoiser.training
    for name, tensor in kept.items():
        assert torch.equal(averaged[name], tensor)


def test_an_average_is_restored_when_its_block_fails():
    parameter = nn.Parameter(torch.ones(3))
    average = WeightAverage({"w": parameter})
    with torch.no_grad():
        parameter.fill_(2)
    with contextlib.suppress(ZeroDivisionError), average.applied():
        assert parameter.tolist() == [1, 1, 1]
        raise ZeroDivisionError
    assert parameter.tolist() == [2, 2, 2]


def test_an_average_moves_by_its_decay():
    parameter = nn.Parameter(torch.zeros(2))
    average = WeightAverage({"w": parameter})
    with torch.no_grad():
        parameter.fill_(8)
    average.update(0.75)
    assert average.tensors["w"].tolist() == [2, 2]
    average.update(0)
    assert average.tensors["w"].tolist() == [8, 8]


def test_a_step_that_is_not_finite_moves_no_weight(engine):
    one = engine()
    run(one, 1)
    before = weights(one).clone()
    broken = dataclasses.replace(batch_of(1), x0=torch.full((8, 3, 8, 8), torch.nan))
    result = one.step(1, broken)
    assert not result.finite
    assert torch.equal(weights(one), before)
    assert one.step(2, batch_of(2)).finite
