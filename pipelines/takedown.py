"""Taking images down: exclude at once, then purge bytes and facts where they lie."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ambient_omni.data.blanking import blank_rows
from pipelines.ingest.items import TAKEN_DOWN
from schemas import maintenance
from schemas.errors import BadInput
from schemas.lookup import find
from schemas.root import Root
from schemas.shard_files import is_foreign

_MIN_PREFIX = 8
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class Purged:
    """What a purge removed: places in shards and rows in packs, blanked, and facts by table.

    `foreign` names the shards that were registered where they lie and still hold such bytes: they
    are not ours to change.
    """

    num_places: int
    num_pack_rows: int
    facts: dict[str, int]
    foreign: tuple[str, ...] = ()


def find_samples(root: Root, names: Sequence[str]) -> list[str]:
    """Return the sample_ids that names stand for: whole ids, prefixes of them, or URLs.

    Args:
        root: where the tables are.
        names: sample_ids, their first 8 hex digits or more, or addresses as listed.

    Raises:
        BadInput: a name stands for nothing here, or a prefix for more than one image.
    """
    return sorted({i for name in names for i in _ids_of(root, name)})


def _ids_of(root: Root, name: str) -> list[str]:
    is_prefix = len(name) >= _MIN_PREFIX and set(name) <= _HEX
    if is_prefix:
        there = root.tables.exists("samples")
        found = find(root.tables, name)["sample_id"].to_pylist() if there else []
    else:
        attempts = root.tables.read("ingest_attempts", ["sample_id"], {"source_uri": name})
        found = attempts["sample_id"].drop_null().to_pylist()
    ids = sorted(set(found))
    if not ids:
        raise BadInput(f"{name} is no sample_id, prefix of one or URL of this root")
    if len(ids) > 1 and is_prefix:
        raise BadInput(f"{name} begins {len(ids)} sample_ids; give more of it")
    return ids


def purge(root: Root) -> Purged:
    """Blank the bytes of everything that was excluded, in place, and remove the facts about it.

    Offsets and row numbers stay, so nothing else is rewritten and no job becomes stale. Versions
    of tables that were read before still hold numbers and captions until they are vacuumed.
    Running it again does nothing more.

    Raises:
        JobAlreadyRunning: another purge is under way.
    """
    with root.lock("purge", "exclusions"):
        ids = sorted(root.tables.excluded_sample_ids)
        rows = sorted(root.tables.excluded_sample_rows)
        if not ids:
            return Purged(0, 0, {})
        num_places, foreign = _blank_shards(root, ids)
        num_pack_rows = blank_rows(root.packs, np.array(rows, np.int64))
        facts: Counter[str] = Counter()
        _redact_attempts(root, ids)
        for name in maintenance.tables_of_samples(root.tables):
            # The sample itself stays, as the place where its blanked bytes lie.
            if name in ("samples", "ingest_attempts"):
                continue
            facts[name] += maintenance.remove_rows(root.tables, name, rows).rows_removed
        _redact_samples(root, ids)
    return Purged(num_places, num_pack_rows, {name: n for name, n in facts.items() if n}, foreign)


def _blank_shards(root: Root, ids: Sequence[str]) -> tuple[int, tuple[str, ...]]:
    """Return how many places held bytes, and the shards that are not ours.

    One image may lie in shards of several versions.
    """
    places = root.tables.places_ever_of(frozenset(ids)).to_pylist()
    distinct = {(row["shard"], row["byte_offset"], row["num_bytes"]) for row in places}
    foreign = sorted({shard for shard, _, _ in distinct if is_foreign(shard)})
    num_blanked = sum(
        _blank(root.shards / shard, offset, num_bytes)
        for shard, offset, num_bytes in sorted(distinct)
        if not is_foreign(shard)
    )
    return num_blanked, tuple(foreign)


def _blank(path: Path, offset: int, num_bytes: int) -> bool:
    """Overwrite a range of a file with zeros; say whether anything else stood there."""
    try:
        with path.open("r+b") as file:
            file.seek(offset)
            if not any(file.read(num_bytes)):
                return False
            file.seek(offset)
            file.write(bytes(num_bytes))
            file.flush()
            os.fsync(file.fileno())
    except FileNotFoundError:
        return False
    return True


def _redact_attempts(root: Root, ids: Sequence[str]) -> None:
    gone = pa.array(list(ids))

    def redact(rows: pa.Table) -> pa.Table:
        hit = pc.fill_null(pc.is_in(rows["sample_id"], value_set=gone), False)
        values: dict[str, object] = {"status": "rejected", "reason": TAKEN_DOWN}
        values |= dict.fromkeys(("detail", "caption", "label", "sample_row"))
        return _set(rows, hit, values)

    maintenance.change_rows(root.tables, "ingest_attempts", gone, "sample_id", redact)


def _redact_samples(root: Root, ids: Sequence[str]) -> None:
    gone = pa.array(list(ids))

    def redact(rows: pa.Table) -> pa.Table:
        hit = pc.is_in(rows["sample_id"], value_set=gone)
        return _set(rows, hit, {"caption": None, "label": None, "phash": 0})

    maintenance.change_rows(root.tables, "samples", gone, "sample_id", redact)


def _set(rows: pa.Table, hit: pa.ChunkedArray, values: dict[str, object]) -> pa.Table:
    for name, value in values.items():
        place = rows.schema.get_field_index(name)
        field = rows.schema.field(place)
        new = pc.if_else(hit, pa.scalar(value, field.type), rows[name])
        rows = rows.set_column(place, field, new)
    return rows
