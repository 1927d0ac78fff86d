"""Damaged logs, checkpoints and data files: named, and mended where a job can make them again."""

import datetime as dt

import pytest

from schemas import __main__ as command
from schemas.errors import AmbientOmniError, TableDamaged
from schemas.registry import contract
from schemas.repair import check, repair
from schemas.root import Root
from tests.schemas.test_tables import NAME, commit, rows_of

FIRST, LAST = "0.json", "3.json"


@pytest.fixture
def filled(root):
    """Four commits to three slices: x was replaced by the last one."""
    for number, name in enumerate("xyzx"):
        commit(root, [number], name, {"number": number})
    return root


def log_file(root, version):
    return root.tables.table_path(NAME) / "_delta_log" / f"{version:020d}.json"


def data_file(root, name):
    folder = root.tables.table_path(NAME)
    uri = root.tables.open(NAME).file_uris({"reference_set": name})[0]
    return folder / uri.removeprefix(f"{folder}/")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage(root):
    return [(found.file.rpartition("/")[2], found.mendable) for found in check(root.tables)]


def test_whole_tables_have_no_damage_and_nothing_to_repair(filled):
    filled.tables.open(NAME).delta.create_checkpoint()
    assert check(filled.tables, read_all=True) == []
    assert repair(filled.tables) == []


@pytest.mark.parametrize("content", [b"", b'{"add":{"pa'])
def test_the_last_commit_half_written_is_named_and_its_slice_made_again(filled, content):
    log_file(filled, 3).write_bytes(content)
    assert damage(filled) == [(log_file(filled, 3).name, True)]
    (said,) = repair(filled.tables)
    assert log_file(filled, 3).name in said
    assert check(filled.tables) == []
    assert rows_of(filled) == [0, 1, 2]
    assert not filled.tables.is_current(NAME, {"reference_set": "x"}, {"number": 3})
    commit(filled, [3], "x", {"number": 3})
    assert rows_of(filled) == [1, 2, 3]


@pytest.mark.parametrize("lost", [False, True])
def test_an_earlier_commit_is_named_and_left_to_a_backup(filled, lost):
    path = log_file(filled, 1)
    if lost:
        path.unlink()
    else:
        path.write_bytes(b"{")
    assert damage(filled) == [(path.name, False)]
    with pytest.raises(TableDamaged, match=f"{path.name} .*restore it from a backup"):
        repair(filled.tables)


def test_half_a_checkpoint_is_set_aside_and_no_row_is_lost(filled):
    filled.tables.open(NAME).delta.create_checkpoint()
    (checkpoint,) = log_file(filled, 0).parent.glob("*.parquet")
    cut(checkpoint)
    with pytest.raises(AmbientOmniError, match="Corrupt footer"):
        rows_of(Root.open(filled.path))
    assert damage(filled) == [(checkpoint.name, True)]
    repair(filled.tables)
    assert check(filled.tables) == []
    assert rows_of(filled) == [1, 2, 3]


@pytest.mark.parametrize("lost", [False, True])
def test_a_data_file_that_is_gone_or_cut_makes_its_slice_stale_and_no_other(filled, lost):
    path = data_file(filled, "y")
    if lost:
        path.unlink()
    else:
        cut(path)
    with pytest.raises(TableDamaged, match=f"{path.name}.*schemas check") as caught:
        rows_of(filled)
    assert "\n" not in str(caught.value)
    assert damage(filled) == [(path.name, True)]
    repair(filled.tables)
    assert rows_of(filled) == [2, 3]
    assert not filled.tables.is_current(NAME, {"reference_set": "y"}, {"number": 1})
    assert filled.tables.is_current(NAME, {"reference_set": "z"}, {"number": 2})
    commit(filled, [1], "y", {"number": 1})
    assert rows_of(filled) == [1, 2, 3]
    assert check(filled.tables) == []


def test_what_no_job_makes_again_is_left_to_a_backup_and_nothing_is_touched(filled):
    row = {"sample_id": "0" * 64, "excluded_at": dt.datetime.now(dt.UTC), "why": "asked"}
    filled.tables.upsert("exclusions", contract("exclusions").table([row]), job="test")
    (path,) = filled.tables.table_path("exclusions").glob("*.parquet")
    cut(path)
    cut(data_file(filled, "y"))
    with pytest.raises(TableDamaged, match=f"exclusions: {path.name} .*restore it from a backup"):
        repair(filled.tables)
    assert filled.tables.version(NAME) == 3
    with pytest.raises(TableDamaged, match="exclusions"):
        rows_of(filled)  # no reader goes on without knowing what was taken down


def test_the_commands_name_damage_and_mend_it(filled, capsys):
    cut(data_file(filled, "y"))
    root = ["--root", str(filled.path)]
    assert command.main(["check", *root]) == 2
    assert "is cut or changed. `python -m schemas repair` mends it" in capsys.readouterr().err
    assert command.main(["repair", *root]) == 0
    assert "{'reference_set': 'y'} forgotten" in capsys.readouterr().out
    assert command.main(["check", *root]) == 0
