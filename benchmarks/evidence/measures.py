"""What a trained arm is worth: held-out loss, and how its samples stand to real images.

FD-Lite0 and KID-Lite0 are torch-fidelity's Frechet and kernel distances on features of
EfficientNet-Lite0 (ImageNet). They are no FID: that is another network.
"""

from __future__ import annotations

import contextlib
import io
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ambient_omni.data.packs import to_pixels, to_x0
from ambient_omni.evaluation import heldout_loss
from ambient_omni.generation.config import SampleConfig
from ambient_omni.generation.sampling import Sampler
from ambient_omni.models.model import Model
from ambient_omni.noise.priors import LogNormalPrior
from benchmarks.evidence.images import DataSet, Pixels, Split, Tiles, split_of
from benchmarks.evidence.training import SHAPE
from pipelines.encoders.base import EncoderConfig, load_encoder
from pipelines.pilot.detail import fine_detail
from pipelines.pilot.measure import Measured

_KID_SUBSETS, _KID_SIZE = 20, 500
_NEIGHBOURS = 3

Floats = NDArray[np.float64]


def measured(
    model: Model, tiles: Tiles, sigmas: tuple[float, ...], loss: Floats | None = None
) -> Measured:
    """Return loss and fine detail on images, (N, L) each, in the shape that pilots compare."""
    x0 = to_x0(tiles.pixels)
    if loss is None:
        loss = heldout_loss(model.denoiser, x0, tiles.names, sigmas)
    parts = [_detail(model, x0, tiles.names, sigma) for sigma in sigmas]
    right, power = (np.stack([part[i] for part in parts], axis=1) for i in (0, 2))
    return Measured(sigmas, loss, right, power, parts[0][1])


def samples_of(model: Model, config: SampleConfig, prior: LogNormalPrior) -> Pixels:
    """Return uint8 (num_images, 16, 16, 3)."""
    sampler = Sampler(model, config, SHAPE, prior=prior, batch_size=250)
    starts = range(0, config.num_images, sampler.batch_size)
    parts = [
        sampler.x0(range(start, min(start + sampler.batch_size, config.num_images)))
        for start in starts
    ]
    return to_pixels(torch.cat(parts).numpy())


def features(pixels: Pixels, side: int) -> NDArray[np.float32]:
    """Return EfficientNet-Lite0's features, (N, 1280), of images enlarged to side x side."""
    return load_encoder(EncoderConfig(resolution=side)).embed(list(pixels))


def compare_samples(
    made: NDArray[np.float32], data: DataSet, split: Split, side: int
) -> dict[str, float]:
    """Return Frechet distance, KID, precision and recall of samples' features against a split."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    made_features = torch.from_numpy(made)
    real_features = torch.from_numpy(real(data, split, side))
    size = min(_KID_SIZE, len(made_features), len(real_features))
    with contextlib.redirect_stderr(io.StringIO()):
        kid = kid_features_to_metric(
            made_features, real_features, kid_subsets=_KID_SUBSETS, kid_subset_size=size,
            kid_kernel="poly", kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None,
            kid_kernel_poly_coef0=1.0, rng_seed=0, verbose=False,
        )  # fmt: skip
        prc = prc_features_to_metric(
            made_features, real_features, prc_neighborhood=_NEIGHBOURS, prc_batch_size=10_000,
            save_cpu_ram=False, verbose=False,
        )  # fmt: skip
        mine = fid_features_to_statistics(made_features.double())
        fd = fid_statistics_to_metric(mine, _statistics(data, split, side), False)
    return {
        "fd": fd["frechet_inception_distance"],
        "kid": kid["kernel_inception_distance_mean"],
        "precision": prc["precision"],
        "recall": prc["recall"],
    }


def nearest(made: Pixels, known: Pixels) -> Floats:
    """Return the distance of each image to its nearest known one or its mirror image, (N,).

    Root mean square difference in grey levels.
    """
    both = np.concatenate([known, known[:, :, ::-1]])
    a, b = (torch.from_numpy(x.reshape(len(x), -1)).float() for x in (made, both))
    found: Floats = (torch.cdist(a, b).min(dim=1).values / a.shape[1] ** 0.5).double().numpy()
    return found


@cache
def real(data: DataSet, split: Split, side: int) -> NDArray[np.float32]:
    """Return the features of all images of a split."""
    return features(split_of(data, split).pixels, side)


@cache
def _statistics(data: DataSet, split: Split, side: int) -> dict[str, Any]:
    from torch_fidelity.metric_fid import fid_features_to_statistics

    found: dict[str, Any] = fid_features_to_statistics(
        torch.from_numpy(real(data, split, side)).double()
    )
    return found


@torch.no_grad()
def _detail(
    model: Model, x0: NDArray[np.float32], names: tuple[str, ...], sigma: float
) -> tuple[Floats, Floats, Floats]:
    from ambient_omni import rng

    # As `pipelines.pilot.measure`: the noise of an image at a level is the same for every model.
    noise = np.stack([rng.normal(x0.shape[1:], 0, "pilot", n, f"{sigma:.6g}") for n in names])
    x_t = torch.from_numpy(x0 + np.float32(sigma) * noise)
    return fine_detail(model.denoiser(x_t, torch.full((len(x_t),), sigma)).numpy(), x0)
