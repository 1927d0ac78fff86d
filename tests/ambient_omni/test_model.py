from types import SimpleNamespace

import pytest
import torch

from ambient_omni import rng
from ambient_omni.models.config import (
    ConditionConfig,
    DiTConfig,
    LossWeightConfig,
    ParameterisationConfig,
    PatchedUNetConfig,
    UNet2DConditionConfig,
    UNet2DConfig,
)
from ambient_omni.models.model import build_model
from ambient_omni.models.networks import device_of
from ambient_omni.models.objectives import denoising_pair, squared_error
from schemas.errors import BadInput
from tests.data.pipelines import save_stable_diffusion

PATCHED = PatchedUNetConfig(patch=2, widths=(16,), attention=False, norm_groups=4)
PLAIN = UNet2DConfig(widths=(16, 16), layers_per_block=1, attention_scales=1, norm_groups=4)
DIT = DiTConfig(patch=2, layers=2, heads=2, head_dim=16)
TEXT = UNet2DConditionConfig(
    widths=(16, 16), layers_per_block=1, attention_scales=1, norm_groups=4, heads=2
)
SHAPE = (3, 8, 8)
KINDS = ("edm", "epsilon", "v", "x0", "flow")
CAPTIONS = ("a", "b", "a", "")


def settings(network=PATCHED, kind="edm", condition=None, weight="natural", **parameterisation):
    return SimpleNamespace(
        network=network,
        parameterisation=ParameterisationConfig(kind=kind, **parameterisation),
        condition=condition or ConditionConfig(),
        loss_weight=LossWeightConfig(kind=weight),
    )


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory):
    return str(save_stable_diffusion(tmp_path_factory.mktemp("pipelines") / "sd"))


def loss_of(model, step=0, hidden=0.0, count=4, labels=None, captions=None):
    """The loss of a batch as the trainer makes it."""
    x0 = 0.5 * rng.torch_normal((count, *SHAPE), 0, "x0")
    fresh, fixed = (rng.torch_normal((count, *SHAPE), step, name) for name in ("fresh", "fixed"))
    sigma = torch.exp(-0.5 + rng.torch_normal(count, step, "sigma")).clamp(min=0.1)
    level = (hidden * sigma).float()
    pair = denoising_pair(x0, sigma, level, fresh, fixed if hidden else None)
    condition = None
    if model.conditioner is not None:
        drop = torch.arange(count) % 2 == step % 2
        condition = model.conditioner.encode(labels=labels, captions=captions, drop=drop)
    error = squared_error(model.denoiser(pair.x_t, sigma, condition), pair.target)
    return model.loss_weighting(sigma, error).mean()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", [PATCHED, PLAIN, DIT, TEXT], ids=lambda c: c.kind)
def test_every_network_trains_under_every_parameterisation_with_its_condition(
    network, kind, text_encoder
):
    if network is TEXT:
        asked = ConditionConfig(kind="caption", text_encoder=text_encoder)
        batch = {"captions": CAPTIONS}
    else:
        asked = ConditionConfig(kind="label")
        batch = {"labels": torch.tensor([0, 1, 2, 0])}
    model = build_model(settings(network, kind, asked), SHAPE, num_classes=3)
    before = {name: tensor.clone() for name, tensor in model.weights().items()}
    optimizer = torch.optim.AdamW(model.trainable().values(), lr=1e-2, weight_decay=0)
    # The last layer is silent at the start, so the others learn from the second step on.
    for step in range(3):
        loss_of(model, step, hidden=0.5 if step == 1 else 0.0, **batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.isfinite(tensor).all() for tensor in model.weights().values())
    moved = [name for name, tensor in model.weights().items() if not tensor.equal(before[name])]
    assert len(moved) > 0.9 * len(model.trainable())


@pytest.mark.parametrize(
    ("kind", "weight"),
    [
        *((kind, "natural") for kind in KINDS),
        ("edm", "learned"),
        ("v", "learned"),
        ("edm", "min_snr"),
    ],
)
def test_thirty_steps_learn_a_batch_by_heart(kind, weight):
    model = build_model(settings(kind=kind, weight=weight), SHAPE)
    learning = [*model.trainable().values(), *model.loss_weighting.parameters()]
    optimizer = torch.optim.AdamW(learning, lr=5e-3)
    losses = []
    for _ in range(30):
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_model_learns_the_same_from_the_same_seed(kind):
    one, same, other = (build_model(settings(kind=kind), SHAPE, seed=s) for s in (1, 1, 2))
    assert torch.equal(loss_of(one), loss_of(same))
    states = [model.weights() for model in (one, same, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_the_deviation_of_the_data_is_that_stated_else_that_measured_else_one_half():
    stated = build_model(settings(sigma_data=0.7), SHAPE, sigma_data=1.3)
    measured = build_model(settings(), SHAPE, sigma_data=1.3)
    neither = build_model(settings(), SHAPE)
    found = [model.parameterisation.sigma_data for model in (stated, measured, neither)]
    assert found == [0.7, 1.3, 0.5]
    assert stated.denoiser.parameterisation is stated.parameterisation


def test_checkpoints_keep_all_weights_or_the_adapters_where_the_rest_is_frozen():
    model = build_model(settings(), SHAPE)
    assert set(model.weights()) == set(model.denoiser.state_dict())
    model.denoiser.requires_grad_(False)
    assert set(model.weights()) == set(model.denoiser.state_dict())
    name, parameter = next(iter(model.denoiser.named_parameters()))
    parameter.requires_grad_(True)
    assert set(model.weights()) == set(model.trainable()) == {name}


def test_what_a_model_is_told_has_to_fit_its_network(text_encoder):
    captions = ConditionConfig(kind="caption", text_encoder=text_encoder)
    with pytest.raises(BadInput, match="does not take captions"):
        build_model(settings(DIT, condition=captions), SHAPE)
    with pytest.raises(BadInput, match="the data have no labels"):
        build_model(settings(DIT, condition=ConditionConfig(kind="label")), SHAPE)


def test_classes_of_the_data_do_not_make_a_model_conditional():
    model = build_model(settings(DIT), SHAPE, num_classes=3)
    assert model.conditioner is None
    assert torch.isfinite(loss_of(model))


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_in_half_precision_a_model_says_about_the_same_on_a_gpu_where_there_is_one(kind, precision):
    model = build_model(settings(PLAIN, kind), SHAPE)
    x_t = rng.torch_normal((4, *SHAPE), 0, "x")
    sigma = torch.tensor([0.02, 0.3, 3.0, 80.0])
    with torch.no_grad():
        last = model.denoiser.network.unet.conv_out.weight
        last.copy_(0.1 * rng.torch_normal(last.shape, 0, "last"))
        expected = model.denoiser(x_t, sigma)
        model.on_accelerator()
        device = device_of(model.denoiser)
        with torch.autocast(device.type, precision):
            found = model.denoiser(x_t.to(device), sigma.to(device))
    assert found.dtype == torch.float32
    scale = model.parameterisation.coefficients(sigma.to(device)).out.abs().cpu()
    error = (found.cpu() - expected).abs().amax(dim=(1, 2, 3))
    assert (error < 0.1 * scale).all()
