import numpy as np
import pytest
import yaml

from pipelines import policies
from pipelines.policies import ClassifierThreshold, CropWindow, SampleSizeAware
from pipelines.policy_files import policy_from_file
from schemas.errors import BadInput, TableMissing
from tests.ambient_omni.conftest import define_set
from tests.pipelines.test_annotate_job import SIGMAS, SPACE, put_crops, put_curves


@pytest.fixture
def graded(root, make_batch, images):
    make_batch(root, "b1", images(6))
    put_curves(root, "b1", -np.array([0.0, 0.02, 0.2, 0.5, 1.0, 50.0])[:, None] / SIGMAS)
    return root


@pytest.fixture
def read(graded, tmp_path):
    """`read(**values)`: the policy of a YAML file with these values."""

    def make(**values):
        file = tmp_path / "policy.yaml"
        file.write_text(yaml.safe_dump(values))
        return policy_from_file(graded, file, ["b1"])

    return make


def test_a_threshold_takes_its_noise_space_from_the_classifier(read):
    policy = read(kind="classifier_threshold", classifier_id="c1", soft=True)
    assert isinstance(policy, ClassifierThreshold)
    assert (policy.noise_space, policy.soft) == (SPACE, True)


def test_the_threshold_is_corrected_for_the_good_share(read):
    policy = read(kind="classifier_threshold", classifier_id="c1", good_share=0.5)
    assert policy.tau == pytest.approx(0.4737, abs=1e-4)
    with pytest.raises(BadInput, match="good_share 2 with tau"):
        read(kind="classifier_threshold", classifier_id="c1", good_share=2)
    with pytest.raises(BadInput, match="no estimate of the pool's good share"):
        read(kind="classifier_threshold", classifier_id="c1", good_share="measured")


def test_a_sample_size_rule_is_frozen_on_the_batches_it_is_made_for(
    read, graded, make_batch, images
):
    make_batch(graded, "ref", images(4, seed=5), role="reference")
    where = {"ingest_batch": "ref"}
    rows = graded.tables.read("samples", where=where)["sample_row"].to_pylist()
    define_set(graded, "trusted", rows)
    policy = read(kind="sample_size", classifier_id="c1", constant=2.0)
    assert isinstance(policy, SampleSizeAware)
    assert (policy.n_trusted, policy.n_pool) == (4, 6)
    with pytest.raises(BadInput, match=r"needs \['classifier_id', 'constant'\]; missing"):
        read(kind="sample_size", classifier_id="c1")


def test_a_window_is_read_off_its_receptive_field(read, graded):
    put_crops(graded, "b1", [[0.5, 0.5, 0.5]] * 6)
    floor = {"kind": "fixed_per_source", "noise_space": SPACE, "levels": {"*": None}}
    ids = {"crop_classifier_id": "k1", "receptive_field_id": "r1"}
    policy = read(kind="crop_window", floor=floor, **ids)
    assert isinstance(policy, CropWindow)
    assert policy.sigma_max == (0.1, 0.2, 0.2)
    policies.register(graded, policy)
    assert policies.load(graded, policy.policy_id).parameters == policy.parameters
    with pytest.raises(TableMissing, match="receptive_fields has no"):
        read(kind="crop_window", floor=floor, **(ids | {"receptive_field_id": "nope"}))


def test_a_pilot_policy_with_thresholds_of_ones_own_is_taken(read):
    values = {"kind": "pilot_calibrated", "classifier_id": "c1", "pilot_id": "by hand"}
    assert read(**values, edges=[1.0], tau=[None, 0.2]).tau == (None, 0.2)
    with pytest.raises(BadInput, match="must not rise"):
        read(**values, edges=[1.0], tau=[0.2, None])
