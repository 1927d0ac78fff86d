"""The perceptual hash of an image: what copies keep when they are resized or compressed anew."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from schemas.errors import BadInput

# Raise it when the same bytes would get another hash, and `INGEST_VERSION` with it. Version 1 was
# made of all pixels, version 2 is made of luma that JPEG decoders reduce.
PHASH_VERSION = 2
# Four times the side that the hash is made of. At twice that side, what is left of the way of
# reducing is seen: copies of other sizes then differ in up to 8 of 64 bits, at this in up to 4.
LUMA_SIDE = 128
_HASHED_SIDE = 32  # imagehash's own, of which it takes 8 x 8 frequencies


def perceptual_hash(luma: npt.NDArray[np.uint8]) -> int:
    """Return imagehash's 64-bit DCT hash as a signed integer, first bit most significant.

    Args:
        luma: uint8 (height, width), of at least `LUMA_SIDE` a side where the image has that many.
    """
    imagehash = require_imagehash()
    # A mean of whole pixels first, then the filter: what imagehash does, at a tenth of the cost.
    small = Image.fromarray(luma).resize(
        (_HASHED_SIDE, _HASHED_SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0
    )
    bits = imagehash.phash(small).hash
    return int.from_bytes(np.packbits(bits).tobytes(), "big", signed=True)


def require_imagehash() -> Any:
    """Return the library.

    Raises:
        BadInput: it is not installed.
    """
    try:
        import imagehash
    except ImportError as error:
        raise BadInput(
            f"ingest needs imagehash ({error}); pip install 'ambient-omni[ingest]'"
        ) from error
    return imagehash
