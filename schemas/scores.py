"""Quality scores: one wide table a pack, a column a scorer."""

import pyarrow as pa

from schemas.columns import INGEST_BATCH, SAMPLE_ROW
from schemas.contract import PARTITION_VALUE_PATTERN, Column, Contract

NULL_SCORE = "could not be had; unscored_reason says why"


def score(
    name: str,
    meaning: str,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
) -> Column:
    """Declare the column of one scorer."""
    return Column(
        name,
        pa.float64(),
        meaning,
        unit=unit,
        nullable=True,
        null_meaning=NULL_SCORE,
        minimum=minimum,
        maximum=maximum,
    )


SCORER_VERSION = Column(
    "scorer_version",
    pa.string(),
    "hash of the code and weights that measured",
    pattern=PARTITION_VALUE_PATTERN,
)

# What was measured of one slice by which version of each scorer: a later run measures only others.
SCORER_VERSIONS = Column(
    "scorer_versions",
    pa.string(),
    "JSON: version of each scorer that ran; a scorer without weights is left out",
)

# Sides of patches, pixels, of the published CLIP-IQA files of ImageNet.
PATCH_SIDES = (512, 256, 128, 64, 32)

# Measures of others: a file's column is a slice of its own, named by its scorer_version.
EXTERNAL = "external"
EXTERNAL_COLUMN = "score"
_ONE_SCORER = ("classical", EXTERNAL)  # or one version for all: nothing more to say of versions

PACKS: dict[str, tuple[Column, ...]] = {
    EXTERNAL: (score(EXTERNAL_COLUMN, "the number of an imported file", "the file's own"),),
    "classical": (
        score("sharpness", "variance of the Laplacian of luma", "luma^2", minimum=0),
        score(
            "blockiness",
            "luma steps across 8x8 borders over steps inside",
            "ratio",
            minimum=0,
        ),
        score("noise_std", "noise of luma, Immerkaer's method", "luma", minimum=0),
        score("saturation", "mean saturation", "fraction", minimum=0, maximum=1),
        score("contrast", "standard deviation of luma", "luma", minimum=0),
        score("brightness", "mean luma", "luma", minimum=0, maximum=255),
        score("entropy", "Shannon entropy of the luma histogram", "bits", minimum=0, maximum=8),
        score("num_pixels", "width times height", "pixels", minimum=1),
        score("min_side", "shorter side", "pixels", minimum=1),
    ),
    "natural_statistics": (
        score("brisque", "BRISQUE, about 0 (good) to 100", "opinion score"),
        score("niqe", "NIQE, distance from natural statistics", "distance", minimum=0),
    ),
    "safety": (
        score("nsfw", "probability that it is not safe for work", "probability", 0, 1),
        score(
            "generator_mark",
            "share of bits equal to an invisible mark of image generators; 1 is marked",
            "fraction",
            0,
            1,
        ),
    ),
    "clip": (
        score("clip_iqa", "probability of the good prompt, whole image", "probability", 0, 1),
        *(
            score(
                f"clip_iqa_{side}",
                f"mean of clip_iqa over patches of {side} pixels",
                "probability",
                0,
                1,
            )
            for side in PATCH_SIDES
        ),
        score("aesthetic", "LAION's linear aesthetic predictor", "rating"),
        score("caption_similarity", "cosine of image and caption vectors", "cosine", -1, 1),
        score("watermark", "probability of the prompt of a visible watermark", "probability", 0, 1),
    ),
}


def contract_for(pack: str) -> Contract:
    """Return the contract of `scores/<pack>`; KeyError for an unknown pack."""
    return Contract(
        name=f"scores/{pack}",
        version=1,
        one_row_is="the numbers of one scorer pack for one image",
        key=("sample_row", "scorer_version"),
        partition_by=("scorer_version", "ingest_batch"),
        columns=(
            SAMPLE_ROW,
            INGEST_BATCH,
            SCORER_VERSION,
            *PACKS[pack],
            *(() if pack in _ONE_SCORER else (SCORER_VERSIONS,)),
            Column(
                "unscored_reason",
                pa.string(),
                "why a score is null, as `column: reason` joined by `; `",
                nullable=True,
                null_meaning="every score was had",
            ),
        ),
    )
