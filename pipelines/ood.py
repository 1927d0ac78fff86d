"""How far a vector lies from a set of reference vectors. Pure numpy.

Shapes: R references, N queries, D features, K principal components.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.errors import NotEnoughReferences

_CHUNK = 1024  # queries whose distances to all references are held at once
# References inside a subspace would make anything outside it infinitely far.
_RESIDUAL_FLOOR = 1e-3


@dataclass(frozen=True)
class OodModel:
    """A fitted reference set; see `fit`.

    Attributes:
        mean_D: mean of the references.
        components_KD: orthonormal principal directions, most variance first.
        variances_K: shrunk variances along them.
        residual_variance: variance of each direction outside the components, > 0.
        unit_RD: references divided by their length, for neighbours.
        rows_R: int64 sample rows of the references, ascending.
        num_neighbours: k.
    """

    mean_D: NDArray[np.float64]
    components_KD: NDArray[np.float64]
    variances_K: NDArray[np.float64]
    residual_variance: float
    unit_RD: NDArray[np.float32]
    rows_R: NDArray[np.int64]
    num_neighbours: int

    def mahalanobis(self, x_ND: NDArray[np.floating]) -> NDArray[np.float64]:
        """Distance to the references' mean in standard deviations, float64 (N,).

        Lee et al., NeurIPS 2018, A simple unified framework for detecting out-of-distribution
        samples. What lies outside the principal subspace counts with one common variance, as in
        Moghaddam & Pentland, TPAMI 1997, Probabilistic visual learning: a foreign image differs
        just where the references do not vary.
        """
        offset_ND = x_ND.astype(np.float64) - self.mean_D
        y_NK = offset_ND @ self.components_KD.T
        inside = (y_NK**2 / self.variances_K).sum(axis=1)
        outside = np.maximum((offset_ND**2).sum(axis=1) - (y_NK**2).sum(axis=1), 0.0)
        return np.asarray(np.sqrt(inside + outside / self.residual_variance))

    def knn_distance(
        self, x_ND: NDArray[np.floating], sample_rows_N: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Mean distance of the unit vector to its k nearest references, float64 (N,), 0..2.

        A query that is itself a reference does not count as its own neighbour.
        After Sun et al., ICML 2022, Out-of-distribution detection with deep nearest neighbors.
        """
        found = np.empty(len(x_ND))
        for start in range(0, len(x_ND), _CHUNK):
            part = slice(start, start + _CHUNK)
            # Two unit vectors: |a - b|^2 = 2 - 2 a.b; rounding may go a hair below 0.
            cosines = unit_length(x_ND[part]) @ self.unit_RD.T
            distances = np.sqrt(np.maximum(2.0 - 2.0 * cosines, 0.0))
            self._leave_own_out(distances, sample_rows_N[part])
            nearest = np.partition(distances, self.num_neighbours - 1, axis=1)
            found[part] = nearest[:, : self.num_neighbours].mean(axis=1)
        return found

    def _leave_own_out(
        self, distances_NR: NDArray[np.floating], sample_rows_N: NDArray[np.int64]
    ) -> None:
        place = np.minimum(np.searchsorted(self.rows_R, sample_rows_N), len(self.rows_R) - 1)
        own = np.flatnonzero(self.rows_R[place] == sample_rows_N)
        distances_NR[own, place[own]] = np.inf

    def arrays(self) -> Mapping[str, NDArray[np.generic]]:
        """Return the model as named arrays, for `numpy.savez`; `from_arrays` undoes it."""
        return {name: np.asarray(value) for name, value in vars(self).items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> "OodModel":
        """Build the model from what `arrays` returned."""
        # A zero-dimensional array is one of the model's plain numbers.
        plain = {n: a[()] if a.ndim == 0 else a for n, a in arrays.items()}
        return cls(**plain)  # type: ignore[arg-type]


def fit(
    x_RD: NDArray[np.floating],
    sample_rows_R: NDArray[np.int64],
    *,
    max_components: int,
    num_neighbours: int,
) -> OodModel:
    """Fit mean, principal components, shrunk variances and the neighbour index.

    Args:
        x_RD: reference vectors.
        sample_rows_R: their sample rows, distinct.
        max_components: at most this many, and never more than a quarter of the references:
            a few hundred references cannot fill a 1280-dimensional covariance.
        num_neighbours: k; a reference needs k others.

    Raises:
        NotEnoughReferences: fewer than k + 1 references, or fewer than 8.
    """
    count = len(x_RD)
    needed = max(num_neighbours + 1, 8)
    if count < needed:
        raise NotEnoughReferences(
            f"{count} reference vectors; distances to the set need at least {needed}: "
            "add reference images or lower num_neighbours"
        )
    order = np.argsort(sample_rows_R)
    x_RD = x_RD[order].astype(np.float64)
    mean_D = x_RD.mean(axis=0)
    _, singular, directions = np.linalg.svd(x_RD - mean_D, full_matrices=False)
    kept = min(max_components, count // 4, directions.shape[0])
    components_KD = directions[:kept]
    y_RK = (x_RD - mean_D) @ components_KD.T
    variances_K = shrunk_variances(y_RK)
    left_over = (singular[kept:] ** 2).sum() / count / max(x_RD.shape[1] - kept, 1)
    return OodModel(
        mean_D=mean_D,
        components_KD=components_KD,
        variances_K=variances_K,
        residual_variance=float(max(left_over, _RESIDUAL_FLOOR * variances_K.mean())),
        unit_RD=unit_length(x_RD),
        rows_R=sample_rows_R[order],
        num_neighbours=num_neighbours,
    )


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
