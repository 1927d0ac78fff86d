"""Pictures of materializations: crop maps of windows, and samples over a run's time."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from dagster_project.pictures import run_pictures
from dagster_project.window_pictures import window_pictures
from pipelines.freezing import freeze_crop_window
from pipelines.policies import FixedPerSource
from tests.ambient_omni import windows_data
from tests.ambient_omni.windows_data import SPACE


def images_in(value):
    found = re.findall(r"base64,([A-Za-z0-9+/=]+)", value.md_str)
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in found]


@pytest.fixture
def windowed(tmp_path_factory):
    """A root with a crop classifier, and a policy of windows."""
    root, classifier, field = windows_data.measured(tmp_path_factory.getbasetemp())
    floor = FixedPerSource(noise_space=SPACE.noise_space, levels={"*": None})
    ids = {"crop_classifier_id": classifier, "receptive_field_id": field}
    return root, freeze_crop_window(root, **ids, floor=floor, epsilon=0.1)


def test_windows_are_shown_in_a_table(windowed):
    root, policy = windowed
    found = window_pictures(root, "never", {"foreign": policy, "plain": policy.floor})
    assert set(found) == {"windows_foreign"}
    for size in policy.sizes:
        assert f"| {size} |" in found["windows_foreign"].md_str


def test_samples_are_shown_as_they_came_to_be(root):
    folder = root.runs / "r"
    folder.mkdir(parents=True)
    for step in range(1, 7):
        grid = np.full((64, 64, 3), 40 * step, np.uint8)
        Image.fromarray(grid).save(folder / f"samples-{step:08d}.png")
    found = run_pictures(root, "r")
    assert "steps 1, 2, 4, 6" in found["samples_over_time"].md_str
    (strip,) = images_in(found["samples_over_time"])
    assert strip.size == (64, 4 * 16 + 3 * 2)
    shades = [np.asarray(strip)[18 * row + 8, 32, 0] for row in range(4)]
    assert shades == [40, 80, 160, 240]


def test_a_run_that_just_began_shows_no_history(root):
    (root.runs / "r").mkdir(parents=True)
    assert run_pictures(root, "r") == {}
