import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ambient_omni import rng
from ambient_omni.classifier.data import VERSION
from ambient_omni.damage import gaussian_blur
from ambient_omni.data.pack_writer import PackWriter
from ambient_omni.data.packs import to_x0
from ambient_omni.data.transforms import Transform
from pipelines.__main__ import main
from pipelines.jobs.annotate import annotate
from pipelines.pilot.choose import Comparison, best_sequence, choose, in_bands, relative_gain
from pipelines.pilot.config import PilotConfig
from pipelines.pilot.detail import fine_detail, missing_detail
from pipelines.pilot.run import calibrate, cost, result_file
from schemas.errors import BadInput, NotEnoughReferences, TableMissing
from schemas.registry import contract
from tests.ambient_omni.conftest import define_set

SIDE = 16
SPACE = Transform(resolution=SIDE)
SIGMAS = np.geomspace(0.05, 10, 8)


def pictures(count, seed):
    """Sharp squares on a plain ground: uint8 images (SIDE, SIDE, 3)."""
    draw = rng.generator(seed, "pilot-pictures")
    out = []
    for _ in range(count):
        image = np.full((SIDE, SIDE, 3), draw.integers(0, 256, 3), np.uint8)
        for _ in range(6):
            top, left = draw.integers(0, SIDE - 2, 2)
            image[top : top + draw.integers(1, 4), left : left + draw.integers(1, 4)] = (
                draw.integers(0, 256, 3)
            )
        out.append(image)
    return out


def put_curves(root, batch, logits):
    rows = root.tables.read("samples", ["sample_row"], {"ingest_batch": batch})["sample_row"]
    table = contract("noise_curves").table(
        {
            "sample_row": rows,
            "ingest_batch": [batch] * len(rows),
            "classifier_id": ["c1"] * len(rows),
            "fold": [0] * len(rows),
            "annotator_id": ["a1"] * len(rows),
            "evaluations": [16] * len(rows),
            "logits": [list(logits)] * len(rows),
            "logit_standard_error": [[0.01] * len(SIGMAS)] * len(rows),
        }
    )
    slice_ = {"classifier_id": "c1", "ingest_batch": batch}
    root.tables.commit("noise_curves", table, slice=slice_, inputs={"l": list(logits)}, job="tests")


@pytest.fixture
def fill(root, make_batch):
    """`fill(pool images)`: few sharp references, a pool, and a classifier that found it blurred."""

    def make(pool, num_reference=40, noise_space=SPACE.noise_space):
        for name, images in (("ref", pictures(num_reference, 1)), ("pool", pool)):
            role = "reference" if name == "ref" else "pool"
            rows = make_batch(root, name, images, role=role, images_per_shard=500)
            writer = PackWriter(root.packs, SPACE, name, "tests")
            writer.begin()
            with writer.chunk(0) as chunk:
                for row, image in zip(rows["sample_row"].to_pylist(), images, strict=True):
                    chunk.add(row, image)
            writer.finish([chunk.info])
            if name == "ref":
                define_set(root, "validation", rows["sample_row"].to_pylist()[::3])
                trusted = [r for n, r in enumerate(rows["sample_row"].to_pylist()) if n % 3]
                define_set(root, "trusted", trusted)
        known = contract("noise_classifiers")
        values = {name: "{}" for name in known.names if not known.column(name).nullable} | {
            "classifier_id": "c1",
            "question": "reference_against_pool",
            "pool_batches": ["pool"],
            "noise_space": noise_space,
            "num_folds": 1,
            "sigmas": SIGMAS.tolist(),
            "weights_sha256": "0" * 64,
            "method_version": VERSION,
            "status": "promoted",
        }
        for name in ("balanced_accuracy", "tv_lower_bound", "tv_standard_error"):
            values[name] = [0.5] * len(SIGMAS)
        root.tables.upsert("noise_classifiers", known.table([values]), job="tests")
        put_curves(root, "pool", -0.5 / SIGMAS**2)
        return root

    return make


