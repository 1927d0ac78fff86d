import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ambient_omni import rng
from ambient_omni.classifier import stored as classifier_module
from ambient_omni.classifier.annotators import Grid
from ambient_omni.classifier.calibration import Calibration
from ambient_omni.classifier.config import GridConfig, annotator_id
from ambient_omni.classifier.network import NoiseClassifierNetwork
from ambient_omni.classifier.noise_classifier import ClassifierConfig, load
from ambient_omni.classifier.prepared import annotator_for
from ambient_omni.classifier.view import View
from ambient_omni.data.packs import PackMissing, to_x0
from ambient_omni.data.transforms import Transform
from pipelines.batches import image_tasks, open_batch
from pipelines.jobs import curves as curves_module
from pipelines.jobs.annotate import annotate
from pipelines.jobs.curves import curves, measure
from pipelines.jobs.pack import build_pack
from pipelines.measures import noise_space_of
from pipelines.policies import ClassifierThreshold
from pipelines.spark import TasksFailed
from schemas.errors import BadInput, ClassifierRefused, JobAlreadyRunning, TableMissing
from schemas.registry import contract
from schemas.root import write_json

TRANSFORM = Transform(resolution=16)
CONFIG = ClassifierConfig(num_levels=4, num_noises=2, network={"widths": (8,), "hidden": 8})
SHORT = GridConfig(num_levels=2, num_noises=2)


def store_classifier(root, classifier_id="c1"):
    """A classifier with drawn weights: this job does not care what it has learned."""
    count, levels = CONFIG.num_folds, CONFIG.num_levels
    for number in range(count):
        network = NoiseClassifierNetwork(CONFIG.network, 3)
        for place, parameter in enumerate(network.parameters()):
            drawn = 0.3 * rng.normal(tuple(parameter.shape), number, "test-curves", place)
            parameter.data = torch.from_numpy(np.ascontiguousarray(drawn))
        file = root.classifiers / classifier_id / classifier_module.fold_file(number)
        classifier_module.save_network(network, file)
    plain = Calibration(np.ones(levels), np.zeros(levels))
    classifier_module.store(root, classifier_id, CONFIG, View(TRANSFORM), [plain] * count, {})
    per_level = ("balanced_accuracy", "tv_lower_bound", "tv_standard_error")
    row = dict.fromkeys(contract("noise_classifiers").names) | {
        "reference_set": "trusted",
        "control": "{}",
        "code_version": "tests",
        "classifier_id": classifier_id,
        "question": "reference_against_pool",
        "pool_batches": ["b1"],
        "noise_space": TRANSFORM.noise_space,
        "num_folds": count,
        "sigmas": CONFIG.sigmas.tolist(),
        "config": json.dumps(CONFIG.model_dump(mode="json")),
        "weights_sha256": classifier_module.weights_hash(root, classifier_id, count),
        "status": "candidate",
        **{name: [0.5] * levels for name in per_level},
    }
    table = contract("noise_classifiers").table([row])
    root.tables.upsert("noise_classifiers", table, job="tests")
    # As if there were references and a pool to measure it on.
    for grid in (CONFIG.own_grid, SHORT):
        shape = (count, grid.num_levels or levels, grid.num_noises)
        shift = rng.normal(shape, 0, "test-curves-shift")
        file = root.classifiers / classifier_id / f"annotator-{annotator_id(grid)}.json"
        write_json(file, {"shift": shift.tolist()})


@pytest.fixture
def batch(root, make_batch, images):
    make_batch(root, "b1", images(10))
    store_classifier(root)
    return root


@pytest.fixture
def packed(spark, batch):
    build_pack(batch, "b1", TRANSFORM)
    return batch


def rows_of(root):
    return root.tables.read("noise_curves").to_pylist()


