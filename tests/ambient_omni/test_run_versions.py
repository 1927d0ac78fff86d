"""Runs on tables as they were at versions that a person names."""

import json

import pytest

from ambient_omni.training.run_record import RunRecord, find_run
from ambient_omni.training.trainer import train
from schemas.errors import BadInput, TableMissing


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
