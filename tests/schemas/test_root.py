import json
import multiprocessing
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from schemas import __main__ as command
from schemas import root as root_module
from schemas.errors import BadInput, JobAlreadyRunning, RootVersionMismatch
from schemas.migrations import ROOT_VERSION
from schemas.registry import contract
from schemas.root import Root
from schemas.store import Store


def test_creating_a_root_twice_opens_it(tmp_path):
    assert Root.create(tmp_path / "r").path == Root.create(tmp_path / "r").path


def test_a_folder_with_other_things_is_not_taken_over(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(BadInput, match="not empty and is no root"):
        Root.create(tmp_path)


def test_a_root_whose_making_was_killed_can_be_made(tmp_path):
    (tmp_path / ".root.json.123").write_text("{")
    assert Root.create(tmp_path).path == tmp_path


def test_opening_what_is_no_root_says_so(tmp_path):
    with pytest.raises(BadInput, match="is no root"):
        Root.open(tmp_path)


@pytest.mark.parametrize("address", ["s3://bucket/root", Path("s3://bucket/root")])
def test_a_root_on_an_object_store_is_refused_and_says_how_its_tables_may_lie_there(address):
    for make in (Root.create, Root.open):
        with pytest.raises(BadInput, match=r"schemas create --root DIR --tables s3://"):
            make(address)


@pytest.mark.parametrize("version", [0, 99])
def test_a_root_of_another_version_is_refused_with_advice(tmp_path, version):
    Root.create(tmp_path / "r")
    (tmp_path / "r" / "root.json").write_text(json.dumps({"schema_version": version}))
    with pytest.raises(
        RootVersionMismatch, match=f"schema version {version}, this code speaks {ROOT_VERSION}"
    ):
        Root.open(tmp_path / "r")


def test_a_damaged_root_file_is_named(tmp_path):
    Root.create(tmp_path / "r")
    (tmp_path / "r" / "root.json").write_text("{")
    with pytest.raises(BadInput, match=r"root\.json is damaged"):
        Root.open(tmp_path / "r")


def test_a_migration_leads_an_old_root_to_this_version(tmp_path, monkeypatch, capsys):
    Root.create(tmp_path / "r")
    (tmp_path / "r" / "root.json").write_text(json.dumps({"schema_version": 0}))
    done = []
    monkeypatch.setitem(root_module.MIGRATIONS, 0, done.append)
    with pytest.raises(RootVersionMismatch, match="python -m schemas migrate"):
        Root.open(tmp_path / "r")
    assert command.main(["migrate", "--root", str(tmp_path / "r")]) == 0
    assert done == [Store.of(tmp_path / "r" / "tables")]
    assert f"schema version {ROOT_VERSION}" in capsys.readouterr().out
    assert Root.open(tmp_path / "r").path == tmp_path / "r"
    assert command.main(["migrate", "--root", str(tmp_path / "r")]) == 0


def test_old_tables_get_the_columns_that_their_contract_gained(tmp_path):
    root = Root.create(tmp_path / "r")
    old = contract("noise_annotations").arrow_schema
    for name in ("sigma_min_low", "sigma_min_high"):
        old = old.remove(old.get_field_index(name))
    row = {
        "sample_row": 1,
        "ingest_batch": "b",
        "policy_id": "p",
        "sigma_min": 0.5,
        "sigma_max": 0.0,
        "noise_space": "pixel",
        "slope": None,
        "sigma_min_standard_error_octaves": None,
        "reason": "crossing",
    }
    folder = str(root.tables.table_path("noise_annotations"))
    rows = pa.Table.from_pylist([row], schema=old)
    write_deltalake(folder, rows, partition_by=["policy_id", "ingest_batch"])
    (root.path / "root.json").write_text(json.dumps({"schema_version": 1}))
    assert root_module.migrate(root.path) == list(range(2, ROOT_VERSION + 1))
    names = [field.name for field in DeltaTable(folder).schema().fields]
    assert sorted(names) == sorted(contract("noise_annotations").names)
    read = Root.open(root.path).tables.read("noise_annotations").to_pylist()
    assert read == [row | {"sigma_min_low": None, "sigma_min_high": None}]


def test_a_root_that_no_migration_reaches_is_refused_by_the_command(tmp_path, capsys):
    Root.create(tmp_path / "r")
    (tmp_path / "r" / "root.json").write_text(json.dumps({"schema_version": 99}))
    assert command.main(["migrate", "--root", str(tmp_path / "r")]) == 2
    assert "install the newer release" in capsys.readouterr().err


def test_the_same_job_on_the_same_batch_cannot_run_twice_at_once(root):
    with root.lock("score", "b1"):
        with (
            pytest.raises(JobAlreadyRunning, match="score already runs on b1"),
            root.lock("score", "b1"),
        ):
            pass
        with root.lock("score", "b2"), root.lock("embed", "b1"):
            pass
    with root.lock("score", "b1"):
        pass


def _hold_and_die(path, ready):
    with Root.open(path).lock("score", "b1"):
        ready.set()
        multiprocessing.Event().wait(60)


def test_a_killed_holder_releases_its_lock(root):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold_and_die, args=(root.path, ready))
    holder.start()
    assert ready.wait(60)
    with pytest.raises(JobAlreadyRunning, match=f"process {holder.pid}"), root.lock("score", "b1"):
        pass
    holder.kill()
    holder.join()
    with root.lock("score", "b1"):
        pass