def config(**changes):
    values = {
        "classifier_id": "c1",
        "batches": ("ref", "pool"),
        "thresholds": (0.0, 0.45),
        "edges": (0.7,),
        "training": {
            "transform": SPACE.model_dump(),
            "network": {"patch": 2, "widths": (16,), "attention": False, "norm_groups": 4},
            "optimizer": {"warmup_images": 0, "learning_rate": 8e-3},
            "held_out": {"sigmas": (0.1, 0.3, 2.0), "num_noises": 2},
            "batch_size": 16,
            "num_images": 1_600,
            "evaluate_every_images": 800,
            "log_every_images": 800,
        },
    }
    return PilotConfig.model_validate({**values, **changes})


def blurred(images, severity=1.5):
    return [gaussian_blur(image, severity, rng.generator(0, "x")) for image in images]


def test_detail_is_missing_from_a_weak_output_and_not_from_the_best_or_from_one_that_invents():
    clean = to_x0(np.array(pictures(60, 3)))
    noise = rng.normal(clean.shape, 0, "test")
    # The conditional mean under white noise on white images: a shrunk observation.
    white, sigma = rng.normal(clean.shape, 1, "test"), 0.7
    best = (white + sigma * noise) / (1 + sigma**2)
    for scale, expected in ((1.0, 0.0), (0.5, 1.0), (2.0, -0.5)):
        right, _, power = fine_detail(scale * best, white)
        found, error = missing_detail(right, power)
        assert abs(found - expected) < 4 * error
        assert error < 0.05
    right, whole, power = fine_detail(clean + noise, clean)
    assert missing_detail(right, power)[0] < -0.5
    assert power.mean() > 3 * whole.mean()


def test_blur_puts_fine_detail_out_too_weak():
    clean = to_x0(np.array(pictures(60, 3)))
    soft = to_x0(np.array(blurred(pictures(60, 3))))
    right, _, power = fine_detail(soft, clean)
    found, error = missing_detail(right, power)
    assert found > 0.5 + 2 * error


def test_of_an_output_without_fine_detail_nothing_is_known():
    flat = np.ones((3, 3, 8, 8))
    right, _, power = fine_detail(flat, flat)
    assert missing_detail(right, np.zeros_like(power)) == (0.0, np.inf)
    assert missing_detail(np.ones(1), np.ones(1)) == (0.0, np.inf)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**16))
@settings(max_examples=100, deadline=None)
def test_the_best_sequence_is_the_one_that_brute_force_finds(candidates, bands, seed):
    draw = np.random.Generator(np.random.Philox(seed))
    value = draw.integers(-3, 4, (candidates, bands)).astype(float)
    value[-1] = 0
    found = best_sequence(value.copy())
    assert all(low >= high for low, high in itertools.pairwise(found))
    best = max(
        sum(value[c, k] for k, c in enumerate(sequence))
        for sequence in itertools.product(range(candidates), repeat=bands)
        if all(low >= high for low, high in itertools.pairwise(sequence))
    )
    assert sum(value[c, k] for k, c in enumerate(found)) == best


def comparison(gain, fine_gain=None, missing=None, error=0.01):
    gain, errors = np.array(gain, float), np.full(np.shape(gain), 0.01)
    none = np.zeros_like(gain)
    return Comparison(
        gain,
        np.full_like(gain, error),
        none if fine_gain is None else np.array(fine_gain, float),
        errors,
        none if missing is None else np.array(missing, float),
        errors,
    )


GAIN = [[0.2, 0.2], [0.1, 0.1], [0, 0]]


def test_a_lower_loss_by_leaving_detail_out_is_not_accepted():
    assert choose(comparison(GAIN), 0.1) == [0, 0]
    assert choose(comparison(GAIN, missing=[[0.3, 0], [0, 0], [0, 0]]), 0.1) == [1, 0]
    assert choose(comparison(GAIN, missing=[[0.05, 0], [0, 0], [0, 0]]), 0.1) == [0, 0]
    # Too much of it is no reason: the loss has counted that.
    assert choose(comparison(GAIN, missing=[[-0.3, 0], [0, 0], [0, 0]]), 0.1) == [0, 0]


