import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ambient_omni import rng
from ambient_omni.generation.config import SampleConfig
from ambient_omni.generation.grids import save_grid
from ambient_omni.generation.sampling import Sampler, level_range
from ambient_omni.models.conditions import Condition, Conditioner
from ambient_omni.models.config import (
    ConditionConfig,
    LossWeightConfig,
    ParameterisationConfig,
    PatchedUNetConfig,
)
from ambient_omni.models.model import build_model
from ambient_omni.models.preconditioning import Denoiser, Parameterisation
from ambient_omni.noise.priors import DdpmPrior, LogNormalPrior
from schemas.errors import BadInput

PIXELS = (3, 8, 8)
KINDS = ("edm", "epsilon", "v", "x0", "flow")


def untrained(parameterisation="edm", condition="none", num_classes=0):
    settings = SimpleNamespace(
        network=PatchedUNetConfig(patch=2, widths=(8,), norm_groups=4),
        parameterisation=ParameterisationConfig(kind=parameterisation),
        condition=ConditionConfig(kind=condition),
        loss_weight=LossWeightConfig(),
    )
    model = build_model(settings, PIXELS, num_classes=num_classes)
    with rng.torch_seeded(0, "noise-in-weights"), torch.no_grad():
        for parameter in model.denoiser.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    model.denoiser.eval()
    return model


def test_image_i_depends_on_the_seed_and_on_i_alone():
    model = untrained()
    few, many, other = (
        Sampler(model, SampleConfig(num_steps=3, seed=s), PIXELS).first(n)
        for n, s in ((2, 0), (5, 0), (2, 1))
    )
    assert np.array_equal(few, many[:2])
    assert not np.array_equal(few, other)


def test_the_batch_size_does_not_change_the_images():
    model, config = untrained(), SampleConfig(num_steps=3)
    one, other = (Sampler(model, config, PIXELS, batch_size=n).first(5) for n in (2, 5))
    assert np.abs(one.astype(int) - other).max() <= 1


class Gaussian(torch.nn.Module):
    """What the best network says of x0 ~ N(0, SCALE^2), from what a parameterisation tells it."""

    SCALE = 0.4

    def __init__(self, parameterisation):
        super().__init__()
        self.form = parameterisation
        self.weight = torch.nn.Parameter(torch.zeros(1))  # says which device it is on

    def forward(self, scaled, noise, condition=None):
        sigma = self.level(noise)
        c = self.form.coefficients(sigma)
        x = scaled / c.into[:, None, None, None]
        x0 = (self.SCALE**2 / (self.SCALE**2 + sigma**2))[:, None, None, None] * x
        return (x0 - c.skip[:, None, None, None] * x) / c.out[:, None, None, None]

    def level(self, noise):
        if self.form.kind == "edm":
            return (4 * noise).exp()
        if self.form.kind == "flow":
            return noise / (1000 - noise)
        return torch.from_numpy(self.form.config.schedule.sigma_of_timestep(noise.numpy())).float()


