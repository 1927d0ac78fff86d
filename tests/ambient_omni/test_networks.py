import copy

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from pydantic import TypeAdapter, ValidationError

from ambient_omni import rng
from ambient_omni.models.conditions import Condition
from ambient_omni.models.config import (
    DiTConfig,
    NetworkConfig,
    PatchedUNetConfig,
    UNet2DConditionConfig,
    UNet2DConfig,
)
from ambient_omni.models.networks import build_network, num_parameters
from ambient_omni.models.preconditioning import Denoiser
from schemas.errors import BadInput

PATCHED = PatchedUNetConfig(patch=2, widths=(8, 16), norm_groups=4)
PLAIN = UNet2DConfig(
    widths=(8, 16), layers_per_block=1, attention_scales=1, norm_groups=4, head_dim=4
)
DIT = DiTConfig(patch=2, layers=2, heads=2, head_dim=8)
TEXT = UNet2DConditionConfig(
    widths=(8, 16), layers_per_block=1, attention_scales=1, norm_groups=4, heads=2
)
LABELLED = (PATCHED, PLAIN, DIT)
SHAPE = (3, 8, 8)
X_T, SIGMA = rng.torch_normal((3, *SHAPE), 0, "x"), torch.tensor([0.1, 1.0, 10.0])


def network(config, num_classes=0, text_width=0, seed=0, shape=SHAPE):
    with rng.torch_seeded(seed, "weights"):
        return build_network(config, shape, num_classes, text_width)


def awake(module, seed=0):
    """Weights that are not zero anywhere, so that every input has an effect."""
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.add_(0.3 * rng.torch_normal(parameter.shape, seed, "awake", number))
    return module


def condition_of(config, labels=(0, 1, 2)):
    if config is TEXT:
        text = rng.torch_normal((3, 5, 6), 0, "text")
        return Condition(text=torch.stack([text[label] for label in labels]))
    return Condition(labels=torch.tensor(labels))


@pytest.mark.parametrize("config", [*LABELLED, TEXT], ids=lambda c: c.kind)
def test_an_untrained_edm_denoiser_is_the_best_linear_one(config):
    untrained = network(config, 0 if config is TEXT else 3, 6 if config is TEXT else 0)
    out = Denoiser(untrained)(X_T, SIGMA, condition_of(config))
    assert torch.allclose(out, (0.25 / (0.25 + SIGMA**2))[:, None, None, None] * X_T)


@pytest.mark.parametrize("config", [*LABELLED, TEXT], ids=lambda c: c.kind)
def test_condition_and_level_reach_the_network(config):
    net = awake(network(config, 0 if config is TEXT else 3, 6 if config is TEXT else 0))
    net.eval()
    x, noise = X_T[:1].expand(3, -1, -1, -1), torch.zeros(3)
    same = condition_of(config, (0, 0, 0))
    told = net(x, noise, condition_of(config, (0, 1, 2)))
    assert not torch.allclose(told[0], told[1], rtol=1e-3)
    at_levels = net(x, torch.tensor([0.0, 0.3, 0.6]), same)
    assert not torch.allclose(at_levels[0], at_levels[1], rtol=1e-3)
    alike = net(x, noise, same)
    assert torch.allclose(alike[0], alike[1])


@pytest.mark.parametrize("config", LABELLED, ids=lambda c: c.kind)
def test_the_null_class_is_one_more_class(config):
    net = awake(network(config, num_classes=3)).eval()
    null = Condition(labels=torch.tensor([3, 3, 3]))
    assert not torch.allclose(net(X_T, SIGMA, null), net(X_T, SIGMA, condition_of(config)))
    with pytest.raises(IndexError):
        net(X_T, SIGMA, Condition(labels=torch.tensor([4, 4, 4])))


@pytest.mark.parametrize("config", LABELLED, ids=lambda c: c.kind)
def test_every_network_works_without_a_condition_and_on_latents(config):
    shape = (4, 8, 8)
    out = network(config, shape=shape)(torch.zeros(2, *shape), torch.zeros(2), None)
    assert out.shape == (2, *shape)


def test_nothing_in_a_training_network_draws_random_numbers_unless_asked_to():
    for config in (*LABELLED, TEXT):
        net = awake(network(config, 0 if config is TEXT else 3, 6 if config is TEXT else 0)).train()
        before = torch.get_rng_state()
        one, two = (net(X_T, SIGMA, condition_of(config)) for _ in range(2))
        assert torch.equal(one, two)
        assert torch.equal(torch.get_rng_state(), before)


