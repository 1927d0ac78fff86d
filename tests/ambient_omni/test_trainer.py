import contextlib
import importlib.util
import json
import math
import os
import re
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ambient_omni.evaluation import read_heldout
from ambient_omni.training import checkpoints, distribution, trainer
from ambient_omni.training.checkpoints import load
from ambient_omni.training.engine import Engine, StepResult
from ambient_omni.training.plan import describe
from ambient_omni.training.reporting import Reporter
from ambient_omni.training.run_record import RunRecord
from ambient_omni.training.saving import Saver
from ambient_omni.training.trained import load_checkpoint, load_trained
from ambient_omni.training.trainer import Trainer, TrainingStopped, train
from schemas.errors import BadInput, CheckpointRefused, NotEnoughReferences, TrainingFailed
from schemas.registry import contract


def row_of(root, run_id):
    return root.tables.read("training_runs", where={"run_id": run_id}).to_pylist()[0]


def final_weights(root, run_id):
    return load(checkpoints.steps(root.runs / run_id / "checkpoints")[0])


def same_weights(one, other):
    return all(
        torch.equal(tensor, other.tensors(group)[name])
        for group in ("model", "ema", "optimizer")
        for name, tensor in one.tensors(group).items()
    )


def stop_after(monkeypatch, steps, how):
    """Interrupt training when it has begun its n-th step from now."""
    ordinary, count = Trainer._step, [0]

    def step(self, batch):
        count[0] += 1
        if count[0] == steps:
            how()
        ordinary(self, batch)

    monkeypatch.setattr(Trainer, "_step", step)
    return lambda: monkeypatch.setattr(Trainer, "_step", ordinary)


def test_a_run_leaves_checkpoint_metrics_samples_heldout_loss_and_its_row(trainable, config):
    run_id = train(trainable, config(), show=False)
    folder, row = trainable.runs / run_id, row_of(trainable, run_id)
    assert row["status"] == "finished"
    assert row["num_images_seen"] == 96
    assert (trainable.path / row["checkpoint"] / "ema.safetensors").exists()
    assert (folder / "samples.png").exists()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sum("loss" in line for line in lines) == 6
    totals = {line["step"]: line["held_out_total"] for line in lines if "held_out_total" in line}
    assert list(totals) == [4, 8, 12]
    best = min(totals, key=totals.get)
    assert row["checkpoint"].endswith(f"step-{best:08d}")
    measured = read_heldout(folder)["validation"]
    assert measured.total == pytest.approx(totals[best])
    assert json.loads(row["metrics"])["total"] == measured.total
    assert measured.num_images == 4


def test_a_finished_run_is_not_run_again(trainable, config, monkeypatch):
    run_id = train(trainable, config(), show=False)
    monkeypatch.setattr(trainer, "Trainer", None)
    assert train(trainable, config(), show=False) == run_id
    assert train(trainable, config(name="renamed"), show=False) == run_id


def test_checkpoints_name_their_parents(trainable, config):
    run_id = train(trainable, config(), show=False)
    parents = final_weights(trainable, run_id).parents
    assert parents["policy_id"] == "policy"
    assert parents["noise_space"] == "pixel:8x8:lanczos:center:pm1"
    assert set(parents["table_versions"]) == {"samples", "reference_sets", "noise_annotations"}
    assert parents["config"]["batch_size"] == 8
    assert parents["code_version"]


