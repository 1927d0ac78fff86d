import functools

import numpy as np
import pytest
import torch

from ambient_omni import rng
from ambient_omni.data.packs import to_x0
from ambient_omni.windows.config import ReceptiveFieldConfig
from ambient_omni.windows.crop_classifier import load_crop_classifier
from ambient_omni.windows.crop_training import calibrated, told_apart, train_crop_classifier
from ambient_omni.windows.crops import (
    cut,
    grid_corners,
    grid_shape,
    random_corners,
    shuffled,
)
from ambient_omni.windows.network import (
    CentreDenoiser,
    CropClassifierNetwork,
    structure_functions,
)
from ambient_omni.windows.receptive_field import measure_receptive_field, needed_context
from schemas.errors import BadInput, ClassifierRefused, NotEnoughReferences
from tests.ambient_omni.windows_data import (
    CROPS,
    SIDE,
    SPACE,
    define_domain,
    grains,
    measured,
    noise,
    store,
)


def domain(root, images):
    define_domain(root, store(root, "ref", images, role="reference"))


def train(root, config=CROPS):
    return train_crop_classifier(
        root, config, foreign_batches=["foreign"], reference_set="trusted", space=SPACE
    )


def test_crops_are_cut_where_the_corner_says():
    x0 = np.arange(2 * 3 * 6 * 6, dtype=np.float32).reshape(2, 3, 6, 6)
    found = cut(x0, np.array([[0, 1], [3, 2]]), 3)
    assert np.array_equal(found[0], x0[0, :, 0:3, 1:4])
    assert np.array_equal(found[1], x0[1, :, 3:6, 2:5])


@pytest.mark.parametrize(("side", "size"), [(24, 4), (24, 16), (9, 9), (10, 7)])
def test_the_grid_covers_the_image_from_edge_to_edge(side, size):
    corners = grid_corners((side, side), size)
    seen = np.zeros((side, side), bool)
    for top, left in corners:
        seen[top : top + size, left : left + size] = True
    assert seen.all()
    rows, columns = grid_shape((side, side), size)
    assert rows * columns == len(corners)


def test_random_places_are_every_place_and_differ_between_images():
    corners = random_corners(3000, (6, 6), 4, rng.generator(0, "test"))
    assert {tuple(c) for c in corners} == {(a, b) for a in range(3) for b in range(3)}


def test_shuffling_keeps_the_colours_of_a_crop():
    crops = rng.normal((3, 3, 4, 4), 0, "test")
    mixed = shuffled(crops, rng.generator(0, "test"))
    assert not np.array_equal(mixed, crops)
    colours = [{tuple(c) for c in image.reshape(3, -1).T} for image in (crops[0], mixed[0])]
    assert colours[0] == colours[1]


def test_images_smaller_than_the_crop_are_refused():
    with pytest.raises(BadInput, match="crops of 8 do not fit into images of 6 x 6"):
        grid_corners((6, 6), 8)


def test_one_network_takes_every_size_and_is_told_it():
    network = CropClassifierNetwork(CROPS.network, 3, (4, 8, 16)).eval()
    with torch.no_grad():
        network.read[-1].weight.normal_(generator=torch.Generator().manual_seed(0))
    flat = {size: network(torch.zeros(2, 3, size, size)) for size in (4, 8, 16)}
    assert all(said.shape == (2,) for said in flat.values())
    assert len({float(said[0].detach()) for said in flat.values()}) == 3


def test_an_untrained_centre_denoiser_is_the_best_linear_one():
    network = CentreDenoiser(CROPS.network, 3, 8, sigma_data=0.5)
    x = torch.from_numpy(rng.normal((2, 3, 8, 8), 0, "test"))
    said = network(x, torch.full((2,), 0.5))
    assert torch.allclose(said, 0.5 * x[:, :, 3:5, 3:5])


@functools.cache
def grade_both(folder):
    root, name, _ = measured(folder)
    classifier = load_crop_classifier(root, name)
    said = {}
    for batch, images in (
        ("foreign", grains(120, SIDE, 2, ramp=True)[:60]),
        ("static", noise(40, SIDE, 3)),
    ):
        ids = root.tables.read("samples", where={"ingest_batch": batch})["sample_id"].to_pylist()
        x0 = to_x0(np.array(images))
        said[batch] = classifier.grade(x0, ids[: len(x0)]).mean_probability
    return root, classifier, said


@pytest.fixture
def graded(tmp_path_factory):
    """A classifier of grains against ramps and noise, and what it says of both."""
    return grade_both(tmp_path_factory.getbasetemp())


def test_local_twins_of_the_domain_pass_in_small_crops_and_fail_in_large_ones(graded):
    _, classifier, said = graded
    assert classifier.sizes == (4, 8, 16)
    means = np.median(said["foreign"], axis=0)
    assert means[0] > 0.45
    assert means[2] < 0.35


def test_noise_passes_at_no_size(graded):
    assert (graded[2]["static"].max(axis=1) < 0.2).mean() > 0.95


def test_the_classifier_is_stored_with_its_control_and_trained_once(graded):
    root, classifier, _ = graded
    row = root.tables.read("crop_classifiers").to_pylist()[0]
    assert row["crop_classifier_id"] == classifier.crop_classifier_id
    assert row["tv_lower_bound"][2] > row["tv_lower_bound"][0]
    before = root.tables.version("crop_classifiers")
    train_crop_classifier(
        root, CROPS, foreign_batches=["foreign", "static"], reference_set="trusted", space=SPACE
    )
    assert root.tables.version("crop_classifiers") == before