def test_every_sample_gets_the_curve_of_its_own_pixels_from_its_own_fold(packed, images):
    report = curves(packed, "b1", "c1")
    assert (report.read, report.written) == (10, 10)
    rows, samples = rows_of(packed), packed.tables.read("samples").to_pylist()
    assert [row["sample_row"] for row in rows] == [s["sample_row"] for s in samples]
    ids = [sample["sample_id"] for sample in samples]
    grader = load(packed, "c1")
    x0 = to_x0(np.stack([TRANSFORM.apply(image) for image in images(10)]))
    expected = annotator_for(packed, grader, CONFIG.own_grid).curves(x0, ids)
    assert np.array([r["logits"] for r in rows]) == pytest.approx(expected.logits, abs=1e-4)
    errors = np.array([row["logit_standard_error"] for row in rows])
    assert errors == pytest.approx(expected.logit_standard_error, abs=1e-4)
    assert [row["fold"] for row in rows] == grader.folds_of(ids).tolist()
    assert {row["evaluations"] for row in rows} == {CONFIG.num_levels * CONFIG.num_noises}
    assert {row["annotator_id"] for row in rows} == {annotator_id(CONFIG.own_grid)}
    assert "images/s" in report.line()


def test_running_twice_changes_nothing(packed):
    first = curves(packed, "b1", "c1")
    before = rows_of(packed)
    second = curves(packed, "b1", "c1")
    assert (second.written, second.unchanged) == (0, 10)
    assert second.versions == first.versions
    assert rows_of(packed) == before


def test_curves_of_a_classifier_that_was_remade_under_its_id_are_stale(packed):
    curves(packed, "b1", "c1")
    file = packed.classifiers / "c1" / classifier_module.fold_file(0)
    network = classifier_module.load_network(file, CONFIG, 3)
    next(network.parameters()).data += 0.1
    classifier_module.save_network(network, file)
    (row,) = packed.tables.read("noise_classifiers").to_pylist()
    row["weights_sha256"] = classifier_module.weights_hash(packed, "c1", CONFIG.num_folds)
    table = contract("noise_classifiers").table([row])
    packed.tables.upsert("noise_classifiers", table, job="tests")
    assert curves(packed, "b1", "c1", dry_run=True).unchanged == 0
    assert curves(packed, "b1", "c1").written == 10


def test_a_classifier_of_another_version_does_not_pass_for_done(packed, monkeypatch):
    curves(packed, "b1", "c1")
    monkeypatch.setattr(classifier_module, "VERSION", classifier_module.VERSION + 1)
    with pytest.raises(ClassifierRefused, match="another version"):
        curves(packed, "b1", "c1", dry_run=True)


def test_a_second_classifier_stands_beside_the_first(packed):
    curves(packed, "b1", "c1")
    store_classifier(packed, "c2")
    curves(packed, "b1", "c2")
    assert {row["classifier_id"] for row in rows_of(packed)} == {"c1", "c2"}
    assert len(rows_of(packed)) == 20


def _fails_on_its_first_try(task, writers, **options):
    from pyspark import TaskContext

    measure(task, writers, **options)
    if TaskContext.get().attemptNumber() == 0 and task.shard.endswith("1.tar"):
        raise RuntimeError("this try is lost")
    return {}


def _always_fails(task, writers, **options):
    counts = measure(task, writers, **options)
    if task.shard.endswith("1.tar"):
        raise RuntimeError("this task is lost")
    return counts


def test_lost_tries_and_lost_jobs_leave_the_rows_of_an_undisturbed_run(packed, monkeypatch):
    monkeypatch.setattr(curves_module, "measure", _always_fails)
    with pytest.raises(TasksFailed, match="this task is lost"):
        curves(packed, "b1", "c1")
    assert not packed.tables.exists("noise_curves")
    monkeypatch.setattr(curves_module, "measure", _fails_on_its_first_try)
    curves(packed, "b1", "c1")
    disturbed = packed.tables.read("noise_curves")
    monkeypatch.undo()
    slice_ = {"classifier_id": "c1", "ingest_batch": "b1"}
    nothing = disturbed.slice(0, 0)
    packed.tables.commit("noise_curves", nothing, slice=slice_, inputs={}, job="tests")
    curves(packed, "b1", "c1")
    assert packed.tables.read("noise_curves").equals(disturbed)


def _counts_what_it_grades(task, writers, **options):
    counts = measure(task, writers, **options)
    with (task.root / "graded.txt").open("a") as file:
        file.write(f"{task.shard} {counts['resumed']}\n")
    return counts


