"""What a run is given that it cannot use: it says so, and trains on nothing that it must not."""

import json

import numpy as np
import pytest

from ambient_omni.noise.eligibility import NoEligibleSample
from ambient_omni.noise.usable import kappa
from ambient_omni.training import checkpoints
from ambient_omni.training.plan import describe
from ambient_omni.training.run_record import RunRecord
from ambient_omni.training.trainer import train
from schemas.errors import CheckpointRefused


def rows_of(root, batch):
    found = root.tables.read("samples", ["sample_row"], {"ingest_batch": batch})
    return found["sample_row"].to_numpy()


def row_of(root, run_id):
    return root.tables.read("training_runs", where={"run_id": run_id}).to_pylist()[0]


def lines_of(root, run_id):
    return [json.loads(t) for t in (root.runs / run_id / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def annotated(trainable, tiny):
    """`annotated(reference, pool)`: the two batches under one level each, policy "p"."""

    def make(reference, pool):
        for batch, level in (("ref", reference), ("pool", pool)):
            rows = rows_of(trainable, batch)
            tiny.annotate(trainable, batch, rows, [level] * len(rows), policy_id="p")
        return trainable

    return make


def test_levels_just_above_sigma_min_give_finite_losses_and_bounded_gradients(annotated, config):
    # Every level lies between κ σ_min and 1.0001 κ σ_min of all samples.
    margin = kappa("ambient", 4.0)
    root = annotated(0.5, 0.5)
    close = {"mean": np.log(0.5 * margin), "std": 1.0}
    band = {"lowest": 0.5 * margin * (1 + 1e-6), "highest": 0.5 * margin * 1.0001}
    settings = {"policy_id": "p", "num_images": 1600, "evaluate_every_images": 1600}
    ambient = config(**settings, objective="ambient", prior={**close, **band})
    run_id = train(root, ambient, show=False)
    lines = [line for line in lines_of(root, run_id) if "loss" in line]
    audit = json.loads(row_of(root, run_id)["audit"])
    assert audit["nonfinite_steps"] == 0
    assert audit["draws_below_floor"] == 0
    assert margin <= audit["lowest_sigma_over_sigma_min"] < margin * 1.0002
    norms = np.array([line["gradient_norm_max"] for line in lines])
    # A bound of 4 on the amplification keeps the target within twice σ_min of the image; the
    # same levels without it (σ/σ_min = 1.0001) would amplify 5,000-fold.
    gated = train(root, config(**settings, prior={**close, **band}), show=False)
    plain = [line["gradient_norm_max"] for line in lines_of(root, gated) if "loss" in line]
    assert np.isfinite(norms).all()
    assert np.percentile(norms, 99) < 5 * np.percentile(plain, 99)


def test_samples_whose_levels_lie_above_all_of_the_prior_are_counted_and_never_drawn(
    annotated, config
):
    root = annotated(0.0, 50.0)
    wanted = config(policy_id="p", prior={"highest": 20.0})
    assert "0 usable at no level, 20 at no level of the prior" in describe(root, wanted)
    audit = json.loads(row_of(root, train(root, wanted, show=False))["audit"])
    assert audit["num_never_drawn"] == 20
    assert audit["num_never_usable"] == 0
    assert audit["samples_seen"] <= 8


@pytest.mark.parametrize("dry", [True, False])
def test_no_usable_sample_at_all_is_an_error_and_no_endless_search(annotated, config, dry):
    root = annotated(None, None)
    with pytest.raises(NoEligibleSample, match="none of 28 samples may be used at 0 < sigma < inf"):
        (describe if dry else lambda *given: train(*given, show=False))(root, config(policy_id="p"))


def test_no_usable_sample_at_some_levels_names_them(annotated, config):
    root = annotated(3.0, 3.0)
    with pytest.raises(NoEligibleSample, match=r"0 < sigma < 3"):
        train(root, config(policy_id="p"), show=False)


def test_a_run_none_of_whose_checkpoints_can_be_used_says_so_and_does_not_begin_anew(
    trainable, config
):
    wanted = config()
    run = RunRecord.of(trainable, wanted)
    train(trainable, wanted, show=False)
    for path in checkpoints.steps(run.checkpoints):
        (path / "ema.safetensors").write_bytes(b"\x80\x04pickled")
    run.write("interrupted")
    with pytest.raises(CheckpointRefused, match=r"none of the \d checkpoints .* truncated"):
        train(trainable, wanted, show=False)
    assert row_of(trainable, run.run_id)["status"] == "failed"


def test_a_checkpoint_of_another_run_is_not_gone_on_from(trainable, config):
    donor, wanted = config(seed=1), config(seed=2)
    train(trainable, donor, show=False)
    run = RunRecord.of(trainable, wanted)
    run.folder.mkdir()
    RunRecord.of(trainable, donor).checkpoints.rename(run.checkpoints)
    with pytest.raises(CheckpointRefused, match="was made with run_id"):
        train(trainable, wanted, show=False)
