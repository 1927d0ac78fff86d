import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dagster_project.operations.config import Watch
from dagster_project.operations.drops import FOLDER, bring_here, look, manifests, register_new
from dagster_project.recipe import load_recipe
from dagster_project.request import Request
from pipelines.ingest import ingest
from schemas.errors import BadInput

OLD = 3600


@pytest.fixture
def watched(root, tmp_path):
    """A root that was asked for nothing but its recipe, and a watched folder."""
    Request(recipe=load_recipe("default").model_dump(mode="json")).save(root)
    folder = tmp_path / "inbox"
    folder.mkdir()
    return Watch(name="inbox", path=str(folder), max_files_per_batch=3)


def drop(watch, name, data=b"x", age=OLD):
    path = Path(watch.path) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (time.time() - age,) * 2)
    return path


def taken_of(root, watch):
    return {key for one in manifests(root, watch) for key in one.files}


def taken(drops):
    return sorted(name for one in drops for name, _ in one.files)


def test_files_become_batches_of_bounded_size_and_each_is_taken_once(root, watched):
    for number in range(7):
        drop(watched, f"a/{number}.png", bytes(number))
    drops = register_new(root, watched)
    assert [len(d.files) for d in drops] == [3, 3, 1]
    assert [d.batch for d in drops] == ["inbox-00000", "inbox-00001", "inbox-00002"]
    assert register_new(root, watched) == []
    assert [b.name for b in Request.load(root).batches] == [d.batch for d in drops]
    assert {b.stream for b in Request.load(root).batches} == {"inbox"}


def test_what_comes_later_is_a_further_batch(root, watched):
    drop(watched, "a.png")
    register_new(root, watched)
    drop(watched, "b.png")
    (later,) = register_new(root, watched)
    assert later.batch == "inbox-00001"
    assert taken([later]) == ["b.png"]


def test_a_file_that_is_still_being_written_waits(root, watched):
    path = drop(watched, "a.png", age=1)
    assert register_new(root, watched) == []
    os.utime(path, (time.time() - OLD,) * 2)
    assert taken(register_new(root, watched)) == ["a.png"]


def test_a_file_from_a_clock_that_is_ahead_is_taken_too(root, watched):
    drop(watched, "a.png", age=-OLD)
    assert taken(register_new(root, watched)) == ["a.png"]


def test_a_file_that_grew_is_a_new_file(root, watched):
    drop(watched, "a.png", b"1")
    register_new(root, watched)
    drop(watched, "a.png", b"12")
    assert [d.files for d in register_new(root, watched)] == [(("a.png", 2),)]


def test_captions_go_with_their_image_and_lists_and_shards_go_alone(root, watched):
    for name in ("a/1.png", "a/1.txt", "a/1.json", "a/metadata.csv", "b/s.tar", "urls.csv"):
        drop(watched, name)
    drops = register_new(root, watched)
    assert [(d.kind, [n for n, _ in d.files]) for d in drops] == [
        ("images", ["a/1.png"]),
        ("shards", ["b/s.tar"]),
        ("list", ["urls.csv"]),
    ]
    staged = root.path / FOLDER / drops[0].batch / "a"
    assert sorted(p.name for p in staged.iterdir()) == ["1.json", "1.png", "1.txt", "metadata.csv"]
    sources = {b.name: b.source for b in Request.load(root).batches}
    assert sources[drops[2].batch].endswith("urls.csv")


def test_a_process_that_was_killed_between_two_steps_loses_and_doubles_nothing(
    root, watched, monkeypatch
):
    drop(watched, "a.png")

    def killed(*_):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("dagster_project.operations.drops._stage", killed)
        with pytest.raises(SystemExit):
            register_new(root, watched)
    assert register_new(root, watched) == []
    assert (root.path / FOLDER / "inbox-00000" / "a.png").exists()
    assert [b.name for b in Request.load(root).batches] == ["inbox-00000"]


def test_manifests_that_got_lost_are_made_again_from_the_tables(root, watched, images):
    for number, pixels in enumerate(images(2)):
        path = drop(watched, f"{number}.png")
        Image.fromarray(np.asarray(pixels)).save(path)
        os.utime(path, (time.time() - OLD,) * 2)
    (one,) = register_new(root, watched)
    ingest(root, one.batch, root.path / FOLDER / one.batch)
    before = taken_of(root, watched)
    for file in (root.path / FOLDER).glob("*.json"):
        file.unlink()
    assert taken_of(root, watched) == before
    assert register_new(root, watched) == []
    shutil.rmtree(root.path / FOLDER)
    assert register_new(root, watched) == []
    assert [m.files for m in manifests(root, watched)] == [one.files]


def test_a_folder_that_is_not_there_is_named(root, watched):
    shutil.rmtree(watched.path)
    with pytest.raises(BadInput, match="inbox"):
        register_new(root, watched)


def test_a_listing_changes_its_digest_when_a_file_comes(watched):
    drop(watched, "a.png")
    first = look(watched, time.time()).digest
    assert look(watched, time.time()).digest == first
    drop(watched, "b.png")
    assert look(watched, time.time()).digest != first


def test_drops_of_an_object_store_are_fetched_when_their_batch_is_ingested(root, watched):
    import fsspec

    store = fsspec.filesystem("memory")
    for name in ("a.png", "a.txt", "deep/b.png", ".hidden/c.png"):
        store.pipe(f"/bucket/inbox/{name}", name.encode())
    there = watched.model_copy(update={"path": "memory://bucket/inbox", "settle_seconds": 0.0})
    (one,) = register_new(root, there)
    assert taken([one]) == ["a.png", "deep/b.png"]
    staged = root.path / FOLDER / one.batch
    assert not staged.exists()  # a sensor only looks
    assert register_new(root, there) == []
    bring_here(root, [watched.model_copy(update={"name": "other"}), there], one.batch)
    found = {f.relative_to(staged).as_posix() for f in staged.rglob("*") if f.is_file()}
    assert found == {"a.png", "a.txt", "deep/b.png"}
    assert (staged / "deep" / "b.png").read_bytes() == b"deep/b.png"
    store.rm("/bucket", recursive=True)
    bring_here(root, [there], one.batch)  # what is here is not fetched again
    assert register_new(root, there) == []


def test_a_store_that_cannot_be_opened_is_named(root, watched):
    nowhere = watched.model_copy(update={"path": "no-such-store://bucket/inbox"})
    with pytest.raises(BadInput, match="no-such-store"):
        register_new(root, nowhere)
