import json

import numpy as np
import pytest
from PIL import Image

from dagster_project import cli
from dagster_project.request import FILE
from dagster_project.steps import STEP_NAMES
from schemas.root import ROOT_FILE, Root


@pytest.fixture
def folder(tmp_path, images):
    """`folder(name, count)`: a folder of PNG files."""

    def make(name, count, seed=0):
        path = tmp_path / name
        path.mkdir(parents=True)
        for number, pixels in enumerate(images(count, seed=seed)):
            Image.fromarray(np.asarray(pixels)).save(path / f"{number:03d}.png")
        return path

    return make


@pytest.fixture
def ambient_omni(capsys):
    """Run the command in this process; return (exit code, stdout, stderr)."""

    def run(*arguments):
        code = cli.main([str(a) for a in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def refused(answer, *words):
    code, _, err = answer
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(lines) == 1
    assert "Traceback" not in err
    for word in words:
        assert word in lines[0]


def test_ingest_and_references_run_and_a_second_run_changes_nothing(ambient_omni, folder, tmp_path):
    pool, reference, root = folder("pool", 6), folder("reference", 60, seed=1), tmp_path / "root"
    first = ambient_omni(
        *("run", "--root", root, "--source", pool, "--reference", reference),
        *("--until", "references"),
    )
    assert first[0] == 0
    assert "[1/3] ingest reference" in first[1]
    versions = Root.open(root).tables.versions(["samples", "reference_sets"])
    second = ambient_omni("run", "--root", root, "--until", "references")
    assert second[0] == 0
    assert "6 unchanged" in second[1]
    assert Root.open(root).tables.versions(["samples", "reference_sets"]) == versions


def test_the_root_may_come_from_the_environment(ambient_omni, folder, tmp_path, monkeypatch):
    root, source = tmp_path / "root", folder("pool", 3)
    monkeypatch.setenv("AMBIENT_OMNI_ROOT", str(root))
    code, out, _ = ambient_omni(
        *("run", "--source", source, "--reference", folder("good", 3), "--dry-run")
    )
    assert code == 0
    assert "ingest" in out
    monkeypatch.delenv("AMBIENT_OMNI_ROOT")
    with pytest.raises(SystemExit):
        ambient_omni("run", "--source", source)


def test_more_sources_come_in_as_further_batches(ambient_omni, folder, tmp_path):
    pool, reference, root = folder("pool", 3), folder("reference", 3, seed=1), tmp_path / "root"
    more = folder("more", 4, seed=2)
    run = ("run", "--root", root, "--until", "ingest")
    assert ambient_omni(*run, "--source", pool, "--reference", reference)[0] == 0
    code, out, _ = ambient_omni(*run, "--source", more, "--source-name", "later")
    assert code == 0
    assert "ingest later" in out
    batches = Root.open(root).tables.read("ingest_batches")["ingest_batch"].to_pylist()
    assert sorted(batches) == ["later", "pool", "reference"]


def test_a_dry_run_prints_recipe_and_steps_and_writes_nothing(ambient_omni, folder, tmp_path):
    pool, reference, root = folder("pool", 3), folder("reference", 3), tmp_path / "root"
    code, out, _ = ambient_omni(
        "run", "--root", root, "--source", pool, "--reference", reference, "--dry-run"
    )
    assert code == 0
    assert "resolution: 64" in out
    assert "training annotated" in out
    assert str(pool) in out
    assert not root.exists()


def test_a_dry_run_of_the_demo_needs_no_images(ambient_omni, tmp_path):
    code, out, _ = ambient_omni("demo", "--root", tmp_path / "demo", "--dry-run")
    assert code == 0
    assert "demo_data:" in out
    assert not (tmp_path / "demo").exists()


def test_a_source_that_does_not_exist_is_refused(ambient_omni, folder, tmp_path):
    answer = ambient_omni(
        *("run", "--root", tmp_path / "root", "--source", tmp_path / "no"),
        *("--reference", folder("r", 1)),
    )
    refused(answer, "does not exist")
    assert not (tmp_path / "root").exists()


def test_an_empty_folder_is_refused_before_anything_is_written(ambient_omni, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    answer = ambient_omni(
        *("run", "--root", tmp_path / "root", "--source", tmp_path / "empty"),
        *("--reference", folder("reference", 1)),
    )
    refused(answer, "empty")
    assert not (tmp_path / "root").exists()


def test_a_folder_of_broken_images_does_not_stand_in_the_way_of_a_better_one(
    ambient_omni, folder, tmp_path
):
    pool, reference, root = tmp_path / "pool", folder("reference", 3), tmp_path / "root"
    pool.mkdir()
    (pool / "a.png").write_bytes(b"no image")
    run = ("run", "--root", root, "--until", "ingest", "--reference", reference)
    refused(ambient_omni(*run, "--source", pool), "could be stored")
    better = folder("better/pool", 3, seed=1)
    assert ambient_omni(*run, "--source", better)[0] == 0


def test_a_reference_with_too_few_images_is_refused_and_nothing_is_lost(
    ambient_omni, folder, tmp_path
):
    root = tmp_path / "root"
    answer = ambient_omni(
        *("run", "--root", root, "--source", folder("pool", 5)),
        *("--reference", folder("reference", 5, seed=1)),
    )
    refused(answer, "trusted", "add images")
    assert Root.open(root).tables.read("samples").num_rows == 10


def test_the_same_job_on_the_same_batch_twice_at_once_is_refused(ambient_omni, folder, tmp_path):
    root = Root.create(tmp_path / "root")
    run = (
        *("run", "--root", root.path, "--source", folder("pool", 3)),
        *("--reference", folder("reference", 3, seed=1), "--until", "ingest"),
    )
    with root.lock("ingest", "pool"):
        refused(ambient_omni(*run), "already runs on pool")
    assert ambient_omni(*run)[0] == 0


def test_a_root_of_another_schema_version_is_refused(ambient_omni, folder, tmp_path):
    root = Root.create(tmp_path / "root")
    (root.path / ROOT_FILE).write_text(json.dumps({"schema_version": 99}))
    answer = ambient_omni(
        "run", "--root", root.path, "--source", folder("p", 1), "--reference", folder("r", 1)
    )
    refused(answer, "99")
    refused(ambient_omni("status", "--root", root.path), "99")


def test_a_folder_that_is_no_root_and_not_empty_is_refused(ambient_omni, folder):
    other = folder("holiday", 2)
    answer = ambient_omni(
        "run", "--root", other, "--source", folder("pool", 1), "--reference", folder("r", 1)
    )
    refused(answer, "not empty")
    assert len(list(other.iterdir())) == 2


def test_a_new_root_needs_a_source_and_a_reference(ambient_omni, tmp_path):
    refused(ambient_omni("run", "--root", tmp_path / "root"), "--source", "--reference")
    assert not (tmp_path / "root").exists()


def test_another_folder_under_a_name_that_is_taken_is_refused(ambient_omni, folder, tmp_path):
    root, reference = tmp_path / "root", folder("reference", 2)
    run = ("run", "--root", root, "--until", "ingest", "--reference", reference)
    assert ambient_omni(*run, "--source", folder("a/pool", 2, seed=1))[0] == 0
    refused(ambient_omni(*run, "--source", folder("b/pool", 2, seed=2)), "--source-name")


def test_a_recipe_with_an_unknown_setting_is_refused(ambient_omni, folder, tmp_path):
    (tmp_path / "mine.yaml").write_text("arms: {}\ncolour: 1\n")
    answer = ambient_omni(
        *("run", "--root", tmp_path / "root", "--source", folder("p", 1)),
        *("--reference", folder("r", 1), "--recipe", tmp_path / "mine.yaml"),
    )
    refused(answer, "mine.yaml")


def test_a_blocking_check_that_fails_stops_the_run_and_says_which_rows(
    ambient_omni, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("dagster_project.defs.checks._minus", lambda left, _right: left)
    answer = ambient_omni(
        *("run", "--root", tmp_path / "root", "--source", folder("p", 1)),
        *("--reference", folder("r", 2, seed=1)),
    )
    refused(answer, "every_attempt_is_accounted_for", "2 attempts without a sample", "sample_row")


def test_ctrl_c_ends_with_130_and_one_line(ambient_omni, folder, tmp_path, monkeypatch):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.ingest.ingest", interrupted)
    code, _, err = ambient_omni(
        *("run", "--root", tmp_path / "root", "--source", folder("p", 1)),
        *("--reference", folder("r", 1)),
    )
    assert code == 130
    assert err.strip().splitlines()[-1].endswith("Run the same command again to go on.")
    assert "Traceback" not in err


def test_a_defect_is_one_line_and_exit_code_1(ambient_omni, folder, tmp_path, monkeypatch):
    def broken(*_args, **_kwargs):
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr("pipelines.ingest.ingest", broken)
    code, _, err = ambient_omni(
        *("run", "--root", tmp_path / "root", "--source", folder("p", 1)),
        *("--reference", folder("r", 1)),
    )
    assert code == 1
    assert err.startswith("error: unexpected ZeroDivisionError: a b")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "command", ["run", "demo", "ui", "status", "explain", "what-if", "exclude"]
)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert "--root" in capsys.readouterr().out


def test_an_unknown_step_is_refused_with_those_that_are_known(capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "--root", str(tmp_path), "--until", "nowhere"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert all(name in said for name in STEP_NAMES)


def test_what_was_asked_for_stands_in_the_root(ambient_omni, folder, tmp_path):
    root, pool = tmp_path / "root", folder("pool", 2)
    ambient_omni(
        *("run", "--root", root, "--source", pool, "--reference", folder("r", 2, seed=1)),
        *("--labels-from-folders", "--until", "ingest"),
    )
    asked = json.loads((root / FILE).read_text())
    assert asked["recipe"]["ingest"]["labels_from_folders"] is True
    assert {b["source"] for b in asked["batches"]} >= {str(pool)}


COMMANDS = {
    "status": [],
    "rescore": [],
    "train": [],
    "compare": [],
    "candidate": [],
    "promote": [],
    "what-if": [],
    "explain": ["abcdef"],
    "ui": [],
    "accept": ["pool", "--why", "seen"],
    "exclude": ["abcdef", "--why", "asked"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_is_no_root_is_refused_by_every_command(command, tmp_path, capsys):
    words = [command, "--root", str(tmp_path / "nowhere"), *COMMANDS[command]]
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "nowhere is no root" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("command", ["train", "compare"])
@pytest.mark.parametrize("flag", ["--steps", "--devices"])
@pytest.mark.parametrize("number", ["0", "-3", "1.5", "many"])
def test_a_budget_that_is_no_number_of_steps_is_refused(command, flag, number, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--root", "x", f"{flag}={number}"])
    assert stop.value.code == 2
    assert f"{number!r} is no whole number of at least 1" in capsys.readouterr().err
