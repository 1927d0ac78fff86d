"""From source bytes to pixels: the one place where images are opened, by every job and trainer.

What cannot be turned into pixels without guessing is refused with a reason code; a decoder's
crash, warning or grey filling never reaches a caller.
"""

import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from pydantic import BaseModel, ConfigDict, Field

from ambient_omni.image_headers import (
    JPEG,
    CorruptContainer,
    TruncatedContainer,
    check_complete,
    format_of,
    num_jpeg_scans,
    read_header,
)
from schemas.errors import AmbientOmniError

EMPTY_FILE = "empty_file"
NOT_AN_IMAGE = "not_an_image"
UNSUPPORTED_FORMAT = "unsupported_format"
TRUNCATED = "truncated"
TOO_MANY_PIXELS = "too_many_pixels"
TOO_SMALL = "too_small"
CORRUPT = "corrupt"
REASONS = frozenset(
    {
        EMPTY_FILE,
        NOT_AN_IMAGE,
        UNSUPPORTED_FORMAT,
        TRUNCATED,
        TOO_MANY_PIXELS,
        TOO_SMALL,
        CORRUPT,
    }
)

# A progressive photograph has about 10 scans. Each is a pass over the whole image, so a small
# file with thousands of them keeps a decoder busy for minutes.
MAX_JPEG_SCANS = 100

_EXIF_ORIENTATION = 0x0112
_FIRST_TRANSPOSED = 5  # orientations from here on exchange rows and columns

# The plugins are called directly, not through Image.open: no other format can be reached, and
# Pillow's own global pixel limit gives way to ours.
_PLUGINS: dict[str, Callable[[BytesIO], ImageFile.ImageFile]] = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
}

# All that Pillow was seen to raise, or may raise, on hostile bytes. MemoryError is in the list
# because decoders raise it for sizes they refuse, long before memory is short.
_DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    EOFError,
    MemoryError,
    RuntimeError,
    AssertionError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class ImageRejected(AmbientOmniError):
    """These bytes cannot be used as an image.

    Attributes:
        reason: one of REASONS.
        detail: what was found, for a person.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class ImageLimits(BaseModel):
    """Which images are taken. The limits are checked on the header, before any decoding."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # 64 megapixels decode to 192 MB of RGB: bounded on a small machine, above any usual camera.
    max_pixels: int = Field(default=64_000_000, ge=1)
    # Below one JPEG block no measure of sharpness or compression means anything.
    min_side: int = Field(default=8, ge=1)


DEFAULT_LIMITS = ImageLimits()


@dataclass(frozen=True)
class ImageFacts:
    """Format ("jpeg", "png", "webp") and size in pixels; `probe` tells it before orientation."""

    width: int
    height: int
    format: str


