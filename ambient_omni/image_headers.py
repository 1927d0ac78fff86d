"""Image sizes and completeness, read from the bytes of the container without decoding a pixel.

Pillow is not asked: its WebP reader allocates the whole canvas to tell the size, which a
60000 x 60000 bomb is made for. Layouts: ITU T.81 annex B (JPEG), W3C PNG 3rd edition section 5,
RFC 9649 (WebP).
"""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

JPEG, PNG, WEBP = "jpeg", "png", "webp"

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# Start-of-frame markers: C0..CF without DHT (C4), JPG (C8) and DAC (CC).
_JPEG_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SOS, _EOI = 0xDA, 0xD9
# Inside entropy-coded data FF is always followed by 00 or RSTn; FF may fill up before a marker.
_JPEG_NEXT_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
# Markers that stand alone, without a length: TEM, RST0..RST7, SOI.
_JPEG_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})

# Image formats that are known and refused, by what their files begin with.
_OTHER_IMAGES = (
    b"GIF87a",
    b"GIF89a",
    b"BM",
    b"II*\x00",
    b"MM\x00*",
    b"\x00\x00\x01\x00",
    b"8BPS",
    b"\xff\x0a",
    b"\x00\x00\x00\x0cJXL ",
    b"\x00\x00\x00\x0cjP  ",
    b"<svg",
)
_ISO_IMAGE_BRANDS = frozenset({b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1", b"heif"})


class TruncatedContainer(Exception):
    """The bytes end before the container says they should."""


class CorruptContainer(Exception):
    """The container breaks its own format."""


class Header(NamedTuple):
    """Format and size in pixels as coded, before any EXIF orientation."""

    format: str
    width: int
    height: int


def format_of(data: bytes) -> str | None:
    """Return "jpeg", "png", "webp", "other" for an image of another kind, None for no image."""
    if data[:3] == b"\xff\xd8\xff":
        return JPEG
    if data[:8] == _PNG_SIGNATURE:
        return PNG
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WEBP
    if data[4:8] == b"ftyp" and data[8:12] in _ISO_IMAGE_BRANDS:
        return "other"
    return "other" if data.startswith(_OTHER_IMAGES) else None


def read_header(data: bytes, image_format: str) -> Header:
    """Return the header of bytes whose format is known.

    Raises:
        TruncatedContainer: the bytes end before the size is told.
        CorruptContainer: there is no size where the format has it, or it is 0.
    """
    size = {JPEG: _jpeg_size, PNG: _png_size, WEBP: _webp_size}[image_format]
    try:
        width, height = size(data)
    except (struct.error, IndexError):
        raise TruncatedContainer("the bytes end inside the header") from None
    if width < 1 or height < 1:
        raise CorruptContainer(f"the header says {width}x{height} pixels")
    return Header(image_format, width, height)


def check_complete(data: bytes, image_format: str) -> None:
    """Refuse bytes that a lenient decoder would fill up with grey.

    Raises:
        TruncatedContainer: the end of the image is missing.
        CorruptContainer: a checksum is wrong or a chunk impossible.
    """
    {JPEG: _jpeg_complete, PNG: _png_complete, WEBP: _webp_complete}[image_format](data)


def num_jpeg_scans(data: bytes) -> int:
    """Return how many scans a whole JPEG has; each costs a pass over the whole image.

    What stands after the end of the image, such as the film of a motion photo, is not looked at.
    """
    return 1 + sum(marker == _SOS for marker in _jpeg_after_first_scan(data))


def _jpeg_size(data: bytes) -> tuple[int, int]:
    for marker, begin in _jpeg_segments(data):
        if marker in _JPEG_SOF:
            height, width = struct.unpack_from(">HH", data, begin + 3)
            return width, height
        if marker == _SOS:
            break
    raise CorruptContainer("no start-of-frame marker before the image data")


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield (marker, offset of its length field) up to the first scan."""
    at = 2
    while True:
        if data[at] != 0xFF:
            raise CorruptContainer(f"no marker at byte {at}")
        while data[at] == 0xFF:  # any number of fill bytes may stand before a marker
            at += 1
        marker = data[at]
        at += 1
        if marker in _JPEG_STANDALONE:
            continue
        if marker == _EOI:
            raise CorruptContainer("the image ends before it begins")
        yield marker, at
        (length,) = struct.unpack_from(">H", data, at)
        if length < 2:
            raise CorruptContainer(f"a segment of {length} bytes at byte {at}")
        at += length


def _jpeg_first_scan(data: bytes) -> int:
    for marker, begin in _jpeg_segments(data):
        if marker == _SOS:
            return begin
    raise AssertionError("unreachable: the generator ends by raising")


def _jpeg_complete(data: bytes) -> None:
    try:
        for _ in _jpeg_after_first_scan(data):
            pass
    except (struct.error, IndexError):
        raise TruncatedContainer("no end-of-image marker") from None


def _jpeg_after_first_scan(data: bytes) -> Iterator[int]:
    """Yield the markers behind the first scan, up to the end of the image and with it.

    Segments are stepped over by their length: a comment may hold what looks like an end.
    """
    at = _jpeg_first_scan(data)
    marker = _SOS
    while marker != _EOI:
        (length,) = struct.unpack_from(">H", data, at)
        found = _JPEG_NEXT_MARKER.search(data, at + length)
        if found is None:
            raise IndexError("no marker is left")
        marker, at = data[found.end() - 1], found.end()
        yield marker


def _png_size(data: bytes) -> tuple[int, int]:
    if data[12:16] != b"IHDR" and len(data) >= 16:
        raise CorruptContainer("the first chunk is not IHDR")
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _png_complete(data: bytes) -> None:
    at = len(_PNG_SIGNATURE)
    view = memoryview(data)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise TruncatedContainer(f"the bytes end inside chunk {kind!r}")
        # Only critical chunks (capital first letter) are needed to draw the image.
        if kind[:1].isupper():
            (crc,) = struct.unpack_from(">I", data, end - 4)
            if zlib.crc32(view[at + 4 : end - 4]) != crc:
                raise CorruptContainer(f"wrong checksum of chunk {kind!r}")
        if kind == b"IEND":
            return
        at = end
    raise TruncatedContainer("no IEND chunk")


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        # 24-bit canvas width - 1 and height - 1 after four bytes of flags.
        low = struct.unpack_from("<HBHB", data, 24)
        return (low[0] | low[1] << 16) + 1, (low[2] | low[3] << 16) + 1
    if kind == b"VP8L":
        signature, bits = struct.unpack_from("<BI", data, 20)
        if signature != 0x2F:
            raise CorruptContainer("wrong VP8L signature")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        start, width, height = struct.unpack_from("<3sHH", data, 23)
        if start != b"\x9d\x01\x2a":
            raise CorruptContainer("wrong VP8 start code")
        return width & 0x3FFF, height & 0x3FFF
    if len(kind) < 4:
        raise TruncatedContainer("the bytes end inside the header")
    raise CorruptContainer(f"unknown first chunk {kind!r}")


def _webp_complete(data: bytes) -> None:
    (size,) = struct.unpack_from("<I", data, 4)
    if size + 8 > len(data):
        raise TruncatedContainer(f"{len(data)} of {size + 8} bytes")
