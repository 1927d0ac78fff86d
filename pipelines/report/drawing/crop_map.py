"""Which regions of an image look like the domain's, drawn over the image."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from ambient_omni.windows.crops import grid_corners
from pipelines.report.drawing.style import DOTS_PER_INCH, LIGHT, TEXT_POINTS, plain, png

# Of a photograph; more are hundreds of kilobytes that the page shows no larger.
_MAX_DRAWN_SIDE = 112


def draw_crop_map(
    pixels_HWC: NDArray[np.uint8], probability: NDArray[np.floating], size: int, caption: str
) -> bytes:
    """Return a PNG: the image, and beside it P(in domain) over the image.

    Crops overlap; a position shows the mean of those that hold it.

    Args:
        pixels_HWC: the image as the classifier saw it.
        probability: (rows, columns) of the grid of crops, in [0, 1].
        size: side of the crops.
        caption: text above; drawn as it stands, whatever signs it holds.

    Raises:
        ValueError: the map is not that of the image and the size.
    """
    over = spread(probability, pixels_HWC.shape[:2], size)
    theme = LIGHT
    figure = Figure(
        figsize=(6.4, 3.2), dpi=DOTS_PER_INCH, facecolor=theme.background, layout="constrained"
    )
    left, right = figure.subplots(1, 2)
    image = Image.fromarray(pixels_HWC)
    image.thumbnail((_MAX_DRAWN_SIDE, _MAX_DRAWN_SIDE))
    # Both in the image's own pixels, whatever is left of them.
    extent = (0.0, float(over.shape[1]), float(over.shape[0]), 0.0)
    left.imshow(np.asarray(image), extent=extent)
    right.imshow(np.asarray(image.convert("L")), cmap="gray", vmin=0, vmax=255, extent=extent)
    # Half is the best there is: at 1/2 nobody can tell the crop from the domain's.
    drawn = right.imshow(over, cmap="RdYlGn", vmin=0, vmax=0.6, alpha=0.65, extent=extent)
    bar = figure.colorbar(drawn, ax=right, shrink=0.85, extend="max")
    bar.set_label("P(in domain); 0.5 cannot be told", fontsize=TEXT_POINTS, color=theme.muted)
    bar.ax.tick_params(colors=theme.muted, labelsize=TEXT_POINTS - 0.5, length=0)
    for axes, title in ((left, "image"), (right, f"its crops of {size} x {size}")):
        axes.set_axis_off()
        axes.set_title(title, loc="left", fontsize=TEXT_POINTS, color=theme.muted)
    figure.suptitle(plain(caption), fontsize=TEXT_POINTS + 1, color=theme.text)
    return png(figure, photographs=True)


def spread(
    probability: NDArray[np.floating], shape_HW: tuple[int, ...], size: int
) -> NDArray[np.float64]:
    """Return the mean over the crops that hold a position, (H, W).

    Raises:
        ValueError: the map is not that of the image and the size.
    """
    height, width = shape_HW
    corners, said = grid_corners((height, width), size), np.ravel(probability)
    if len(corners) != len(said):
        raise ValueError(f"{len(said)} values for {len(corners)} crops of side {size}")
    total, count = np.zeros((height, width)), np.zeros((height, width))
    for (top, left), value in zip(corners, said, strict=True):
        here = slice(top, top + size), slice(left, left + size)
        total[here] += value
        count[here] += 1
    return total / count
