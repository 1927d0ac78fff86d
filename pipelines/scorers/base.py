"""What a scorer is, and how a pack of them measures images of any sizes in one pass."""

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

from pipelines.scorers.pixels import Pixels
from schemas.ids import canonical_hash

Direction = Literal["higher_is_better", "lower_is_better", "neither"]


@dataclass(frozen=True)
class Scorer:
    """One measure of an image.

    Attributes:
        name: its column.
        measure: maps `Pixels` to float64 (B,); never called for images under `min_side`.
        direction: which way is better, for policies that rank.
        minimum: smallest value it can give, None if unbounded.
        maximum: largest value it can give, None if unbounded.
        unit: unit of the value.
        source: where the formula comes from.
        min_side: images with a shorter side get null.
    """

    name: str
    measure: Callable[[Pixels], NDArray[np.float64]]
    direction: Direction
    minimum: float | None
    maximum: float | None
    unit: str
    source: str
    min_side: int = 1


@dataclass(frozen=True)
class Scores:
    """What a pack says of N images: float64 (N,) a column with NaN for null, and N reasons."""

    columns: Mapping[str, NDArray[np.float64]]
    reasons: Sequence[str | None]


@dataclass(frozen=True)
class Pack:
    """Scorers that are run together and stored in one wide table, `scores/<name>`."""

    name: str
    scorers: tuple[Scorer, ...]
    code: tuple[Path, ...] = field(default=(), repr=False)

    @cached_property
    def version(self) -> str:
        """Name and hash of everything that decides the numbers: code and parameters."""
        facts = [(s.name, s.direction, s.minimum, s.maximum, s.min_side) for s in self.scorers]
        code = [code_hash(path.read_text()) for path in self.code]
        return f"{self.name}-{canonical_hash([facts, code])}"

    def scorer(self, name: str) -> Scorer:
        """Return the scorer of one column; KeyError lists what there is."""
        for scorer in self.scorers:
            if scorer.name == name:
                return scorer
        raise KeyError(f"pack {self.name} has no {name!r}; it has {[s.name for s in self.scorers]}")

    def score(self, images: Sequence[NDArray[np.uint8]]) -> Scores:
        """Measure uint8 RGB images (H, W, 3) of any sizes; images of one size go together."""
        columns = {s.name: np.full(len(images), np.nan) for s in self.scorers}
        for places in _same_size(images):
            pixels = Pixels(np.stack([images[i] for i in places]))
            for scorer in self.scorers:
                if min(pixels.shape[1:]) >= scorer.min_side:
                    columns[scorer.name][places] = scorer.measure(pixels)
        reasons = [self._reason(images[i].shape, columns, i) for i in range(len(images))]
        for values in columns.values():
            values[~np.isfinite(values)] = np.nan
        return Scores(columns, reasons)

    def unreadable(self, count: int, reason: str) -> Scores:
        """Return the scores of images that could not be decoded: all null, with the reason."""
        columns = {s.name: np.full(count, np.nan) for s in self.scorers}
        return Scores(columns, ["; ".join(f"{s.name}: {reason}" for s in self.scorers)] * count)

    def _reason(
        self, shape: tuple[int, ...], columns: Mapping[str, NDArray[np.float64]], place: int
    ) -> str | None:
        said = []
        for scorer in self.scorers:
            if min(shape[:2]) < scorer.min_side:
                said.append(f"{scorer.name}: shorter side under {scorer.min_side}")
            elif not np.isfinite(columns[scorer.name][place]):
                said.append(f"{scorer.name}: not finite")
        return "; ".join(said) or None


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


def _same_size(images: Sequence[NDArray[Any]]) -> list[list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, image in enumerate(images):
        groups.setdefault(image.shape, []).append(place)
    return list(groups.values())
