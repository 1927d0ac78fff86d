"""What a run is given that it cannot use: it says so, and trains on nothing that it must not."""

import json
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest

from ambient_omni.noise.eligibility import NoEligibleSample
from ambient_omni.noise.usable import kappa
from ambient_omni.training import checkpoints, distribution
from ambient_omni.training.plan import describe
from ambient_omni.training.run_record import RunRecord
from ambient_omni.training.trainer import Trainer, TrainingStopped, train
from schemas.errors import BadInput, CheckpointRefused, TableMissing
from schemas.registry import contract


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
    held_out = {"sigmas": (0.5 * margin * 1.00005,), "num_noises": 1}
    settings = {"policy_id": "p", "num_images": 640, "evaluate_every_images": 640}
    settings |= {"held_out": held_out}
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


LABELS = {"condition": {"kind": "label", "dropout": 0.0}}


def rewrite(root, **columns):
    """Write the samples again; a column's values come from (batch, position)."""
    for batch in ("ref", "pool"):
        rows = root.tables.read("samples", where={"ingest_batch": batch}).to_pylist()
        for name, value_of in columns.items():
            for number, row in enumerate(rows):
                row[name] = value_of(batch, number)
        table, part = contract("samples").table(rows), {"ingest_batch": batch}
        inputs = {name: [row[name] for row in rows] for name in columns}
        root.tables.commit("samples", table, slice=part, inputs=inputs, job="tests")


def take_down(root, column, value):
    found = root.tables.read("samples", ["sample_id"], {column: value})["sample_id"].to_pylist()
    rows = [{"sample_id": name, "excluded_at": 0, "why": "asked"} for name in found]
    root.tables.upsert("exclusions", contract("exclusions").table(rows), job="tests")


def stop_at(monkeypatch, root, config, step):
    """Train up to a step, as Ctrl-C ends it; return the run's record."""
    ordinary = Trainer._step

    def stepped(self, batch):
        ordinary(self, batch)
        if self._done.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", stepped)
        with pytest.raises(TrainingStopped):
            train(root, config, show=False)
    return RunRecord.of(root, config)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"held_out": {"reference_set": "nobody"}}, BadInput, "no reference set 'nobody'"),
        ({"samples": {"guidance": 2.0}}, BadInput, "guidance"),
        ({"samples": {"labels": ["cat"]}}, BadInput, "labels"),
        ({"samples": {"prompts": ["a cat"]}}, BadInput, "prompts"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would_refuse(trainable, config, changes, error, said):
    for attempt in (lambda c: describe(trainable, c), lambda c: train(trainable, c, show=False)):
        with pytest.raises(error, match=said):
            attempt(config(**changes))
    assert not list(trainable.runs.glob("*/checkpoints"))


@pytest.mark.parametrize("held_out_label", [None, "dog"])
def test_held_out_images_that_the_denoiser_cannot_be_told_of_are_refused_before_training(
    trainable, config, held_out_label
):
    def label_of(batch, number):
        return held_out_label if batch == "ref" and number < 4 else "cat"

    rewrite(trainable, label=label_of)
    said = f"4 images of the set 'validation' have no label.*first: {held_out_label!r}"
    for attempt in (lambda c: describe(trainable, c), lambda c: train(trainable, c, show=False)):
        with pytest.raises(BadInput, match=said):
            attempt(config(**LABELS))


def test_classes_keep_their_numbers_when_all_of_one_are_taken_down(trainable, config, monkeypatch):
    # Held-out images are dogs, so that cats and birds can go.
    rewrite(
        trainable,
        label=lambda batch, number: (
            "dog" if batch == "ref" and number < 4 else ("cat", "dog", "bird")[number % 3]
        ),
    )
    wanted = config(**LABELS, sampling={"class_balance": "uniform"})
    before = stop_at(monkeypatch, trainable, wanted, 6)
    take_down(trainable, "label", "bird")
    run = RunRecord.of(trainable, wanted)
    assert run.run_id == before.run_id
    assert run.pinned.label_names == ("bird", "cat", "dog")
    assert train(trainable, wanted, show=False) == run.run_id
    audit = json.loads(row_of(trainable, run.run_id)["audit"])
    assert audit["draws"] == 96
    # Those of the first six steps alone.
    assert 0 < audit["per_label"]["bird"]["draws"] < 48
    assert audit["per_label"]["bird"]["samples"] == 0
    found = checkpoints.load(checkpoints.steps(run.checkpoints)[0])
    assert found.parents["label_names"] == ["bird", "cat", "dog"]


def test_a_source_whose_weight_is_set_may_be_taken_down(trainable, config, monkeypatch):
    rewrite(trainable, source=lambda _, number: "abc"[number % 3])
    wanted = config(sampling={"source_weights": {"b": 3.0}})
    run = stop_at(monkeypatch, trainable, wanted, 6)
    take_down(trainable, "source", "b")
    assert train(trainable, wanted, show=False) == run.run_id
    audit = json.loads(row_of(trainable, run.run_id)["audit"])
    assert 0 < audit["per_source"]["b"]["draws"] < 48


def test_a_file_of_a_table_that_is_gone_or_damaged_is_named(trainable, config):
    file = next(trainable.tables.table_path("noise_annotations").rglob("*.parquet"))
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    said = f"noise_annotations version 1 cannot be read, .*{file.name} is gone or damaged"
    with pytest.raises(TableMissing, match=said):
        train(trainable, config(), show=False)
    file.unlink()
    with pytest.raises(TableMissing, match=said):
        train(trainable, config(), show=False)


def test_a_run_whose_record_is_damaged_says_so(trainable, config, monkeypatch):
    run = stop_at(monkeypatch, trainable, config(), 2)
    file = run.folder / "config.json"
    file.write_text(file.read_text()[:40])
    with pytest.raises(BadInput, match=r"config\.json is damaged .*begin anew"):
        train(trainable, config(), show=False)


def test_batches_that_are_unknown_or_named_twice_are_refused(trainable, config):
    with pytest.raises(BadInput, match="no batch 'pol'; did you mean pool"):
        train(trainable, config(batches=("ref", "pol")), show=False)
    with pytest.raises(ValueError, match="must be distinct, got ref, pool, pool"):
        config(batches=("ref", "pool", "pool"))


def test_processes_that_opened_other_data_are_all_told(monkeypatch):
    monkeypatch.setattr(distribution, "gather_object", lambda mine: ["a", *mine])
    two = SimpleNamespace(num_processes=2)
    distribution.require_same(lambda: "a", two)
    with pytest.raises(BadInput, match="process 1 opened other samples"):
        distribution.require_same(lambda: "b", two)
