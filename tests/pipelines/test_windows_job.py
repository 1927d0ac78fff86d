import io

import numpy as np
import pytest
from PIL import Image

from ambient_omni import rng
from ambient_omni.data.packs import PackMissing
from dagster_project.pictures import MAX_PICTURE_BYTES
from pipelines.__main__ import main
from pipelines.freezing import freeze_crop_window
from pipelines.jobs.annotate import annotate
from pipelines.jobs.windows import crops, read_map, windows
from pipelines.policies import FixedPerSource
from pipelines.report.drawing.crop_map import draw_crop_map, spread
from schemas.errors import BadInput, TableMissing
from tests.ambient_omni import windows_data
from tests.ambient_omni.windows_data import JOB, SIDE, SPACE, grains
from tests.conftest import store_batch


@pytest.fixture
def measured(tmp_path_factory):
    """A root with a crop classifier and a receptive field; returns it with their ids."""
    return windows_data.measured(tmp_path_factory.getbasetemp())


def test_local_twins_get_a_window_and_noise_gets_none(measured):
    root, classifier, field = measured
    for batch in ("foreign", "static"):
        crops(root, batch, classifier)
    policy = freeze_crop_window(
        root,
        crop_classifier_id=classifier,
        receptive_field_id=field,
        floor=FixedPerSource(noise_space=SPACE.noise_space, levels={"*": None}),
        epsilon=0.1,
    )
    assert policy.sigma_max[0] > 0
    for batch in ("foreign", "static"):
        annotate(root, batch, policy)
    where = {"policy_id": policy.policy_id}
    found = root.tables.read("noise_annotations", where=where).to_pylist()
    twins = [row["sigma_max"] for row in found if row["ingest_batch"] == "foreign"]
    static = [row["sigma_max"] for row in found if row["ingest_batch"] == "static"]
    assert np.mean(np.array(twins) > 0) > 0.6
    assert np.mean(np.array(static) > 0) < 0.05
    assert {row["sigma_min"] for row in found} == {None}


def test_twice_equals_once_and_a_new_map_is_made_when_it_is_asked_for(measured):
    root, classifier, _ = measured
    assert windows(root, JOB).notes[0].endswith(classifier)
    first = crops(root, "foreign", classifier)
    assert first.read == 120
    assert crops(root, "foreign", classifier).unchanged == 120
    row = int(
        root.tables.read("samples", where={"ingest_batch": "foreign"})["sample_row"][0].as_py()
    )
    with pytest.raises(TableMissing, match="run crops with --map-size 4"):
        read_map(root, classifier, "foreign", 4, row)
    assert crops(root, "foreign", classifier, map_size=4).written == 120
    assert read_map(root, classifier, "foreign", 4, row).shape == (11, 11)
    with pytest.raises(TableMissing, match="is not among the crop maps"):
        read_map(root, classifier, "foreign", 4, -1)


def test_what_is_missing_is_named(measured):
    root, classifier, _ = measured
    with pytest.raises(TableMissing, match="crop_classifiers has no"):
        crops(root, "foreign", "nope")
    with pytest.raises(TableMissing, match="'nope' has no samples"):
        crops(root, "nope", classifier)
    with pytest.raises(BadInput, match="knows the sizes"):
        crops(root, "foreign", classifier, map_size=5)
    store_batch(root, "bare", grains(2, SIDE, 7))
    with pytest.raises(PackMissing):
        crops(root, "bare", classifier)


def test_the_commands_draw_maps_and_refuse_to_guess(measured, tmp_path, capsys):
    root, classifier, _ = measured
    common = ["crops", "--root", str(root.path), "--batch", "static"]
    asked = [*common, "--crop-classifier-id", classifier, "--draw", str(tmp_path / "maps")]
    assert main(asked) == 2
    assert "--draw needs --map-size" in capsys.readouterr().err
    assert main([*asked, "--map-size", "8"]) == 0
    files = capsys.readouterr().out.split()[:6]
    with Image.open(files[0]) as drawn:
        assert drawn.size[0] > 600
    assert main(["windows", "--root", str(root.path)]) == 2
    assert "windows needs --config" in capsys.readouterr().err


def test_a_caption_is_drawn_as_it_stands():
    pixels = np.array(grains(1, SIDE, 1))[0]
    drawn = draw_crop_map(pixels, np.zeros((11, 11)), 4, "a $file_{name^ <b>&\\frac{")
    with Image.open(io.BytesIO(drawn)) as image:
        assert image.format == "PNG"


def test_maps_over_photographs_of_any_size_are_small_enough_for_a_page():
    draw = rng.generator(0, "crop-map")
    camera = draw.integers(0, 256, (768, 1024, 3), dtype=np.uint8)
    probability = draw.uniform(size=(11, 15))
    png = draw_crop_map(camera, probability, 128, "noise, the worst to compress")
    assert 3 * len(png) < MAX_PICTURE_BYTES
    with Image.open(io.BytesIO(png)) as drawn:
        assert drawn.mode == "RGB"


def test_a_map_is_spread_over_the_positions_of_its_crops():
    said = np.zeros((3, 3))
    said[:, 2] = 1.0
    over = spread(said, (4, 4), 2)
    assert over.shape == (4, 4)
    assert over[:, 0].max() == 0
    assert (over[:, 2] == 0.5).all()
    assert over[:, -1].min() == 1
    with pytest.raises(ValueError, match="values for"):
        spread(said, (8, 8), 2)
