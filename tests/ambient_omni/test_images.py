"""Bytes of every kind become the same pixels everywhere, or a reason."""

import math
import pickle
import struct
import time
import tracemalloc
import warnings
import zlib
from io import BytesIO

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from ambient_omni import images, rng
from ambient_omni.images import ImageLimits, ImageRejected, decode, probe

FORMATS = ("JPEG", "PNG", "WEBP")


def picture(width=48, height=40, mode="RGB"):
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([x * 5 % 256, y * 6 % 256, (x * y) % 256], axis=-1).astype(np.uint8)
    return Image.fromarray(rgb).convert(mode)


def encoded(image, image_format, **options):
    out = BytesIO()
    image.save(out, image_format, **options)
    return out.getvalue()


def reason_of(data, limits=images.DEFAULT_LIMITS):
    with pytest.raises(ImageRejected) as caught:
        decode(data, limits)
    assert caught.value.reason in images.REASONS
    return caught.value.reason


def pixels_or_reason(data):
    try:
        return decode(data, ImageLimits(max_pixels=1_000_000))
    except ImageRejected as rejected:
        return rejected.reason


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_header_tells_format_and_size(image_format):
    facts = probe(encoded(picture(48, 40), image_format))
    assert (facts.width, facts.height, facts.format) == (48, 40, image_format.lower())


@pytest.mark.parametrize(
    "options",
    [
        {"lossless": True},
        {"lossless": False},
        {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0", "lossless": True},
    ],
)
def test_every_kind_of_webp_header_tells_the_size(options):
    data = encoded(picture(300, 17), "WEBP", **options)
    assert (probe(data).width, probe(data).height) == (300, 17)


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_plain_image_decodes_to_the_reference_pixels(image_format):
    data = encoded(picture(), image_format)
    expected = np.asarray(Image.open(BytesIO(data)).convert("RGB"))
    pixels = decode(data)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", images.EMPTY_FILE),
        (b"\xff", images.NOT_AN_IMAGE),
        (b"just some text", images.NOT_AN_IMAGE),
        (b"<!DOCTYPE html><html><body>404</body></html>", images.NOT_AN_IMAGE),
        (b"\x89PNG\r\n\x1a\n", images.TRUNCATED),
        (b"\xff\xd8\xff\xe0", images.TRUNCATED),
        (b"RIFF\x10\0\0\0WEBP", images.TRUNCATED),
        (encoded(picture(), "GIF"), images.UNSUPPORTED_FORMAT),
        (encoded(picture(), "BMP"), images.UNSUPPORTED_FORMAT),
        (encoded(picture(), "TIFF"), images.UNSUPPORTED_FORMAT),
    ],
)
def test_what_is_no_image_gets_a_reason(data, reason):
    assert reason_of(data) == reason


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_at_any_of_fifty_places_is_refused(progressive):
    data = encoded(picture(200, 150), "JPEG", progressive=progressive, quality=90)
    cuts = np.linspace(1, len(data) - 1, 50).astype(int)
    reasons = {reason_of(data[:cut]) for cut in cuts}
    assert reasons <= {images.TRUNCATED, images.NOT_AN_IMAGE, images.CORRUPT}
    assert reason_of(data[:-2]) == images.TRUNCATED


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_a_cut_png_or_webp_is_refused(image_format):
    data = encoded(picture(200, 150), image_format)
    for cut in np.linspace(12, len(data) - 1, 50).astype(int):
        assert reason_of(data[:cut]) in {images.TRUNCATED, images.NOT_AN_IMAGE, images.CORRUPT}
    assert reason_of(data[:-1]) == images.TRUNCATED


