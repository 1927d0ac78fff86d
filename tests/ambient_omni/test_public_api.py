import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    DDPMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    ScoreSdeVeScheduler,
    UniPCMultistepScheduler,
)
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.utils.data import DataLoader

import ambient_omni
from ambient_omni import (
    LevelThenSampleBatchSampler,
    LevelThenSampleIterable,
    TimestepLevels,
    UsableLevels,
    WithLevels,
    sample_id_of,
)
from ambient_omni.data import usable_levels
from ambient_omni.data.annotations import NoiseSpaceMismatch
from ambient_omni.data.samplers import LevelIndex
from ambient_omni.models.objectives import denoising_pair
from ambient_omni.noise.eligibility import NoEligibleSample
from ambient_omni.noise.priors import LogNormalPrior
from ambient_omni.noise.usable import Usable
from schemas.errors import AnnotationMissing, BadInput, ClassifierRefused
from schemas.registry import contract

REPOSITORY = Path(__file__).parents[2]
GUIDE = (REPOSITORY / "docs" / "use_in_your_trainer.md").read_text()
SCRIPT = re.search(r"```python\n(.*?)```", GUIDE, re.DOTALL).group(1)
SPACE = "pixel:8x8:lanczos:center:pm1"


def from_table(root, **settings):
    return UsableLevels.from_table(
        root.path, "policy", ["ref", "pool"], **{"noise_space": SPACE, **settings}
    )


def test_the_example_adds_fewer_than_twenty_lines():
    added = [line for line in SCRIPT.splitlines() if "# added" in line]
    assert 10 < len(added) < 20
    unmarked = [line for line in SCRIPT.splitlines() if "# added" not in line]
    assert not [line for line in unmarked if "ambient_omni" in line or "sampler" in line]