def test_the_loss_falls_on_a_tiny_pool(trainable, config):
    run_id = train(trainable, config(num_images=960, evaluate_every_images=960), show=False)
    lines = (trainable.runs / run_id / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


def test_ctrl_c_saves_and_the_resumed_run_ends_with_the_same_weights(
    trainable, config, monkeypatch
):
    whole = final_weights(trainable, train(trainable, config(seed=3), show=False))
    (trainable.runs / whole.parents["run_id"]).rename(trainable.path / "whole")
    whole = load(next((trainable.path / "whole" / "checkpoints").glob("step-00000012")))
    undo = stop_after(monkeypatch, 6, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(TrainingStopped, match=r"stopped after 48 of 96 images .* run the same"):
        train(trainable, config(seed=3), show=False)
    undo()
    run_id = whole.parents["run_id"]
    assert row_of(trainable, run_id)["status"] == "interrupted"
    assert final_weights(trainable, run_id).step == 6
    assert train(trainable, config(seed=3), show=False) == run_id
    resumed = final_weights(trainable, run_id)
    assert resumed.step == whole.step == 12
    assert same_weights(whole, resumed)
    assert resumed.state == whole.state
    assert row_of(trainable, run_id)["status"] == "finished"


def test_a_truncated_checkpoint_is_passed_over_for_the_one_before_it(
    trainable, config, monkeypatch, caplog
):
    undo = stop_after(monkeypatch, 10, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(TrainingStopped):
        train(trainable, config(), show=False)
    undo()
    run_id = next(trainable.runs.iterdir()).name
    newest, before = checkpoints.steps(trainable.runs / run_id / "checkpoints")[:2]
    whole = (newest / "model.safetensors").read_bytes()
    (newest / "model.safetensors").write_bytes(whole[:-100])
    with caplog.at_level("INFO"):
        assert train(trainable, config(), show=False) == run_id
    assert "truncated" in caplog.text
    assert f"going on from {before.name}" in caplog.text
    assert row_of(trainable, run_id)["status"] == "finished"


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def test_what_is_saved_after_a_damaged_checkpoint_was_passed_over_is_kept(
    trainable, config, monkeypatch
):
    one, saved = config(keep_checkpoints=1), []
    for steps in (10, 1):
        undo = stop_after(monkeypatch, steps, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(TrainingStopped):
            train(trainable, one, show=False)
        undo()
        found = checkpoints.steps(next(trainable.runs.iterdir()) / "checkpoints")
        saved.append([path.name for path in found])
        if steps == 10:
            cut(found[0] / "model.safetensors")
    # 8 is kept as the best one; 10, damaged, makes room for what was saved when 8 was gone on from.
    assert saved == [["step-00000010", "step-00000008"], ["step-00000009", "step-00000008"]]


def test_a_run_whose_best_checkpoint_is_lost_selects_another_one(
    trainable, config, monkeypatch, caplog
):
    wanted = config()
    # The last evaluation is worse than the others, so that the best one is not the newest.
    ordinary = trainer.Evaluator.held_out

    def held_out(self, engine, name):
        found = ordinary(self, engine, name)
        worse = 100.0 if name.endswith("12") else 0.0
        return found.model_copy(update={"weighted": [loss + worse for loss in found.weighted]})

    monkeypatch.setattr(trainer.Evaluator, "held_out", held_out)
    run_id = train(trainable, wanted, show=False)
    best = trainable.path / row_of(trainable, run_id)["checkpoint"]
    assert best.name != "step-00000012"
    cut(best / "ema.safetensors")
    with pytest.raises(CheckpointRefused, match=r"truncated.*remove it and train again"):
        load_trained(trainable, run_id)
    # Killed before it was finished: nobody has looked at the best one yet.
    trainer.RunRecord.of(trainable, wanted).write("running")
    assert train(trainable, wanted, show=False) == run_id
    assert "it was the best one" in caplog.text
    assert load_trained(trainable, run_id).checkpoint.name == "step-00000012"


def test_a_checkpoint_of_another_noise_space_is_refused(trainable, config):
    run_id = train(trainable, config(), show=False)
    path = trainable.path / row_of(trainable, run_id)["checkpoint"]
    with pytest.raises(CheckpointRefused, match="noise_space"):
        load_checkpoint(path, {"noise_space": "pixel:64x64:lanczos:center:pm1"})


def test_the_audit_counts_every_draw_and_none_below_the_floor(trainable, config):
    for objective in ("gated", "ambient"):
        run_id = train(trainable, config(objective=objective), show=False)
        audit = json.loads(row_of(trainable, run_id)["audit"])
        assert audit["draws"] == 96
        assert audit["draws_below_floor"] == 0
        assert audit["lowest_sigma_over_sigma_min"] >= config(objective=objective).kappa
        assert audit["samples_seen"] <= 23
        assert audit["num_samples"] == 28
        assert audit["num_held_out"] == 4
        assert audit["num_never_usable"] == 5
        assert sum(map(sum, audit["draws_per_sigma_min_and_sigma"])) == 96


def test_a_gradient_that_overflowed_is_no_part_of_the_mean(trainable, config):
    lines = []
    run = SimpleNamespace(config=config(), log=lines.append)
    accelerator = SimpleNamespace(num_processes=1, is_main_process=True, log=lambda *a, **k: None)
    reporter = Reporter(run, accelerator)
    for norm in (1.0, math.inf, 3.0):
        reporter.add(StepResult(loss=0.5, gradient_norm=norm, learning_rate=0.1, finite=True))
    reporter.write_means(3)
    assert (lines[0]["gradient_norm"], lines[0]["gradient_norm_max"]) == (2.0, 3.0)
    reporter.add(StepResult(loss=0.5, gradient_norm=math.inf, learning_rate=0.1, finite=True))
    reporter.write_means(4)
    assert lines[1]["loss"] == 0.5
    assert "gradient_norm" not in lines[1]


def test_evaluating_and_saving_is_no_time_of_the_steps(trainable, config, monkeypatch):
    lines, clock = [], [0.0]
    monkeypatch.setattr("ambient_omni.training.reporting.time.monotonic", lambda: clock[0])
    run = SimpleNamespace(config=config(), log=lines.append)
    accelerator = SimpleNamespace(num_processes=1, is_main_process=True, log=lambda *a, **k: None)
    reporter = Reporter(run, accelerator)
    for _ in range(2):
        clock[0] += 1.5
        reporter.add(StepResult(loss=0.5, gradient_norm=1.0, learning_rate=0.1, finite=True))
        with reporter.aside():
            clock[0] += 60
    kept = reporter.state()
    reporter.write_means(2)
    assert lines[0]["seconds_per_step"] == 1.5
    # Steps from before a resume are in the mean of the loss, and not in the time since.
    resumed = Reporter(run, accelerator)
    resumed.restore(kept)
    clock[0] += 2.5
    resumed.add(StepResult(loss=2.0, gradient_norm=1.0, learning_rate=0.1, finite=True))
    resumed.write_means(3)
    assert (lines[1]["loss"], lines[1]["seconds_per_step"]) == (1.0, 2.5)


def test_snapshots_are_no_time_of_the_steps(trainable, config, monkeypatch):
    depth, seen, plain = [0], [], (Reporter.aside, Saver.snapshot)

    @contextlib.contextmanager
    def aside(self):
        depth[0] += 1
        with plain[0](self):
            yield
        depth[0] -= 1

    def snapshot(self, *arguments):
        seen.append(depth[0])
        plain[1](self, *arguments)

    monkeypatch.setattr(Reporter, "aside", aside)
    monkeypatch.setattr(Saver, "snapshot", snapshot)
    power_ema = {"sigma_rels": (0.1,), "snapshot_every_images": 48}
    train(trainable, config(power_ema=power_ema), show=False)
    assert seen == [1, 1]


def test_losses_that_are_not_finite_are_skipped_and_then_stop_the_run(
    trainable, config, monkeypatch
):
    ordinary = Engine._loss
    monkeypatch.setattr(Engine, "_loss", lambda *given: ordinary(*given) * np.nan)
    with pytest.raises(TrainingFailed, match="4 steps without a finite loss, the last one step 3"):
        train(trainable, config(max_nonfinite_steps=3), show=False)
    row = trainable.tables.read("training_runs").to_pylist()[0]
    assert row["status"] == "failed"
    assert json.loads(row["audit"])["nonfinite_steps"] == 4


def test_one_bad_step_changes_no_weight_and_the_run_goes_on(trainable, config, monkeypatch):
    ordinary, steps = Engine._loss, iter(range(100))

    def loss(self, batch):
        return ordinary(self, batch) * (np.nan if next(steps) == 2 else 1)

    monkeypatch.setattr(Engine, "_loss", loss)
    run_id = train(trainable, config(), show=False)
    found = final_weights(trainable, run_id)
    assert found.state["nonfinite_steps"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in found.tensors("model").values())


def test_a_held_out_set_that_is_empty_or_unknown_is_said_before_training(trainable, config):
    with pytest.raises(BadInput, match="no reference set 'nobody'; there are evaluation, trusted"):
        train(trainable, config(held_out={"reference_set": "nobody"}), show=False)
    with pytest.raises(NotEnoughReferences, match="'evaluation' is empty"):
        train(trainable, config(held_out={"reference_set": "evaluation"}), show=False)


def test_a_batch_that_the_processes_cannot_share_is_refused(config):
    class Three:
        num_processes, process_index = 3, 1

    with pytest.raises(BadInput, match="batch_size 8 is no multiple of the 3 processes"):
        distribution.share(8, Three())
    assert distribution.share(9, Three()) == range(3, 6)


def test_a_trained_model_loads_from_its_run(trainable, config):
    run_id = train(trainable, config(), show=False)
    model = load_trained(trainable, run_id)
    assert model.config == config()
    out = model.denoiser(torch.zeros(2, 3, 8, 8), torch.ones(2))
    assert out.shape == (2, 3, 8, 8)
    with pytest.raises(BadInput, match=f"runs of this root: {run_id}"):
        load_trained(trainable, "nope")


def test_a_conditional_run_refuses_samples_without_labels(trainable, config):
    with pytest.raises(BadInput, match="28 of 28 samples have no label"):
        train(trainable, config(conditional=True), show=False)


def test_tensorboard_shows_each_step_of_a_run_that_resumed_once(trainable, config, monkeypatch):
    wanted = config(trackers=("tensorboard",), log_every_images=8)
    undo = stop_after(monkeypatch, 7, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(TrainingStopped):
        train(trainable, wanted, show=False)
    undo()
    (folder,) = trainable.runs.iterdir()
    # As if it had been killed: steps 5 to 7 are done again.
    shutil.rmtree(checkpoints.steps(folder / "checkpoints")[0])
    train(trainable, wanted, show=False)
    tracked = EventAccumulator(str(folder / "ambient-omni"))
    tracked.Reload()
    assert [event.step for event in tracked.Scalars("loss")] == list(range(1, 13))
    assert [event.step for event in tracked.Scalars("held_out_total")] == [4, 8, 12]


@pytest.mark.slow
def test_wandb_gets_the_metrics_and_the_settings_if_asked(trainable, config, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_id = train(trainable, config(trackers=("wandb",)), show=False)
    (kept,) = (trainable.runs / run_id).rglob("run-*.wandb")
    assert run_id in kept.name
    content = kept.read_bytes()
    assert content.count(b"gradient_norm_max") >= 6
    for name in (b"held_out_total", b"policy_id", b"max_amplification"):
        assert name in content


def test_a_tracker_that_is_not_installed_is_named_with_what_to_install(
    trainable, config, monkeypatch
):
    ordinary = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "wandb" else ordinary(name)
    )
    with pytest.raises(BadInput, match=r"wandb is not installed: pip install 'ambient-omni\[wandb"):
        train(trainable, config(trackers=("wandb",)), show=False)


def test_how_a_run_is_run_does_not_change_which_run_it_is(config):
    changes = {
        "name": "other",
        "loader": {"num_workers": 3, "prefetch": 7},
        "micro_batch_size": 4,
        "compile": True,
        "trackers": ("wandb",),
        "keep_checkpoints": 7,
    }
    assert config(**changes).identity() == config().identity()
    assert config(batch_size=16).identity() != config().identity()
    assert config(precision="bf16").identity() != config().identity()
    assert config(sampling={"source_weights": {"a": 2.0}}).identity() != config().identity()


def test_settings_from_before_trackers_and_conditions_mean_what_they_meant(config):
    old = config(tensorboard=True, conditional=True)
    assert old.trackers == ("tensorboard",)
    assert old.condition.kind == "label"
    assert old.condition.dropout == 0
    assert config(tensorboard=False, conditional=False) == config()


def test_a_run_conditioned_on_labels_trains_and_audits_its_classes(trainable, config):
    label(trainable, ["cat", "dog"])
    labelled = {"kind": "label", "dropout": 0.5}
    run_id = train(trainable, config(condition=labelled), show=False)
    audit = json.loads(row_of(trainable, run_id)["audit"])
    assert sum(found["draws"] for found in audit["per_label"].values()) == 96
    assert set(audit["per_label"]) == {"cat", "dog"}
    assert sum(found["draws"] for found in audit["per_source"].values()) == 96
    text = describe(trainable, config(condition=labelled))
    assert "cat" in text
    assert re.search(r"[\d.]+ steps/s \([\d.]+ images/s\) on cpu with 1 process", text)
    assert re.search(r"[\d.e-]+ hours, without evaluation", text)


def label(root, names):
    """Write the samples again, with labels in turn."""
    for batch in ("ref", "pool"):
        rows = root.tables.read("samples", where={"ingest_batch": batch}).to_pylist()
        for number, row in enumerate(rows):
            row["label"] = names[number % len(names)]
        table = contract("samples").table(rows)
        part = {"ingest_batch": batch}
        root.tables.commit("samples", table, slice=part, inputs={"labels": names}, job="tests")


def test_a_level_that_is_never_trained_does_not_choose_the_checkpoint(trainable, config):
    cut = config(prior={"highest": 0.5}, held_out={"sigmas": (0.2, 1.0), "num_noises": 1})
    run = RunRecord.of(trainable, cut)
    train(trainable, cut, show=False)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "held_out_total" in line]
    assert all(line["held_out_total"] == line["held_out_weighted"][0] for line in losses)
    none = config(prior={"highest": 0.1})
    with pytest.raises(BadInput, match=r"no level of held_out\.sigmas lies between 0 and 0\.1"):
        train(trainable, none, show=False)
