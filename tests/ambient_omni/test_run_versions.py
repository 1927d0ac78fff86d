"""Runs on tables as they were at versions that a person names."""

import json

import pytest

from ambient_omni.classifier.data import VERSION
from ambient_omni.data.training_data import Pinned
from ambient_omni.training.opening import open_run
from ambient_omni.training.run_record import RunRecord, find_run
from ambient_omni.training.trainer import train
from schemas.errors import BadInput, ClassifierRefused, TableMissing
from schemas.registry import contract


def test_a_run_can_be_trained_on_tables_as_they_were(trainable, tiny, config):
    before = trainable.tables.versions(["samples", "noise_annotations"])
    then = RunRecord.of(trainable, config()).run_id
    rows = trainable.tables.read("samples", ["sample_row"], {"ingest_batch": "pool"})
    tiny.annotate(trainable, "pool", rows["sample_row"].to_pylist(), [0.7] * 20)
    now = RunRecord.of(trainable, config()).run_id
    assert now != then
    pinned = config(table_versions=before)
    # The same data under a number is the same run.
    assert RunRecord.of(trainable, pinned).run_id == then
    assert train(trainable, pinned, show=False) == then
    versions = json.loads(find_run(trainable, then)["table_versions"])
    assert {name: versions[name] for name in before} == before


def test_versions_of_tables_that_no_run_reads_or_that_are_gone_are_refused(trainable, config):
    with pytest.raises(BadInput, match="which no run reads"):
        RunRecord.of(trainable, config(table_versions={"policies": 0}))
    with pytest.raises(TableMissing):
        RunRecord.of(trainable, config(table_versions={"samples": 99}))


def test_levels_of_a_classifier_of_another_version_start_no_new_run(trainable, config):
    def classifier(version):
        known = contract("noise_classifiers")
        row = {n: "{}" for n in known.names if not known.column(n).nullable} | {
            "classifier_id": "c1",
            "question": "reference_against_pool",
            "pool_batches": ["pool"],
            "num_folds": 1,
            "sigmas": [0.1],
            "weights_sha256": "0" * 64,
            "status": "promoted",
            "method_version": version,
        }
        row |= {n: [0.5] for n in ("balanced_accuracy", "tv_lower_bound", "tv_standard_error")}
        trainable.tables.upsert("noise_classifiers", known.table([row]), job="tests")

    rule = {"kind": "crop_window", "floor": {"kind": "classifier_threshold", "classifier_id": "c1"}}
    row = {
        "policy_id": "policy",
        "name": "",
        "kind": "crop_window",
        "parameters": json.dumps(rule),
        "noise_space": "s",
    }
    trainable.tables.upsert("policies", contract("policies").table([row]), job="tests")
    for old in (None, VERSION - 1):
        classifier(old)
        with pytest.raises(ClassifierRefused, match=r"policy policy.*c1.*annotate anew"):
            train(trainable, config(), show=False)
    classifier(VERSION)
    run = RunRecord.of(trainable, config())
    run.begin(Pinned())
    classifier(VERSION - 1)
    open_run(run)  # what has begun goes on: its levels are pinned
