import pytest
import yaml
from pydantic import ValidationError

from ambient_omni.__main__ import main as learn
from ambient_omni.classifier.config import ClassifierConfig
from ambient_omni.classifier.noise_classifier import TrainClassifierJob
from ambient_omni.config import load_config, resolved
from ambient_omni.config_template import template
from ambient_omni.generation.config import GenerateJob
from ambient_omni.training.config import EvaluateJob, TrainConfig
from pipelines.__main__ import main as compute
from schemas.errors import BadInput

SMALLEST = {"policy_id": "p", "batches": ["b"]}


def written(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_a_config_needs_a_policy_and_batches_and_the_rest_has_defaults(tmp_path):
    config = load_config(written(tmp_path, "policy_id: p\nbatches: [b]\n"), TrainConfig)
    assert config == TrainConfig.model_validate(SMALLEST)
    assert TrainConfig.model_validate_json(resolved(config)) == config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("policy_id: p\nbatches: [b]\nbatchsize: 3\n", "batchsize: there is no such setting"),
        ("policy_id: p\nbatches: []\n", "batches: Tuple should have at least 1 item"),
        ("batches: [b]\n", "policy_id: this setting is needed"),
        ("policy_id: p\nbatches: [b]\noptimizer: {learning_rate: -1}\n", "optimizer.learning_rate"),
        ("policy_id: p\nbatchs: [b]\n", "batchs: there is no such setting; did you mean batches?"),
        (
            "policy_id: p\nbatches: [b]\nnetwork: {kind: patched_unet, width: [8]}\n",
            "network.width: there is no such setting; did you mean widths?",
        ),
        (
            "policy_id: p\nbatches: [b]\nprior: {kind: lognormal}\n",
            "prior: there is no kind 'lognormal'; did you mean log_normal?",
        ),
        (
            "policy_id: p\nbatches: [b]\ncondition: label\n",
            "condition: it must be a mapping of settings to values, such as {kind: ...}",
        ),
        ("policy_id: p\nbatches: [b]\nema: 3\n", "ema: it must be a mapping of settings"),
        ("", "is empty; it must be a mapping"),
        ("[1, 2]\n", "must be a mapping of settings to values, not a list"),
        ("a: [\n", "cannot read the config"),
    ],
)
def test_a_bad_config_is_one_line_that_names_the_setting(tmp_path, text, said):
    with pytest.raises(BadInput) as caught:
        load_config(written(tmp_path, text), TrainConfig)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"none\.yaml"):
        load_config(tmp_path / "none.yaml", TrainConfig)


@pytest.mark.parametrize(
    "bad",
    [
        {"transform": {"resolution": 30}},
        {"network": {"widths": [20]}},
        {"held_out": {"sigmas": [0.1, 0.1]}},
        {"held_out": {"sigmas": [0.0]}},
        {"objective": "other"},
    ],
)
def test_settings_that_do_not_fit_together_are_refused(bad):
    with pytest.raises(ValidationError):
        TrainConfig.model_validate({**SMALLEST, **bad})


def test_configs_are_frozen():
    config = TrainConfig.model_validate(SMALLEST)
    with pytest.raises(ValidationError):
        config.seed = 1


def test_the_budget_is_rounded_up_to_whole_steps():
    assert TrainConfig(**SMALLEST, num_images=129, batch_size=128).num_steps == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"order": {"ranges": {"gausian_blur": [0.3, 3]}}}, "did you mean gaussian_blur"),
        ({"order": {"weights": {"jpg": 2}}}, "no kind of damage 'jpg'"),
        ({"order": {"ranges": {"jpeg": [9, 9]}}}, "no milder"),
        ({"control": {"severities": {"jepg": 9.0}}}, "did you mean jpeg"),
        ({"control": {"worst": {"jpeg": -1.0}}}, "greater than 0"),
    ],
)
def test_damage_of_no_known_kind_is_refused_before_a_classifier_is_trained(settings, said):
    with pytest.raises(ValidationError, match=said):
        ClassifierConfig.model_validate(settings)


@pytest.mark.parametrize("kind", [TrainConfig, TrainClassifierJob, GenerateJob, EvaluateJob])
def test_a_template_is_a_config_that_changes_nothing(tmp_path, kind):
    text = template(kind)
    needed = {name: "x" for name, field in kind.model_fields.items() if field.is_required()}
    for name in ("batches", "pool_batches"):
        needed |= {name: ["x"]} if name in needed else {}
    assert text.count("NEEDED") == len(needed) + 1  # and where it is explained
    values = yaml.safe_load(text) | needed
    assert kind.model_validate(values) == kind.model_validate(needed)


def test_a_command_prints_its_template_without_its_other_options(capsys):
    for main, words in ((learn, ("train",)), (compute, ("ingest",))):
        with pytest.raises(SystemExit) as stopped:
            main([*words, "--print-config"])
        assert stopped.value.code == 0
        assert yaml.safe_load(capsys.readouterr().out)
