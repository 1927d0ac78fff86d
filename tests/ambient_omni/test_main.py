import subprocess
import sys

import pytest
import yaml

from ambient_omni.__main__ import main
from schemas.root import Root


def run(root, command, tmp_path, settings, *more):
    file = tmp_path / f"{command}.yaml"
    file.write_text(yaml.safe_dump(settings))
    return main([command, "--config", str(file), "--root", str(root.path), *more])


def settings_of(config):
    return config().model_dump(mode="json")


def test_train_evaluate_and_generate_from_the_command_line(trainable, config, tmp_path, capsys):
    assert run(trainable, "train", tmp_path, settings_of(config)) == 0
    run_id = capsys.readouterr().out.split()[1]
    assert (trainable.runs / run_id / "samples.png").exists()
    evaluate = {"run_id": run_id, "reference_set": "trusted"}
    assert run(trainable, "evaluate", tmp_path, evaluate) == 0
    assert '"num_images": 8' in capsys.readouterr().out
    out = tmp_path / "made"
    generate = {"run_id": run_id, "out": str(out), "samples": {"num_images": 2, "num_steps": 2}}
    assert run(trainable, "generate", tmp_path, generate) == 0
    assert len(list(out.glob("0*.png"))) == 2


def test_a_dry_run_shows_config_and_usable_share_and_trains_nothing(
    trainable, config, tmp_path, capsys
):
    assert run(trainable, "train", tmp_path, settings_of(config), "--dry-run") == 0
    out = capsys.readouterr().out
    assert '"policy_id": "policy"' in out
    assert "28 samples, 4 held out, 5 usable at no level" in out
    # Above the highest floor everything but the five null ones is usable.
    assert "23.0 (82.1%)" in out
    assert not trainable.runs.exists()
    assert not trainable.tables.exists("training_runs")


@pytest.mark.parametrize(
    ("command", "settings", "said"),
    [
        (
            "train",
            {"policy_id": "other", "batches": ["pool"]},
            "no policy 'other' is registered; there are ",
        ),
        ("train", {"batches": ["pool"]}, "policy_id: this setting is needed"),
        ("evaluate", {"run_id": "nope"}, "there is no training run nope"),
        ("generate", {"run_id": "nope", "out": "x"}, "there is no training run nope"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    trainable, tmp_path, capsys, command, settings, said
):
    assert run(trainable, command, tmp_path, settings) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1


def test_a_folder_that_is_no_root_is_said(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("a: 1")
    arguments = ["train", "--config", str(tmp_path / "c.yaml"), "--root", str(tmp_path / "none")]
    assert main(arguments) == 2
    assert "is no root" in capsys.readouterr().err


def test_every_command_explains_itself():
    for command in ([], ["train"], ["train-classifier"], ["generate"], ["evaluate"]):
        done = subprocess.run(
            [sys.executable, "-m", "ambient_omni", *command, "--help"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "usage: python -m ambient_omni" in done.stdout


def test_ctrl_c_on_the_command_line_says_how_to_go_on(
    trainable, config, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(Root, "open", lambda path: (_ for _ in ()).throw(KeyboardInterrupt()))
    assert run(trainable, "train", tmp_path, settings_of(config)) == 130
    assert "run the same command again" in capsys.readouterr().err
