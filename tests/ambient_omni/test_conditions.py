import shutil

import pytest
import torch
from torch import nn
from transformers import CLIPTextModel, T5Config, T5EncoderModel

from ambient_omni import rng
from ambient_omni.models.conditions import Condition, LabelConditioner, guided
from ambient_omni.models.config import ConditionConfig
from ambient_omni.models.model import build_conditioner
from ambient_omni.models.text import CaptionConditioner
from schemas.errors import BadInput
from tests.data.pipelines import TOKENS, WIDTH, save_stable_diffusion, tokenizer

CAPTIONS = ("a cat", "b", "a cat", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_stable_diffusion(tmp_path_factory.mktemp("pipelines") / "sd")


@pytest.fixture(scope="module")
def conditioner(folder):
    return build_conditioner(ConditionConfig(kind="caption", text_encoder=str(folder)))


def test_labels_become_the_null_class_exactly_where_they_are_dropped():
    labels, drop = torch.tensor([2, 0, 1]), torch.tensor([False, True, True])
    conditioner = LabelConditioner(3)
    assert conditioner.encode(labels=labels, drop=drop).labels.tolist() == [2, 3, 3]
    assert conditioner.encode(labels=labels).labels.tolist() == [2, 0, 1]
    assert conditioner.null(2).labels.tolist() == [3, 3]


def test_captions_become_the_states_that_diffusers_feeds_its_network(folder, conditioner):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    theirs, null = pipeline.encode_prompt(list(CAPTIONS), "cpu", 1, True)
    found = conditioner.encode(captions=CAPTIONS)
    assert found.text.shape == (4, TOKENS, WIDTH) == theirs.shape
    assert conditioner.width == WIDTH
    assert found.text_mask is None
    assert torch.allclose(found.text, theirs, atol=1e-6)
    assert torch.allclose(conditioner.null(4).text, null, atol=1e-6)
    assert not found.text.requires_grad


def test_a_dropped_caption_is_the_empty_one(conditioner):
    drop = torch.tensor([True, False, False, False])
    found = conditioner.encode(captions=CAPTIONS, drop=drop).text
    null = conditioner.null(1).text[0]
    assert torch.equal(found[0], null)
    assert torch.allclose(found[3], null, atol=1e-6)
    assert torch.equal(found[2], conditioner.encode(captions=CAPTIONS).text[2])


def test_each_text_of_a_batch_is_encoded_once(conditioner, monkeypatch):
    counts = []
    states = CaptionConditioner._states
    monkeypatch.setattr(
        CaptionConditioner, "_states", lambda self, t: counts.append(len(t)) or states(self, t)
    )
    conditioner.encode(captions=CAPTIONS)
    assert counts == [3]


def test_text_encoders_with_masks_say_which_tokens_there_are(tmp_path):
    with rng.torch_seeded(0, "t5"):
        encoder = T5EncoderModel(
            T5Config(vocab_size=64, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
        )
    encoder.save_pretrained(tmp_path / "text_encoder")
    tokenizer(tmp_path / "made").save_pretrained(tmp_path / "tokenizer")
    config = ConditionConfig(kind="caption", text_encoder=str(tmp_path), max_tokens=6)
    found = build_conditioner(config).encode(captions=["a", "a b c"])
    assert found.text.shape == (2, 6, 8)
    assert found.text_mask.sum(dim=1).tolist() == [3, 5]


def test_a_text_encoder_in_half_precision_speaks_in_full(folder, tmp_path):
    for part in ("tokenizer", "text_encoder"):
        shutil.copytree(folder / part, tmp_path / part)
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    encoder.half().save_pretrained(tmp_path / "text_encoder")
    config = ConditionConfig(kind="caption", text_encoder=str(tmp_path))
    assert build_conditioner(config).encode(captions=["a"]).text.dtype == torch.float32


def test_no_more_tokens_are_asked_for_than_the_encoder_reads(folder):
    config = ConditionConfig(kind="caption", text_encoder=str(folder), max_tokens=TOKENS + 1)
    with pytest.raises(BadInput, match=f"max_tokens {TOKENS + 1} is more than the {TOKENS} tokens"):
        build_conditioner(config)


def test_what_is_missing_is_said(conditioner, tmp_path):
    with pytest.raises(BadInput, match="labels and the images have none"):
        LabelConditioner(3).encode(captions=CAPTIONS)
    with pytest.raises(BadInput, match="have none: ingest captions"):
        conditioner.encode(labels=torch.zeros(2))
    with pytest.raises(BadInput, match="2 of 4, first: number 1"):
        conditioner.encode(captions=["a", None, "b", None])
    with pytest.raises(BadInput, match="the data have no labels"):
        build_conditioner(ConditionConfig(kind="label"))
    with pytest.raises(BadInput, match="there is no folder"):
        build_conditioner(ConditionConfig(kind="caption", text_encoder=str(tmp_path / "none")))
    with pytest.raises(ValueError, match="belong together"):
        ConditionConfig(kind="caption")
    with pytest.raises(ValueError, match="belong together"):
        ConditionConfig(kind="label", text_encoder="somewhere")


def test_a_text_encoder_is_known_by_its_weights(folder, conditioner, tmp_path):
    again = build_conditioner(ConditionConfig(kind="caption", text_encoder=str(folder)))
    assert again.fingerprint == conditioner.fingerprint
    assert len(again.fingerprint) == 64
    assert LabelConditioner(3).fingerprint is None


class Tells(nn.Module):
    """Says its label, everywhere; counts what it is asked."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, x_t, sigma, condition):
        self.asked.append(len(x_t))
        return condition.labels[:, None, None, None] * torch.ones_like(x_t)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_guidance_goes_beyond_what_the_condition_says(scale):
    denoiser, x_t, sigma = Tells(), torch.zeros(2, 1, 2, 2), torch.ones(2)
    condition, null = Condition(labels=torch.tensor([1, 2])), LabelConditioner(5).null(2)
    out = guided(denoiser, x_t, sigma, condition, null, scale)
    expected = [5 + scale * (label - 5) for label in (1, 2)]
    assert out[:, 0, 0, 0].tolist() == pytest.approx(expected)
    assert denoiser.asked == ([2] if scale == 1 else [4])


def test_conditions_are_joined_and_replaced_part_by_part():
    one = Condition(text=torch.zeros(2, 3, 4), text_mask=torch.ones(2, 3, dtype=torch.bool))
    other = Condition(text=torch.ones(2, 3, 4), text_mask=torch.zeros(2, 3, dtype=torch.bool))
    mixed = one.where(torch.tensor([True, False]), other)
    assert mixed.text.mean(dim=(1, 2)).tolist() == [1, 0]
    assert mixed.text_mask.all(dim=1).tolist() == [False, True]
    assert one.and_then(other).text.shape == (4, 3, 4)
    assert one.to(torch.device("cpu")).labels is None
