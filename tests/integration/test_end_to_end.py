"""The whole graph on tiny images: stopped in the middle, finished, and run once more."""

import json
import signal
import subprocess
import sys
import time

import dagster as dg
import numpy as np
import pyarrow.compute as pc
import pytest
import yaml
from PIL import Image, ImageFilter

from ambient_omni import rng
from dagster_project import cli
from dagster_project.instance import open_instance
from dagster_project.steps import STEPS
from schemas.root import Root

pytestmark = pytest.mark.slow

RECIPE = {
    "transform": {"resolution": 16},
    "validation_fraction": 0.3,
    "scores": {"encoder": {"resolution": 32}},
    "ood": {"encoder": {"resolution": 32}},
    "classifier": {
        "num_images": 4000,
        "num_levels": 6,
        "num_noises": 2,
        # So small a classifier proves the road, not itself.
        "control": {"bar": 0.05, "severities": {"gaussian_blur": 3.0}},
    },
    "arms": {
        "only_reference": {"kind": "fixed_per_source", "levels": {"*": None}},
        "everything": {"kind": "fixed_per_source", "levels": {"*": 0.0}},
        "annotated": {"kind": "classifier_threshold"},
        "sharpest": {
            "kind": "quality_rank",
            "column": "sharpness",
            "good_fraction": 0.5,
            "sigma_min_rest": 1.0,
        },
    },
    "training": {
        "network": {"patch": 4, "widths": [16, 32], "norm_groups": 8},
        "batch_size": 16,
        "num_images": 160,
        "evaluate_every_images": 80,
        "held_out": {"sigmas": [0.2, 1.0], "max_images": 8},
        "samples": {"num_images": 4, "num_steps": 3},
    },
}


def write_images(folder, count, purpose, blur=0.0):
    folder.mkdir(parents=True)
    noise = rng.generator(0, purpose).integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        image = Image.fromarray(pixels).resize((24, 24), Image.Resampling.NEAREST)
        image.filter(ImageFilter.GaussianBlur(blur)).save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(f"picture <b>{number}</b> | $x$")


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Arguments of `ambient-omni run` on tiny folders."""
    home = tmp_path_factory.mktemp("whole")
    write_images(home / "reference", 60, "e2e-reference")
    write_images(home / "evaluation", 10, "e2e-evaluation")
    write_images(home / "pool" / "blurred", 24, "e2e-blurred", blur=2.0)
    write_images(home / "pool" / "sharp", 12, "e2e-sharp")
    (home / "pool" / "sharp" / "broken.png").write_bytes(b"\x89PNG but not really")
    (home / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    return [
        *("run", "--root", str(home / "root"), "--recipe", str(home / "tiny.yaml")),
        *("--source", str(home / "pool"), "--reference", str(home / "reference")),
        *("--evaluation", str(home / "evaluation")),
    ]


@pytest.fixture(scope="module")
def stopped(command):
    """What a run said that got ctrl-C in the middle of its work."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dagster_project.cli", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As in front of a person: a background job of a script would ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        start_new_session=True,
    )
    for line in process.stdout:
        if "reference sets" in line:
            break
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


@pytest.fixture(scope="module")
def finished(command, stopped):
    """The root after the same command was given again."""
    assert cli.main(command) == 0
    return Root.open(command[2])


def test_ctrl_c_in_the_middle_says_how_to_go_on(stopped):
    code, err = stopped
    assert code == 130
    assert "same command again" in err
    assert "Traceback" not in err


def test_every_image_is_stored_scored_and_annotated(finished):
    tables = finished.tables
    samples = tables.read("samples")
    assert samples.num_rows == 60 + 10 + 24 + 12
    rejected = tables.read("ingest_attempts", where={"status": "rejected"})
    assert rejected.num_rows == 1
    assert tables.read("scores/classical").num_rows == 60 + 36
    assert tables.read("embeddings").num_rows == 60 + 36
    assert tables.read("ood_scores").num_rows == 36
    assert tables.read("noise_curves").num_rows == 36
    assert tables.read("noise_annotations").num_rows == (60 + 36) * len(RECIPE["arms"])


def test_reference_images_have_level_zero_under_every_policy(finished):
    rows = finished.tables.read("noise_annotations", where={"ingest_batch": "reference"})
    assert set(rows["sigma_min"].to_pylist()) == {0.0}
    assert set(rows["reason"].to_pylist()) == {"reference"}


def test_each_arm_was_trained_under_its_own_policy_at_the_same_budget(finished):
    runs = finished.tables.read("training_runs").to_pylist()
    assert {run["name"] for run in runs} == set(RECIPE["arms"])
    assert {run["status"] for run in runs} == {"finished"}
    assert {run["num_images_seen"] for run in runs} == {160}
    assert len({run["policy_id"] for run in runs}) == len(runs)
    for run in runs:
        assert set(json.loads(run["table_versions"])) >= {"samples", "noise_annotations"}


def test_arms_are_compared_on_images_that_nobody_trained_on(finished):
    sets = finished.tables.read("reference_sets")
    held_out = sets.filter(pc.equal(sets["reference_set"], "evaluation"))["sample_row"].to_pylist()
    assert len(held_out) == 10
    for run in finished.tables.read("training_runs").to_pylist():
        losses = json.loads((finished.runs / run["run_id"] / "heldout.json").read_text())
        assert set(losses["evaluation"]["sample_rows"]) <= set(held_out)


def test_the_report_is_one_page_without_links_to_elsewhere(finished):
    page = (finished.reports / "report.html").read_text()
    assert "<b>" not in page or "picture <b>" not in page
    assert 'src="http' not in page


def test_the_history_shows_every_asset_and_its_checks(finished):
    instance = open_instance(finished)
    # What serves a rule that no arm of this recipe has is not in the graph.
    for step in (step for step in STEPS if step.only_for is None):
        for name in step.assets:
            event = instance.get_latest_materialization_event(dg.AssetKey(name))
            assert event is not None, name
            assert "line" in event.asset_materialization.metadata or name == "embeddings"
    assert sorted(instance.get_dynamic_partitions("arm")) == sorted(RECIPE["arms"])
    assert not [r for r in instance.get_runs() if r.status == dg.DagsterRunStatus.STARTED]


def test_running_it_again_changes_nothing(finished, command, capsys):
    names = ("samples", "scores/classical", "noise_curves", "noise_annotations", "training_runs")
    before = finished.tables.versions(names)
    weights = sorted(p.stat().st_mtime_ns for p in finished.runs.rglob("*.safetensors"))
    capsys.readouterr()
    assert cli.main(command) == 0
    assert "unchanged" in capsys.readouterr().out
    assert Root.open(finished.path).tables.versions(names) == before
    assert sorted(p.stat().st_mtime_ns for p in finished.runs.rglob("*.safetensors")) == weights
