import json
import shutil

import numpy as np
import pytest

from ambient_omni import rng
from ambient_omni.classifier import stored
from ambient_omni.classifier.annotators import Grid, Reading, annotate
from ambient_omni.classifier.config import GridConfig
from ambient_omni.classifier.noise_classifier import (
    ClassifierConfig,
    classifier_id_for,
    fold_of,
    load,
    space_of,
    train_classifier,
)
from ambient_omni.classifier.prepared import annotator_for
from ambient_omni.damage import damage
from ambient_omni.data.config import LatentConfig
from ambient_omni.data.latent_packs import EncodeLatentsJob, encode_batches
from ambient_omni.data.latents import latent_space
from ambient_omni.data.pack_writer import PackWriter
from ambient_omni.data.packs import PackSet, to_x0
from ambient_omni.data.transforms import Transform
from schemas.errors import BadInput, ClassifierRefused, NotEnoughReferences
from schemas.registry import contract
from tests.data.tiny_vae import NUM_CHANNELS, save_tiny_vae

TRANSFORM = Transform(resolution=16)
QUICK = {
    "network": {"patch": 2, "widths": (8,), "hidden": 32},
    "num_images": 6_000,
    "num_levels": 6,
    "sigma_low": 0.03,
    "sigma_high": 20.0,
    "num_noises": 2,
    "order": {"num_chains": 40, "chains_per_batch": 2},
    "control": {"severities": {"gaussian_blur": 1.5, "sensor_noise": 32.0}},
}


def pictures(count: int, seed: int) -> list[np.ndarray]:
    """Squares of random place, size and colour on white: hard edges, flat areas."""
    draw = rng.generator(seed, "classifier-pictures")
    out = []
    for _ in range(count):
        image = np.full((16, 16, 3), 255, np.uint8)
        for _ in range(3):
            top, left = draw.integers(0, 10, 2)
            height, width = draw.integers(3, 8, 2)
            image[top : top + height, left : left + width] = draw.integers(0, 256, 3)
        out.append(image)
    return out


def damaged(images: list[np.ndarray], kind: str, severity: float) -> list[np.ndarray]:
    return [
        damage(kind, severity, image, rng.generator(0, "test-pool", kind, i))
        for i, image in enumerate(images)
    ]


