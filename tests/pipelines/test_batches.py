import numpy as np
import pytest

from pipelines import batches
from pipelines.batches import image_tasks, images_per_task, open_batch, read_images
from schemas.errors import BadInput


@pytest.mark.parametrize(
    ("num_images", "expected"), [(0, 64), (10, 64), (2277, 96), (60_000, 1888), (10**6, 2048)]
)
def test_tasks_are_small_for_small_batches_and_bounded_for_large_ones(num_images, expected):
    assert images_per_task(num_images) == expected
    assert expected % 32 == 0


def test_tasks_cover_every_sample_once_and_stay_inside_a_shard(root, make_batch, images):
    make_batch(root, "b1", images(10))
    tasks = image_tasks(root, open_batch(root, "b1"))
    assert [task.num_images for task in tasks] == [4, 4, 2]
    found = [chunk.sample_rows for task in tasks for chunk in read_images(task)]
    rows = root.tables.read("samples")["sample_row"].to_numpy()
    assert np.array_equal(np.concatenate(found), rows)


def test_chunks_are_bounded_by_decoded_bytes(root, make_batch, images, monkeypatch):
    make_batch(root, "b1", images(4))
    monkeypatch.setattr(batches, "_MAX_CHUNK_BYTES", 2 * 32 * 32 * 3)
    [task] = image_tasks(root, open_batch(root, "b1"))
    assert [len(chunk.images) for chunk in read_images(task)] == [2, 2]


def test_an_image_larger_than_ingest_saw_is_not_decoded(root, make_batch, images):
    make_batch(root, "b1", images(1, side=64))
    smaller = root.tables.read("samples").to_pylist()
    smaller[0]["width"] = smaller[0]["height"] = 8
    contract = root.tables.open("samples").contract
    slice_ = {"ingest_batch": "b1"}
    table = contract.table(smaller)
    root.tables.commit("samples", table, slice=slice_, inputs={"n": 2}, job="tests")
    [task] = image_tasks(root, open_batch(root, "b1"))
    [chunk] = list(read_images(task))
    assert [reason for _, reason in chunk.unreadable] == ["too_many_pixels"]


def test_a_missing_shard_says_what_to_do(root, make_batch, images):
    make_batch(root, "b1", images(1))
    [task] = image_tasks(root, open_batch(root, "b1"))
    (root.shards / task.shard).unlink()
    with pytest.raises(BadInput, match="if it changed, ingest its batch again"):
        list(read_images(task))
