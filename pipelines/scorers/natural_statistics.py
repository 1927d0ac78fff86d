"""The pack of natural scene statistics: how far an image is from undamaged photographs."""

from pathlib import Path

from pipelines.scorers import brisque, mscn, niqe
from pipelines.scorers import pixels as pixels_module
from pipelines.scorers.base import Pack, Scorer

NATURAL_STATISTICS = Pack(
    name="natural_statistics",
    code=(Path(mscn.__file__), Path(pixels_module.__file__)),
    scorers=(
        Scorer(
            "brisque",
            brisque.brisque,
            "lower_is_better",
            # The regression is not clipped: undamaged images may lie below 0.
            minimum=None,
            maximum=None,
            unit="opinion score",
            source="Mittal, Moorthy, Bovik, TIP 21 (2012)",
            min_side=brisque.MIN_SIDE,
            weights=brisque.weights,
            code=(Path(brisque.__file__),),
            null_reason="no texture",
        ),
        Scorer(
            "niqe",
            niqe.niqe,
            "lower_is_better",
            minimum=0,
            maximum=None,
            unit="distance",
            source="Mittal, Soundararajan, Bovik, SPL 20 (2013)",
            min_side=niqe.MIN_SIDE,
            weights=niqe.weights,
            code=(Path(niqe.__file__),),
            null_reason="no texture",
        ),
    ),
)
