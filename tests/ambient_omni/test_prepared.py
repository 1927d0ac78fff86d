"""What annotators need beside a classifier: made once, kept, loaded. The weights are drawn."""

import json

import numpy as np
import pytest
import torch

from ambient_omni import rng
from ambient_omni.classifier import stored
from ambient_omni.classifier.annotators import Curves, Grid, shift_by_shared_noises
from ambient_omni.classifier.calibration import Calibration
from ambient_omni.classifier.config import (
    ClassifierConfig,
    ExhaustiveConfig,
    GridConfig,
    HeadConfig,
    SequentialConfig,
)
from ambient_omni.classifier.head import HeadAnnotator
from ambient_omni.classifier.network import NoiseClassifierNetwork
from ambient_omni.classifier.prepared import annotator_for, prepare
from ambient_omni.classifier.view import View
from ambient_omni.data.pack_writer import PackWriter
from ambient_omni.data.packs import to_x0
from ambient_omni.data.transforms import Transform
from schemas.errors import BadInput, ClassifierRefused, JobAlreadyRunning
from schemas.registry import contract

TRANSFORM = Transform(resolution=8)
CONFIG = ClassifierConfig(num_levels=4, num_noises=2, network={"widths": (4,), "hidden": 8})
HEAD = HeadConfig(
    widths=(4,),
    hidden=8,
    num_steps=3,
    batch_size=4,
    min_check_images=2,
    max_median_octaves=99,
    check=ExhaustiveConfig(num_levels=8, num_noises=1, num_bins=4),
)
SEEDS = {"ref": 1, "pool": 2}
SEQUENTIAL = SequentialConfig(num_pilot_images=16)


def pictures(count: int, seed: int) -> np.ndarray:
    draw = rng.generator(seed, "test-prepared")
    return draw.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def filled(root, make_batch, tiny):
    """A root with 40 references, 40 images of the pool and a classifier of drawn weights."""
    rows = {name: make_batch(root, name, pictures(40, seed)) for name, seed in SEEDS.items()}
    for name, table in rows.items():
        writer = PackWriter(root.packs, TRANSFORM, name, "tests")
        writer.begin()
        with writer.chunk(0) as chunk:
            images = pictures(40, SEEDS[name])
            for sample_row, image in zip(table["sample_row"].to_pylist(), images, strict=True):
                chunk.add(sample_row, image)
        writer.finish([chunk.info])
    reference = rows["ref"]["sample_row"].to_numpy()
    tiny.define_set(root, "trusted", reference[8:])
    tiny.define_set(root, "validation", reference[:8])
    for number in range(2):
        network = NoiseClassifierNetwork(CONFIG.network, 3)
        for place, parameter in enumerate(network.parameters()):
            drawn = 0.3 * rng.normal(tuple(parameter.shape), number, "test-prepared", place)
            parameter.data = torch.from_numpy(np.ascontiguousarray(drawn))
        stored.save_network(network, root.classifiers / "c1" / stored.fold_file(number))
    plain = Calibration(np.ones(4), np.zeros(4))
    stored.store(root, "c1", CONFIG, View(TRANSFORM), [plain] * 2, {})
    names = contract("noise_classifiers").names
    row = dict.fromkeys(names, None) | {
        "classifier_id": "c1",
        "question": "reference_against_pool",
        "reference_set": "trusted",
        "pool_batches": ["pool"],
        "noise_space": TRANSFORM.noise_space,
        "num_folds": 2,
        "sigmas": CONFIG.sigmas.tolist(),
        "control": "{}",
        "config": json.dumps(CONFIG.model_dump(mode="json")),
        "weights_sha256": stored.weights_hash(root, "c1", 2),
        "status": "candidate",
        "code_version": "tests",
        **{n: [0.5] * 4 for n in ("balanced_accuracy", "tv_lower_bound", "tv_standard_error")},
    }
    table = contract("noise_classifiers").table([row])
    root.tables.upsert("noise_classifiers", table, job="tests")
    return root


def answer(root, config) -> Curves:
    x0 = to_x0(pictures(6, seed=3))
    classifier = stored.load(root, "c1")
    return annotator_for(root, classifier, config).curves(x0, [str(i) for i in range(6)])


def test_a_head_is_distilled_for_each_fold_and_loaded_again(filled):
    prepare(filled, "c1", HEAD)
    annotator = annotator_for(filled, stored.load(filled, "c1"), HEAD)
    assert isinstance(annotator, HeadAnnotator)
    first = answer(filled, HEAD)
    assert (first.evaluations == 7).all()
    np.testing.assert_array_equal(answer(filled, HEAD).logits, first.logits)
    folder = filled.classifiers / "c1"
    assert len(list(folder.glob("annotator-head-*-fold-?.safetensors"))) == 2


