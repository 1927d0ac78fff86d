"""The ingest job: list, verify, store, commit."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ambient_omni.progress import progress
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.earlier import earlier_outcomes
from pipelines.ingest.items import TAKEN_DOWN, TRANSIENT_REASONS, Fetched, ListedItem, Source
from pipelines.ingest.register import check_batch, check_source, register
from pipelines.ingest.rows import (
    Sample,
    assign_positions,
    attempts_table,
    digest_of,
    plans_in_place,
    samples_table,
)
from pipelines.ingest.shards import ShardPlan, Stored, plan_shards, write_shard
from pipelines.ingest.source import open_source
from pipelines.ingest.verify import Verdict, read_item, verify_all
from pipelines.job import JobReport
from schemas.addresses import is_address
from schemas.errors import BadInput
from schemas.ids import split_sample_row
from schemas.lookup import index_batch
from schemas.root import Root, write_json
from schemas.shard_files import place_of

JOB = "ingest"
TABLES = ("ingest_batches", "ingest_attempts", "samples")
_DEFAULT = IngestConfig()


def ingest(
    root: Root,
    batch: str,
    source: str | Path,
    config: IngestConfig = _DEFAULT,
    role: str = "pool",
    *,
    replace_source: bool = False,
) -> JobReport:
    """Bring a folder, tar shards or a URL list in as one batch.

    Running it again changes nothing unless the source changed; then the batch's rows are replaced
    and every image that stays keeps its sample_row. Of a URL list only what is new, and what failed
    for a reason that may pass, is asked for.

    Args:
        root: where to.
        batch: name of the ingest batch.
        source: path of a folder, a .tar, a pattern of them, or a csv/tsv/jsonl/parquet/txt of URLs.
        config: what to take and how.
        role: "pool", "reference" or "evaluation".
        replace_source: the batch may hold another source's images, which these replace.

    Returns:
        Items read, samples written or unchanged, rejections by reason.

    Raises:
        BadInput: the source cannot be used, is another than the batch's, or nothing of it could be
            stored.
        JobAlreadyRunning: another process ingests this batch.
        IngestIncomplete: a download broke off.
    """
    started = time.monotonic()
    check_batch(root, batch, role)
    with root.lock(JOB, batch):
        check_batch(root, batch, role)  # whoever held the lock may have registered it
        _refuse_root_inside(root, source)
        opened = open_source(source, config)
        if not replace_source:
            check_source(root, batch, opened.uri)
        signature = f"{opened.kind}:{opened.uri}:{opened.signature}:{config.content_hash()}"
        facts = _unchanged(root, batch, signature)
        if facts is None:
            facts = _ingest(root, batch, opened, config, role) | {"signature": signature}
            write_json(_manifest(root, batch), facts)
            written, unchanged = facts["written"], facts["num_samples"] - facts["written"]
        else:
            written, unchanged = 0, facts["num_samples"]
        _clean(root, batch)
    return JobReport(
        job=JOB,
        batch=batch,
        read=facts["num_items"],
        written=written,
        unchanged=unchanged,
        rejected=facts["rejected"],
        versions=root.tables.versions(TABLES),
        seconds=time.monotonic() - started,
        notes=tuple(facts.get("notes", ())),
    )


def _refuse_root_inside(root: Root, source: str | Path) -> None:
    """A root inside its own source would be listed, and every run would change the source."""
    if is_address(str(source)):
        return
    if root.path.resolve().is_relative_to(Path(source).expanduser().resolve()):
        raise BadInput(f"the root {root.path} lies inside the source {source}; name another --root")


def _ingest(
    root: Root, batch: str, source: Source, config: IngestConfig, role: str
) -> dict[str, Any]:
    items = source.items(_work(root, batch), _earlier(root, batch, config))
    if not items:
        raise BadInput(f"{source.uri} holds no image; name another source")
    verdicts = _without_taken_down(root, verify_all(items, config))
    rejected = Counter(v.reason for v in verdicts if v.reason is not None)
    known, next_position = _positions(root, batch)
    if sum(rejected.values()) == len(items):
        _note_failure(root, batch, items, verdicts, known)
        raise BadInput(_all_rejected(source, items, verdicts, rejected, known))
    found = assign_positions(items, verdicts, known, next_position)
    plans = plans_in_place(found) if config.in_place else _store(root, batch, found, config)
    ordinal = register(root, batch, role, source)
    # Samples last: where a sample is seen, the attempt that brought it is seen too.
    _commit(root, batch, "ingest_attempts", attempts_table(batch, ordinal, items, verdicts, found))
    commit = _commit(root, batch, "samples", samples_table(batch, ordinal, found, plans))
    index_batch(root.tables, batch)
    return {
        "num_items": len(items),
        "num_samples": len(found),
        "written": commit.written,
        "rejected": dict(sorted(rejected.items())),
        "next_position": max(next_position, found[-1].position + 1),
        "fingerprints": _fingerprints(root, batch),
        "settings": config.content_hash(),
        "num_to_retry": (failed := sum(rejected[reason] for reason in TRANSIENT_REASONS)),
        "notes": _retry_note(failed, len(items)),
    }


def _without_taken_down(root: Root, verdicts: list[Verdict]) -> list[Verdict]:
    """Refuse bytes that were taken down, from wherever they come this time."""
    gone = root.tables.excluded_sample_ids
    return [
        Verdict(v.sample_id, v.num_bytes, reason=TAKEN_DOWN) if v.sample_id in gone else v
        for v in verdicts
    ]


def _note_failure(
    root: Root,
    batch: str,
    items: Sequence[ListedItem],
    verdicts: Sequence[Verdict],
    known: Mapping[str, int],
) -> None:
    """Keep what was tried, unless the batch holds images of an earlier, better day."""
    if not known:
        attempts = attempts_table(batch, 0, items, verdicts, ())
        _commit(root, batch, "ingest_attempts", attempts)
    _clean(root, batch)  # or the next run would take failed downloads for finished ones


def _store(
    root: Root, batch: str, found: Sequence[Sample], config: IngestConfig
) -> list[ShardPlan]:
    items = {sample.position: sample.item for sample in found}
    plans = plan_shards(
        batch, [s.stored for s in found], config.images_per_shard, config.max_shard_bytes
    )
    for pattern in (".*.partial", f".{_manifest(root, batch).name}.*"):  # of a run that was killed
        for leftover in (root.shards / batch).glob(pattern):
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
        columns = rows["sample_id"].to_pylist(), rows["sample_row"].to_pylist()
        known = {i: split_sample_row(row)[1] for i, row in zip(*columns, strict=True)}
    given = _read_manifest(root, batch).get("next_position", 0)
    free = max(known.values(), default=-1) + 1
    if free > given:
        # The run that gave them was stopped before it noted so. Now is the time: an image that
        # leaves in this run takes its position out of the table.
        write_json(_manifest(root, batch), {"next_position": free})
    return known, max(given, free)


def _unchanged(root: Root, batch: str, signature: str) -> dict[str, Any] | None:
    """Return the facts of the last run if it left exactly what this one would make."""
    facts = _read_manifest(root, batch)
    if facts.get("signature") != signature or facts.get("num_to_retry"):
        return None
    if facts.get("fingerprints") != _fingerprints(root, batch):
        return None
    return facts if _shards_are_whole(root, batch) else None


def _shards_are_whole(root: Root, batch: str) -> bool:
    """Say whether every shard of the batch reaches to the end of its last image.

    Of what lies in an object store the source's signature has told as much already.
    """
    rows = root.tables.open("samples").read(
        ["shard", "byte_offset", "num_bytes"], {"ingest_batch": batch}, exclude=False
    )
    ends = pa.table({"shard": rows["shard"], "end": pc.add(rows["byte_offset"], rows["num_bytes"])})
    last = ends.group_by("shard").aggregate([("end", "max")])
    for shard, end in zip(last["shard"].to_pylist(), last["end_max"].to_pylist(), strict=True):
        place = place_of(root.shards, shard)
        if isinstance(place, Path) and not (place.is_file() and place.stat().st_size >= end):
            return False
    return True


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


def _earlier(root: Root, batch: str, config: IngestConfig) -> dict[str, Fetched]:
    same_settings = _read_manifest(root, batch).get("settings") == config.content_hash()
    return earlier_outcomes(root, batch, same_settings=same_settings)


def _retry_note(num_failed: int, num_items: int) -> list[str]:
    if not num_failed:
        return []
    return [
        f"{num_failed} of {num_items} URLs could not be fetched; run again to ask for those once "
        "more"
    ]


def _work(root: Root, batch: str) -> Path:
    return root.work / "ingest" / batch


def _clean(root: Root, batch: str) -> None:
    shutil.rmtree(_work(root, batch), ignore_errors=True)


def _all_rejected(
    source: Source,
    items: Sequence[ListedItem],
    verdicts: Sequence[Verdict],
    rejected: Counter[str],
    known: Mapping[str, int],
) -> str:
    counts = ", ".join(f"{reason} {count}" for reason, count in rejected.most_common())
    first = f"{items[0].key} ({verdicts[0].detail or verdicts[0].reason})"
    return (
        f"nothing of {source.uri} could be stored, all {len(items)} items were rejected: {counts}; "
        f"the first is {first}; name another source or change the limits"
        + (f" (the {len(known)} images that the batch had are still there)" if known else "")
    )