def fill(root, make_batch, tiny, pool, *, num_reference=60):
    """A root with packs of `pool` and of clean references, a fifth of them for validation."""
    batches = {"ref": pictures(num_reference, seed=1), "pool": pool}
    for name, images in batches.items():
        rows = make_batch(root, name, images, images_per_shard=200)["sample_row"].to_numpy()
        writer = PackWriter(root.packs, TRANSFORM, name, "tests")
        writer.begin()
        with writer.chunk(0) as chunk:
            for row, image in zip(rows, images, strict=True):
                chunk.add(int(row), image)
        writer.finish([chunk.info])
        if name == "ref":
            tiny.define_set(root, "validation", rows[: num_reference // 5])
            tiny.define_set(root, "trusted", rows[num_reference // 5 :])
    return root


def train(root, **changes):
    return train_classifier(
        root,
        ClassifierConfig.model_validate({**QUICK, **changes}),
        pool_batches=["pool"],
        reference_set="trusted",
        transform=TRANSFORM,
    )


@pytest.fixture(scope="module")
def mixed_pool():
    """Half clean, a quarter blurred, a quarter noisy."""
    images = pictures(160, seed=2)
    blurred = damaged(images[80:120], "gaussian_blur", 1.5)
    return images[:80] + blurred + damaged(images[120:], "sensor_noise", 32.0)


@pytest.fixture
def filled(root, make_batch, tiny, mixed_pool):
    return fill(root, make_batch, tiny, mixed_pool)


@pytest.fixture
def trained(filled, kept):
    """`filled` with its classifier, trained once for all tests: (root, classifier_id)."""
    if "row" not in kept:
        name = train(filled)
        shutil.copytree(filled.classifiers / name, kept["folder"] / name)
        kept["row"] = filled.tables.read("noise_classifiers")
        return filled, name
    (name,) = kept["row"]["classifier_id"].to_pylist()
    shutil.copytree(kept["folder"] / name, filled.classifiers / name)
    filled.tables.upsert("noise_classifiers", kept["row"], job="tests")
    return filled, name


@pytest.fixture
def hardly_trained(monkeypatch):
    """Some steps do where it does not matter what was learned; the control would refuse them."""
    monkeypatch.setattr("ambient_omni.classifier.making.require_found", lambda *_: None)
    return {"num_images": 640}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return {"folder": tmp_path_factory.mktemp("classifier")}


def graded(root, classifier, x0, names):
    """Curves on the classifier's own grid."""
    return annotator_for(root, classifier, classifier.config.own_grid).curves(x0, names)


def pool_of(root):
    samples = root.tables.read("samples", where={"ingest_batch": "pool"})
    packs = PackSet.open(root.packs, TRANSFORM, ["pool"])
    pixels = packs.take(packs.index_of(samples["sample_row"].to_numpy()))
    return to_x0(pixels), samples["sample_id"].to_pylist()


def test_it_tells_damaged_from_clean_at_low_levels_and_nothing_at_the_highest(trained):
    filled, name = trained
    classifier = load(filled, name)
    x0, names = pool_of(filled)
    curves = graded(filled, classifier, x0, names)
    assert curves.logits.shape == curves.logit_standard_error.shape == (160, 6)
    clean, bad = curves.logits[:80, 0], curves.logits[80:, 0]
    assert np.mean(clean[:, None] > bad[None]) > 0.9
    assert np.abs(curves.logits[:, -1]).max() < 0.5
    assert np.median(clean) > 0 > np.median(bad)


def test_the_row_says_what_it_can_tell_and_what_the_control_found(trained):
    filled, classifier_id = trained
    (row,) = filled.tables.read("noise_classifiers").to_pylist()
    assert row["classifier_id"] == classifier_id
    assert row["noise_space"] == TRANSFORM.noise_space
    assert row["tv_lower_bound"] == pytest.approx(2 * np.array(row["balanced_accuracy"]) - 1)
    assert row["tv_lower_bound"][0] > row["tv_lower_bound"][-1]
    planted = json.loads(row["control"])["planted"]
    assert any(finding["found"] for finding in planted.values())


def test_training_twice_changes_nothing_and_trains_nothing(trained, monkeypatch):
    filled, first = trained
    before = filled.tables.version("noise_classifiers")
    monkeypatch.setattr(
        "ambient_omni.classifier.making.train_fold",
        lambda *_: pytest.fail("trained again"),
    )
    assert train(filled) == first
    assert filled.tables.version("noise_classifiers") == before


def test_what_its_grid_needs_is_made_again_where_it_was_lost(trained):
    filled, name = trained
    (file,) = filled.classifiers.glob(f"{name}/annotator-grid-*.json")
    before = file.read_text()
    file.unlink()
    assert train(filled) == name
    assert json.loads(file.read_text())["shift"] == pytest.approx(
        np.array(json.loads(before)["shift"]), abs=1e-4
    )


def test_a_stopped_training_goes_on_with_the_fold_that_is_missing(
    filled, monkeypatch, hardly_trained
):
    import ambient_omni.classifier.making as module

    trained, whole = [], module.train_fold

    def stops_at_second(sides, config, fold):
        if fold == 1 and 1 not in trained:
            trained.append(1)
            raise KeyboardInterrupt
        trained.append((fold, "done"))
        return whole(sides, config, fold)

    monkeypatch.setattr(module, "train_fold", stops_at_second)
    with pytest.raises(KeyboardInterrupt):
        train(filled, **hardly_trained)
    assert filled.tables.version("noise_classifiers") is None
    train(filled, **hardly_trained)
    assert trained == [(0, "done"), 1, (1, "done")]


def test_the_same_inputs_give_the_same_weights_and_curves(
    tmp_path, filled, make_batch, tiny, mixed_pool, hardly_trained
):
    from schemas.root import Root

    other = fill(Root.create(tmp_path / "other"), make_batch, tiny, mixed_pool)
    first, second = (load(root, train(root, **hardly_trained)) for root in (filled, other))
    assert first.classifier_id == second.classifier_id
    x0, names = pool_of(filled)
    one, two = (
        graded(root, classifier, x0[:20], names[:20]).logits
        for root, classifier in ((filled, first), (other, second))
    )
    np.testing.assert_allclose(one, two, atol=1e-4)


def test_an_image_gets_the_same_curve_in_any_batch(trained):
    filled, name = trained
    classifier = load(filled, name)
    x0, names = pool_of(filled)
    together = graded(filled, classifier, x0, names).logits
    alone = np.concatenate(
        [graded(filled, classifier, x0[i : i + 1], names[i : i + 1]).logits for i in (3, 90)]
    )
    np.testing.assert_allclose(alone, together[[3, 90]], atol=1e-4)


def test_no_fold_trains_on_an_image_that_it_grades(filled, monkeypatch, hardly_trained):
    import ambient_omni.classifier.making as module

    seen, whole = {}, module.train_fold

    def spy(sides, config, fold):
        parts = (sides.trusted, sides.pool, sides.stop_trusted, sides.stop_pool)
        seen[fold] = {name for part in parts for name in part.sample_ids}
        return whole(sides, config, fold)

    monkeypatch.setattr(module, "train_fold", spy)
    classifier = load(filled, train(filled, **hardly_trained))
    _, names = pool_of(filled)
    for name, fold in zip(names, classifier.folds_of(names), strict=True):
        assert fold == fold_of(name, 2)
        assert name not in seen[fold]


def test_a_pool_image_that_is_also_a_reference_is_no_negative(root, make_batch, tiny, mixed_pool):
    twin = pictures(60, seed=1)[0]  # the bytes of the first validation image
    filled = fill(root, make_batch, tiny, [*mixed_pool, twin])
    from ambient_omni.classifier.data import ClassifierData

    data = ClassifierData.read(filled, ["pool"], "trusted")
    assert len(data.pool) == len(mixed_pool)
    assert not set(data.pool.sample_ids) & set(data.validation.sample_ids)


def test_other_settings_or_other_images_make_another_classifier(filled, make_batch, tiny):
    def named(**changes):
        return classifier_id_for(
            filled,
            ClassifierConfig.model_validate({**QUICK, **changes}),
            pool_batches=["pool"],
            reference_set="trusted",
            transform=TRANSFORM,
        )

    before = named()
    assert named() == before != named(seed=1)
    rows = filled.tables.read("reference_sets", where={"reference_set": "trusted"})
    tiny.define_set(filled, "trusted", rows["sample_row"].to_numpy()[1:])
    assert named() != before


def test_a_classifier_that_learned_nothing_is_refused(filled):
    with pytest.raises(ClassifierRefused, match=r"does not find damage .* train it longer"):
        train(filled, num_images=2, learning_rate=1e-9)
    assert filled.tables.version("noise_classifiers") is None


def test_a_pool_as_good_as_the_reference_is_usable_everywhere_and_is_said_to_be(
    root, make_batch, tiny
):
    filled = fill(root, make_batch, tiny, pictures(160, seed=3), num_reference=150)
    name = train(filled, order={"num_chains": 200, "chains_per_batch": 8})
    (row,) = filled.tables.read("noise_classifiers").to_pylist()
    (_, said) = row["warnings"]
    assert "as good as the reference at every level" in said
    x0, names = pool_of(filled)
    found = annotate(Grid(load(filled, name), GridConfig(num_noises=2), 0), x0, names, Reading())
    assert np.mean(found.crossings.sigma_min == 0) > 0.9


def test_references_of_other_contents_are_found_out(root, make_batch, tiny):
    """The pool's damage is none: it shows other things, which no blur or noise could explain."""
    dark = [255 - picture // 2 for picture in pictures(160, seed=3)]
    filled = fill(root, make_batch, tiny, [d // 3 for d in dark])
    train(filled, num_images=12_000)
    (row,) = filled.tables.read("noise_classifiers").to_pylist()
    said = " ".join(row["warnings"])
    assert "the classifier sees contents, not quality" in said


def test_few_references_are_said_to_be_few(trained):
    filled, _ = trained
    (row,) = filled.tables.read("noise_classifiers").to_pylist()
    assert "only 48 references" in row["warnings"][0]


def test_constant_images_get_a_level_like_any_other(trained):
    filled, name = trained
    flat = np.stack([np.full((3, 16, 16), value, np.float32) for value in (-1.0, 0.0, 1.0)])
    classifier = load(filled, name)
    grid = Grid(classifier, GridConfig(num_noises=2), 0)
    answer = annotate(grid, flat, ["black", "grey", "white"], Reading())
    assert np.isfinite(grid.curves(flat, ["black", "grey", "white"]).logits).all()
    # Squares on white are never flat: no flat image passes for one at every level.
    assert not (answer.crossings.sigma_min[:2] == 0).any()


def test_images_smaller_than_the_networks_windows_are_refused(filled):
    small = Transform(resolution=4)
    with pytest.raises(BadInput, match=r"at least 8 pixels .* got 4"):
        train_classifier(
            filled,
            ClassifierConfig.model_validate(QUICK),
            pool_batches=["pool"],
            reference_set="trusted",
            transform=small,
        )


def test_a_pool_of_nothing_but_references_has_no_second_class(root, make_batch, tiny):
    filled = fill(root, make_batch, tiny, pictures(60, seed=1))
    with pytest.raises(BadInput, match=r"has 0 images that are no references"):
        train(filled)


def test_a_pool_without_references_has_no_first_class(root, make_batch, tiny, mixed_pool):
    filled = fill(root, make_batch, tiny, mixed_pool)
    tiny.define_set(filled, "trusted", np.empty(0, np.int64))
    with pytest.raises(NotEnoughReferences, match=r"'trusted' has 0 images"):
        train(filled)


def test_levels_of_latents_are_found_by_damage_that_is_planted_in_pixels(
    filled, tmp_path, monkeypatch, hardly_trained
):
    latents = LatentConfig(vae=save_tiny_vae(tmp_path / "vae"))
    job = EncodeLatentsJob(batches=("ref", "pool"), latents=latents, transform=TRANSFORM)
    encode_batches(filled, job, show=False)
    shown = []
    monkeypatch.setattr(
        "ambient_omni.classifier.training.augment",
        lambda x0, how, draw: shown.append((how, x0.shape[1:])) or x0,
    )
    how = {"pool_batches": ["pool"], "reference_set": "trusted", "transform": TRANSFORM}
    quick = ClassifierConfig.model_validate({**QUICK, **hardly_trained})
    name = train_classifier(filled, quick, **how, latents=latents)
    assert set(shown) == {("none", (NUM_CHANNELS, 8, 8))}
    assert name == classifier_id_for(filled, quick, **how, latents=latents)
    assert name != classifier_id_for(filled, quick, **how)
    (row,) = filled.tables.read("noise_classifiers").to_pylist()
    space = latent_space(latents, TRANSFORM)
    assert row["noise_space"] == space_of(filled, name).space.noise_space == space.noise_space
    samples = filled.tables.read("samples", where={"ingest_batch": "pool"})
    packs = PackSet.open(filled.packs, space, ["pool"])
    x0 = to_x0(packs.take(packs.index_of(samples["sample_row"].to_numpy())))
    logits = graded(filled, load(filled, name), x0, samples["sample_id"].to_pylist()).logits
    assert logits.shape == (160, 6)


def test_a_classifier_of_domains_needs_no_damage_but_two_domains(root, make_batch, tiny):
    draw = rng.generator(3, "foreign")
    foreign = list(draw.integers(0, 256, (120, 16, 16, 3), dtype=np.uint8))
    filled = fill(root, make_batch, tiny, foreign)
    config = ClassifierConfig.model_validate({**QUICK, "num_images": 2_000})
    how = {"pool_batches": ["pool"], "reference_set": "trusted", "transform": TRANSFORM}
    train_classifier(filled, config, **how, question="domain_against_foreign")
    (row,) = filled.tables.read("noise_classifiers").to_pylist()
    assert row["question"] == "domain_against_foreign"
    assert json.loads(row["control"])["planted"] == {}
    assert row["tv_lower_bound"][0] > 0.9


def test_domains_that_are_one_are_refused(root, make_batch, tiny):
    filled = fill(root, make_batch, tiny, pictures(120, seed=3))
    config = ClassifierConfig.model_validate({**QUICK, "num_images": 1_000})
    how = {"pool_batches": ["pool"], "reference_set": "trusted", "transform": TRANSFORM}
    with pytest.raises(ClassifierRefused, match="does not tell the domains apart"):
        train_classifier(filled, config, **how, question="domain_against_foreign")


def test_too_few_references_are_named_with_their_count(root, make_batch, tiny, mixed_pool):
    filled = fill(root, make_batch, tiny, mixed_pool, num_reference=20)
    with pytest.raises(NotEnoughReferences, match=r"'trusted' has 16 images; .* needs 32"):
        train(filled)


def test_too_small_a_pool_is_named_with_its_count(root, make_batch, tiny):
    filled = fill(root, make_batch, tiny, pictures(5, seed=3))
    with pytest.raises(BadInput, match="has 5 images"):
        train(filled)


def test_altered_weights_are_refused(trained):
    filled, classifier_id = trained
    file = filled.classifiers / classifier_id / "fold-1.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(ClassifierRefused, match="missing or altered"):
        load(filled, classifier_id)


def test_one_whose_files_were_altered_is_made_anew_as_a_whole_and_keeps_its_status(
    filled, hardly_trained
):
    name = train(filled, **hardly_trained)
    (row,) = filled.tables.read("noise_classifiers").to_pylist()
    table = contract("noise_classifiers").table([row | {"status": "promoted"}])
    filled.tables.upsert("noise_classifiers", table, job="tests")
    file = filled.classifiers / name / "fold-1.safetensors"
    network = stored.load_network(file, ClassifierConfig.model_validate(QUICK), 3)
    next(network.parameters()).data += 1.0
    stored.save_network(network, file)
    assert train(filled, **hardly_trained) == name
    (again,) = filled.tables.read("noise_classifiers").to_pylist()
    assert again["status"] == "promoted"
    assert again["weights_sha256"] == row["weights_sha256"]
    assert load(filled, name).classifier_id == name


def test_an_unknown_classifier_is_bad_input(filled):
    with pytest.raises(BadInput, match="no noise classifier 'nobody'"):
        load(filled, "nobody")
