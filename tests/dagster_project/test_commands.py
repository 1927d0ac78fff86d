"""The commands that only look at tables, and the one that takes an image down."""

import json

import numpy as np
import pytest

from dagster_project.commands.exclude import exclude
from dagster_project.commands.explain import explain
from dagster_project.commands.lookup import samples_of, text_table
from dagster_project.commands.status import status
from dagster_project.commands.what_if import what_if
from schemas.errors import BadInput
from schemas.ids import sample_id_of
from schemas.registry import contract

POLICY = "fixed-per-source-1"
SPACE = "pixel:32x32:lanczos:center:pm1"


@pytest.fixture
def annotated(root, make_batch, images):
    """A root whose batch `pool` has levels 0, 0.5 and never under the policy `by hand`."""
    samples = make_batch(root, "pool", images(3))
    rows = samples["sample_row"].to_pylist()
    annotations = contract("noise_annotations").table(
        {
            "sample_row": rows,
            "ingest_batch": ["pool"] * 3,
            "policy_id": [POLICY] * 3,
            "sigma_min": [0.0, 0.5, None],
            "sigma_max": [0.0] * 3,
            "noise_space": [SPACE] * 3,
            "slope": [None] * 3,
            "sigma_min_standard_error_octaves": [None] * 3,
            "sigma_min_low": [None] * 3,
            "sigma_min_high": [None] * 3,
            "reason": ["fixed_per_source"] * 3,
        }
    )
    slice_ = {"policy_id": POLICY, "ingest_batch": "pool"}
    root.tables.commit("noise_annotations", annotations, slice=slice_, inputs={}, job="tests")
    policy = {
        "policy_id": POLICY,
        "name": "by hand",
        "kind": "fixed_per_source",
        "parameters": "{}",
        "noise_space": SPACE,
    }
    root.tables.upsert("policies", contract("policies").table([policy]), job="tests")
    run = {
        "run_id": "run-1",
        "name": "annotated",
        "policy_id": POLICY,
        "ingest_batches": ["pool"],
        "table_versions": "{}",
        "noise_space": SPACE,
        "config": "{}",
        "code_version": "1",
        "status": "finished",
        "num_images_seen": 1234,
        "checkpoint": None,
        "metrics": json.dumps({}),
        "audit": json.dumps({}),
    }
    root.tables.upsert("training_runs", contract("training_runs").table([run]), job="tests")
    return root, samples["sample_id"].to_pylist()


def test_status_shows_tables_batches_policies_and_runs(annotated):
    root, _ = annotated
    said = status(root.path)
    for words in ("noise_annotations", "pool", "by hand", "run-1", "1,234", "report: none yet"):
        assert words in said


def test_status_of_a_new_root_says_that_there_is_nothing(root):
    assert "no tables yet" in status(root.path)


def test_explain_shows_the_level_of_an_image_and_why(annotated):
    root, ids = annotated
    said = explain(root.path, ids[1][:12])
    assert ids[1] in said
    assert "by hand" in said
    assert "0.5" in said
    assert "fixed_per_source" in said


def test_explain_names_the_runs_that_had_it_and_writes_the_image(annotated, tmp_path):
    root, ids = annotated
    said = explain(root.path, ids[1], tmp_path / "it.png")
    assert "not known" in said  # the run has no checkpoint
    assert "run-1" in said
    assert sample_id_of((tmp_path / "it.png").read_bytes()) == ids[1]
    with pytest.raises(BadInput, match="cannot be written"):
        explain(root.path, ids[1], tmp_path / "no" / "such" / "folder.png")


def test_an_image_whose_bytes_are_gone_is_not_written(annotated, tmp_path):
    root, ids = annotated
    shard = root.shards / root.tables.read("samples")["shard"][0].as_py()
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(BadInput, match="are gone: it was purged"):
        explain(root.path, ids[1], tmp_path / "it.png")
    assert not (tmp_path / "it.png").exists()


def test_a_caption_with_control_characters_cannot_steer_the_terminal(root, make_batch, images):
    samples = make_batch(root, "pool", images(1))
    table = samples.set_column(
        samples.column_names.index("caption"), samples.schema.field("caption"), [["\x1b[31mred"]]
    )
    slice_ = {"ingest_batch": "pool"}
    root.tables.commit("samples", table, slice=slice_, inputs={"v": 2}, job="tests")
    said = explain(root.path, samples["sample_id"][0].as_py())
    assert "\x1b" not in said
    assert "red" in said


def test_what_if_counts_the_images_of_each_noise_band(annotated):
    root, _ = annotated
    lines = what_if(root.path).splitlines()
    assert "by hand" in lines[0]
    counts = [int(line.split()[-1]) for line in lines[1:]]
    assert counts[0] == 1  # only the image that is usable everywhere
    assert counts[-1] == 2  # and the one from 0.5 on; the third one never
    assert np.all(np.diff(counts) >= 0)


def test_what_if_leaves_out_images_that_are_held_out_of_training(annotated):
    root, _ = annotated
    first = root.tables.read("samples", ["sample_row"])["sample_row"].to_pylist()[0]
    member = {"reference_set": "validation", "sample_row": first, "role": "validation"}
    root.tables.commit(
        "reference_sets",
        contract("reference_sets").table([member]),
        slice={"reference_set": "validation"},
        inputs={},
        job="tests",
    )
    counts = [int(line.split()[-1]) for line in what_if(root.path).splitlines()[1:]]
    assert counts[0] == 0  # the image that is usable everywhere is held out
    assert counts[-1] == 1


def test_what_if_shows_policies_of_one_name_side_by_side(annotated):
    root, _ = annotated
    other = root.tables.read("noise_annotations").to_pylist()
    rows = [row | {"policy_id": "fixed-per-source-2", "sigma_min": 0.0} for row in other]
    slice_ = {"policy_id": "fixed-per-source-2", "ingest_batch": "pool"}
    table = contract("noise_annotations").table(rows)
    root.tables.commit("noise_annotations", table, slice=slice_, inputs={}, job="tests")
    policy = root.tables.read("policies").to_pylist()[0] | {"policy_id": "fixed-per-source-2"}
    root.tables.upsert("policies", contract("policies").table([policy]), job="tests")
    header, first, *_ = what_if(root.path).splitlines()
    assert header.count("by hand") == 2
    assert first.split()[-2:] == ["1", "3"]


def test_what_if_without_annotations_says_what_to_do(root):
    with pytest.raises(BadInput, match="--until annotate"):
        what_if(root.path)


def test_an_excluded_image_is_left_out_of_every_read_and_its_runs_are_named(annotated):
    root, ids = annotated
    said = exclude(root.path, ids[0][:10], "asked for by the artist")
    assert "run-1" in said
    assert root.tables.read("samples").num_rows == 2
    assert root.tables.read("noise_annotations").num_rows == 2
    assert "asked for by the artist" in explain(root.path, ids[0])


def test_an_image_in_no_trained_batch_names_no_run(root, make_batch, images):
    samples = make_batch(root, "pool", images(1))
    assert "No training run" in exclude(root.path, samples["sample_id"][0].as_py(), "why")


@pytest.mark.parametrize("wrong", ["", "abc", "not-hex-at-all", "000000000000"])
def test_an_id_that_names_no_image_is_refused(annotated, wrong):
    root, _ = annotated
    with pytest.raises(BadInput):
        samples_of(root, wrong)


def test_columns_of_text_are_aligned_and_numbers_stand_to_the_right():
    lines = text_table(("name", "count"), [("a", 5), ("bb", 1234)]).splitlines()
    assert lines[1].endswith("    5")
    assert lines[2].endswith("1,234")
