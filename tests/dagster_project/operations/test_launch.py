"""The trainer's process, with a small program in its place."""

import json
import os
import signal
import sys
import time

import pytest

from dagster_project.operations.config import LaunchConfig
from dagster_project.operations.launch import Step, TrainerFailed, TrainerProcess, pinned_versions
from schemas.errors import BadInput, TableMissing

TRAINS = """
import json, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index('--config') + 1]).parents[1]
signal.signal(signal.SIGTERM, lambda *_: ((folder / 'saved').touch(), sys.exit(130)))
for step in range({steps}):
    with (folder / 'metrics.jsonl').open('a') as file:
        file.write(json.dumps({{'step': step, 'images': 8 * step, 'loss': 1.5}}) + '\\n')
    time.sleep({pause})
print('error: it went wrong') if {code} else None
sys.exit({code})
"""


@pytest.fixture
def trainer(root, tmp_path):
    """`trainer(steps=.., pause=.., code=..)`: a process that writes metrics as a run does."""
    made = []

    def make(steps=3, pause=0.01, code=0, folder="run"):
        script = tmp_path / f"{folder}.py"
        script.write_text(TRAINS.format(steps=steps, pause=pause, code=code))
        run = root.runs / folder
        run.mkdir(parents=True, exist_ok=True)
        template = (sys.executable, str(script), "{command}")
        launch = LaunchConfig(kind="template", template=template, stop_seconds=5)
        made.append(TrainerProcess(root, run, "arm", {"seed": 0}, launch))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def test_a_process_is_followed_to_its_end(trainer):
    one = trainer(steps=3)
    assert one.start()
    seen = list(one.follow())
    assert [step.metrics["step"] for step in seen] == [0, 1, 2]
    assert seen[1].line() == "8 images: loss 1.5"
    assert json.loads((one.folder / "launch" / "config.json").read_text()) == {"seed": 0}


def test_a_process_that_fails_says_why(trainer):
    one = trainer(steps=1, code=2)
    one.start()
    with pytest.raises(TrainerFailed, match="code 2: it went wrong"):
        list(one.follow())
    assert one.exit_code == 2


def test_whoever_comes_later_finds_the_process_and_starts_no_second(root, trainer):
    first = trainer(steps=1000, pause=0.05)
    first.start()
    second = TrainerProcess(root, first.folder, "arm", {"seed": 0}, first.launch)
    while not (first.folder / "metrics.jsonl").exists():
        time.sleep(0.01)
    assert second.is_alive()
    assert not second.start()
    second.stop()
    assert not first.is_alive()
    assert (first.folder / "saved").exists()  # it was asked, not killed


def test_a_process_that_does_not_save_in_time_is_ended(root, trainer):
    one = trainer(steps=1000, pause=0.05)
    one.start()
    pid = json.loads((one.folder / "launch" / "process.json").read_text())["pid"]
    os.kill(pid, signal.SIGSTOP)
    impatient = LaunchConfig(kind="template", template=("{command}",), stop_seconds=0.2)
    TrainerProcess(root, one.folder, "arm", {}, impatient).stop()
    assert not one.is_alive()


def test_a_number_that_another_process_took_over_is_not_the_trainer(root, trainer):
    one = trainer()
    one.start()
    list(one.follow())
    file = one.folder / "launch" / "process.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pid": os.getpid()}))
    assert not TrainerProcess(root, one.folder, "arm", {}, one.launch).is_alive()


def test_a_resumed_run_is_followed_from_where_it_goes_on(root, trainer):
    one = trainer(steps=2)
    one.start()
    list(one.follow())
    again = TrainerProcess(root, one.folder, "arm", {}, one.launch)
    again.start()
    assert len(list(again.follow())) == 2


def test_a_line_that_is_half_written_waits_for_its_rest(trainer):
    one = trainer(steps=0)
    one.start()
    while one.is_alive():
        time.sleep(0.01)
    file = one.folder / "metrics.jsonl"
    file.write_text('{"step": 1, "ima')
    assert list(one._new_steps()) == []
    file.write_text('{"step": 1, "images": 8}\n')
    assert [step.metrics["step"] for step in one._new_steps()] == [1]


def test_commands_of_one_process_of_torchrun_and_of_a_cluster(root):
    def words(**launch):
        return TrainerProcess(root, root.runs / "r", "arm", {}, LaunchConfig(**launch)).command()

    alone = words()
    assert alone[1:3] == ["-m", "dagster_project.train_child"]
    several = words(kind="torchrun", num_processes=4)
    assert several[several.index("--nproc_per_node") + 1] == "4"
    assert "dagster_project.train_child" in several
    cluster = words(kind="template", template=("srun", "--gres=gpu:4", "{command}"))
    assert cluster == ["srun", "--gres=gpu:4", *alone]


def test_a_template_without_a_place_for_the_command_is_refused():
    with pytest.raises(ValueError, match="command"):
        LaunchConfig(kind="template", template=("srun",))


def test_a_command_that_does_not_exist_is_named(root):
    launch = LaunchConfig(kind="template", template=("/no/such/srun", "{command}"))
    (root.runs / "r").mkdir(parents=True)
    with pytest.raises(BadInput, match="/no/such/srun"):
        TrainerProcess(root, root.runs / "r", "arm", {}, launch).start()


def test_versions_are_numbers_or_the_latest(root, make_batch, images):
    make_batch(root, "pool", images(1))
    version = root.tables.version("samples")
    wanted = {"samples": str(version), "noise_annotations": "latest"}
    assert pinned_versions(root, wanted) == {"samples": version}
    with pytest.raises(BadInput, match="'newest' is no number"):
        pinned_versions(root, {"samples": "newest"})
    with pytest.raises(TableMissing):
        pinned_versions(root, {"samples": version + 7})


def test_an_evaluation_is_told_by_its_held_out_loss():
    assert Step({"held_out_total": 1.0}).is_evaluation
    assert not Step({"loss": 1.0}).is_evaluation
