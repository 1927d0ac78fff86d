import numpy as np
import pyarrow as pa
import pytest

from ambient_omni.data.packs import PackMissing
from ambient_omni.data.transforms import Transform
from dagster_project import galleries
from dagster_project.galleries import _ends, level_gallery
from dagster_project.pictures import band_picture

TRANSFORM = Transform(resolution=8)


class OnePack:
    """A pack of images whose brightness is their row."""

    def __init__(self, rows):
        self.sample_rows = np.array(rows)

    def __len__(self):
        return len(self.sample_rows)

    def take(self, places):
        values = self.sample_rows[places].astype(np.uint8)
        return np.broadcast_to(values[:, None, None, None], (len(places), 8, 8, 3))


@pytest.fixture
def drawn(monkeypatch):
    """The images that were put into the last mosaic, by their row."""
    shown = []

    def draw(images, num_columns):
        shown[:] = [images[:num_columns, 0, 0, 0].tolist(), images[num_columns:, 0, 0, 0].tolist()]
        return b"png"

    monkeypatch.setattr("pipelines.report.plots.mosaic", draw)
    return shown


def scores(values):
    return pa.table({"sample_row": list(range(len(values))), "sharpness": values})


def test_the_worst_stand_above_the_best(root, drawn, monkeypatch):
    monkeypatch.setattr(galleries.Pack, "open", lambda *_: OnePack(range(5)))
    found = _ends(root, TRANSFORM, "b", scores([5.0, 1.0, 3.0, None, 4.0]), "sharpness")
    assert drawn == [[1, 2], [4, 0]]
    assert "at most 3" in found["ends_of_sharpness"].md_str


def test_equal_values_have_no_ends(root, drawn):
    assert _ends(root, TRANSFORM, "b", scores([2.0, 2.0, 2.0]), "sharpness") == {}


def test_a_batch_without_its_pack_has_no_gallery_and_no_error(root, drawn, monkeypatch):
    def missing(*_):
        raise PackMissing("no pack")

    monkeypatch.setattr(galleries.Pack, "open", missing)
    assert _ends(root, TRANSFORM, "b", scores([1.0, 2.0]), "sharpness") == {}


def test_a_pack_that_lacks_an_image_shows_none(root, drawn, monkeypatch):
    monkeypatch.setattr(galleries.Pack, "open", lambda *_: OnePack([0, 7]))
    assert _ends(root, TRANSFORM, "b", scores([1.0, 2.0]), "sharpness") == {}


def test_a_batch_without_levels_has_no_gallery(root):
    assert level_gallery(root, TRANSFORM, "b", "p") == {}
    assert band_picture(root, "b", {}) == {}
