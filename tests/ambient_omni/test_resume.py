"""Kill -9 at random moments, other numbers of workers and processes: the run stays the same."""

import json

import numpy as np
import pytest
import torch

from ambient_omni import rng
from ambient_omni.evaluation import evaluate, read_heldout
from ambient_omni.training import checkpoints
from ambient_omni.training.run_record import RunRecord

NETWORK = {"patch": 2, "widths": (16,), "attention": False, "norm_groups": 4}

# Everything that has a state: dropout, a learned loss weight, two power-function averages.
EVERYTHING = {
    "network": {**NETWORK, "dropout": 0.1},
    "loss_weight": {"kind": "learned", "num_features": 8},
    "power_ema": {"sigma_rels": (0.05, 0.1), "snapshot_every_images": 64},
    "objective": "ambient",
    "num_images": 320,
    "evaluate_every_images": 40,
    "held_out": {"sigmas": (0.5,), "num_noises": 1},
    "samples": {"num_images": 1, "num_steps": 2},
}


def last_checkpoint(root, config):
    folder = RunRecord.of(root, config).checkpoints
    return checkpoints.load(checkpoints.steps(folder)[0])


def tensors_of(found):
    return {group: found.tensors(group) for group in found.groups}


def take_aside(root, config, name):
    """Move a run's folder and forget its row, so that the same run can be made again."""
    run = RunRecord.of(root, config)
    run.folder.rename(root.path / name)
    run.write("interrupted")
    return root.path / name


def assert_same(one, other):
    assert one.keys() == other.keys()
    for group, tensors in one.items():
        assert tensors.keys() == other[group].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, other[group][name]), f"{group} {name}"


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def kill_and_go_on(launcher, root, config, world, trace, seed, workers=(0, 2)):
    """Start the run again and again, killed after random times, until it is through."""
    times = rng.uniform(4, seed, "kill")
    for number, time in enumerate(times):
        here = config.model_copy(
            update={
                "loader": config.loader.model_copy(
                    update={"num_workers": workers[number % len(workers)]}
                )
            }
        )
        codes = launcher(root, here, world, kill_after=0.2 + 1.2 * world * float(time), trace=trace)
        if codes == [0] * world:
            break
    assert launcher(root, config, world, trace=trace) == [0] * world


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(
    trainable, config, launcher, traces, world
):
    wanted = config(**EVERYTHING)
    whole, pieces = traces.folder("whole"), traces.folder("pieces")
    assert launcher(trainable, wanted, world, trace=whole) == [0] * world
    expected = last_checkpoint(trainable, wanted)
    aside = take_aside(trainable, wanted, "whole")
    expected_tensors = tensors_of(checkpoints.load(aside / "checkpoints" / expected.path.name))
    kill_and_go_on(launcher, trainable, wanted, world, pieces, seed=world)
    found = last_checkpoint(trainable, wanted)
    assert_same(tensors_of(found), expected_tensors)
    assert found.state == expected.state
    assert traces.read(pieces) == traces.read(whole)
    assert losses(RunRecord.of(trainable, wanted).folder) == losses(aside)
    assert_same_snapshots(RunRecord.of(trainable, wanted).snapshots, aside / "snapshots")


def assert_same_snapshots(one, other):
    names = [path.name for path in checkpoints.steps(one)]
    assert names == [path.name for path in checkpoints.steps(other)]
    for name in names:
        assert_same(
            tensors_of(checkpoints.load(one / name)), tensors_of(checkpoints.load(other / name))
        )


# Without dropout, whose masks depend on how a batch is shared.
PLAIN = {
    "loss_weight": {"kind": "learned", "num_features": 8},
    "power_ema": {"sigma_rels": (0.1,), "snapshot_every_images": 80},
    "num_images": 160,
    "evaluate_every_images": 40,
    "held_out": {"sigmas": (0.5,), "num_noises": 1},
    "samples": {"num_images": 1, "num_steps": 2},
}


@pytest.fixture
def alone(trainable, config, launcher, traces):
    """A whole run of one process: its trace, losses, weights and audit."""
    wanted, trace = config(**PLAIN), traces.folder("alone")
    assert launcher(trainable, wanted, trace=trace) == [0]
    found = last_checkpoint(trainable, wanted)
    tensors, audit = tensors_of(found), found.state["audit"]
    aside = take_aside(trainable, wanted, "alone")
    return traces.read(trace)[0], losses(aside), tensors, audit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"world": 2}, {"world": 1}),
        ({"world": 2, "distribution": "fsdp"}, {"world": 2, "distribution": "fsdp"}),
        ({"world": 2, "distribution": "fsdp"}, {"world": 1, "micro_batch_size": 4}),
        ({"world": 1, "micro_batch_size": 2}, {"world": 2, "micro_batch_size": 2}),
    ],
)
def test_other_processes_shards_and_micro_batches_see_the_same_run_to_rounding(
    trainable, config, launcher, traces, alone, first, then
):
    for number, how in enumerate((first, then)):
        world, kill_at = how["world"], 12 if number == 0 else None
        settings = {k: v for k, v in how.items() if k != "world"}
        trace = traces.folder(f"part-{number}")
        launcher(trainable, config(**PLAIN, **settings), world, kill_at=kill_at, trace=trace)
        assert_part_of(alone[0], traces.read(trace), world)
    wanted = config(**PLAIN)
    assert losses(RunRecord.of(trainable, wanted).folder) == pytest.approx(alone[1], rel=1e-4)
    found = last_checkpoint(trainable, wanted)
    assert found.step == 20
    assert found.state["audit"] == alone[3]
    assert torch.equal(found.tensors("seen")["0"], alone[2]["seen"]["0"])
    for name, tensor in found.tensors("ema").items():
        assert torch.allclose(tensor, alone[2]["ema"][name], atol=1e-4), name


