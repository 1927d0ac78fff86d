"""The pack of CLIP: quality by a pair of prompts, aesthetics, caption and watermark.

CLIP-IQA: Wang, Chan, Loy, Exploring CLIP for assessing the look and feel of images, AAAI 2023. Its
authors feed whole images of any size to a network without positions; here a network sees its own
square: the largest central one of the image, or each patch, resized (bicubic, antialiased). What
shows only at full resolution is seen by the patches.

Shapes: N images, P patches, D features.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.scorers import clip_network
from pipelines.scorers import images as images_module
from pipelines.scorers.base import Direction, Pack, Scorer
from pipelines.scorers.clip_network import ClipConfig, ClipNetwork, load_clip, load_head
from pipelines.scorers.images import Images, central_square
from pipelines.scorers.weights import WeightsMissing, pinned, sha256_of
from schemas.errors import BadInput
from schemas.ids import canonical_hash
from schemas.scores import PATCH_SIDES

# What is wanted first, then its opposite.
QUALITY = ("Good photo.", "Bad photo.")
WATERMARK = ("A photo with a watermark.", "A photo without a watermark.")
_PATCHES_AT_ONCE = 32


def first_of_pair(
    features_ND: NDArray[np.floating], pair_2D: NDArray[np.floating], scale: float
) -> NDArray[np.float64]:
    """Return the softmax probability of the first of two prompts, float64 (N,), 0..1."""
    logits = scale * (features_ND.astype(np.float64) @ pair_2D.astype(np.float64).T)
    # The softmax of two is the logistic function of their difference, which cannot overflow so.
    return np.asarray(0.5 * (1 + np.tanh((logits[:, 0] - logits[:, 1]) / 2)))


def patches_of(image: NDArray[np.uint8], side: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the patches of a grid from the upper left, none overlapping, whole ones alone."""
    for top in range(0, image.shape[0] - side + 1, side):
        for left in range(0, image.shape[1] - side + 1, side):
            yield image[top : top + side, left : left + side]


def _network(config: ClipConfig) -> ClipNetwork:
    return load_clip(config.folder())


def _vectors(images: Images, config: ClipConfig) -> NDArray[np.float32]:
    """One forward of the whole images, whatever number of scorers asks."""
    network = _network(config)
    views = images.squares(network.side)
    return images.once(("clip", config), lambda: network.encode_images(views))


@cache
def _pair(config: ClipConfig, prompts: tuple[str, str]) -> NDArray[np.float32]:
    return _network(config).encode_texts(prompts)


def pair_score(
    images: Images, *, config: ClipConfig, prompts: tuple[str, str]
) -> NDArray[np.float64]:
    """Return the probability of the first prompt for whole images, float64 (N,)."""
    pair, scale = _pair(config, prompts), _network(config).scale
    return first_of_pair(_vectors(images, config), pair, scale)


def patch_score(images: Images, *, config: ClipConfig, side: int) -> NDArray[np.float64]:
    """Return the mean quality over patches, float64 (N,); NaN where no patch fits."""
    return np.array([_mean_over_patches(image, config, side) for image in images.arrays])


def _mean_over_patches(image: NDArray[np.uint8], config: ClipConfig, side: int) -> float:
    network, pair = _network(config), _pair(config, QUALITY)
    found: list[NDArray[np.float64]] = []
    views = (central_square(patch, network.side) for patch in patches_of(image, side))
    # A large image has thousands of patches: some at a time.
    while part := list(islice(views, _PATCHES_AT_ONCE)):
        features = network.encode_images(np.stack(part))
        found.append(first_of_pair(features, pair, network.scale))
    return float(np.concatenate(found).mean()) if found else float("nan")


