"""Which row of a file speaks of which sample of a batch, and what matches nothing."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.batches import BatchFacts, ImageTask, image_tasks, read_images
from pipelines.imports.files import NAME, ORDER, PIXELS, SAMPLE_ID, URL, Listing, pixel_hash
from pipelines.spark import SparkSettings, run_tasks
from schemas.errors import BadInput
from schemas.root import Root

UNKNOWN, AMBIGUOUS, REPEATED = "unknown_key", "ambiguous_name", "repeated"
_SEVERAL = -2


@dataclass(frozen=True)
class Matches:
    """Rows of a file beside the samples of a batch.

    Attributes:
        sample_rows: int64 (S,), ascending.
        file_rows: int64 (S,), the row that speaks of each sample; -1: none does.
        rejected: rows of the file that were not used, by reason.
        total: rows of the file.
    """

    sample_rows: NDArray[np.int64]
    file_rows: NDArray[np.int64]
    rejected: Mapping[str, int]
    total: int

    @property
    def found(self) -> NDArray[np.bool_]:
        """Which samples the file speaks of, bool (S,)."""
        return self.file_rows >= 0

    def note(self) -> str:
        """Return a sentence for a person."""
        num, count = int(self.found.sum()), len(self.sample_rows)
        said = f"{num} of {count} samples stand in the file, {count - num} do not"
        return f"{said}; of its {self.total} rows {self.rejected.get(UNKNOWN, 0)} are of no sample"


def match(
    root: Root, facts: BatchFacts, listing: Listing, settings: SparkSettings | None = None
) -> Matches:
    """Find the sample of each row. A row that fits none, or several, is counted and not used.

    Raises:
        BadInput: no row fits a sample, or two rows that differ speak of one sample.
    """
    known = _known(root, facts, listing, settings)
    places = [known.get(key) for key in listing.keys]
    rejected: Counter[str] = Counter()
    rejected[UNKNOWN] = sum(place is None for place in places)
    rejected[AMBIGUOUS] = sum(place == _SEVERAL for place in places)
    used = [(place, n) for n, place in enumerate(places) if place is not None and place >= 0]
    if not used:
        example = listing.keys[0]
        raise BadInput(
            f"no row of {listing.path} fits a sample of {facts.batch}: keys are taken for "
            f"{listing.key_kind}, the first is {str(example)[:120]!r}; name another key column or "
            f"kind, or another batch ({dict(+rejected)})"
        )
    rows, numbers = (np.array(side, np.int64) for side in zip(*used, strict=True))
    order = np.lexsort((numbers, rows))
    rows, numbers = rows[order], numbers[order]
    first = np.concatenate([[True], rows[1:] != rows[:-1]])
    _require_agreement(listing, rows, numbers, first)
    rejected[REPEATED] = int((~first).sum())
    file_rows = np.full(len(facts), -1, np.int64)
    file_rows[np.searchsorted(facts.sample_rows, rows[first])] = numbers[first]
    return Matches(facts.sample_rows, file_rows, dict(+rejected), len(listing))


def _require_agreement(
    listing: Listing,
    rows: NDArray[np.int64],
    numbers: NDArray[np.int64],
    first: NDArray[np.bool_],
) -> None:
    """Rows that say the same of one sample are one; which of two others is right, nobody knows."""
    again = np.flatnonzero(~first)
    for place in again.tolist():
        one, other = int(numbers[place - 1]), int(numbers[place])
        for name, values in listing.columns.items():
            if values[one].as_py() != values[other].as_py():
                raise BadInput(
                    f"{listing.path}: rows {one + 1} and {other + 1} are of one image "
                    f"({str(listing.keys[other])[:120]!r}) and differ in {name!r}; keep one"
                )


def _known(
    root: Root, facts: BatchFacts, listing: Listing, settings: SparkSettings | None
) -> dict[object, int]:
    """Return the sample_row of each key there is; _SEVERAL where a name has several."""
    if listing.key_kind == PIXELS:
        return _by_pixels(root, facts, settings)
    if listing.key_kind == SAMPLE_ID:
        samples = root.tables.open("samples", facts.version).read(
            ["sample_id", "sample_row"], {"ingest_batch": facts.batch}
        )
        return _only(facts, samples["sample_id"].to_pylist(), samples["sample_row"].to_pylist())
    attempts = root.tables.read(
        "ingest_attempts",
        ["attempt_key", "source_uri", "sample_row"],
        {"ingest_batch": facts.batch},
    )
    if listing.key_kind == ORDER:
        return _by_order(facts, attempts, listing)
    attempts = attempts.filter(pc.is_valid(attempts["sample_row"]))
    rows = attempts["sample_row"].to_pylist()
    if listing.key_kind == URL:
        return _only(facts, attempts["source_uri"].to_pylist(), rows)
    assert listing.key_kind == NAME
    whole = _only(facts, attempts["attempt_key"].to_pylist(), rows)
    short = _only(facts, [_last_part(str(key)) for key in whole], list(whole.values()))
    return {**short, **whole}


def _last_part(key: str) -> str:
    return key.replace("#", "/").rsplit("/", 1)[-1]


def _only(facts: BatchFacts, keys: Sequence[object], rows: Sequence[int]) -> dict[object, int]:
    there = set(facts.sample_rows.tolist())
    known: dict[object, int] = {}
    for key, row in zip(keys, rows, strict=True):
        if row in there or row == _SEVERAL:
            known[key] = row if known.get(key, row) == row else _SEVERAL
    return known


def _by_order(facts: BatchFacts, attempts: pa.Table, listing: Listing) -> dict[object, int]:
    """Number the listed items by their names, as the published file's own reader does."""
    if attempts.num_rows != len(listing):
        raise BadInput(
            f"{listing.path} has {len(listing)} rows without names, {facts.batch} lists "
            f"{attempts.num_rows} items: which is which cannot be told; give a file with names"
        )
    ordered = attempts.sort_by("attempt_key")["sample_row"].to_pylist()
    there = set(facts.sample_rows.tolist())
    return {number: row for number, row in enumerate(ordered) if row in there}


def _by_pixels(root: Root, facts: BatchFacts, settings: SparkSettings | None) -> dict[object, int]:
    tasks = image_tasks(root, facts)
    weights = [task.num_images for task in tasks]
    found = run_tasks(
        tasks,
        _hashes,
        label=f"hash pixels {facts.batch}",
        weights=weights,
        unit="images",
        settings=settings,
    )
    known: dict[object, int] = {}
    for row, key in (pair for part in found for pair in part):
        # Pixels that are equal score equally, but one row cannot speak of two samples.
        known[key] = row if known.get(key, row) == row else _SEVERAL
    return known


def _hashes(task: ImageTask) -> list[tuple[int, str]]:
    return [
        (int(row), pixel_hash(image))
        for chunk in read_images(task)
        for row, image in zip(chunk.sample_rows, chunk.images, strict=True)
    ]