@pytest.mark.slow
def test_the_example_runs_and_uses_no_sample_below_its_floor(trainable, images, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    floors = {}
    annotated = trainable.tables.read("noise_annotations", ["sample_row", "sigma_min"]).to_pylist()
    level_of = {row["sample_row"]: row["sigma_min"] for row in annotated}
    apart = set(trainable.tables.read("reference_sets", where={"role": "validation"})["sample_row"])
    for row in trainable.tables.read("samples").to_pylist():
        with (trainable.shards / row["shard"]).open("rb") as shard:
            shard.seek(row["byte_offset"])
            data = shard.read(row["num_bytes"])
        name = f"{row['sample_row']:020d}.{row['format']}"
        (folder / name).write_bytes(data)
        assert sample_id_of(data) == row["sample_id"]
        minimum = level_of[row["sample_row"]]
        never = minimum is None or row["sample_row"] in {value.as_py() for value in apart}
        floors[name] = np.inf if never else minimum
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), "--images", str(folder), "--output", str(tmp_path)]
    command += ["--resolution", "8", "--max_train_steps", "12", "--root", str(trainable.path)]
    command += ["--policy", "policy", "--batches", "ref", "pool", "--noise_space", SPACE]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert ran.returncode == 0, ran.stderr
    log = json.loads((tmp_path / "log.json").read_text())
    assert len(log) == 12
    table = DDPMScheduler(num_train_timesteps=1000).alphas_cumprod.double().numpy()
    sigmas = np.sqrt((1 - table) / table)
    used = [pair for step in log for pair in zip(step["names"], step["timesteps"], strict=True)]
    assert len(used) == 12 * 16
    below = [(name, step) for name, step in used if sigmas[step] < floors[name] * (1 - 1e-6)]
    assert not below
    assert len({name for name, _ in used}) > 20
    assert np.isfinite([step["loss"] for step in log]).all()
    assert (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").exists()


def test_names_load_when_they_are_asked_for():
    assert ambient_omni.ambient_target is denoising_pair
    assert "UsableLevels" in dir(ambient_omni)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ambient_omni.nothing
    code = "import sys, ambient_omni; assert 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_levels_come_in_the_order_of_the_ids_that_are_given(trainable):
    samples = trainable.tables.read("samples")
    ids = samples["sample_id"].to_pylist()
    levels = from_table(trainable, sample_ids=ids[::-1])
    whole = from_table(trainable)
    assert levels.usable.floor.tolist() == whole.usable.floor[::-1].tolist()
    # Four of the twelve references are held out, five of the pool are null.
    assert np.isinf(whole.usable.floor).sum() == 9
    assert len(whole) == 32


def test_a_sample_that_is_in_no_batch_is_an_error_and_one_taken_down_is_never_drawn(trainable):
    ids = trainable.tables.read("samples")["sample_id"].to_pylist()
    with pytest.raises(AnnotationMissing, match=f"1 of 2 samples .* first is {'0' * 64}"):
        from_table(trainable, sample_ids=[ids[0], "0" * 64])
    row = {"sample_id": ids[20], "excluded_at": 0, "why": "asked"}
    trainable.tables.upsert("exclusions", contract("exclusions").table([row]), job="tests")
    assert np.isinf(from_table(trainable, sample_ids=ids).usable.floor[20])


def test_an_id_of_two_batches_has_the_stricter_level(trainable, make_batch, images, tiny):
    twin = make_batch(trainable, "twin", images(20, side=8, seed=2)[:2])
    rows = twin["sample_row"].to_numpy()
    tiny.annotate(trainable, "twin", rows, [0.9, 0.1])
    levels = UsableLevels.from_table(
        trainable.path,
        "policy",
        ["pool", "twin"],
        noise_space=SPACE,
        sample_ids=twin["sample_id"].to_pylist(),
    )
    # In the pool they have 0.2 and 0.5.
    assert levels.usable.floor.tolist() == [0.9, 0.5]


def test_a_policy_of_another_noise_space_is_refused(trainable):
    with pytest.raises(NoiseSpaceMismatch, match=r"in pixel:8x8.*measures them in pixel:64"):
        from_table(trainable, noise_space="pixel:64x64:lanczos:center:pm1")


class Numbers(list):
    """A dataset of dicts."""

    @classmethod
    def of(cls, count):
        return cls([{"value": number} for number in range(count)])


def sampler(**changes):
    levels = UsableLevels([0.0, 0.3, 1.0, np.nan] * 10, [0.0, 0.1, 0.0, 0.0] * 10)
    return LevelThenSampleBatchSampler(
        levels, LogNormalPrior(), 8, **{"num_steps": 20, "seed": 5, **changes}
    )


def test_a_loader_gives_items_with_levels_that_they_allow():
    made = sampler()
    loader = DataLoader(WithLevels(Numbers.of(40)), batch_sampler=made, num_workers=1)
    batches = list(loader)
    assert len(batches) == len(made) == 20
    for batch in batches:
        assert batch["value"].tolist() == batch["index"].tolist()
        assert batch["sigma"].dtype == torch.float32
        assert made._levels.allows(batch["index"].numpy(), batch["sigma"].double().numpy()).all()
        assert "timestep" not in batch


def test_the_marginal_of_the_levels_is_the_prior():
    made = sampler(num_steps=4000)
    sigma = np.concatenate([made.draw(step)[1] for step in range(4000)])
    assert stats.kstest(np.log(sigma), "norm", (-1.2, 1.2)).pvalue > 0.01


def test_batches_depend_on_seed_and_step_and_are_shared_by_positions():
    whole = list(sampler())
    assert list(sampler(start_step=12)) == whole[12:]
    halves = zip(sampler(positions=range(4)), sampler(positions=range(4, 8)), strict=True)
    assert [a + b for a, b in halves] == whole
    assert [i.sigma for i in whole[3]] == [i.sigma for i in sampler().batch(3)]
    assert list(sampler(seed=6)) != whole


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_the_iterable_gives_the_same_batches_with_any_workers(num_workers):
    iterable = LevelThenSampleIterable(Numbers.of(40), sampler())
    batches = list(DataLoader(iterable, batch_size=None, num_workers=num_workers))
    assert [batch["index"].tolist() for batch in batches] == [list(b) for b in sampler()]
    assert len(iterable) == 20


def test_an_index_keeps_its_level_on_its_way_to_a_worker():
    index = pickle.loads(pickle.dumps(LevelIndex(7, 0.25, 12)))
    assert (index, index.sigma, index.timestep) == (7, 0.25, 12)
    with pytest.raises(TypeError, match="LevelThenSampleBatchSampler"):
        WithLevels(Numbers.of(3))[1]
    assert WithLevels([5, 6])[LevelIndex(1, 0.5)]["item"] == 6


def test_a_prior_that_no_sample_serves_is_refused_at_once():
    with pytest.raises(NoEligibleSample, match=r"none of 1 samples .* 0 < sigma < 0\.5"):
        LevelThenSampleBatchSampler(UsableLevels([0.5]), LogNormalPrior(), 8, num_steps=1)


def test_the_ambient_objective_hides_samples_behind_their_own_level():
    levels = UsableLevels([0.6, 0.0], objective="ambient", max_amplification=4)
    index, sigma = np.array([0, 1]), np.array([0.7, 0.7])
    assert levels.hidden_level(index, sigma) == pytest.approx([0.6, 0.0])
    assert levels.allows(np.array([0, 0]), np.array([0.6, 0.7])).tolist() == [False, True]


def test_timesteps_of_a_ddpm_are_its_levels_each_equally_likely():
    scheduler = DDPMScheduler(num_train_timesteps=100)
    levels = TimestepLevels(scheduler)
    sigma = levels.sigma_of((np.arange(1000) + 0.5) / 1000)
    assert (np.bincount(levels.timestep_of(sigma)) == 10).all()
    kept = scheduler.alphas_cumprod.double().numpy()
    assert levels.sigmas == pytest.approx(np.sqrt((1 - kept) / kept))
    assert levels.cdf(levels.sigmas[[0, 49, 99]]).tolist() == [0.01, 0.5, 1.0]


def test_timesteps_of_flow_matching_are_times_and_its_first_level_is_pure_noise():
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    levels = TimestepLevels(scheduler)
    time = levels.timesteps / 1000
    with np.errstate(divide="ignore"):
        assert levels.sigmas == pytest.approx(time / (1 - time), rel=1e-4)
    assert levels.timestep_of(np.array([np.inf, 1.0])) == pytest.approx([1000, 500], abs=2)


@given(st.floats(0.02, 50), st.floats(0.01, 20), st.sampled_from([0.0, 0.05, 0.4]))
def test_the_nearest_timestep_is_never_one_that_the_sample_does_not_allow(sigma, floor, window):
    levels = TimestepLevels(DDPMScheduler(num_train_timesteps=50))
    usable = Usable.of([floor], [window])
    sigma = float(np.float32(sigma))
    if not usable.at(sigma)[0]:
        return
    try:
        step = levels.usable_timestep_of(np.array([sigma]), np.array([0]), usable)[0]
    except BadInput:
        side = levels.sigmas >= floor if sigma >= floor else levels.sigmas <= window
        assert not side.any()
        return
    assert usable.at(levels.sigmas[levels.timesteps == step])[0]


def test_timesteps_of_edm_schedulers_are_their_sigmas():
    scheduler = EDMEulerScheduler(sigma_min=0.01, sigma_max=50.0)
    levels = TimestepLevels(scheduler)
    assert levels.sigmas[[0, -1]] == pytest.approx([0.01, 50.0], rel=1e-4)
    # EDM tells its network a quarter of ln sigma.
    assert levels.timesteps == pytest.approx(np.log(levels.sigmas) / 4, abs=1e-4)


def _after_set_timesteps():
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(10)
    return scheduler


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        (SimpleNamespace(), "SimpleNamespace"),
        (ScoreSdeVeScheduler(), "ScoreSdeVeScheduler"),
        (UniPCMultistepScheduler(use_flow_sigmas=True), "UniPCMultistepScheduler"),
        (_after_set_timesteps(), "10 timesteps of a sampler where training has 1000"),
    ],
)
def test_a_scheduler_whose_levels_cannot_be_told_is_refused(scheduler, said):
    with pytest.raises(BadInput, match=said):
        TimestepLevels(scheduler)


def test_levels_of_an_older_classifier_are_refused_to_other_trainers_too(trainable, monkeypatch):
    def refused(root, policy_id):
        raise ClassifierRefused(policy_id)

    monkeypatch.setattr(usable_levels, "require_current_levels", refused)
    with pytest.raises(ClassifierRefused, match="policy"):
        UsableLevels.from_table(trainable.path, "policy", ["pool"], noise_space="x")