def aesthetic(images: Images, *, config: ClipConfig) -> NDArray[np.float64]:
    """Return w . x + b of the unit vector, float64 (N,): LAION's linear predictor, about 1..10."""
    assert config.aesthetic_head is not None
    weight_D, bias = load_head(config.aesthetic_head)
    vectors = _vectors(images, config).astype(np.float64)
    if vectors.shape[1] != len(weight_D):
        raise BadInput(
            f"{config.aesthetic_head} is for vectors of {len(weight_D)} numbers, those of "
            f"{config.model} have {vectors.shape[1]}; take the head of this network"
        )
    return np.asarray(vectors @ weight_D + bias)


def caption_similarity(images: Images, *, config: ClipConfig) -> NDArray[np.float64]:
    """Return the cosine of image and caption, float64 (N,), -1..1; NaN without a caption."""
    found = np.full(len(images), np.nan)
    told = [n for n, caption in enumerate(images.captions) if caption and caption.strip()]
    if told:
        texts = _network(config).encode_texts([str(images.captions[n]) for n in told])
        vectors = _vectors(images, config)[told].astype(np.float64)
        found[told] = np.clip((vectors * texts.astype(np.float64)).sum(axis=1), -1.0, 1.0)
    return found


def _not_asked() -> str:
    raise WeightsMissing("not asked for in clip.patch_sides")


def _head_weights(config: ClipConfig) -> str:
    path = config.aesthetic_head
    if path is None:
        raise WeightsMissing("no head is given in clip.aesthetic_head")
    if not path.is_file():
        raise WeightsMissing(f"its head {path} is not there")
    wanted = config.aesthetic_sha256
    head = sha256_of(path) if wanted is None else pinned(path, wanted)
    return canonical_hash([config.weights(), head])


@cache
def clip_pack(config: ClipConfig) -> Pack:
    """Return the pack under these settings; what cannot run is skipped when it is asked."""
    source = "Wang, Chan, Loy, AAAI 2023, CLIP-IQA"
    quality = partial(pair_score, config=config, prompts=QUALITY)
    return Pack(
        name="clip",
        code=(Path(__file__), Path(clip_network.__file__), Path(images_module.__file__)),
        scorers=(
            _scorer("clip_iqa", quality, "higher_is_better", source, config.weights),
            *(_patch_scorer(config, side, source) for side in PATCH_SIDES),
            Scorer(
                "aesthetic",
                partial(aesthetic, config=config),
                "higher_is_better",
                minimum=None,
                maximum=None,
                unit="rating",
                source="Schuhmann, 2022, LAION-Aesthetics V1, linear on CLIP",
                needs="embedding",
                device="cpu_or_gpu",
                weights=partial(_head_weights, config),
            ),
            Scorer(
                "caption_similarity",
                partial(caption_similarity, config=config),
                "higher_is_better",
                minimum=-1,
                maximum=1,
                unit="cosine",
                source="Hessel et al., EMNLP 2021, CLIPScore, not scaled",
                needs="caption",
                device="cpu_or_gpu",
                weights=config.weights,
                null_reason="no caption",
            ),
            _scorer(
                "watermark",
                partial(pair_score, config=config, prompts=WATERMARK),
                "lower_is_better",
                "a pair of prompts as in CLIP-IQA",
                config.weights,
            ),
        ),
    )


def _scorer(
    name: str,
    measure: Callable[[Images], NDArray[np.float64]],
    direction: Direction,
    source: str,
    weights: Callable[[], str],
    min_side: int = 1,
) -> Scorer:
    return Scorer(
        name,
        measure,
        direction,
        minimum=0,
        maximum=1,
        unit="probability",
        source=source,
        min_side=min_side,
        needs="embedding",
        device="cpu_or_gpu",
        weights=weights,
    )


def _patch_scorer(config: ClipConfig, side: int, source: str) -> Scorer:
    measure = partial(patch_score, config=config, side=side)
    asked = side in config.patch_sides
    weights = config.weights if asked else _not_asked
    return _scorer(f"clip_iqa_{side}", measure, "higher_is_better", source, weights, side)
