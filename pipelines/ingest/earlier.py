"""What earlier runs of a batch found out about its URLs, so that nothing is asked for twice."""

from pathlib import Path

import pyarrow.compute as pc

from pipelines.ingest.items import Fetched, Verified, is_answer
from schemas.root import Root
from schemas.shard_files import place_of

_VERIFIED = ("sample_id", "width", "height", "format", "phash")
_COLUMNS = ["sample_row", "shard", "byte_offset", "num_bytes", *_VERIFIED]


def earlier_outcomes(root: Root, batch: str, *, same_settings: bool) -> dict[str, Fetched]:
    """Return, by URL, what is known for good: stored bytes, and refusals that last.

    Args:
        root: where the tables are.
        batch: the batch that is being ingested again.
        same_settings: whether images are judged as they were. If not, URLs whose bytes were refused
            are fetched once more, because refused bytes are not kept, and stored bytes are decoded
            once more.
    """
    if not root.tables.exists("ingest_attempts"):
        return {}
    # Taken-down images too: they must not be fetched again.
    attempts = root.tables.open("ingest_attempts").read(
        ["source_uri", "status", "reason", "detail", "sample_row", "sample_id", "num_bytes"],
        {"ingest_batch": batch},
        exclude=False,
    )
    places = _places(root, batch, same_settings=same_settings)
    found: dict[str, Fetched] = {}
    for row in attempts.to_pylist():
        if row["status"] != "rejected":
            if (place := places.get(row["sample_row"])) is not None:
                found[row["source_uri"]] = place
        elif is_answer(row["reason"]) or (row["sample_id"] is not None and same_settings):
            found[row["source_uri"]] = Fetched(
                num_bytes=row["num_bytes"] or 0,
                reason=row["reason"],
                detail=row["detail"],
                sample_id=row["sample_id"],
            )
    return found


def _places(root: Root, batch: str, *, same_settings: bool) -> dict[int, Fetched]:
    if not root.tables.exists("samples"):
        return {}
    samples = root.tables.open("samples").read(_COLUMNS, {"ingest_batch": batch}, exclude=False)
    shards = {s: place_of(root.shards, s) for s in pc.unique(samples["shard"]).to_pylist()}
    there = {s: isinstance(place, Path) and place.is_file() for s, place in shards.items()}
    return {
        row["sample_row"]: Fetched(
            str(shards[row["shard"]]),
            row["byte_offset"],
            row["num_bytes"],
            verified=Verified(*(row[name] for name in _VERIFIED)) if same_settings else None,
        )
        for row in samples.to_pylist()
        if there[row["shard"]]
    }
