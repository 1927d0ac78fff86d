import pickle

import numpy as np
import pytest

from ambient_omni import rng
from ambient_omni.data.pack_writer import PackWriter
from ambient_omni.data.packs import Pack, PackMissing, PackSet, to_pixels, to_x0
from ambient_omni.data.transforms import Transform

TRANSFORM = Transform(resolution=4)


def images(count, batch):
    draw = rng.generator(0, "pack-test", batch)
    return draw.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)


def build(packs, batch, ordinal, chunk_sizes, inputs="a"):
    writer = PackWriter(packs, TRANSFORM, batch, inputs)
    writer.begin()
    rows = np.arange(sum(chunk_sizes)) + (ordinal << 32)
    pixels = images(len(rows), batch)
    infos, start = [], 0
    for number, size in enumerate(chunk_sizes):
        # Through pickle, as a task gets it.
        with pickle.loads(pickle.dumps(writer)).chunk(number) as chunk:
            for i in range(start, start + size):
                chunk.add(int(rows[i]), pixels[i])
        infos.append(chunk.info)
        start += size
    writer.finish(infos)
    return rows, pixels


def test_a_pack_gives_back_the_pixels_of_each_sample_row(tmp_path):
    rows_a, pixels_a = build(tmp_path, "a", 0, [3, 0, 2])
    rows_b, pixels_b = build(tmp_path, "b", 1, [4])
    packs = PackSet.open(tmp_path, TRANSFORM, ["b", "a"])
    rows = np.concatenate([rows_a, rows_b])
    pixels = np.concatenate([pixels_a, pixels_b])
    order = rng.permutation(len(rows), 0, "order")
    assert np.array_equal(packs.take(packs.index_of(rows[order])), pixels[order])
    assert packs.noise_space == TRANSFORM.noise_space


def test_a_missing_sample_is_named(tmp_path):
    build(tmp_path, "a", 0, [3])
    packs = PackSet.open(tmp_path, TRANSFORM, ["a"])
    with pytest.raises(PackMissing, match=r"1 samples are not in the packs of a .*sample_row 99"):
        packs.index_of(np.array([0, 99]))


def test_a_pack_without_its_marker_is_not_there(tmp_path):
    build(tmp_path, "a", 0, [3])
    PackWriter(tmp_path, TRANSFORM, "a", "a").begin()
    with pytest.raises(PackMissing, match="no complete pack of batch 'a'"):
        Pack.open(tmp_path, TRANSFORM.transform_id, "a")


def test_other_inputs_make_a_pack_stale_and_the_same_leave_it_current(tmp_path):
    build(tmp_path, "a", 0, [3], inputs="one")
    assert PackWriter(tmp_path, TRANSFORM, "a", "one").is_current()
    assert not PackWriter(tmp_path, TRANSFORM, "a", "two").is_current()


def test_a_rebuild_removes_the_chunks_it_no_longer_has(tmp_path):
    build(tmp_path, "a", 0, [3, 3])
    build(tmp_path, "a", 0, [2])
    folder = PackWriter(tmp_path, TRANSFORM, "a", "a").folder
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["chunk-000000.npy", "meta.json", "rows-000000.npy"]


def test_a_task_that_fails_leaves_no_chunk_behind(tmp_path):
    writer = PackWriter(tmp_path, TRANSFORM, "a", "a")
    writer.begin()
    with pytest.raises(ValueError, match="expected uint8"), writer.chunk(0) as chunk:
        chunk.add(0, np.zeros((5, 5, 3), np.uint8))
    assert list(writer.folder.iterdir()) == []


def test_a_truncated_chunk_is_refused(tmp_path):
    build(tmp_path, "a", 0, [3])
    path = PackWriter(tmp_path, TRANSFORM, "a", "a").folder / "chunk-000000.npy"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(PackMissing, match="build the pack again"):
        Pack.open(tmp_path, TRANSFORM.transform_id, "a")


def test_pixels_survive_the_way_to_x0_and_back():
    pixels = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1).repeat(3, axis=3)
    x0 = to_x0(pixels)
    assert x0.shape == (4, 3, 8, 8)
    assert x0.dtype == np.float32
    assert (x0.min(), x0.max()) == (-1, 1)
    assert np.array_equal(to_pixels(x0), pixels)


@pytest.mark.parametrize("name", ["chunk-000000.npy", "rows-000000.npy"])
def test_a_file_without_bytes_is_named(tmp_path, name):
    build(tmp_path, "a", 0, [3])
    (tmp_path / TRANSFORM.transform_id / "a" / name).write_bytes(b"")
    with pytest.raises(PackMissing, match="cannot be read"):
        Pack.open(tmp_path, TRANSFORM.transform_id, "a")


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b'{"format": 9}'])
def test_a_pack_with_a_damaged_marker_is_not_there(tmp_path, content):
    build(tmp_path, "a", 0, [3])
    (tmp_path / TRANSFORM.transform_id / "a" / "meta.json").write_bytes(content)
    with pytest.raises(PackMissing, match="no complete pack"):
        Pack.open(tmp_path, TRANSFORM.transform_id, "a")


def test_a_chunk_whose_keys_were_lost_is_written_anew(tmp_path):
    build(tmp_path, "a", 0, [3])
    writer = PackWriter(tmp_path, TRANSFORM, "a", "a")
    assert writer.finished(0, 3) is not None
    (writer.folder / "rows-000000.npy").write_bytes(b"")
    assert writer.finished(0, 3) is None