@pytest.mark.parametrize("solver", ["heun", "euler", "dpm++2m"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_solver_samples_gaussian_data_under_every_parameterisation(kind, solver):
    form = Parameterisation(ParameterisationConfig(kind=kind))
    model = dataclasses.replace(
        untrained(), denoiser=Denoiser(Gaussian(form), form), parameterisation=form
    )
    config = SampleConfig(num_steps=200, solver=solver)
    x0 = Sampler(model, config, (3, 16, 16)).x0(range(8))
    assert float(x0.std()) == pytest.approx(Gaussian.SCALE, rel=0.05)


def test_levels_span_what_was_trained():
    def ends(kind, prior=None, **levels):
        config = SampleConfig(**levels)
        return level_range(config, Parameterisation(ParameterisationConfig(kind=kind)), prior)

    assert ends("edm") == (0.002, 80.0)
    assert ends("flow", LogNormalPrior(lowest=0.1, highest=20.0)) == (0.1, 20.0)
    low, high = ends("v", DdpmPrior())
    assert low == pytest.approx(0.01, rel=0.01)
    assert high == pytest.approx(157.4, rel=0.01)
    assert ends("edm", lowest=0.5) == (0.5, 80.0)


@pytest.mark.parametrize(
    ("kind", "prior", "levels", "message"),
    [
        ("v", None, {"highest": 400.0}, "trained from 157.* down to 0.01"),
        ("edm", LogNormalPrior(lowest=0.1), {"lowest": 0.01}, "trained from inf down to 0.1"),
        ("v", None, {"lowest": 150.0, "highest": 100.0}, "not below"),
    ],
)
def test_levels_that_were_not_trained_are_refused(kind, prior, levels, message):
    with pytest.raises(ValueError if "not below" in message else BadInput, match=message):
        level_range(
            SampleConfig(**levels), Parameterisation(ParameterisationConfig(kind=kind)), prior
        )


def test_each_image_has_its_label_and_guidance_goes_on_from_it():
    model = untrained(condition="label", num_classes=3)
    names = ("ant", "bee", "cat")
    plain = SampleConfig(num_steps=3, labels=("bee", "cat"))
    sampler = Sampler(model, plain, PIXELS, names)
    assert [sampler.facts(i)["label"] for i in range(3)] == ["bee", "cat", "bee"]
    all_in_turn = Sampler(model, SampleConfig(), PIXELS, names)
    assert [all_in_turn.facts(i)["label"] for i in range(4)] == [*names, "ant"]
    x, sigma = rng.torch_normal((2, *PIXELS), 0, "x"), torch.full((2,), 2.0)
    told = model.denoiser(x, sigma, Condition(labels=torch.tensor([1, 2])))
    untold = model.denoiser(x, sigma, Condition(labels=torch.tensor([3, 3])))
    for scale in (0.0, 1.0, 2.5):
        config = plain.model_copy(update={"guidance": scale})
        denoise = Sampler(model, config, PIXELS, names)._denoise(range(2), torch.device("cpu"))
        assert torch.allclose(denoise(x, sigma), untold + scale * (told - untold), atol=1e-5)


@pytest.mark.parametrize(
    ("condition", "asked", "message"),
    [
        ("none", {"labels": ("bee",)}, "not trained on labels"),
        ("none", {"prompts": ("a bee",)}, "not trained on captions"),
        ("label", {"prompts": ("a bee",)}, "not trained on captions"),
        ("none", {"guidance": 2.0}, "guidance needs a model"),
        ("label", {"labels": ("bee", "owl")}, "no label 'owl'; it has ant, bee"),
    ],
)
def test_what_a_model_cannot_be_asked_for_is_refused(condition, asked, message):
    names = ("ant", "bee") if condition == "label" else ()
    model = untrained(condition=condition, num_classes=len(names))
    with pytest.raises(BadInput, match=message):
        Sampler(model, SampleConfig(**asked), PIXELS, names)


def test_a_grid_shows_every_image(tmp_path):
    images = np.full((5, 4, 4, 3), 10, np.uint8)
    save_grid(images, tmp_path / "grid.png", scale=2, gap=1)
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (2 * 9 - 1, 3 * 9 - 1, 3)
    assert (grid[..., 0] == 10).sum() == 5 * 8 * 8


def test_a_grid_says_what_each_image_was_asked_to_be(tmp_path):
    images = np.full((2, 16, 16, 3), 255, np.uint8)
    save_grid(images, tmp_path / "plain.png")
    save_grid(images, tmp_path / "told.png", captions=["cat", ""])
    plain, told = (np.asarray(Image.open(tmp_path / f"{n}.png")) for n in ("plain", "told"))
    assert told.shape[0] == plain.shape[0] + 12
    assert (plain == 255).all()
    # The first image's line has dark pixels, the second's has none.
    assert told[32:, :32].min() < 100
    assert (told[:, 34:] == 255).all()


def test_too_few_levels_are_refused():
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        SampleConfig(num_steps=1)


@pytest.mark.parametrize("name", ["guidance", "highest", "lowest", "rho"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1.0])
def test_settings_of_samples_are_finite(name, value):
    with pytest.raises(ValueError, match=name):
        SampleConfig(**{name: value})


def test_images_that_are_no_numbers_are_not_written_as_black_ones():
    model = untrained()
    with torch.no_grad():
        next(model.denoiser.parameters()).fill_(float("nan"))
    with pytest.raises(BadInput, match="image 0 is not finite"):
        Sampler(model, SampleConfig(num_steps=2), PIXELS).first(2)


class Captions(Conditioner):
    """Says nothing in zeros, and the empty caption in ones."""

    def encode(self, *, labels=None, captions=None, drop=None):
        return Condition(text=torch.ones(len(captions), 1, 1))

    def null(self, count):
        return Condition(text=torch.zeros(count, 1, 1))


def test_without_prompts_nothing_is_said_and_there_is_nothing_to_go_towards():
    model = dataclasses.replace(untrained(), conditioner=Captions())
    told = Sampler(model, SampleConfig(), PIXELS)._condition(range(2)).text
    assert told.tolist() == [[[0.0]], [[0.0]]]
    told = Sampler(model, SampleConfig(prompts=("",)), PIXELS)._condition(range(2)).text
    assert told.tolist() == [[[1.0]], [[1.0]]]
    with pytest.raises(BadInput, match="guidance goes towards prompts"):
        Sampler(model, SampleConfig(guidance=2.0), PIXELS)


@pytest.mark.parametrize("kind", ["edm", "flow"])
def test_samples_begin_and_end_where_a_ddpm_prior_does(kind):
    prior = DdpmPrior()
    stated = Parameterisation(ParameterisationConfig(kind=kind))
    assert level_range(SampleConfig(), stated, prior) == pytest.approx(prior.support)
    with pytest.raises(BadInput, match="trained from"):
        level_range(SampleConfig(highest=2 * prior.support[1]), stated, prior)
