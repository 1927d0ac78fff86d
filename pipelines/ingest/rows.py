"""From verdicts to rows: which item is a sample, which a duplicate, and who gets which position."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa

from pipelines.ingest.items import ListedItem
from pipelines.ingest.perceptual import PHASH_VERSION
from pipelines.ingest.shards import ShardPlan, Stored
from pipelines.ingest.verify import Verdict
from schemas import ingest_attempts, samples
from schemas.contract import Contract
from schemas.ids import canonical_json, sample_row_of

ROWS_AT_ONCE = 20_000


@dataclass(frozen=True, slots=True)
class Sample:
    """A distinct image: the first item that brought its bytes, and its position in the batch."""

    position: int
    item: ListedItem
    verdict: Verdict

    @property
    def stored(self) -> Stored:
        """What goes into the shard."""
        assert self.verdict.sample_id is not None
        assert self.verdict.num_bytes is not None
        metadata = {
            "sample_id": self.verdict.sample_id,
            "listed_as": self.item.key,
            "source": self.item.source,
            "caption": self.item.caption,
            "label": self.item.label,
            "width": self.verdict.width,
            "height": self.verdict.height,
        }
        text = json.dumps(metadata, sort_keys=True, ensure_ascii=False)
        return Stored(
            position=self.position,
            sample_id=self.verdict.sample_id,
            num_bytes=self.verdict.num_bytes,
            format=self.verdict.format,
            metadata_bytes=text.encode("utf-8", "backslashreplace"),
        )


def assign_positions(
    items: Sequence[ListedItem],
    verdicts: Sequence[Verdict],
    known: Mapping[str, int],
    next_position: int,
) -> list[Sample]:
    """Return one sample for each distinct image, in the order of their positions.

    Bytes that the batch held before keep their position, so that facts about a sample_row never
    come to speak of another image; new ones follow in the order of the listing.

    Args:
        items: the listing.
        verdicts: what each item is.
        known: positions by sample_id of the batch as it stands.
        next_position: first position that was never given away.
    """
    found: dict[str, Sample] = {}
    for item, verdict in zip(items, verdicts, strict=True):
        sample_id = verdict.sample_id
        if verdict.reason is not None or sample_id is None or sample_id in found:
            continue
        position = known.get(sample_id)
        if position is None:
            position, next_position = next_position, next_position + 1
        found[sample_id] = Sample(position, item, verdict)
    return sorted(found.values(), key=lambda sample: sample.position)


def attempts_table(
    batch: str,
    ordinal: int,
    items: Sequence[ListedItem],
    verdicts: Sequence[Verdict],
    found: Sequence[Sample],
) -> pa.Table:
    """Return one `ingest_attempts` row for each item."""
    holder = {sample.verdict.sample_id: sample for sample in found}

    def row(item: ListedItem, verdict: Verdict) -> dict[str, object]:
        sample = None if verdict.reason is not None else holder[verdict.sample_id]
        status = "rejected"
        if sample is not None:
            status = "stored" if sample.item is item else "duplicate"
        return {
            "ingest_batch": batch,
            "attempt_key": item.key,
            "source": item.source,
            "source_uri": item.uri,
            "status": status,
            "reason": verdict.reason,
            "detail": verdict.detail,
            "caption": item.caption,
            "label": item.label,
            "num_bytes": verdict.num_bytes,
            "sample_id": verdict.sample_id,
            "sample_row": None if sample is None else sample_row_of(ordinal, sample.position),
        }

    return _table(ingest_attempts.CONTRACT, map(row, items, verdicts))


def plans_in_place(found: Sequence[Sample]) -> list[ShardPlan]:
    """Return where the samples lie in shards that are not ours, by absolute path or address."""
    by_path: dict[str, list[Sample]] = {}
    for sample in found:
        by_path.setdefault(sample.item.path, []).append(sample)
    return [
        ShardPlan(
            name=samples[0].item.stays_at or path,
            members=tuple(sample.stored for sample in samples),
            offsets=tuple(sample.item.offset or 0 for sample in samples),
            num_bytes=Path(path).stat().st_size,
        )
        for path, samples in by_path.items()
    ]


def samples_table(
    batch: str, ordinal: int, found: Sequence[Sample], plans: Sequence[ShardPlan]
) -> pa.Table:
    """Return one `samples` row for each distinct image."""
    places = {
        member.position: (plan.name, offset)
        for plan in plans
        for member, offset in zip(plan.members, plan.offsets, strict=True)
    }
    rows = (_sample_row(batch, ordinal, s, *places[s.position]) for s in found)
    return _table(samples.CONTRACT, rows)


def digest_of(table: pa.Table) -> str:
    """Return a hash of a table's rows, the input of their commit."""
    digest = hashlib.sha256()
    for batch in table.to_batches(max_chunksize=ROWS_AT_ONCE):
        for row in batch.to_pylist():
            digest.update(canonical_json(row).encode() + b"\n")
    return digest.hexdigest()


def _table(contract: Contract, rows: Iterable[dict[str, object]]) -> pa.Table:
    """Build a table piece by piece: a million rows as dictionaries are a gigabyte."""
    schema, left, parts = contract.arrow_schema, iter(rows), [contract.empty()]
    while piece := list(islice(left, ROWS_AT_ONCE)):
        parts.append(pa.Table.from_pylist(piece, schema=schema))
    return pa.concat_tables(parts)


def _sample_row(
    batch: str, ordinal: int, sample: Sample, shard: str, offset: int
) -> dict[str, object]:
    item, verdict = sample.item, sample.verdict
    return {
        "sample_row": sample_row_of(ordinal, sample.position),
        "sample_id": verdict.sample_id,
        "ingest_batch": batch,
        "shard": shard,
        "byte_offset": offset,
        "num_bytes": verdict.num_bytes,
        "width": verdict.width,
        "height": verdict.height,
        "format": verdict.format,
        "caption": item.caption,
        "label": item.label,
        "source": item.source,
        "phash": verdict.phash,
        "phash_version": PHASH_VERSION,
        "parent_sample_id": None,
        "loop_number": 0,
    }
