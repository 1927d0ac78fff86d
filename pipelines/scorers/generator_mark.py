"""Invisible marks that image generators leave: the pool should not be fed by a model's own output.

Stable Diffusion's scripts write fixed bits with the method `dwtDct` of `invisible-watermark`
(MIT): the largest coefficient of each 4 x 4 block of the Haar-transformed U plane is moved into
the lower or upper half of a step of 36. Needs no weights. Survives PNG and good JPEG, neither
resizing nor cropping, so a low share proves nothing; over 0.8 is a mark.

Shapes: B images, H height, W width, K blocks of an image, in rows.
"""

import numpy as np
from numpy.typing import NDArray

from pipelines.scorers.pixels import Pixels

# The marks of the public scripts: Stable Diffusion 1, 2, and XL.
MARKS = {
    "stable-diffusion-1": np.unpackbits(np.frombuffer(b"StableDiffusionV1", np.uint8)),
    "stable-diffusion-2": np.unpackbits(np.frombuffer(b"SDV2", np.uint8)),
    "stable-diffusion-xl": np.array(
        [int(bit) for bit in f"{0b101100111110110010010000011110111011000110011110:048b}"], np.uint8
    ),
}
# The encoder marks no smaller image.
_MIN_PIXELS = 256 * 256
_STEP = 36.0
_BLOCK = 4
# Each bit is voted on by this many blocks at least, or the votes are chance.
_MIN_VOTES = 4


def generator_mark(pixels: Pixels) -> NDArray[np.float64]:
    """Return the largest share of equal bits over the known marks, float64 (B,), 0..1.

    NaN for images under 65,536 pixels. Unmarked images lie about 0.5 to 0.7.
    """
    count, height, width = pixels.shape
    if height * width < _MIN_PIXELS:
        return np.full(count, np.nan)
    votes_BK = _votes(pixels.rgb_BHW3)
    shares = [_share(votes_BK, bits) for bits in MARKS.values()]
    return np.asarray(np.max(shares, axis=0))


def _share(votes_BK: NDArray[np.bool_], bits: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the share of bits that the majority of their blocks says."""
    num_rounds = votes_BK.shape[1] // len(bits)
    if num_rounds < _MIN_VOTES:
        return np.zeros(len(votes_BK))
    used = votes_BK[:, : num_rounds * len(bits)]
    said = used.reshape(len(votes_BK), num_rounds, len(bits)).mean(axis=1) > 0.5
    return np.asarray((said == bits).mean(axis=1), np.float64)


def _votes(rgb_BHW3: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return the bit of each block, bool (B, K)."""
    count, height, width = rgb_BHW3.shape[:3]
    rgb = rgb_BHW3[:, : height // 4 * 4, : width // 4 * 4].astype(np.float32)
    luma = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
    u = np.rint(np.clip(0.492 * (rgb[..., 2] - luma) + 128, 0, 255))
    # Haar's coarse band: sums of 2 x 2 over 2.
    coarse = (u[:, ::2, ::2] + u[:, 1::2, ::2] + u[:, ::2, 1::2] + u[:, 1::2, 1::2]) / 2
    rows, columns = coarse.shape[1] // _BLOCK, coarse.shape[2] // _BLOCK
    blocks = coarse[:, : rows * _BLOCK, : columns * _BLOCK]
    blocks = blocks.reshape(count, rows, _BLOCK, columns, _BLOCK).transpose(0, 1, 3, 2, 4)
    flat = np.abs(blocks.reshape(count, rows * columns, _BLOCK * _BLOCK)[:, :, 1:])
    return np.asarray(flat.max(axis=2) % _STEP > _STEP / 2)
