"""Which samples a run has seen: exact across kills, and after take-downs."""

import datetime as dt
import json
import signal

import pytest

from ambient_omni.__main__ import main
from ambient_omni.training.lookup import samples_seen
from ambient_omni.training.run_record import RunRecord
from ambient_omni.training.trainer import train
from schemas.errors import BadInput
from schemas.registry import contract

FEW = {"num_images": 48, "evaluate_every_images": 16}


def rows_by_id(root):
    found = root.tables.read("samples", ["sample_id", "sample_row"])
    return dict(zip(found["sample_id"].to_pylist(), found["sample_row"].to_pylist(), strict=True))


def ids_in(trace):
    lines = [json.loads(line) for line in (trace / "0.jsonl").read_text().splitlines()]
    return {name for _, ids, _, _ in lines for name in ids}


def exclude(root, sample_id):
    row = {"sample_id": sample_id, "excluded_at": dt.datetime.now(dt.UTC), "why": "asked"}
    root.tables.upsert("exclusions", contract("exclusions").table([row]), job="tests")


def seen_of(found):
    return {name for name, sighting in found.of.items() if sighting == "seen"}


@pytest.mark.slow
def test_exactly_what_was_trained_on_is_seen_across_a_kill(trainable, config, launcher, traces):
    wanted, trace, names = config(**FEW), traces.folder("whole"), list(rows_by_id(trainable))
    assert launcher(trainable, wanted, trace=trace, kill_at=5) == [-signal.SIGKILL]
    run_id = RunRecord.of(trainable, wanted).run_id
    # The last step before the kill is in no checkpoint, and its samples are in no weights.
    assert samples_seen(trainable, run_id, names).step == 4
    assert launcher(trainable, wanted, trace=trace) == [0]
    found = samples_seen(trainable, run_id, names)
    assert found.step == 6
    assert seen_of(found) == ids_in(trace)
    assert 0 < len(seen_of(found)) < len(names)


def test_what_is_taken_down_is_not_trained_on_any_more_and_was_seen_all_the_same(
    trainable, config, monkeypatch
):
    longer = config(num_images=320, evaluate_every_images=160)
    run_id, rows = RunRecord.of(trainable, longer).run_id, rows_by_id(trainable)
    stop_at(monkeypatch, 12)
    with pytest.raises(KeyboardInterrupt):
        train(trainable, longer, show=False)
    before = seen_of(samples_seen(trainable, run_id, list(rows)))
    gone = sorted(before)[0]
    exclude(trainable, gone)
    drawn = stop_at(monkeypatch, None)
    assert train(trainable, longer, show=False) == run_id
    assert rows[gone] not in drawn
    assert len(drawn) > 12
    after = samples_seen(trainable, run_id, list(rows))
    assert after.of[gone] == "seen"
    assert before <= seen_of(after)
    row = trainable.tables.read("training_runs", where={"run_id": run_id}).to_pylist()[0]
    audit = json.loads(row["audit"])
    assert audit["samples_seen_and_excluded_since"] == 1
    assert audit["samples_seen"] == len(seen_of(after))
    assert audit["draws"] == 320


def stop_at(monkeypatch, step):
    """Press Ctrl-C at a step; returns the rows that are trained on from now."""
    from ambient_omni.training.trainer import Trainer

    ordinary, rows = Trainer._step, set()

    def taken(self, batch):
        rows.update(batch.sample_rows.tolist())
        if self._done.step == step:
            signal.raise_signal(signal.SIGINT)
        monkeypatch.undo() if step == self._done.step else None
        ordinary(self, batch)

    monkeypatch.setattr(Trainer, "_step", taken)
    return rows


def test_the_command_answers_per_sample(trainable, config, capsys):
    run_id = train(trainable, config(**FEW), show=False)
    found = trainable.tables.read("reference_sets", ["sample_row"], {"reference_set": "validation"})
    rows = rows_by_id(trainable)
    held_out = next(n for n, row in rows.items() if row == found["sample_row"][0].as_py())
    assert main(["seen", "--root", str(trainable.path), "--run", run_id, held_out, "0" * 64]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"run {run_id} up to step 6:",
        f"{held_out} not seen",
        f"{'0' * 64} not in its batches",
    ]


@pytest.mark.parametrize(
    ("run", "sample", "said"),
    [(None, "abc", "'abc' is no sample id"), ("nope", "0" * 64, "there is no training run nope")],
)
def test_bad_questions_are_one_line(trainable, config, capsys, run, sample, said):
    run = run or train(trainable, config(**FEW), show=False)
    assert main(["seen", "--root", str(trainable.path), "--run", run, sample]) == 2
    assert said in capsys.readouterr().err


def test_a_run_without_a_checkpoint_has_no_answer(trainable, config):
    run = RunRecord.of(trainable, config())
    run.write("running")
    with pytest.raises(BadInput, match="no good checkpoint yet"):
        samples_seen(trainable, run.run_id, ["0" * 64])


def test_a_take_down_of_a_held_out_image_leaves_the_run_the_same_run(trainable, config):
    before = RunRecord.of(trainable, config()).run_id
    members = trainable.tables.read("reference_sets", ["sample_row"], {"role": "validation"})
    row = members["sample_row"][0].as_py()
    exclude(trainable, next(name for name, r in rows_by_id(trainable).items() if r == row))
    assert RunRecord.of(trainable, config()).run_id == before
