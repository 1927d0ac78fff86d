"""How far a vector lies from a set of references, in three ways, each with a percentile.

A percentile says which share of held-out members of the set lies nearer than the query. It is
cross-fitted: the references are dealt into folds, and each fold's members are measured by what is
fitted to the others; so is the query, once a fold, and compared with that fold's members. For a
query from the set's own distribution it is uniform in 0..1 (cross-conformal prediction: Vovk,
Annals of Mathematics and Artificial Intelligence 74, 2015).

Shapes: R references, C of them that calibrate, N queries, D features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from pipelines.ood import LEAST_VECTORS, Gaussian, fit, unit_length
from schemas.errors import NotEnoughReferences
from schemas.ids import hash_fraction

MEASURES = ("mahalanobis", "relative_mahalanobis", "knn_distance")
PERCENTILES = tuple(f"{name.removesuffix('_distance')}_percentile" for name in MEASURES)

NUM_FOLDS = 5
_CHUNK = 1024  # queries whose distances to all references are held at once
_NO_FOLD = -1
# A percentile to half a thousandth; neighbours of more members would cost their square.
_MAX_HELD_OUT = 2000

Values = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class OodModel:
    """A fitted reference set; see `fit_model`.

    Attributes:
        whole: of all references.
        background: of what the references are to be told from; None: no relative distance.
        without: of the references outside each fold; empty where they are too few.
        unit_RD: references divided by their length, for neighbours.
        rows_R: int64 sample rows of the references, ascending.
        folds_R: int64 fold of each reference.
        held_places_C: which references the percentiles are made from.
        held_out: distance of each of those to what was fitted without its fold, (C,) each.
        num_neighbours: k.
    """

    whole: Gaussian
    background: Gaussian | None
    without: tuple[Gaussian, ...]
    unit_RD: NDArray[np.float32]
    rows_R: NDArray[np.int64]
    folds_R: NDArray[np.int64]
    held_places_C: NDArray[np.int64]
    held_out: Values
    num_neighbours: int

    def measure(
        self, x_ND: NDArray[np.floating], sample_rows_N: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float64]]:
        """Return `MEASURES` and `PERCENTILES` of queries, float64 (N,) each, NaN for not had.

        A reference among the queries is measured by what was fitted without it.
        """
        parts = [
            self._measured(x_ND[start : start + _CHUNK], sample_rows_N[start : start + _CHUNK])
            for start in range(0, len(x_ND), _CHUNK)
        ]
        names = (*MEASURES, *PERCENTILES)
        empty: NDArray[np.float64] = np.empty(0)
        return {n: np.concatenate([empty, *(part[n] for part in parts)]) for n in names}

    def _measured(
        self, x_ND: NDArray[np.floating], sample_rows_N: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float64]]:
        place_N, is_member_N = self._places(sample_rows_N)
        fold_N = np.where(is_member_N, self.folds_R[place_N], _NO_FOLD)
        distances = self._distances_to_references(x_ND)
        distances[np.flatnonzero(is_member_N), place_N[is_member_N]] = np.inf
        away = _away(self.background, x_ND)
        found = _three(self.whole, away, x_ND, _nearest(distances, self.num_neighbours))
        by_fold = self._by_fold(x_ND, distances, away)
        for fold, query in enumerate(by_fold):
            for name in ("mahalanobis", "relative_mahalanobis"):
                found[name] = np.where(fold_N == fold, query[name], found[name])
        is_held_N = is_member_N & np.isin(place_N, self.held_places_C)
        others_N = len(self.held_places_C) - is_held_N
        for name, percentile in zip(MEASURES, PERCENTILES, strict=True):
            ranks = self._ranks(name, by_fold, fold_N, is_held_N)
            found[percentile] = (ranks + 0.5) / (others_N + 1)
        return found

    def _by_fold(
        self,
        x_ND: NDArray[np.floating],
        distances_NR: NDArray[np.float32],
        away_N: NDArray[np.float64],
    ) -> list[dict[str, NDArray[np.float64]]]:
        """Measure the queries by what was fitted without each fold."""
        k = self.num_neighbours
        return [
            _three(gaussian, away_N, x_ND, _nearest(distances_NR[:, self.folds_R != fold], k))
            for fold, gaussian in enumerate(self.without)
        ]

    def _ranks(
        self,
        name: str,
        by_fold: Sequence[Mapping[str, NDArray[np.float64]]],
        fold_N: NDArray[np.int64],
        is_held_N: NDArray[np.bool_],
    ) -> NDArray[np.float64]:
        """Count the held-out references that lie nearer, each compared within its own fold.

        A member has only the distance without its own fold; that is compared with all others.
        """
        if not by_fold:
            return np.full(len(fold_N), np.nan)
        held_folds_C = self.folds_R[self.held_places_C]
        ranks = np.zeros(len(fold_N))
        for fold, query in enumerate(by_fold):
            ranks += _rank(self.held_out[name][held_folds_C == fold], query[name])
        for fold, query in enumerate(by_fold):
            # The comparison of a value with itself counted a half.
            among_all = _rank(self.held_out[name], query[name]) - 0.5 * is_held_N
            ranks = np.where(fold_N == fold, among_all, ranks)
        return ranks

    def _distances_to_references(self, x_ND: NDArray[np.floating]) -> NDArray[np.float32]:
        # Two unit vectors: |a - b|^2 = 2 - 2 a.b; rounding may go a hair below 0.
        cosines = unit_length(x_ND) @ self.unit_RD.T
        return np.asarray(np.sqrt(np.maximum(2.0 - 2.0 * cosines, 0.0)), np.float32)

    def _places(
        self, sample_rows_N: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        place = np.minimum(np.searchsorted(self.rows_R, sample_rows_N), len(self.rows_R) - 1)
        return place, self.rows_R[place] == sample_rows_N

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the model as named arrays, for `numpy.savez`; `from_arrays` undoes it."""
        gaussians = {"whole": self.whole, "background": self.background}
        gaussians |= {f"without{fold}": one for fold, one in enumerate(self.without)}
        found: dict[str, NDArray[np.generic]] = {
            f"{name}.{field.name}": np.asarray(getattr(one, field.name))
            for name, one in gaussians.items()
            if one is not None
            for field in fields(one)
        }
        found |= {f"held_out.{name}": values for name, values in self.held_out.items()}
        plain = ("unit_RD", "rows_R", "folds_R", "held_places_C")
        found |= {name: np.asarray(getattr(self, name)) for name in plain}
        return found | {"num_neighbours": np.asarray(self.num_neighbours)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> "OodModel":
        """Build the model from what `arrays` returned."""
        groups: dict[str, dict[str, NDArray[np.generic]]] = {}
        for key, array in arrays.items():
            group, _, name = key.rpartition(".")
            groups.setdefault(group, {})[name] = array
        plain, held_out = groups.pop(""), groups.pop("held_out", {})
        gaussians = {name: _gaussian(group) for name, group in groups.items()}
        folds = [f"without{fold}" for fold in range(NUM_FOLDS)]
        return cls(
            whole=gaussians["whole"],
            background=gaussians.get("background"),
            without=tuple(gaussians[name] for name in folds if name in gaussians),
            held_out=held_out,  # type: ignore[arg-type]
            num_neighbours=int(plain.pop("num_neighbours")),
            **plain,  # type: ignore[arg-type]
        )


def fit_model(
    x_RD: NDArray[np.floating],
    sample_rows_R: NDArray[np.int64],
    *,
    max_components: int,
    num_neighbours: int,
    background_BD: NDArray[np.floating] | None = None,
) -> OodModel:
    """Fit everything that distances to a reference set and their percentiles need.

    Args:
        x_RD: reference vectors.
        sample_rows_R: their sample rows, distinct.
        max_components: principal components at most.
        num_neighbours: k; a reference needs k others.
        background_BD: vectors of the whole that the references are a part of; fewer than 8, or
            None: no relative distance.

    Raises:
        NotEnoughReferences: fewer than k + 1 references, or fewer than 8.
    """
    needed = max(num_neighbours + 1, LEAST_VECTORS)
    if len(x_RD) < needed:
        raise NotEnoughReferences(
            f"{len(x_RD)} reference vectors; distances to the set need at least {needed}: "
            "add reference images or lower num_neighbours"
        )
    order = np.argsort(sample_rows_R)
    x_RD, rows_R = x_RD[order], sample_rows_R[order]
    folds_R = deal_folds(rows_R)

    def gaussian(x: NDArray[np.floating]) -> Gaussian:
        return fit(x, max_components=max_components)

    without: tuple[Gaussian, ...] = ()
    if len(x_RD) - np.bincount(folds_R).max() >= needed:
        without = tuple(gaussian(x_RD[folds_R != fold]) for fold in range(NUM_FOLDS))
    enough = background_BD is not None and len(background_BD) >= LEAST_VECTORS
    model = OodModel(
        whole=gaussian(x_RD),
        background=gaussian(background_BD) if enough and background_BD is not None else None,
        without=without,
        unit_RD=unit_length(x_RD),
        rows_R=rows_R,
        folds_R=folds_R,
        held_places_C=_held_places(rows_R) if without else np.empty(0, np.int64),
        held_out={},
        num_neighbours=num_neighbours,
    )
    return _with_held_out(model, x_RD) if without else model


def deal_folds(sample_rows_R: NDArray[np.int64]) -> NDArray[np.int64]:
    """Deal references into `NUM_FOLDS` folds of equal size, by a hash of their row."""
    keys = [hash_fraction(str(row), "ood-fold") for row in sample_rows_R.tolist()]
    folds = np.empty(len(keys), np.int64)
    folds[np.argsort(keys, kind="stable")] = np.arange(len(keys)) % NUM_FOLDS
    return folds


def _held_places(rows_R: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return places of the references that calibrate: all, or as many as are enough."""
    keys = [hash_fraction(str(row), "ood-held-out") for row in rows_R.tolist()]
    return np.sort(np.argsort(keys, kind="stable")[:_MAX_HELD_OUT])


def _with_held_out(model: OodModel, x_RD: NDArray[np.floating]) -> OodModel:
    places = model.held_places_C
    held_out = {name: np.empty(len(places)) for name in MEASURES}
    for start in range(0, len(places), _CHUNK):
        part = places[start : start + _CHUNK]
        x, folds = x_RD[part], model.folds_R[part]
        by_fold = model._by_fold(x, model._distances_to_references(x), _away(model.background, x))
        for name in MEASURES:
            of_own = np.choose(folds, [query[name] for query in by_fold])
            held_out[name][start : start + _CHUNK] = of_own
    return replace(model, held_out=held_out)


def _three(
    gaussian: Gaussian,
    away_N: NDArray[np.float64],
    x_ND: NDArray[np.floating],
    nearest_N: NDArray[np.float64],
) -> dict[str, NDArray[np.float64]]:
    """Return the three measures of queries against one fit.

    Relative: squared distance to the references minus that to the background. Ren et al., 2021,
    A simple fix to Mahalanobis distance for improving near-OOD detection: what is unusual in any
    set of images counts on both sides and cancels.
    """
    squared = gaussian.squared_distance(x_ND)
    return dict(zip(MEASURES, (np.sqrt(squared), squared - away_N, nearest_N), strict=True))


def _away(background: Gaussian | None, x_ND: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.full(len(x_ND), np.nan) if background is None else background.squared_distance(x_ND)


def _nearest(distances_NR: NDArray[np.float32], count: int) -> NDArray[np.float64]:
    """Mean distance to the `count` nearest: after Sun et al., ICML 2022, deep nearest neighbors."""
    nearest = np.partition(distances_NR, count - 1, axis=1)[:, :count]
    return np.asarray(nearest.mean(axis=1, dtype=np.float64))


def _rank(held_out: NDArray[np.float64], query: NDArray[np.float64]) -> NDArray[np.float64]:
    """Count the held-out values below each query; equal ones count a half; NaN stays NaN."""
    order: Callable[..., NDArray[np.intp]] = np.sort(held_out).searchsorted
    ranks = (order(query, "left") + order(query, "right")) / 2
    return np.where(np.isnan(query), np.nan, ranks)


def _gaussian(group: Mapping[str, NDArray[np.generic]]) -> Gaussian:
    plain = {name: a[()] if a.ndim == 0 else a for name, a in group.items()}
    return Gaussian(**plain)  # type: ignore[arg-type]
