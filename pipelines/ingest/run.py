"""The ingest job: list, verify, store, commit."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ambient_omni.progress import progress
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.items import ListedItem, Source
from pipelines.ingest.register import check_batch, register
from pipelines.ingest.rows import (
    Sample,
    assign_positions,
    attempts_table,
    digest_of,
    samples_table,
)
from pipelines.ingest.shards import ShardPlan, Stored, plan_shards, write_shard
from pipelines.ingest.source import open_source
from pipelines.ingest.verify import Verdict, read_item, verify_all
from pipelines.job import JobReport
from schemas.errors import BadInput
from schemas.ids import split_sample_row
from schemas.root import Root, write_json

JOB = "ingest"
TABLES = ("ingest_batches", "ingest_attempts", "samples")
_DEFAULT = IngestConfig()


def ingest(
    root: Root,
    batch: str,
    source: str | Path,
    config: IngestConfig = _DEFAULT,
    role: str = "pool",
) -> JobReport:
    """Bring a folder, tar shards or a URL list in as one batch.

    Running it again changes nothing unless the source changed; then the batch's rows are replaced
    and every image that stays keeps its sample_row.

    Args:
        root: where to.
        batch: name of the ingest batch.
        source: path of a folder, a .tar, a pattern of them, or a csv/tsv/jsonl/parquet/txt of URLs.
        config: what to take and how.
        role: "pool", "reference" or "evaluation".

    Returns:
        Items read, samples written or unchanged, rejections by reason.

    Raises:
        BadInput: the source cannot be used, or nothing of it could be stored.
        JobAlreadyRunning: another process ingests this batch.
        IngestIncomplete: a download broke off.
    """
    started = time.monotonic()
    check_batch(root, batch, role)
    with root.lock(JOB, batch):
        _refuse_root_inside(root, source)
        opened = open_source(source, config)
        signature = f"{opened.kind}:{opened.uri}:{opened.signature}:{config.content_hash()}"
        facts = _unchanged(root, batch, signature)
        if facts is None:
            facts = _ingest(root, batch, opened, config, role) | {"signature": signature}
            write_json(_manifest(root, batch), facts)
            written, unchanged = facts["written"], facts["num_samples"] - facts["written"]
        else:
            written, unchanged = 0, facts["num_samples"]
        shutil.rmtree(_work(root, batch), ignore_errors=True)
    return JobReport(
        job=JOB,
        batch=batch,
        read=facts["num_items"],
        written=written,
        unchanged=unchanged,
        rejected=facts["rejected"],
        versions=root.tables.versions(TABLES),
        seconds=time.monotonic() - started,
    )


def _refuse_root_inside(root: Root, source: str | Path) -> None:
    """A root inside its own source would be listed, and every run would change the source."""
    if root.path.resolve().is_relative_to(Path(source).expanduser().resolve()):
        raise BadInput(f"the root {root.path} lies inside the source {source}; name another --root")


def _ingest(
    root: Root, batch: str, source: Source, config: IngestConfig, role: str
) -> dict[str, Any]:
    items = source.items(_work(root, batch))
    verdicts = verify_all(items, config)
    rejected = Counter(v.reason for v in verdicts if v.reason is not None)
    if sum(rejected.values()) == len(items):
        raise BadInput(_all_rejected(source, items, verdicts, rejected))
    known, next_position = _positions(root, batch)
    found = assign_positions(items, verdicts, known, next_position)
    plans = _store(root, batch, found, config)
    ordinal = register(root, batch, role, source)
    attempts = attempts_table(batch, ordinal, items, verdicts, found)
    rows = samples_table(batch, ordinal, found, plans)
    # Samples last: where a sample is seen, the attempt that brought it is seen too.
    _commit(root, batch, "ingest_attempts", attempts)
    commit = _commit(root, batch, "samples", rows)
    return {
        "num_items": len(items),
        "num_samples": len(found),
        "written": commit.written,
        "rejected": dict(sorted(rejected.items())),
        "next_position": max(next_position, found[-1].position + 1),
        "fingerprints": _fingerprints(root, batch),
    }


def _store(
    root: Root, batch: str, found: Sequence[Sample], config: IngestConfig
) -> list[ShardPlan]:
    items = {sample.position: sample.item for sample in found}
    plans = plan_shards(
        batch, [s.stored for s in found], config.images_per_shard, config.max_shard_bytes
    )
    for leftover in (root.shards / batch).glob(".*.partial"):
        leftover.unlink()

    def read(stored: Stored) -> bytes:
        try:
            return read_item(items[stored.position])
        except OSError as error:
            uri = items[stored.position].uri
            raise BadInput(f"{uri} went away while it was ingested; run again") from error

    with progress(
        label="write shards", unit="img", total=len(found), show=config.show_progress
    ) as bar:
        for plan in plans:
            write_shard(root.shards, plan, read, lambda stored: items[stored.position].uri)
            bar.update(len(plan.members))
    return plans


def _commit(root: Root, batch: str, name: str, rows: Any) -> Any:
    inputs = {"rows": digest_of(rows)}
    return root.tables.commit(name, rows, slice={"ingest_batch": batch}, inputs=inputs, job=JOB)


def _positions(root: Root, batch: str) -> tuple[dict[str, int], int]:
    """Return position by sample_id of the batch as it stands, and the first one never given."""
    known: dict[str, int] = {}
    if root.tables.exists("samples"):
        rows = root.tables.open("samples").read(
            ["sample_id", "sample_row"], {"ingest_batch": batch}, exclude=False
        )
        for row in rows.to_pylist():
            known[row["sample_id"]] = split_sample_row(row["sample_row"])[1]
    given = _read_manifest(root, batch).get("next_position", 0)
    return known, max([given, *(position + 1 for position in known.values())])


def _unchanged(root: Root, batch: str, signature: str) -> dict[str, Any] | None:
    """Return the facts of the last run if it left exactly what this one would make."""
    facts = _read_manifest(root, batch)
    if facts.get("signature") != signature:
        return None
    if facts.get("fingerprints") != _fingerprints(root, batch):
        return None
    rows = root.tables.open("samples").read(["shard"], {"ingest_batch": batch}, exclude=False)
    shards = rows["shard"].unique().to_pylist()
    return facts if all((root.shards / shard).is_file() for shard in shards) else None


def _fingerprints(root: Root, batch: str) -> dict[str, str | None]:
    slice_ = {"ingest_batch": batch}
    return {name: root.tables.fingerprint(name, slice_) for name in ("ingest_attempts", "samples")}


def _manifest(root: Root, batch: str) -> Path:
    return root.shards / batch / "ingest.json"


def _read_manifest(root: Root, batch: str) -> dict[str, Any]:
    try:
        found = json.loads(_manifest(root, batch).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _work(root: Root, batch: str) -> Path:
    return root.work / "ingest" / batch


def _all_rejected(
    source: Source,
    items: Sequence[ListedItem],
    verdicts: Sequence[Verdict],
    rejected: Counter[str],
) -> str:
    counts = ", ".join(f"{reason} {count}" for reason, count in rejected.most_common())
    first = f"{items[0].key} ({verdicts[0].detail or verdicts[0].reason})"
    return (
        f"nothing of {source.uri} could be stored, all {len(items)} items were rejected: {counts}; "
        f"the first is {first}; name another source or change the limits"
    )