def test_preparing_twice_makes_nothing_anew(filled, monkeypatch):
    prepare(filled, "c1", HEAD)
    monkeypatch.setattr(
        "ambient_omni.classifier.prepared.train_head", lambda *_, **__: pytest.fail("distilled")
    )
    prepare(filled, "c1", HEAD)


def test_a_refused_head_leaves_nothing_behind_that_could_be_used(filled):
    strict = HEAD.model_copy(update={"max_median_octaves": 1e-9})
    with pytest.raises(ClassifierRefused, match="octaves off"):
        prepare(filled, "c1", strict)
    with pytest.raises(BadInput, match="was not prepared"):
        answer(filled, strict)


def test_bisection_knows_the_same_prior_after_loading(filled):
    prepare(filled, "c1", SEQUENTIAL)
    first = answer(filled, SEQUENTIAL)
    assert (first.evaluations <= 8).all()
    np.testing.assert_array_equal(answer(filled, SEQUENTIAL).logits, first.logits)


def test_a_grid_learns_from_the_pool_what_its_noises_do_to_all_images(filled):
    short = GridConfig(num_levels=3, num_noises=2)
    with pytest.raises(BadInput, match="grid annotator of classifier c1 was not prepared"):
        answer(filled, short)
    prepare(filled, "c1", short)
    found = answer(filled, short)
    assert (found.evaluations == 6).all()
    classifier, x0 = stored.load(filled, "c1"), to_x0(pictures(6, seed=3))
    plain = Grid(classifier, short, CONFIG.seed).curves(x0, [str(i) for i in range(6)])
    pool = filled.tables.read("samples", where={"ingest_batch": "pool"})["sample_id"].to_pylist()
    seen = to_x0(pictures(40, SEEDS["pool"])).__getitem__
    shift = shift_by_shared_noises(classifier, short, CONFIG.seed, pool, seen).mean(axis=2)
    expected = plain.logits - shift[classifier.folds_of([str(i) for i in range(6)])]
    np.testing.assert_allclose(found.logits, expected, atol=1e-4)
    assert np.abs(shift).max() > 1e-3


def test_what_was_measured_of_another_grid_is_refused(filled):
    short = GridConfig(num_levels=3, num_noises=2)
    prepare(filled, "c1", short)
    (file,) = filled.classifiers.glob("c1/annotator-grid-*.json")
    file.write_text(json.dumps({"shift": [[[0.0, 0.0]] * 3]}))
    with pytest.raises(ClassifierRefused, match="remove it"):
        answer(filled, short)


def test_preparing_what_is_there_waits_for_nobody(filled):
    short = GridConfig(num_levels=3, num_noises=2)
    with filled.lock("prepare_annotator", "c1"), pytest.raises(JobAlreadyRunning):
        prepare(filled, "c1", short)
    prepare(filled, "c1", short)
    with filled.lock("prepare_annotator", "c1"):
        prepare(filled, "c1", short)


def test_a_fold_without_images_is_named(filled):
    names = filled.tables.read("samples", where={"ingest_batch": "pool"})["sample_id"].to_pylist()
    twins = dict.fromkeys(names, "all of one photo")
    plain = Calibration(np.ones(4), np.zeros(4))
    stored.store(filled, "c1", CONFIG, View(TRANSFORM), [plain] * 2, twins)
    (row,) = filled.tables.read("noise_classifiers").to_pylist()
    row["weights_sha256"] = stored.weights_hash(filled, "c1", 2)
    filled.tables.upsert(
        "noise_classifiers", contract("noise_classifiers").table([row]), job="tests"
    )
    with pytest.raises(BadInput, match="may grade no image of its pool"):
        prepare(filled, "c1", CONFIG.own_grid)


def test_a_classifier_of_another_version_is_refused_with_what_to_do(filled):
    meta = filled.classifiers / "c1" / "classifier.json"
    kept = json.loads(meta.read_text())
    del kept["version"]
    meta.write_text(json.dumps(kept))
    (row,) = filled.tables.read("noise_classifiers").to_pylist()
    row["weights_sha256"] = stored.weights_hash(filled, "c1", 2)
    table = contract("noise_classifiers").table([row])
    filled.tables.upsert("noise_classifiers", table, job="tests")
    with pytest.raises(ClassifierRefused, match=r"another version.*train a new"):
        stored.load(filled, "c1")


def test_a_pool_too_small_to_check_a_head_is_named(filled):
    with pytest.raises(BadInput, match="annotate with a grid"):
        prepare(filled, "c1", HEAD.model_copy(update={"min_check_images": 30}))


def test_weights_of_another_network_are_refused_with_what_to_do(filled):
    other = CONFIG.model_copy(update={"network": CONFIG.network.model_copy(update={"hidden": 9})})
    file = filled.classifiers / "c1" / stored.fold_file(0)
    with pytest.raises(ClassifierRefused, match="not of this version's network: remove"):
        stored.load_network(file, other, 3)