def test_a_lower_loss_with_worse_detail_is_not_accepted():
    assert choose(comparison(GAIN, fine_gain=[[-0.1, 0], [0, 0], [0, 0]]), 0.1) == [1, 0]


def test_a_gain_within_its_error_is_none():
    assert choose(comparison([[0.02], [0]], error=0.03), 0.1) == [1]


def test_bands_are_means_of_their_levels():
    values = np.array([[1.0, 2.0, 6.0]])
    assert in_bands(values, (0.1, 0.2, 5.0), (1.0,)).tolist() == [[1.5, 6.0]]
    gain, error = relative_gain(np.full((4, 1), 0.9), np.full((4, 1), 1.0))
    assert gain == pytest.approx([0.1])
    assert error == pytest.approx([0])


def test_a_blurred_pool_is_kept_out_of_low_levels_and_twice_equals_once(fill, capsys):
    root = fill(blurred(pictures(90, 2), 2.5))
    found = calibrate(root, config(), show=False)
    low = found.table[0]
    everything = low["candidates"]["everything"]
    assert everything["fine_gain"] < -everything["fine_gain_error"]
    assert low["chosen"] == "only reference"
    assert found.policy.tau[0] is None
    for batch in ("ref", "pool"):
        annotate(root, batch, found.policy)
    levels = root.tables.read(
        "noise_annotations", where={"policy_id": found.policy.policy_id, "ingest_batch": "pool"}
    )
    assert all(level is None or level > 0.2 for level in levels["sigma_min"].to_pylist())
    runs = root.tables.version("training_runs")
    kept = result_file(root, found.pilot_id).stat().st_mtime_ns
    again = calibrate(root, config(), show=False)
    assert again == found
    assert root.tables.version("training_runs") == runs
    assert result_file(root, found.pilot_id).stat().st_mtime_ns == kept
    file = root.path / "pilot.yaml"
    file.write_text(config().model_dump_json())
    assert main(["pilot", "--root", str(root.path), "--config", str(file)]) == 0
    said = capsys.readouterr().out
    assert f"{100 * everything['fine_gain']:+.1f} {100 * everything['missing']:+.0f}" in said
    assert f"policy {found.policy.policy_id}: apply it with annotate --policy-id" in said


def test_the_command_prints_the_cost_before_it_runs(fill, tmp_path, capsys):
    root = fill(pictures(40, 2))
    file = tmp_path / "pilot.yaml"
    file.write_text(config().model_dump_json())
    assert main(["pilot", "--root", str(root.path), "--config", str(file), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "3 pilot trainings (everything, P > 0.45, only reference) of 1600 images, 62" in said
    assert not root.tables.exists("training_runs")
    assert main(["pilot", "--root", str(root.path)]) == 2
    assert "pilot needs --config" in capsys.readouterr().err


def test_a_pilot_in_another_noise_space_than_its_classifier_is_refused(fill):
    root = fill(pictures(40, 2), noise_space="latent:4x2x2:abc")
    with pytest.raises(BadInput, match=r"would train in pixel.*classifier measures in latent"):
        calibrate(root, config(), show=False)


def test_what_a_pilot_needs_is_named(fill, root):
    with pytest.raises(TableMissing, match="no noise classifier 'c1'"):
        cost(root, config())
    fill(pictures(40, 2))
    define_set(root, "trusted", [])
    with pytest.raises(NotEnoughReferences, match="trusted set is empty"):
        cost(root, config())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"thresholds": (0.4, 0.2)}, "must ascend"),
        ({"edges": (2.0, 0.7)}, "edges must be levels and ascend"),
        ({"edges": (0.01,)}, "no level of held_out.sigmas lies in the band"),
        ({"training": {"policy_id": "x"}}, "filled in by the pilot"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, complaint):
    with pytest.raises(ValidationError, match=complaint):
        config(**changes)