def test_a_map_says_which_crops_are_good(graded):
    _, classifier, _ = graded
    half = np.array(grains(1, SIDE, 9))
    half[:, :, SIDE // 2 :] = np.array(noise(1, SIDE, 9))[:, :, SIDE // 2 :]
    found = classifier.maps(to_x0(half), ["x"], 4)[0]
    assert found.shape == grid_shape((SIDE, SIDE), 4)
    assert found[:, :4].mean() > 0.35
    assert found[:, -4:].mean() < 0.15
    with pytest.raises(BadInput, match="knows the sizes"):
        classifier.maps(to_x0(half), ["x"], 6)


def test_planted_crops_are_found_also_where_the_domain_lies_around_one_half():
    draw = rng.generator(0, "test")
    inside = draw.normal(-0.3, 0.1, (40, 2, 3))
    planted = draw.normal(-4.0, 0.1, (40, 2, 3))
    planted[:, 1] = inside[::-1, 1]
    found = told_apart(inside, planted)
    assert found.tv_lower_bound[0] == 1
    assert abs(found.tv_lower_bound[1]) < 4 * found.tv_standard_error[1]


def test_noise_does_not_pass_where_the_foreign_crops_are_the_domains():
    draw = rng.generator(0, "test")
    inside, foreign = draw.normal(0.5, 1.0, (2, 200, 1, 4))
    planted = draw.normal(-5.0, 1.0, (200, 1, 4))
    found = calibrated(inside, foreign, planted, 0.125)
    # Nobody can tell inside from foreign: P = 1/2; and planted crops are still told.
    assert found.apply(inside).mean() == pytest.approx(0, abs=0.1)
    assert found.apply(planted).mean() < -1


def test_altered_weights_are_refused(graded):
    root, classifier, _ = graded
    file = root.classifiers / classifier.crop_classifier_id / "fold-0.safetensors"
    kept = file.read_bytes()
    file.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(ClassifierRefused, match="missing or altered"):
        load_crop_classifier(root, classifier.crop_classifier_id)
    file.write_bytes(kept)


def test_a_classifier_that_was_not_trained_is_refused(root):
    domain(root, grains(60, SIDE, 1))
    store(root, "foreign", grains(40, SIDE, 2, ramp=True))
    with pytest.raises(ClassifierRefused, match="does not find shuffled crops of side 16"):
        train(root, CROPS.model_copy(update={"num_crops": 64}))
    assert not root.tables.exists("crop_classifiers")


def test_images_of_one_colour_are_refused_by_the_control(root):
    flat = [np.full((SIDE, SIDE, 3), 3 * i, np.uint8) for i in range(60)]
    domain(root, flat)
    store(root, "foreign", grains(40, SIDE, 2))
    with pytest.raises(ClassifierRefused, match="where images are flat"):
        train(root, CROPS.model_copy(update={"num_crops": 640}))


def test_few_references_or_sizes_that_do_not_fit_are_refused(root):
    domain(root, grains(20, SIDE, 1))
    store(root, "foreign", grains(40, SIDE, 2))
    with pytest.raises(NotEnoughReferences, match="'trusted' has 16 images"):
        train(root)


def test_sizes_as_large_as_the_image_are_refused(root):
    domain(root, grains(60, SIDE, 1))
    store(root, "foreign", grains(40, SIDE, 2))
    with pytest.raises(BadInput, match=r"no crop size of .* is smaller than the images"):
        train(root, CROPS.model_copy(update={"sizes": (24, 32)}))


def test_the_needed_context_is_the_smallest_within_tolerance_and_never_falls():
    loss = np.array([[0.5, 0.9, 0.4], [0.401, 0.8, 0.4], [0.4, 0.6, 0.4]])
    assert needed_context(loss, (2, 4, 8), 0.002).tolist() == [4, 8, 8]
    assert needed_context(loss, (2, 4, 8), 0.3, relative=True).tolist() == [2, 8, 8]


@pytest.mark.slow
def test_white_noise_needs_no_context_and_one_colour_needs_all(root):
    field = ReceptiveFieldConfig(
        network={"widths": (12, 16), "hidden": 24},
        sigmas=(0.2, 0.8),
        contexts=(2, 8),
        num_windows=9_600,
        learning_rate=1e-2,
        weight_decay=0.0,
        ema_decay=0.97,
        batch_size=64,
        num_noises=2,
        tolerance=0.1,
        relative=True,
    )
    store(root, "foreign", noise(40, SIDE, 4))
    needed = {}
    for name, images in (
        ("static", noise(200, SIDE, 5)),
        (
            "plain",
            [np.full((SIDE, SIDE, 3), v, np.uint8) + i * 0 for i, v in enumerate(range(200))],
        ),
    ):
        rows = store(root, name, images, role="reference")
        define_domain(root, rows, every=4)
        made = measure_receptive_field(
            root, field, foreign_batches=("foreign",), reference_set="trusted", space=SPACE
        )
        row = root.tables.read("receptive_fields", where={"receptive_field_id": made}).to_pylist()
        needed[name] = row[0]["needed_context"]
    assert needed["static"] == [2, 2]
    assert needed["plain"][0] > 2
    assert needed["plain"][1] == SIDE


def test_shuffled_crops_have_no_grain_whatever_their_contrast():
    crops = rng.normal((40, 3, 16, 16), 0, "test").cumsum(3).cumsum(2)
    for contrast in (0.01, 1.0):
        scaled = torch.from_numpy((contrast * crops / crops.std()).astype(np.float32))
        mixed = torch.from_numpy(shuffled(scaled.numpy(), rng.generator(0, "test")))
        kept, lost = (structure_functions(c)[:, 3:9].mean() for c in (scaled, mixed))
        assert kept < -1
        assert abs(lost) < 0.2
