"""Averages made after training, against the averages that a run with those widths keeps."""

import pytest
import torch

from ambient_omni.__main__ import main
from ambient_omni.evaluation import evaluate, read_heldout
from ambient_omni.training import checkpoints
from ambient_omni.training.reconstructed import reconstruct
from ambient_omni.training.run_record import RunRecord
from ambient_omni.training.trained import load_checkpoint, load_trained
from ambient_omni.training.trainer import train
from schemas.errors import BadInput

LONG = {"num_images": 400, "evaluate_every_images": 400}


def power_ema(*widths, precision="float32"):
    return {
        "sigma_rels": widths,
        "snapshot_every_images": 24,
        "snapshot_precision": precision,
    }


def newest(root, config):
    return checkpoints.load(checkpoints.steps(RunRecord.of(root, config).checkpoints)[0])


def flat(tensors):
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def test_a_width_that_was_not_tracked_is_close_to_one_that_was(trainable, config):
    tracked = config(**LONG, power_ema=power_ema(0.08, 0.15))
    train(trainable, tracked, show=False)
    expected = newest(trainable, tracked)
    for precision, bound in (("float32", 0.12), ("float16", 0.5)):
        few = config(**LONG, power_ema=power_ema(0.05, 0.1, precision=precision))
        run_id = train(trainable, few, show=False)
        for width in (0.08, 0.15):
            exact = flat(expected.tensors(f"power-{width}"))
            found = flat(checkpoints.load(reconstruct(trainable, run_id, width)).tensors("ema"))
            # Sixteen snapshots; `test_posthoc` has the arithmetic to rounding.
            moved = (exact - flat(expected.tensors("model"))).norm()
            assert (found - exact).norm() < bound * moved


def test_a_reconstructed_average_is_a_checkpoint_like_any_other(trainable, config, capsys):
    run_id = train(trainable, config(power_ema=power_ema(0.05, 0.1)), show=False)
    where = ["--root", str(trainable.path), "--run", run_id]
    assert main(["average", *where, "--sigma-rel", "0.12", "--images", "72"]) == 0
    name = capsys.readouterr().out.split()[-1]
    path = trainable.runs / run_id / name
    model = load_checkpoint(path)
    assert model.parents["power_ema"] == {"sigma_rel": 0.12, "num_images": 72}
    assert load_trained(trainable, run_id, path).config == model.config
    kept = read_heldout(trainable.runs / run_id)
    loss = evaluate(trainable, run_id, "validation", path)
    assert loss.total != kept["validation"].total
    assert read_heldout(trainable.runs / run_id) == kept


def test_every_snapshot_is_kept_while_checkpoints_are_pruned(trainable, config):
    wanted = config(power_ema=power_ema(0.05), keep_checkpoints=1)
    train(trainable, wanted, show=False)
    run = RunRecord.of(trainable, wanted)
    assert [path.name[-2:] for path in checkpoints.steps(run.snapshots)] == ["12", "09", "06", "03"]


def test_averages_that_cannot_be_had_are_said(trainable, config):
    run_id = train(trainable, config(power_ema=power_ema(0.05, 0.1)), show=False)
    for sigma_rel, time, said in (
        (0.5, None, "sigma_rel must be above 0"),
        (0.1, 10**6, "no snapshot reaches 1e"),
        (0.1, -5, "an average over -5 images is none"),
        (0.1, 0, "an average over 0 images is none"),
        (0.005, None, r"width of 0\.005 at 96 images \(\d\d% off\).*\(24, 48, 72, 96\)"),
        (0.08, 80, r"width of 0\.08 at 80 images \(\d\d% off\)"),
    ):
        with pytest.raises(BadInput, match=said):
            reconstruct(trainable, run_id, sigma_rel, time)


def test_a_run_without_snapshots_says_what_to_set(trainable, config):
    run_id = train(trainable, config(), show=False)
    with pytest.raises(BadInput, match=r"train with power_ema\.sigma_rels"):
        reconstruct(trainable, run_id, 0.1)