def test_truncated_files_stay_refused_when_another_library_told_pillow_to_be_lenient(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encoded(picture(200, 150), "JPEG")
    assert reason_of(data[: len(data) // 2]) == images.TRUNCATED


def test_bytes_after_the_end_of_the_image_are_harmless():
    data = encoded(picture(), "JPEG")
    np.testing.assert_array_equal(decode(data + b"\0" * 100), decode(data))


def test_the_film_behind_a_motion_photo_is_not_taken_for_scans():
    data = encoded(picture(), "JPEG")
    film = rng.generator(0, "film").bytes(1000) + b"\xff\xda\xff\xd9" * 1000
    np.testing.assert_array_equal(decode(data + film), decode(data))


def test_a_comment_that_looks_like_an_end_hides_neither_scans_nor_a_cut():
    data = encoded(picture(200, 150), "JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    comment = b"\xff\xfe\x00\x06\xff\xd9\xff\xd9"
    whole = data[:scan] + comment + data[scan:]
    np.testing.assert_array_equal(decode(whole), decode(data))
    assert reason_of(whole[:-100]) == images.TRUNCATED
    assert reason_of(data[:scan] + comment + data[scan:-2] * 500) == images.TRUNCATED
    assert reason_of(whole[:-2] + data[scan:-2] * 500 + data[-2:]) == images.CORRUPT


@pytest.mark.parametrize("image_format", FORMATS)
@settings(max_examples=1000, deadline=5000)
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), max_size=8))
def test_flipped_bits_give_pixels_or_a_reason(image_format, flips):
    data = bytearray(encoded(picture(), image_format))
    for place, bit in flips:
        data[int(place * len(data))] ^= 1 << bit
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome = pixels_or_reason(bytes(data))
    assert outcome in images.REASONS if isinstance(outcome, str) else outcome.shape[2] == 3


def png_claiming(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def jpeg_claiming(width, height):
    data = bytearray(encoded(picture(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_claiming(width, height):
    canvas = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + canvas
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("side", [16_000, 60_000])
@pytest.mark.parametrize("claiming", [png_claiming, jpeg_claiming, webp_claiming])
def test_a_bomb_is_refused_from_its_header_without_allocating_it(claiming, side):
    data = claiming(side, side)
    tracemalloc.start()
    started = time.perf_counter()
    assert reason_of(data) == images.TOO_MANY_PIXELS
    assert time.perf_counter() - started < 5
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_png_with_a_compressed_text_bomb_is_refused_or_read_in_bounded_memory():
    bomb = b"k\0\0" + zlib.compress(b"\0" * 200_000_000)
    chunk = struct.pack(">I", len(bomb)) + b"zTXt" + bomb
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + bomb))
    data = encoded(picture(), "PNG")
    after_header = 8 + 25
    assert reason_of(data[:after_header] + chunk + data[after_header:]) == images.CORRUPT


def test_a_jpeg_with_thousands_of_scans_is_refused_before_decoding():
    data = encoded(picture(), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert reason_of(data[:-2] + scan * 5000 + data[-2:]) == images.CORRUPT


def test_limits_are_inclusive_and_a_small_side_is_refused():
    data = encoded(picture(48, 40), "PNG")
    assert decode(data, ImageLimits(max_pixels=48 * 40, min_side=40)).shape == (40, 48, 3)
    assert reason_of(data, ImageLimits(max_pixels=48 * 40 - 1)) == images.TOO_MANY_PIXELS
    assert reason_of(data, ImageLimits(min_side=41)) == images.TOO_SMALL
    assert reason_of(encoded(picture(1, 10_000), "PNG")) == images.TOO_SMALL


def test_pillows_own_pixel_limit_gives_way_to_ours(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(encoded(picture(), "JPEG")).shape == (40, 48, 3)
        assert decode(encoded(picture(), "PNG")).shape == (40, 48, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", FORMATS)
def test_all_eight_orientations_are_undone(image_format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = encoded(picture(48, 24), image_format, exif=exif.tobytes(), **options)
    expected = ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB")
    np.testing.assert_array_equal(decode(data), np.asarray(expected))


def test_broken_exif_leaves_the_image_as_it_lies():
    data = encoded(picture(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert decode(data).shape == (40, 48, 3)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_opaque_png_modes_decode_as_pillow_converts_them(mode):
    image = picture(mode=mode)
    np.testing.assert_array_equal(decode(encoded(image, "PNG")), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg_decodes_as_pillow_converts_it():
    data = encoded(picture(mode="CMYK"), "JPEG", quality=95)
    expected = np.asarray(Image.open(BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode(data), expected)
    close = np.abs(decode(data).astype(int) - np.asarray(picture()).astype(int)).mean()
    assert close < 12  # not inverted


def _by_pillow_alone(data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "_fast_jpeg", lambda *_: None)
        return _outcome(data)


def _outcome(data):
    try:
        return decode(data, ImageLimits(min_side=1))
    except ImageRejected as rejected:
        return rejected.reason, rejected.detail


def _is_fast(data):
    return images._fast_jpeg(data, Image.open(BytesIO(data))) is not None


JPEG_KINDS = {
    "4:4:4": {"subsampling": "4:4:4"},
    "4:2:2": {"subsampling": "4:2:2", "quality": 30},
    "4:2:0": {"subsampling": "4:2:0"},
    "progressive": {"progressive": True, "optimize": True},
    "restarts": {"restart_marker_blocks": 2, "quality": 50},
    "RGB kept": {"keep_rgb": True},
}


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (17, 33), (48, 40), (129, 63)])
@pytest.mark.parametrize("kind", JPEG_KINDS)
def test_the_fast_decoder_gives_pillows_pixels(kind, size):
    data = encoded(picture(*size), "JPEG", **JPEG_KINDS[kind])
    assert _is_fast(data)
    np.testing.assert_array_equal(decode(data, ImageLimits(min_side=1)), _by_pillow_alone(data))


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411", "Gray"])
def test_the_fast_decoder_gives_pillows_pixels_of_odd_subsamplings(subsampling):
    pixels = np.asarray(picture(101, 77))
    data = simplejpeg.encode_jpeg(pixels, quality=80, colorsubsampling=subsampling)
    assert _is_fast(data)
    np.testing.assert_array_equal(decode(data), _by_pillow_alone(data))


def test_the_fast_decoder_leaves_cmyk_and_broken_data_to_pillow():
    assert not _is_fast(encoded(picture(mode="CMYK"), "JPEG"))
    whole = encoded(picture(300, 200), "JPEG", quality=90)
    assert not _is_fast(whole[: len(whole) // 2] + b"\xff\xd9")


@given(
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4),
    cut=st.floats(0.2, 1),
    progressive=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_whatever_happens_to_a_jpeg_both_decoders_agree(changes, cut, progressive):
    data = bytearray(encoded(picture(), "JPEG", progressive=progressive))
    data = data[: max(4, round(cut * len(data)))]
    for place, bits in changes:
        data[int(place * len(data))] ^= bits
    ours, theirs = _outcome(bytes(data)), _by_pillow_alone(bytes(data))
    assert type(ours) is type(theirs)
    assert np.array_equal(ours, theirs)
    assert_inspected_as_decoded(bytes(data), side=8)


def result_or_refusal(run):
    try:
        return run()
    except ImageRejected as rejected:
        return str(rejected)


def assert_inspected_as_decoded(data, side):
    """`inspect` refuses what `decode` refuses, in the same words; of all else it tells the size."""
    limits = ImageLimits(min_side=1)
    pixels = result_or_refusal(lambda: decode(data, limits))
    found = result_or_refusal(lambda: images.inspect(data, side, limits))
    if isinstance(pixels, str) or isinstance(found, str):
        assert isinstance(pixels, str)
        assert pixels == found
        return
    facts, luma = found
    assert (facts.height, facts.width) == pixels.shape[:2]
    assert min(luma.shape) >= min(side, *pixels.shape[:2])
    eighths = {math.ceil(facts.width * n / 8) for n in range(1, 9)}
    assert luma.shape[1] in eighths


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", FORMATS)
def test_what_is_inspected_stands_as_what_is_decoded(image_format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(101, 100), image_format, exif=exif.tobytes())
    facts, luma = images.inspect(data, 128)
    pixels = decode(data)
    assert (facts.height, facts.width) == pixels.shape[:2] == luma.shape
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    assert np.abs(luma.astype(int) - grey).mean() < 2
    facts, luma = images.inspect(data, 13)
    assert (facts.height, facts.width) == pixels.shape[:2]
    assert luma.shape == ((13, 13) if image_format == "JPEG" else pixels.shape[:2])


@pytest.mark.parametrize("kind", JPEG_KINDS)
@pytest.mark.parametrize("side", [1, 8, 20, 128])
def test_every_kind_of_jpeg_is_inspected_as_it_is_decoded(kind, side):
    whole = encoded(picture(129, 63), "JPEG", **JPEG_KINDS[kind])
    for share in (1, 0.9, 0.5, 0.2):
        cut = whole[: round(share * len(whole))]
        assert_inspected_as_decoded(cut, side)
        assert_inspected_as_decoded(cut + b"\xff\xd9", side)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_transparency_lies_on_white(image_format):
    image = picture().convert("RGBA")
    alpha = np.tile(np.linspace(0, 255, 48).astype(np.uint8), (40, 1))
    image.putalpha(Image.fromarray(alpha))
    options = {"lossless": True, "exact": True} if image_format == "WEBP" else {}
    pixels = decode(encoded(image, image_format, **options)).astype(float)
    weight = alpha[..., None] / 255
    expected = np.asarray(picture()).astype(float) * weight + 255 * (1 - weight)
    assert np.abs(pixels - expected).max() <= 1
    assert (pixels[:, 0] == 255).all()


def test_grey_with_alpha_lies_on_white():
    image = Image.merge("LA", [picture(mode="L"), Image.new("L", (48, 40), 0)])
    assert (decode(encoded(image, "PNG")) == 255).all()


def test_a_transparent_palette_entry_lies_on_white():
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 200, 10, 10])
    image.paste(0, (0, 0, 8, 16))
    pixels = decode(encoded(image, "PNG", transparency=0))
    assert (pixels[:, :8] == 255).all()
    assert (pixels[:, 8:] == (200, 10, 10)).all()


def test_sixteen_bit_grey_keeps_its_high_byte():
    samples = (np.arange(48 * 40).reshape(40, 48) * 34).astype(np.uint16)
    pixels = decode(encoded(Image.fromarray(samples), "PNG"))
    np.testing.assert_array_equal(pixels, np.repeat((samples >> 8)[..., None], 3, axis=2))


def test_of_an_animation_the_first_frame_is_taken():
    frames = [picture(), picture().rotate(180)]
    for image_format, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        data = encoded(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(decode(data), np.asarray(frames[0]))


def test_a_rejection_survives_the_way_between_processes():
    rejected = pickle.loads(pickle.dumps(ImageRejected("corrupt", "why")))
    assert (rejected.reason, rejected.detail, str(rejected)) == ("corrupt", "why", "corrupt: why")