def test_a_stopped_job_goes_on_with_the_parts_that_are_missing(packed, monkeypatch):
    monkeypatch.setattr(curves_module, "measure", _always_fails)
    with pytest.raises(TasksFailed):
        curves(packed, "b1", "c1")
    monkeypatch.setattr(curves_module, "measure", _counts_what_it_grades)
    curves(packed, "b1", "c1")
    resumed = [int(line.split()[1]) for line in (packed.path / "graded.txt").open()]
    # The failing task had graded too; whatever task had ended before it counts as well.
    assert sum(resumed) >= 4
    assert not list(packed.classifiers.glob("c1/parts-*"))


def test_a_short_grid_answers_at_the_classifiers_levels(packed, images):
    curves(packed, "b1", "c1", annotator=SHORT)
    rows = rows_of(packed)
    grader = load(packed, "c1")
    ids = packed.tables.read("samples")["sample_id"].to_pylist()
    x0 = to_x0(np.stack([TRANSFORM.apply(image) for image in images(10)]))
    assert {row["annotator_id"] for row in rows} == {annotator_id(SHORT)}
    expected = annotator_for(packed, grader, SHORT).curves(x0, ids).at(grader.sigmas)
    assert np.array([r["logits"] for r in rows]) == pytest.approx(expected.logits, abs=1e-4)


def test_another_annotator_replaces_the_curves_and_the_same_one_does_not(packed):
    curves(packed, "b1", "c1")
    before = rows_of(packed)
    assert curves(packed, "b1", "c1", annotator=SHORT).written == 10
    assert curves(packed, "b1", "c1", annotator=SHORT).unchanged == 10
    assert len(rows_of(packed)) == len(before)
    assert rows_of(packed) != before


def test_what_is_missing_is_named(batch):
    with pytest.raises(PackMissing, match="no current pack for pixel:16x16"):
        curves(batch, "b1", "c1")
    with pytest.raises(BadInput, match="no noise classifier 'c9'"):
        curves(batch, "b1", "c9")
    with pytest.raises(TableMissing, match="'nope' has no samples"):
        curves(batch, "nope", "c1")
    with batch.lock("curves-c1", "b1"), pytest.raises(JobAlreadyRunning):
        curves(batch, "b1", "c1")


def test_a_pack_from_before_the_batch_changed_is_refused(packed):
    slice_ = {"ingest_batch": "b1"}
    less = packed.tables.read("samples").slice(0, 3)
    packed.tables.commit("samples", less, slice=slice_, inputs={"changed": 1}, job="tests")
    with pytest.raises(PackMissing, match="no current pack"):
        curves(packed, "b1", "c1")


def test_curves_feed_a_policy_without_another_look_at_pixels(packed):
    curves(packed, "b1", "c1")
    for shard in packed.shards.rglob("*.tar"):
        shard.unlink()
    policy = ClassifierThreshold(noise_space=noise_space_of(packed, "c1"), classifier_id="c1")
    report = annotate(packed, "b1", policy)
    assert report.written == 10
    assert packed.tables.read("noise_annotations").num_rows == 10


@pytest.mark.parametrize(
    ("offered", "device"),
    [({"gpu": SimpleNamespace(addresses=["3"])}, "cuda:3"), ({}, "cuda")],
)
def test_an_executor_uses_the_gpu_that_the_cluster_gave_its_task(monkeypatch, offered, device):
    task = SimpleNamespace(resources=lambda: offered)
    monkeypatch.setattr("pyspark.TaskContext.get", lambda: task)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert curves_module._device() == device


def test_a_chunk_is_bounded_by_bytes_however_large_the_images(packed, monkeypatch):
    seen = []
    original = Grid.curves

    def spied(self, x0_BCHW, sample_ids):
        seen.append(x0_BCHW.nbytes)
        return original(self, x0_BCHW, sample_ids)

    image_bytes = 4 * 3 * 16 * 16
    monkeypatch.setattr(curves_module, "_MAX_CHUNK_BYTES", 2 * image_bytes + 1)
    monkeypatch.setattr(Grid, "curves", spied)
    tasks = image_tasks(packed, open_batch(packed, "b1"))
    sink = {"noise_curves": SimpleNamespace(write=lambda table: None)}
    for task in tasks:
        measure(
            task,
            sink,
            classifier_id="c1",
            transform_id=TRANSFORM.transform_id,
            annotator=None,
            parts=packed.path / "parts",
        )
    assert len(seen) >= 5
    assert max(seen) <= 2 * image_bytes
