"""Ingest of folders, and what is true of every ingest: order, reruns, kills, locks."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ambient_omni.images import ImageLimits
from pipelines.ingest import IngestConfig, ingest, run
from pipelines.ingest.register import check_batch
from pipelines.references import define_reference_sets
from schemas.errors import BadInput, JobAlreadyRunning, TableMissing
from schemas.ids import sample_id_of, split_sample_row
from schemas.root import Root
from tests.data.pictures import attempts, encoded, put, samples, stored_bytes

QUIET = IngestConfig(show_progress=False, images_per_shard=4)


@pytest.fixture
def folder(tmp_path):
    top = tmp_path / "pictures"
    put(top / "birds/wild/a.png", encoded(1))
    put(top / "birds/b.jpg", encoded(2, "JPEG"))
    put(top / "cats/c.webp", encoded(3, "WEBP"))
    put(top / "cats/same as a.png", encoded(1))
    put(top / "d.PNG", encoded(4))
    put(top / "broken.jpg", encoded(5, "JPEG")[:-40])
    put(top / "page.jpg", "<html>not found</html>")
    put(top / "old.gif", encoded(6, "GIF"))
    put(top / ".hidden.png", encoded(7))
    put(top / ".cache/e.png", encoded(8))
    put(top / "README.md", "words")
    return top


def state(root, batch="b"):
    """Everything that a rerun must not change."""
    files = {
        path.relative_to(root.shards): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.shards.rglob("*.tar")
    }
    rows = [root.tables.read(n).to_pylist() for n in ("ingest_batches", "ingest_attempts")]
    return files, rows, samples(root, batch)


def test_every_file_is_stored_a_duplicate_or_rejected_with_a_reason(root, folder):
    report = ingest(root, "b", folder, QUIET)
    found = {key: (row["status"], row["reason"]) for key, row in attempts(root).items()}
    assert found == {
        "birds/b.jpg": ("stored", None),
        "birds/wild/a.png": ("stored", None),
        "broken.jpg": ("rejected", "truncated"),
        "cats/c.webp": ("stored", None),
        "cats/same as a.png": ("duplicate", None),
        "d.PNG": ("stored", None),
        "old.gif": ("rejected", "unsupported_format"),
        "page.jpg": ("rejected", "not_an_image"),
    }
    assert (report.read, report.written, report.unchanged) == (8, 4, 0)
    assert report.rejected == {"not_an_image": 1, "truncated": 1, "unsupported_format": 1}
    same = attempts(root)
    assert same["cats/same as a.png"]["sample_row"] == same["birds/wild/a.png"]["sample_row"]


def test_stored_bytes_are_the_source_bytes_at_the_offset_in_the_table(root, folder):
    ingest(root, "b", folder, QUIET)
    rows = samples(root)
    assert [split_sample_row(row["sample_row"]) for row in rows] == [(0, i) for i in range(4)]
    keys = {r["sample_id"]: k for k, r in attempts(root).items() if r["status"] == "stored"}
    for row in rows:
        data = stored_bytes(root, row)
        assert data == (folder / keys[row["sample_id"]]).read_bytes()
        assert sample_id_of(data) == row["sample_id"]
    assert [keys[row["sample_id"]] for row in rows] == sorted(keys.values())
    assert {row["format"] for row in rows} == {"jpeg", "png", "webp"}
    assert {(row["width"], row["height"]) for row in rows} == {(16, 16)}


def test_the_source_is_the_first_folder_level_or_the_given_name(root, folder):
    ingest(root, "b", folder, QUIET)
    sources = {key: row["source"] for key, row in attempts(root).items()}
    assert sources["birds/wild/a.png"] == sources["birds/b.jpg"] == "birds"
    assert sources["cats/c.webp"] == "cats"
    assert sources["d.PNG"] == "pictures"
    ingest(root, "named", folder, QUIET.model_copy(update={"source_name": "web"}))
    assert {row["source"] for row in samples(root, "named")} == {"web"}


def test_shards_are_read_by_the_webdataset_library(root, folder):
    put(folder / "birds/b.txt", "a bird")
    ingest(root, "b", folder, QUIET)
    rows = samples(root)
    shards = sorted({row["shard"] for row in rows})
    urls = [str(root.shards / shard) for shard in shards]
    read = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [int(sample["__key__"]) for sample in read] == [0, 1, 2, 3]
    for sample, row in zip(read, rows, strict=True):
        beside = json.loads(sample["json"])
        assert beside["sample_id"] == row["sample_id"]
        assert beside["caption"] == row["caption"]
        image = sample[{"jpeg": "jpg"}.get(row["format"], row["format"])]
        assert sample_id_of(image) == row["sample_id"]
    assert rows[0]["caption"] == "a bird"


def test_width_and_height_are_as_seen_after_orientation(root, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    Image.new("RGB", (24, 12)).save(out, "JPEG", exif=exif.tobytes())
    put(tmp_path / "in/a.jpg", out.getvalue())
    ingest(root, "b", tmp_path / "in", QUIET)
    assert [(row["width"], row["height"]) for row in samples(root)] == [(12, 24)]


def test_limits_of_pixels_sides_and_bytes_are_kept(root, tmp_path):
    top = tmp_path / "in"
    put(top / "small.png", encoded(1, side=10))
    put(top / "right.png", encoded(2, side=20))
    put(top / "large.png", encoded(3, side=30))
    put(top / "heavy.png", encoded(4, side=20) + bytes(10_000))
    config = QUIET.model_copy(
        update={
            "limits": ImageLimits(max_pixels=500, min_side=16),
            "max_image_bytes": 9_000,
        }
    )
    report = ingest(root, "b", top, config)
    assert report.rejected == {"too_many_bytes": 1, "too_many_pixels": 1, "too_small": 1}
    assert report.written == 1


def test_captions_and_labels_come_from_sidecars(root, tmp_path):
    top = tmp_path / "in"
    for number in range(6):
        put(top / f"x/{number}.png", encoded(number))
    put(top / "x/0.txt", "\ufeff from a text file \n")
    put(top / "x/1.json", json.dumps({"Caption": "from json", "label": 7}))
    put(top / "x/2.json", "not json at all")
    put(top / "x/3.txt", "not this one")
    put(top / "metadata.csv", 'file_name,text,label\nx/3.png,"from, csv",l3\nx/gone.png,c,l\n')
    put(top / "x/metadata.jsonl", json.dumps({"file_name": "4.png", "text": "from jsonl"}) + "\n\n")
    ingest(root, "b", top, QUIET)
    found = attempts(root)
    words = {key: (row["caption"], row["label"]) for key, row in found.items()}
    assert words == {
        "x/0.png": ("from a text file", None),
        "x/1.png": ("from json", "7"),
        "x/2.png": (None, None),
        "x/3.png": ("from, csv", "l3"),
        "x/4.png": ("from jsonl", None),
        "x/5.png": (None, None),
        "x/gone.png": ("c", "l"),
    }
    assert found["x/gone.png"]["reason"] == "missing_file"
    assert {row["caption"] for row in samples(root)} == {
        None, "from a text file", "from json", "from, csv", "from jsonl"
    }  # fmt: skip


def test_labels_come_from_folder_names_when_asked(root, folder):
    ingest(root, "b", folder, QUIET.model_copy(update={"labels_from_folders": True}))
    labels = {key: row["label"] for key, row in attempts(root).items()}
    assert labels["birds/wild/a.png"] == "wild"
    assert labels["cats/c.webp"] == "cats"
    assert labels["d.PNG"] is None


@pytest.mark.parametrize(
    ("name", "content"),
    [("metadata.csv", "path,text\na.png,x\n"), ("metadata.jsonl", '{"file_name": "a.png"}\n{oops')],
)
def test_a_metadata_file_that_cannot_be_used_is_a_clear_error(root, folder, name, content):
    put(folder / name, content)
    with pytest.raises(BadInput, match=rf"{name}, line 2"):
        ingest(root, "b", folder, QUIET)
    assert not root.tables.exists("samples")


def test_a_caption_of_a_megabyte_in_a_csv_is_kept(root, tmp_path):
    put(tmp_path / "in/a.png", encoded(1))
    put(tmp_path / "in/metadata.csv", f"file_name,text\na.png,{'x' * 2**20}\n")
    ingest(root, "b", tmp_path / "in", QUIET)
    assert len(samples(root)[0]["caption"]) == 2**20


def test_hostile_captions_are_kept_as_they_are(root, tmp_path):
    hostile = "<script>alert(1)</script>\n![x](http://x)\u202eabc\U0001f98a =cmd|' /C calc'!A0"
    put(tmp_path / "in/a.png", encoded(1))
    put(tmp_path / "in/a.txt", hostile)
    put(tmp_path / "in/b.png", encoded(2))
    put(tmp_path / "in/b.txt", b"nul \0 and \xff bytes" + b"x" * 3_000_000)
    put(tmp_path / "in/c.png", encoded(3))
    put(tmp_path / "in/c.json", '{"caption": "lone \\ud800 surrogate"}')
    ingest(root, "b", tmp_path / "in", QUIET)
    captions = [row["caption"] for row in samples(root)]
    assert captions[0] == hostile
    assert captions[1].startswith("nul \0 and \ufffd bytes")
    assert len(captions[1]) <= 2**20
    assert captions[2] == "lone ? surrogate"


def test_links_and_special_files_are_refused_and_loops_end(root, folder, tmp_path):
    outside = put(tmp_path / "outside/secret.png", encoded(99))
    (folder / "cats/loop").symlink_to(folder)
    (folder / "out.png").symlink_to(outside)
    (folder / "in.png").symlink_to(folder / "d.PNG")
    (folder / "dead.png").symlink_to(folder / "nothing")
    (folder / "self.png").symlink_to(folder / "self.png")
    os.mkfifo(folder / "pipe.png")
    ingest(root, "b", folder, QUIET)
    found = {key: (row["status"], row["reason"]) for key, row in attempts(root).items()}
    assert found["cats/loop"] == ("rejected", "symlink")
    assert found["out.png"] == ("rejected", "symlink")
    assert found["in.png"] == ("duplicate", None)
    assert found["dead.png"] == ("rejected", "missing_file")
    assert found["self.png"] == ("rejected", "unreadable")
    assert found["pipe.png"] == ("rejected", "not_a_file")


def test_file_names_that_are_not_utf8_are_written_with_backslash_codes(root, tmp_path):
    top = tmp_path / "in"
    top.mkdir()
    Path(os.fsdecode(os.fsencode(top) + b"/caf\xe9.png")).write_bytes(encoded(1))
    put(top / "caf\\xe9.png", encoded(2))
    ingest(root, "b", top, QUIET)
    assert sorted(attempts(root)) == ["caf\\xe9.png", "caf\\xe9.png~2"]
    assert len(samples(root)) == 2


@pytest.mark.parametrize("make", ["missing", "empty", "no images", "a file of no known kind"])
def test_a_source_without_images_is_a_clear_error(root, tmp_path, make):
    top = tmp_path / "in"
    if make != "missing":
        top.mkdir()
    if make == "no images":
        put(top / "notes.txt", "x")
    if make == "a file of no known kind":
        top = put(top / "x.docx", "x")
    with pytest.raises(BadInput, match=str(top)) as caught:
        ingest(root, "b", top, QUIET)
    assert "\n" not in str(caught.value)
    assert not root.tables.exists("ingest_batches")


def test_a_source_of_which_nothing_can_be_stored_is_an_error_with_counts(root, tmp_path):
    put(tmp_path / "in/a.png", "")
    put(tmp_path / "in/b.png", "text")
    put(tmp_path / "in/c.png", "text")
    with pytest.raises(BadInput, match=r"all 3 items.*not_an_image 2, empty_file 1"):
        ingest(root, "b", tmp_path / "in", QUIET)
    assert not root.tables.exists("samples")
    reasons = {key: (row["status"], row["reason"]) for key, row in attempts(root).items()}
    assert reasons == {
        "a.png": ("rejected", "empty_file"),
        "b.png": ("rejected", "not_an_image"),
        "c.png": ("rejected", "not_an_image"),
    }
    # The batch is not there for those who come after, and can still be brought in.
    with pytest.raises(TableMissing, match="b"):
        define_reference_sets(root, "b")
    put(tmp_path / "in/a.png", encoded(1))
    assert ingest(root, "b", tmp_path / "in", QUIET).written == 1
    assert {row["status"] for row in attempts(root).values()} == {"stored", "rejected"}


def test_a_source_that_went_bad_as_a_whole_takes_nothing_away(root, tmp_path):
    put(tmp_path / "in/a.png", encoded(1))
    ingest(root, "b", tmp_path / "in", QUIET)
    before = state(root)
    put(tmp_path / "in/a.png", "text")
    with pytest.raises(BadInput, match=r"not_an_image 1.*the 1 images that the batch had are"):
        ingest(root, "b", tmp_path / "in", QUIET)
    assert state(root) == before


def test_a_root_inside_its_source_is_refused(folder):
    root = Root.create(folder / "out")
    with pytest.raises(BadInput, match="lies inside the source"):
        ingest(root, "b", folder, QUIET)


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a b", "..", "a\n"])
def test_a_batch_name_that_is_no_folder_name_is_refused(root, folder, name):
    with pytest.raises(BadInput, match="batch name"):
        ingest(root, name, folder, QUIET)


def test_a_batch_keeps_its_role(root, folder):
    ingest(root, "b", folder, QUIET)
    with pytest.raises(BadInput, match="ingested as pool"):
        ingest(root, "b", folder, QUIET, role="reference")
    with pytest.raises(BadInput, match="none of"):
        ingest(root, "c", folder, QUIET, role="clean")


def test_a_role_that_another_process_registered_meanwhile_is_kept(root, folder, monkeypatch):
    checked = []

    def check(*arguments):
        if not checked:  # between the first look and the lock another process ingests the batch
            checked.append(True)
            ingest(root, "b", folder, QUIET)
            return
        check_batch(*arguments)

    monkeypatch.setattr(run, "check_batch", check)
    with pytest.raises(BadInput, match="ingested as pool"):
        ingest(root, "b", folder, QUIET, role="reference")


def test_running_twice_changes_nothing_and_reads_no_image(root, folder, monkeypatch):
    ingest(root, "b", folder, QUIET)
    before = state(root), root.tables.versions(["ingest_batches", "ingest_attempts", "samples"])
    monkeypatch.setattr("pipelines.ingest.run.verify_all", None)  # would fail if it were called
    report = ingest(root, "b", folder, QUIET)
    assert (report.read, report.written, report.unchanged) == (8, 0, 4)
    assert report.rejected == {"not_an_image": 1, "truncated": 1, "unsupported_format": 1}
    after = state(root), root.tables.versions(["ingest_batches", "ingest_attempts", "samples"])
    assert after == before


def test_a_touched_file_is_read_again_and_changes_nothing(root, folder):
    ingest(root, "b", folder, QUIET)
    before = state(root), root.tables.versions(["ingest_batches", "ingest_attempts", "samples"])
    os.utime(folder / "d.PNG", (1, 1))
    report = ingest(root, "b", folder, QUIET)
    assert (report.written, report.unchanged) == (0, 4)
    after = state(root), root.tables.versions(["ingest_batches", "ingest_attempts", "samples"])
    assert after == before


@pytest.mark.parametrize("harm", [Path.unlink, lambda shard: os.truncate(shard, 1000)])
def test_a_lost_or_cut_shard_is_written_again(root, folder, harm):
    ingest(root, "b", folder, QUIET)
    before = state(root)
    for shard in root.shards.rglob("*.tar"):
        harm(shard)
    ingest(root, "b", folder, QUIET)
    assert state(root) == before


def test_images_that_stay_keep_their_rows_when_the_source_changes(root, folder):
    ingest(root, "b", folder, QUIET)
    old = {row["sample_id"]: row["sample_row"] for row in samples(root)}
    old_version = root.tables.version("samples")
    put(folder / "aaa first.png", encoded(50))
    (folder / "d.PNG").unlink()
    report = ingest(root, "b", folder, QUIET)
    assert report.written == 4
    new = {row["sample_id"]: row["sample_row"] for row in samples(root)}
    assert sample_id_of(encoded(4)) not in new
    assert {i: new[i] for i in old if i in new} == {i: r for i, r in old.items() if i in new}
    # The row of the image that left is not given to another one.
    assert new[sample_id_of(encoded(50))] not in old.values()
    for row in samples(root):
        assert sample_id_of(stored_bytes(root, row)) == row["sample_id"]
    # What was read before at the old version still lies where that version says.
    for row in root.tables.open("samples", old_version).read().to_pylist():
        assert sample_id_of(stored_bytes(root, row)) == row["sample_id"]


def test_a_row_is_not_given_again_after_the_last_image_left(root, folder):
    ingest(root, "b", folder, QUIET)
    last = max(row["sample_row"] for row in samples(root))
    (folder / "d.PNG").unlink()
    ingest(root, "b", folder, QUIET)
    put(folder / "z.png", encoded(51))
    ingest(root, "b", folder, QUIET)
    rows = {row["sample_id"]: row["sample_row"] for row in samples(root)}
    assert rows[sample_id_of(encoded(51))] == last + 1


def test_a_row_is_not_given_again_after_two_runs_that_died_before_they_noted_it(
    root, folder, monkeypatch
):
    ingest(root, "b", folder, QUIET)
    for change in (lambda: put(folder / "y.png", encoded(60)), (folder / "y.png").unlink):
        change()
        monkeypatch.setattr(run, "_retry_note", None)  # called behind the commits
        with pytest.raises(TypeError):
            ingest(root, "b", folder, QUIET)
        monkeypatch.undo()
    put(folder / "z.png", encoded(61))
    ingest(root, "b", folder, QUIET)
    rows = {row["sample_id"]: split_sample_row(row["sample_row"])[1] for row in samples(root)}
    assert rows[sample_id_of(encoded(61))] == 5


def test_a_caption_that_changes_replaces_the_rows_and_not_their_keys(root, folder):
    ingest(root, "b", folder, QUIET)
    before = {row["sample_id"]: row["sample_row"] for row in samples(root)}
    put(folder / "birds/b.txt", "new words")
    ingest(root, "b", folder, QUIET)
    rows = samples(root)
    assert {row["sample_id"]: row["sample_row"] for row in rows} == before
    assert rows[0]["caption"] == "new words"


def test_the_same_batch_twice_at_once_is_refused_and_another_batch_is_not(root, folder):
    with root.lock("ingest", "b"):
        with pytest.raises(JobAlreadyRunning, match="ingest already runs on b"):
            ingest(root, "b", folder, QUIET)
        assert ingest(root, "c", folder, QUIET).written == 4


def test_batches_ingested_side_by_side_get_ordinals_of_their_own(root, folder):
    failed = []

    def one(name):
        try:
            ingest(Root.open(root.path), name, folder, QUIET)
        except Exception as error:  # noqa: BLE001 - shown by the assertion
            failed.append(error)

    threads = [threading.Thread(target=one, args=(f"b{i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    rows = root.tables.read("ingest_batches").to_pylist()
    assert sorted(row["batch_ordinal"] for row in rows) == list(range(6))
    for row in rows:
        found = samples(root, row["ingest_batch"])
        assert {split_sample_row(s["sample_row"])[0] for s in found} == {row["batch_ordinal"]}


def test_the_same_bytes_in_two_batches_are_two_rows_of_one_sample_id(root, folder):
    ingest(root, "b", folder, QUIET)
    ingest(root, "c", folder, QUIET, role="reference")
    first, second = samples(root, "b"), samples(root, "c")
    assert [r["sample_id"] for r in first] == [r["sample_id"] for r in second]
    assert not {r["sample_row"] for r in first} & {r["sample_row"] for r in second}


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seeds=st.lists(st.integers(0, 8), min_size=1, max_size=12),
    order=st.randoms(use_true_random=False),
    per_shard=st.integers(1, 5),
)
def test_the_order_in_which_files_were_made_does_not_matter(
    tmp_path_factory, seeds, order, per_shard
):
    config = QUIET.model_copy(update={"images_per_shard": per_shard})
    states = []
    for shuffled in (False, True):
        top = tmp_path_factory.mktemp("in")
        names = list(enumerate(seeds))
        if shuffled:
            order.shuffle(names)
        for number, seed in names:
            put(top / f"s{number % 3}/{number:02d}.png", encoded(seed))
        root = Root.create(tmp_path_factory.mktemp("root"))
        ingest(root, "b", top, config)
        ingest(root, "b", top, config)
        found = attempts(root)
        for row in found.values():
            row.pop("source_uri")
        states.append((state(root)[0], found, samples(root)))
        assert len(samples(root)) == len(set(seeds))
        assert len(found) == len(seeds)
    assert states[0] == states[1]


@pytest.mark.parametrize(
    "step", ["plan_shards", "write_shard", "register", "attempts_table", "_commit", "write_json"]
)
@pytest.mark.parametrize("after", [False, True])
def test_stopped_before_or_after_any_step_and_run_again_leaves_the_same(
    tmp_path, folder, monkeypatch, step, after
):
    states = []
    for stopped in (False, True):
        root = Root.create(tmp_path / f"root-{stopped}")
        if stopped:
            stop_at(monkeypatch, step, after)
            with pytest.raises(KeyboardInterrupt):
                ingest(root, "b", folder, QUIET)
            monkeypatch.undo()
        ingest(root, "b", folder, QUIET)
        states.append(state(root))
        assert root.tables.version("samples") == root.tables.version("ingest_attempts") == 0
    assert states[0] == states[1]


def stop_at(monkeypatch, step, after):
    done = getattr(run, step)

    def stop(*arguments):
        if after:
            done(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(run, step, stop)


KILLED = """
import sys
from pipelines.ingest import IngestConfig, ingest
from schemas.root import Root
if __name__ == "__main__":
    config = IngestConfig(images_per_shard=16, num_workers=int(sys.argv[3]), show_progress=False)
    print("started", flush=True)
    ingest(Root.open(sys.argv[1]), "b", sys.argv[2], config)
"""


@pytest.mark.slow
def test_killed_at_any_moment_and_run_again_leaves_the_same_rows_and_files(tmp_path):
    top = tmp_path / "in"
    for number in range(400):
        put(top / f"s{number % 4}/{number}.png", encoded(number % 390, side=32))
    script = put(tmp_path / "run.py", KILLED)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
    states = []
    # None runs to its end; the others are killed after that many seconds of work.
    for kill_after in (None, 0.05, 0.25, 0.5, 0.75, 1.0):
        root = Root.create(tmp_path / f"root-{kill_after}")
        command = [sys.executable, str(script), str(root.path), str(top), "1"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        process.stdout.readline()
        if kill_after is not None:
            time.sleep(kill_after)
            process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        config = QUIET.model_copy(update={"images_per_shard": 16})
        ingest(root, "b", top, config)
        ingest(root, "b", top, config)
        states.append(state(root))
        assert not list(root.shards.rglob("*.partial"))
    assert len(states[0][2]) == 390
    assert all(one == states[0] for one in states)
