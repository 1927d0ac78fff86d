"""Upkeep of a whole root: fewer files, no leftovers, nothing of what was taken down."""

import time
from collections.abc import Sequence

from pipelines.job import JobReport
from pipelines.takedown import purge
from schemas import maintenance
from schemas.lookup import index_all
from schemas.registry import all_contracts
from schemas.root import Root

NO_BATCH = ""


def compact_all(root: Root, *, dry_run: bool = False) -> JobReport:
    """Rewrite slices that are spread over many files, in every table; index batches.

    Raises:
        CommitConflict: jobs kept committing; run it again.
    """
    began = time.monotonic()
    done = [] if dry_run else [maintenance.compact(root.tables, n) for n in _tables(root)]
    indexed = 0 if dry_run else index_all(root.tables)
    before, after = (sum(getattr(d, f"files_{side}") for d in done) for side in ("before", "after"))
    return JobReport(
        "compact",
        NO_BATCH,
        read=before,
        written=before - after,
        unchanged=after,
        seconds=time.monotonic() - began,
        notes=(f"{before} files became {after}, {indexed} batches indexed",),
    )


def vacuum_all(root: Root, *, retention_hours: int = 168, dry_run: bool = False) -> JobReport:
    """Delete files that no kept version needs, in every table; pinned versions are kept."""
    began = time.monotonic()
    gone = {
        name: maintenance.vacuum(
            root.tables, name, retention_hours=retention_hours, dry_run=dry_run
        )
        for name in _tables(root)
    }
    count = sum(map(len, gone.values()))
    notes = tuple(f"{name}: {len(files)} files" for name, files in gone.items() if files)
    return JobReport(
        "vacuum",
        NO_BATCH,
        read=count,
        written=0 if dry_run else count,
        seconds=time.monotonic() - began,
        notes=notes,
    )


def purge_all(root: Root, *, dry_run: bool = False) -> JobReport:
    """Blank the bytes of what was taken down, and remove the facts about it.

    Raises:
        JobAlreadyRunning: another purge is under way.
    """
    began = time.monotonic()
    count = len(root.tables.excluded_sample_ids)
    if dry_run:
        return JobReport("purge", NO_BATCH, read=count)
    done = purge(root)
    facts = tuple(f"{name}: {n} facts removed" for name, n in done.facts.items())
    return JobReport(
        "purge",
        NO_BATCH,
        read=count,
        written=done.num_places,
        seconds=time.monotonic() - began,
        notes=(
            f"{done.num_places} places in shards and {done.num_pack_rows} rows of packs blanked",
            *facts,
            *_foreign_note(done.foreign),
        ),
    )


def _foreign_note(shards: Sequence[str]) -> list[str]:
    if not shards:
        return []
    some = ", ".join(shards[:3]) + (", ..." if len(shards) > 3 else "")
    return [
        f"{len(shards)} shards were registered where they lie and are not changed; what was taken "
        f"down is read no more, but its bytes are still there, for their owner to remove: {some}"
    ]


def _tables(root: Root) -> list[str]:
    return [name for name in all_contracts() if root.tables.exists(name)]