def probe(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> ImageFacts:
    """Read the header alone, in microseconds and without allocating the image.

    Raises:
        ImageRejected: empty, not a JPEG, PNG or WebP, no readable header, or outside the limits.
    """
    if not data:
        raise ImageRejected(EMPTY_FILE, "0 bytes")
    image_format = format_of(data)
    if image_format is None:
        raise ImageRejected(NOT_AN_IMAGE, f"begins with {bytes(data[:12])!r}")
    if image_format == "other":
        raise ImageRejected(
            UNSUPPORTED_FORMAT, f"begins with {bytes(data[:12])!r}; JPEG, PNG and WebP are taken"
        )
    try:
        header = read_header(data, image_format)
    except TruncatedContainer as error:
        raise ImageRejected(TRUNCATED, str(error)) from None
    except CorruptContainer as error:
        raise ImageRejected(CORRUPT, str(error)) from None
    _check_limits(header.width, header.height, limits)
    return ImageFacts(header.width, header.height, image_format)


def decode(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> npt.NDArray[np.uint8]:
    """Decode to RGB, uint8, shape (height, width, 3), as a person would see it.

    EXIF orientation is applied; transparency lies on white; 16-bit samples keep their high byte;
    CMYK is converted without a colour profile; of an animation the first frame is taken.

    Raises:
        ImageRejected: as `probe`, and when any part of the image is missing or broken.
    """
    return _oriented(*_judged(data, probe(data, limits), _pixels))


def inspect(
    data: bytes, luma_side: int, limits: ImageLimits = DEFAULT_LIMITS
) -> tuple[ImageFacts, npt.NDArray[np.uint8]]:
    """Judge an image as `decode` does, for less: what it is, and its luma in few pixels.

    All of the coded data are read, so that what is truncated or broken is refused. Of a sound JPEG
    the transform alone is made at a reduced size, and of its luma.

    Args:
        data: source bytes.
        luma_side: the luma may be reduced to no less than this in either direction, in pixels.
        limits: which images are taken.

    Returns:
        Format and size after orientation; BT.601 luma, uint8, shape (h, w), as a person would see
        it, of the image's own size or of a whole number of eighths of it.

    Raises:
        ImageRejected: exactly where `decode` does.
    """
    facts = probe(data, limits)

    def luma(data: bytes, image: ImageFile.ImageFile) -> npt.NDArray[np.uint8]:
        found = _small_luma(data, image, luma_side)
        if found is not None:
            return found
        return np.asarray(Image.fromarray(_pixels(data, image)).convert("L"))

    found, orientation = _judged(data, facts, luma)
    if orientation >= _FIRST_TRANSPOSED:
        facts = ImageFacts(facts.height, facts.width, facts.format)
    return facts, _oriented(found, orientation)


def _judged(
    data: bytes,
    facts: ImageFacts,
    read: Callable[[bytes, ImageFile.ImageFile], npt.NDArray[np.uint8]],
) -> tuple[npt.NDArray[np.uint8], int]:
    """Return what `read` makes of an opened image, and its orientation, or say why it cannot."""
    _check_container(data, facts)
    # Pillow speaks of odd EXIF or palettes through warnings; the image is refused or it is not.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            image = _open(data, facts)
            return read(data, image), _orientation(image)
        except _DECODER_ERRORS as error:
            reason = TRUNCATED if "truncated" in str(error).lower() else CORRUPT
            detail = f"{type(error).__name__}: {error}"[:200]
            raise ImageRejected(reason, detail) from None


def _pixels(data: bytes, image: ImageFile.ImageFile) -> npt.NDArray[np.uint8]:
    pixels = _fast_jpeg(data, image)
    if pixels is None:
        image.load()
        pixels = np.asarray(_as_rgb(image))
    return pixels


def _check_limits(width: int, height: int, limits: ImageLimits) -> None:
    if width * height > limits.max_pixels:
        raise ImageRejected(
            TOO_MANY_PIXELS, f"{width}x{height} pixels; the limit is {limits.max_pixels}"
        )
    if min(width, height) < limits.min_side:
        raise ImageRejected(
            TOO_SMALL, f"{width}x{height} pixels; the shorter side needs {limits.min_side}"
        )


def _check_container(data: bytes, facts: ImageFacts) -> None:
    try:
        check_complete(data, facts.format)
        if facts.format == JPEG and (scans := num_jpeg_scans(data)) > MAX_JPEG_SCANS:
            raise CorruptContainer(f"{scans} scans; {MAX_JPEG_SCANS} are allowed")
    except TruncatedContainer as error:
        raise ImageRejected(TRUNCATED, str(error)) from None
    except CorruptContainer as error:
        raise ImageRejected(CORRUPT, str(error)) from None


def _open(data: bytes, facts: ImageFacts) -> ImageFile.ImageFile:
    """Read the header as Pillow does; the pixels wait."""
    image = _PLUGINS[facts.format](BytesIO(data))
    if image.size != (facts.width, facts.height):
        raise ValueError(f"the image data are {image.size}, not {facts.width}x{facts.height}")
    return image


def _fast_jpeg(data: bytes, image: ImageFile.ImageFile) -> npt.NDArray[np.uint8] | None:
    """Decode a sound JPEG of one or three channels; None for all that Pillow has to judge.

    Both run libjpeg-turbo with its slow, exact transform, so the pixels are equal, at two thirds of
    the time. `strict` refuses what the library only warns of, such as broken data that it fills up:
    what becomes of those, and the words for it, stay Pillow's.
    """
    if image.format != "JPEG" or image.mode not in ("L", "RGB"):
        return None
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    try:
        # Into memory of the size that was checked, whatever the data say of themselves.
        simplejpeg.decode_jpeg(data, "RGB", strict=True, buffer=pixels)
    except ValueError:
        return None
    return pixels


def _small_luma(data: bytes, image: ImageFile.ImageFile, side: int) -> npt.NDArray[np.uint8] | None:
    """Decode the luma of what `_fast_jpeg` decodes, scaled by libjpeg; None for all else."""
    if image.format != "JPEG" or image.mode not in ("L", "RGB"):
        return None
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        if (width, height) != image.size:
            return None
        found: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data, "GRAY", strict=True, min_height=side, min_width=side
        )
    except ValueError:
        return None
    return found[:, :, 0]


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except _DECODER_ERRORS:
        return 1  # broken EXIF says nothing; the pixels are whole
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return _sixteen_bit_grey_as_rgb(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def _sixteen_bit_grey_as_rgb(image: Image.Image) -> Image.Image:
    samples = np.asarray(image)
    # The high byte, as Pillow takes it of 16-bit colour, so grey and colour files agree.
    grey = (samples >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[samples == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _oriented(pixels: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Undo the camera's orientation (EXIF 2.32, tag 0x0112): rows and columns, then mirrors."""
    if orientation >= _FIRST_TRANSPOSED:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