def assert_part_of(whole, ranks, world):
    """The processes' shares, side by side, are the batches of one process."""
    assert sorted(ranks) == list(range(world))
    for step in ranks[0]:
        ids, sigmas, _ = whole[step]
        assert [i for rank in range(world) for i in ranks[rank][step][0]] == ids
        assert [s for rank in range(world) for s in ranks[rank][step][1]] == sigmas


@pytest.mark.slow
def test_shards_resume_with_the_same_bits(trainable, config, launcher):
    wanted = config(**{**PLAIN, "network": {**NETWORK, "dropout": 0.1}}, distribution="fsdp")
    assert launcher(trainable, wanted, 2) == [0, 0]
    expected = tensors_of(last_checkpoint(trainable, wanted))
    take_aside(trainable, wanted, "whole")
    assert launcher(trainable, wanted, 2, kill_at=13) == [-9, -9]
    assert launcher(trainable, wanted, 2) == [0, 0]
    assert_same(tensors_of(last_checkpoint(trainable, wanted)), expected)


@pytest.mark.slow
def test_all_processes_save_and_stop_when_one_of_them_is_asked_to(
    trainable, config, launcher, traces
):
    wanted, trace = config(**PLAIN), traces.folder("stopped")
    assert launcher(trainable, wanted, 2, stop_at=7, trace=trace) == [130, 130]
    ranks = traces.read(trace)
    # The answer to a vote is known a step later.
    assert last_checkpoint(trainable, wanted).step == len(ranks[0]) == len(ranks[1]) == 9
    assert launcher(trainable, wanted, 2) == [0, 0]
    assert last_checkpoint(trainable, wanted).step == 20


@pytest.mark.slow
def test_half_precision_is_the_same_for_replicas_and_for_shards(trainable, config, launcher):
    few = {**PLAIN, "num_images": 48, "precision": "bf16"}
    found = []
    for distribution in ("ddp", "fsdp"):
        wanted = config(**few, distribution=distribution)
        assert launcher(trainable, wanted, 2) == [0, 0]
        found.append(losses(take_aside(trainable, wanted, distribution)))
    assert found[0] == pytest.approx(found[1], rel=1e-2)


def test_processes_go_on_from_the_newest_checkpoint_that_all_of_them_can_read(
    trainable, config, launcher
):
    assert launcher(trainable, config(), 2) == [0, 0]
    whole = tensors_of(last_checkpoint(trainable, config()))
    take_aside(trainable, config(), "whole")
    # Checkpoints of steps 4 and 8 are there, and one process sees the first alone.
    assert launcher(trainable, config(), 2, kill_at=9) == [-9, -9]
    assert launcher(trainable, config(), 2, blind=8) == [0, 0]
    assert_same(tensors_of(last_checkpoint(trainable, config())), whole)


def test_processes_that_share_no_checkpoint_refuse_to_go_on(trainable, config, launcher):
    assert launcher(trainable, config(), 2, kill_at=9) == [-9, -9]
    before = sorted(path.name for path in RunRecord.of(trainable, config()).checkpoints.iterdir())
    assert launcher(trainable, config(), 2, blind=0) == [1, 1]
    after = sorted(path.name for path in RunRecord.of(trainable, config()).checkpoints.iterdir())
    assert after == before


def test_a_signal_to_the_trainer_and_its_workers_saves_first(trainable, config, launcher):
    wanted = config(loader={"num_workers": 2})
    assert launcher(trainable, wanted, stop_at=6) == [130]
    assert last_checkpoint(trainable, wanted).step >= 6
    assert launcher(trainable, wanted) == [0]


def test_processes_share_out_the_held_out_images_and_find_what_one_finds(
    trainable, config, launcher
):
    wanted = config(held_out={"sigmas": (0.2, 1.0), "num_noises": 2, "max_images": 3})
    assert launcher(trainable, wanted, 2) == [0, 0]
    run_id = RunRecord.of(trainable, wanted).run_id
    shared = read_heldout(trainable.runs / run_id)["validation"]
    alone = evaluate(trainable, run_id, "validation")
    assert shared.sample_rows == alone.sample_rows
    assert np.allclose(shared.per_image, alone.per_image, rtol=1e-5)
    assert len(alone.per_image) == 3


def test_processes_end_while_their_threads_wait_for_pythons_lock(trainable, config, launcher):
    assert launcher(trainable, config(), 2, busy=True) == [0, 0]
