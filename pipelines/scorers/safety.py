"""The pack of what should not be trained on whatever its quality."""

from pathlib import Path

from pipelines.scorers import generator_mark, nsfw
from pipelines.scorers import images as images_module
from pipelines.scorers import pixels as pixels_module
from pipelines.scorers.base import Pack, Scorer

SAFETY = Pack(
    name="safety",
    scorers=(
        Scorer(
            "nsfw",
            nsfw.nsfw,
            "lower_is_better",
            minimum=0,
            maximum=1,
            unit="probability",
            source="Mahadeokar & Pesavento, Yahoo, 2016, open_nsfw",
            needs="view",
            device="cpu_or_gpu",
            weights=nsfw.weights,
            code=(Path(nsfw.__file__), Path(images_module.__file__)),
        ),
        Scorer(
            "generator_mark",
            generator_mark.generator_mark,
            "lower_is_better",
            minimum=0,
            maximum=1,
            unit="fraction",
            source="ShieldMnt, invisible-watermark 0.2, method dwtDct",
            code=(Path(generator_mark.__file__), Path(pixels_module.__file__)),
            null_reason="under 65536 pixels",
        ),
    ),
)
