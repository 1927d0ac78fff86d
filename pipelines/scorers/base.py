"""What a scorer is, and how packs of them measure images of any sizes in one pass."""

import hashlib
import io
import tokenize
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.packed import source_of
from pipelines.scorers.images import Images
from pipelines.scorers.weights import WeightsMissing
from schemas.ids import canonical_hash

Direction = Literal["higher_is_better", "lower_is_better", "neither"]
Needs = Literal["pixels", "view", "embedding", "caption"]
Device = Literal["cpu", "cpu_or_gpu"]


@dataclass(frozen=True)
class Scorer:
    """One measure of an image.

    Attributes:
        name: its column.
        measure: for `needs` "pixels" maps `Pixels` of one size to float64 (B,), and is never
            called under `min_side`; else it maps `Images` of any sizes to float64 (N,).
        direction: which way is better, for policies that rank.
        minimum: smallest value it can give, None if unbounded.
        maximum: largest value it can give, None if unbounded.
        unit: unit of the value.
        source: where the formula comes from.
        min_side: images with a shorter side get null.
        needs: what it looks at: full resolution, a resized view, a network's vector, or that and
            the caption.
        device: where it computes.
        weights: returns the hash of the weights it needs; raises `WeightsMissing` without them.
        code: files that decide its numbers, beside the pack's.
        null_reason: what it means that it gives NaN.
    """

    name: str
    measure: Callable[[Any], NDArray[np.float64]]
    direction: Direction
    minimum: float | None
    maximum: float | None
    unit: str
    source: str
    min_side: int = 1
    needs: Needs = "pixels"
    device: Device = "cpu"
    weights: Callable[[], str] | None = field(default=None, repr=False)
    code: tuple[Path, ...] = field(default=(), repr=False)
    null_reason: str = "not finite"

    @property
    def facts(self) -> tuple[Any, ...]:
        """What is declared of the numbers."""
        return (self.name, self.direction, self.minimum, self.maximum, self.min_side)

    def own_version(self) -> list[Any]:
        """Return the hashes of its own code and weights; nothing for one that has neither.

        Raises:
            WeightsMissing: the weights or their package are not there.
        """
        code = [code_hash(source_of(path)) for path in self.code]
        return [*code, *([self.weights()] if self.weights is not None else [])]


@dataclass(frozen=True)
class Scores:
    """What a pack says of N images: float64 (N,) a column with NaN for null, and N reasons."""

    columns: Mapping[str, NDArray[np.float64]]
    reasons: Sequence[Mapping[str, str]]
    """Why a column is null, by column, for each image; empty where every score was had."""


@dataclass(frozen=True)
class Pack:
    """Scorers that are run together and stored in one wide table, `scores/<name>`.

    A scorer without its weights is skipped: null with a reason, and the version says so. When the
    weights arrive the version changes, and only what was skipped has to be measured.
    """

    name: str
    scorers: tuple[Scorer, ...]
    code: tuple[Path, ...] = field(default=(), repr=False)

    @cached_property
    def version(self) -> str:
        """Name and hash of everything that decides the numbers: code, parameters and weights."""
        facts, code = [scorer.facts for scorer in self.scorers], self._code_hashes
        own = [[s.name, own] for s in self.scorers if (own := self._own_version(s)) != []]
        return f"{self.name}-{canonical_hash([facts, code, own] if own else [facts, code])}"

    @cached_property
    def scorer_versions(self) -> dict[str, str]:
        """Version of each scorer that can be run, by name."""
        return {
            s.name: canonical_hash([s.facts, self._code_hashes, self._own_version(s)])
            for s in self.scorers
            if s.name not in self.skipped
        }

    @cached_property
    def skipped(self) -> dict[str, str]:
        """Why a scorer cannot be run here, by name."""
        found = {}
        for scorer in self.scorers:
            try:
                scorer.own_version()
            except WeightsMissing as error:
                found[scorer.name] = str(error)
        return found

    @cached_property
    def _code_hashes(self) -> list[str]:
        return [code_hash(source_of(path)) for path in self.code]

    def _own_version(self, scorer: Scorer) -> list[Any] | None:
        return None if scorer.name in self.skipped else scorer.own_version()

    def scorer(self, name: str) -> Scorer:
        """Return the scorer of one column; KeyError lists what there is."""
        for scorer in self.scorers:
            if scorer.name == name:
                return scorer
        raise KeyError(f"pack {self.name} has no {name!r}; it has {[s.name for s in self.scorers]}")

    def score(
        self,
        images: Sequence[NDArray[np.uint8]] | Images,
        names: Sequence[str] | None = None,
    ) -> Scores:
        """Measure uint8 RGB images (H, W, 3) of any sizes; `names`: of these scorers alone."""
        [found] = score_packs({self.name: (self, names)}, images).values()
        return found

    def unreadable(self, count: int, reason: str, names: Sequence[str] | None = None) -> Scores:
        """Return the scores of images that could not be decoded: all null, with the reason."""
        wanted = self._wanted(names)
        columns = {s.name: np.full(count, np.nan) for s in wanted}
        return Scores(columns, [{s.name: reason for s in wanted} for _ in range(count)])

    def _wanted(self, names: Sequence[str] | None) -> list[Scorer]:
        return [s for s in self.scorers if names is None or s.name in names]


