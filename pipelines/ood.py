"""A Gaussian with shrunk variances around some vectors, and distances to it. Pure numpy.

Shapes: R vectors that it is fitted to, N queries, D features, K principal components.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.errors import NotEnoughReferences

LEAST_VECTORS = 8
# Vectors inside a subspace would make anything outside it infinitely far.
_RESIDUAL_FLOOR = 1e-3


@dataclass(frozen=True)
class Gaussian:
    """Principal components with shrunk variances, and one variance for all else; see `fit`.

    Attributes:
        mean_D: mean of the vectors.
        components_KD: orthonormal principal directions, most variance first.
        variances_K: shrunk variances along them.
        residual_variance: variance of each direction outside the components, > 0.
    """

    mean_D: NDArray[np.float64]
    components_KD: NDArray[np.float64]
    variances_K: NDArray[np.float64]
    residual_variance: float

    def squared_distance(self, x_ND: NDArray[np.floating]) -> NDArray[np.float64]:
        """Squared Mahalanobis distance to the mean, float64 (N,), >= 0.

        Lee et al., NeurIPS 2018, A simple unified framework for detecting out-of-distribution
        samples. What lies outside the principal subspace counts with one common variance, as in
        Moghaddam & Pentland, TPAMI 1997, Probabilistic visual learning: a foreign image differs
        just where the references do not vary.
        """
        offset_ND = x_ND.astype(np.float64) - self.mean_D
        y_NK = offset_ND @ self.components_KD.T
        inside = (y_NK**2 / self.variances_K).sum(axis=1)
        outside = np.maximum((offset_ND**2).sum(axis=1) - (y_NK**2).sum(axis=1), 0.0)
        return np.asarray(inside + outside / self.residual_variance)

    def distance(self, x_ND: NDArray[np.floating]) -> NDArray[np.float64]:
        """Distance to the mean in standard deviations, float64 (N,)."""
        return np.asarray(np.sqrt(self.squared_distance(x_ND)))


def fit(x_RD: NDArray[np.floating], *, max_components: int) -> Gaussian:
    """Fit mean, principal components and shrunk variances.

    Args:
        x_RD: the vectors.
        max_components: at most this many, and never more than a quarter of the vectors:
            a few hundred cannot fill a 1280-dimensional covariance.

    Raises:
        NotEnoughReferences: fewer than 8 vectors.
    """
    count = len(x_RD)
    if count < LEAST_VECTORS:
        raise NotEnoughReferences(f"{count} vectors; a Gaussian needs at least {LEAST_VECTORS}")
    x_RD = x_RD.astype(np.float64)
    mean_D = x_RD.mean(axis=0)
    variances, directions = _principal(x_RD - mean_D)
    kept = min(max_components, count // 4, len(directions))
    components_KD = directions[:kept]
    variances_K = shrunk_variances((x_RD - mean_D) @ components_KD.T)
    left_over = variances[kept:].sum() / max(x_RD.shape[1] - kept, 1)
    return Gaussian(
        mean_D=mean_D,
        components_KD=components_KD,
        variances_K=variances_K,
        residual_variance=float(max(left_over, _RESIDUAL_FLOOR * variances_K.mean())),
    )


def _principal(
    centred_RD: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the variances along the principal directions, falling, and those directions."""
    count, size = centred_RD.shape
    if count <= size:
        _, singular, directions = np.linalg.svd(centred_RD, full_matrices=False)
        return singular**2 / count, directions
    # Of many vectors the covariance is the smaller thing to decompose.
    variances, columns = np.linalg.eigh(centred_RD.T @ centred_RD / count)
    return np.maximum(variances[::-1], 0.0), np.ascontiguousarray(columns[:, ::-1].T)


def shrunk_variances(y_RK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Variances of centred principal coordinates, pulled to their mean; float64 (K,), > 0.

    Ledoit & Wolf, J. Multivariate Analysis 88 (2004), A well-conditioned estimator: the sample
    covariance S becomes (1 - a) S + a m I with m = tr(S) / K and a = b / d, where
    d = |S - m I|^2 and b = min(d, mean over samples of |y y' - S|^2 / R). Principal
    coordinates have a diagonal S, so only variances are left.
    """
    count, size = y_RK.shape
    variances = (y_RK**2).mean(axis=0)
    mean = variances.mean()
    spread = ((variances - mean) ** 2).sum()
    # sum_r |y_r y_r' - S|^2 = sum_r |y_r|^4 - R |S|^2 for the diagonal S of this very sample.
    fourth = ((y_RK**2).sum(axis=1) ** 2).mean()
    error = min(spread, (fourth - (variances**2).sum()) / count)
    weight = error / spread if spread > 0 else 1.0
    shrunk = (1 - weight) * variances + weight * mean
    # References that are all the same have no variance; one unit keeps distances finite.
    return np.asarray(np.where(shrunk > 0, shrunk, 1.0) if size else shrunk)


def unit_length(x_ND: NDArray[np.floating]) -> NDArray[np.float32]:
    """Divide each vector by its length, float32 (N, D); a zero vector stays zero.

    How active a network is says more of contrast than of content: Mueller & Hein, ICML 2025,
    Mahalanobis++.
    """
    x = x_ND.astype(np.float32)
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)