def test_the_same_seed_builds_the_same_weights_and_another_seed_others():
    one, same, other = (network(PLAIN, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["unet.conv_in.weight"], other["unet.conv_in.weight"])


@pytest.mark.parametrize(
    ("config", "part", "kind"),
    [
        (PLAIN, "unet", UNet2DModel),
        (DIT, "transformer", DiTTransformer2DModel),
        (TEXT, "unet", UNet2DConditionModel),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_diffusers_alone_reads_what_was_trained_and_says_the_same(tmp_path, config, part, kind):
    net = awake(network(config, 0 if config is TEXT else 3, 6 if config is TEXT else 0)).eval()
    getattr(net, part).save_pretrained(tmp_path)
    plain = kind.from_pretrained(tmp_path)
    told, noise = condition_of(config), torch.tensor([3.0, 500.0, 999.0])
    words = (
        {"encoder_hidden_states": told.text} if config is TEXT else {"class_labels": told.labels}
    )
    assert torch.equal(plain(X_T, noise, **words).sample, net(X_T, noise, told))


def test_dropout_is_on_where_it_is_asked_for():
    for config in (*LABELLED, TEXT):
        dropping = config.model_copy(update={"dropout": 0.5})
        net = awake(network(dropping, 0 if config is TEXT else 3, 6 if config is TEXT else 0))
        net.train()
        with rng.torch_seeded(0, "dropout"):
            one, two = (net(X_T, SIGMA, condition_of(config)) for _ in range(2))
        assert not torch.allclose(one, two)


def test_the_pixel_branch_sees_single_pixels_and_the_level_and_can_be_left_out():
    branch = copy.deepcopy(network(PATCHED).unet.pixels)
    with torch.no_grad():
        branch.leave.weight.copy_(rng.torch_normal(branch.leave.weight.shape, 0, "w"))
    x_t = torch.zeros(1, 3, 8, 8)
    poked = x_t.clone()
    poked[0, 0, 4, 4] = 1
    low, high = torch.tensor([-0.5]), torch.tensor([0.5])
    changed = (branch(poked, low) - branch(x_t, low)).abs().sum(dim=1)[0] > 1e-6
    assert changed[1:8, 1:8].any()
    assert not changed[0].any()
    assert not torch.allclose(branch(poked, low), branch(poked, high))
    assert network(PATCHED.model_copy(update={"pixel_width": 0})).unet.pixels is None


@pytest.mark.parametrize(
    ("config", "shape", "message"),
    [
        (PATCHED, (3, 6, 6), "no multiple of 4"),
        (PLAIN, (3, 7, 7), "no multiple of 2"),
        (DIT, (3, 9, 9), "no multiple of 2"),
    ],
)
def test_images_that_cannot_be_cut_or_halved_as_needed_are_refused(config, shape, message):
    with pytest.raises(BadInput, match=f"network {config.kind}: resolution .* {message}"):
        network(config, shape=shape)
    assert num_parameters(network(config)) > 0


def test_networks_refuse_conditions_that_they_cannot_take():
    with pytest.raises(BadInput, match="unet2d does not take captions"):
        network(PLAIN, text_width=6)
    with pytest.raises(BadInput, match="unet2d_condition does not take labels"):
        network(TEXT, num_classes=3)
    with pytest.raises(BadInput, match="does not take no condition"):
        network(TEXT)
    with pytest.raises(ValueError, match="attention_scales 3 is more than the 2"):
        UNet2DConfig(widths=(32, 32), attention_scales=3)
    with pytest.raises(ValueError, match="no multiples of norm_groups"):
        UNet2DConfig(widths=(32, 30), attention_scales=0)


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (PATCHED, {"patch": 4}),
        (PATCHED, {"widths": (8, 8)}),
        (PATCHED, {"pixel_width": 8}),
        (PATCHED, {"layers_per_block": 2}),
        (PATCHED, {"attention": False}),
        (PATCHED, {"norm_groups": 2}),
        (PLAIN, {"widths": (8, 8)}),
        (PLAIN, {"layers_per_block": 2}),
        (PLAIN, {"attention_scales": 2}),
        (PLAIN, {"attention_scales": 0}),
        (PLAIN, {"norm_groups": 2}),
        (PLAIN, {"head_dim": 8}),
        (TEXT, {"widths": (8, 8)}),
        (TEXT, {"layers_per_block": 2}),
        (TEXT, {"attention_scales": 2}),
        (TEXT, {"norm_groups": 2}),
        (TEXT, {"heads": 4}),
        (DIT, {"patch": 4}),
        (DIT, {"layers": 1}),
        (DIT, {"heads": 1}),
        (DIT, {"head_dim": 4}),
    ],
    ids=str,
)
def test_every_setting_changes_what_the_network_says(config, changes):
    sizes = (0, 6) if config is TEXT else (3, 0)
    said = [
        awake(network(settings, *sizes)).eval()(X_T, SIGMA, condition_of(config))
        for settings in (config, config.model_copy(update=changes))
    ]
    assert not torch.allclose(*said, rtol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "unet2d", "widths": (4, 4), "norm_groups": 4}, r"\[4, 4\] .* head_dim 8"),
        ({"kind": "unet2d", "widths": (12, 16), "norm_groups": 4}, r"\[12\] .* head_dim 8"),
        (
            {
                "kind": "unet2d_condition",
                "widths": (8, 12),
                "norm_groups": 4,
                "attention_scales": 0,
            },
            r"\[12\] .* heads 8",
        ),
        ({"kind": "dit", "heads": 3, "head_dim": 6}, "18, no multiple of 4"),
    ],
)
def test_heads_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(NetworkConfig).validate_python(settings)
    plain = {"kind": "unet2d", "widths": (4, 16), "norm_groups": 4, "attention_scales": 1}
    assert TypeAdapter(NetworkConfig).validate_python(plain).attending == (16,)