def score_packs(
    packs: Mapping[str, tuple[Pack, Sequence[str] | None]],
    images: Sequence[NDArray[np.uint8]] | Images,
) -> dict[str, Scores]:
    """Measure images with several packs at once; None for names: all of a pack's scorers.

    Images of one size are stacked once and measured by all packs before the next size; views and
    network outputs are made once a chunk. A scorer whose weights are missing gives null.
    """
    images = images if isinstance(images, Images) else Images(images)
    wanted = {key: pack._wanted(names) for key, (pack, names) in packs.items()}
    columns = {
        key: {s.name: np.full(len(images), np.nan) for s in scorers}
        for key, scorers in wanted.items()
    }
    runnable = [
        (key, s) for key, scorers in wanted.items() for s in scorers if _runs(packs[key][0], s)
    ]
    at_pixels = [(key, s) for key, s in runnable if s.needs == "pixels"]
    for places, pixels in images.stacks() if at_pixels else ():
        for key, scorer in at_pixels:
            if min(pixels.shape[1:]) >= scorer.min_side:
                columns[key][scorer.name][places] = scorer.measure(pixels)
    for key, scorer in runnable:
        if scorer.needs != "pixels" and len(images):
            columns[key][scorer.name][:] = scorer.measure(images)
    return {
        key: _checked(packs[key][0], scorers, columns[key], images)
        for key, scorers in wanted.items()
    }


def _runs(pack: Pack, scorer: Scorer) -> bool:
    return scorer.name not in pack.skipped


def _checked(
    pack: Pack,
    scorers: Sequence[Scorer],
    columns: dict[str, NDArray[np.float64]],
    images: Images,
) -> Scores:
    """Turn what cannot be a score into null, with the reason."""
    reasons: list[dict[str, str]] = [{} for _ in range(len(images))]
    sides = np.array([min(array.shape[:2]) for array in images.arrays], np.int64)
    for scorer in scorers:
        values = columns[scorer.name]
        bad = _why_null(pack, scorer, values, sides)
        for place in np.flatnonzero(bad != ""):
            reasons[place][scorer.name] = str(bad[place])
        values[bad != ""] = np.nan
    return Scores(columns, reasons)


def _why_null(
    pack: Pack, scorer: Scorer, values: NDArray[np.float64], sides: NDArray[np.int64]
) -> NDArray[np.object_]:
    why = np.full(len(values), "", dtype=object)
    low = -np.inf if scorer.minimum is None else scorer.minimum
    high = np.inf if scorer.maximum is None else scorer.maximum
    why[(values < low) | (values > high)] = f"outside {low:g}..{high:g}"
    why[np.isinf(values)] = "not finite"
    why[np.isnan(values)] = scorer.null_reason
    why[sides < scorer.min_side] = f"shorter side under {scorer.min_side}"
    if scorer.name in pack.skipped:
        why[:] = f"skipped, {pack.skipped[scorer.name]}"
    return why


def code_hash(source: str) -> str:
    """Hash Python code without comments, docstrings and layout.

    So that rewording a comment does not make every stored score stale.
    """
    kept: list[str] = []
    at_line_start = True
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in skip:
            continue
        if token.type in (tokenize.INDENT, tokenize.DEDENT, tokenize.NEWLINE):
            # The kind, not the text: the width of an indentation says nothing.
            kept.append(tokenize.tok_name[token.type])
            at_line_start = True
            continue
        if not (at_line_start and token.type == tokenize.STRING):
            kept.append(token.string)
        at_line_start = False
    return hashlib.sha256("\x00".join(kept).encode()).hexdigest()[:16]
