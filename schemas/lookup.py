"""Finding a sample by its sample_id, or the beginning of one, without a scan.

`samples` is in the order of rows and hashes are random, so its statistics rule nothing out. The
index holds the same rows in the order of their hashes: of each batch one row group is read.
"""

import pyarrow as pa
import pyarrow.compute as pc

from schemas.registry import contract
from schemas.sample_index import PREFIX_DIGITS
from schemas.snapshot import Snapshot, slice_paths
from schemas.tables import Commit, Tables, fingerprint_of

_INDEX, _SAMPLES = "sample_index", "samples"
_COLUMNS = ["sample_row", "sample_id", "ingest_batch"]


def index_batch(tables: Tables, batch: str) -> Commit:
    """Make the index of one batch, if it is not that of the batch's samples already.

    Raises:
        CommitConflict: others kept committing.
    """
    slice_ = {"ingest_batch": batch}
    inputs = {_SAMPLES: tables.fingerprint(_SAMPLES, slice_)}
    if tables.is_current(_INDEX, slice_, inputs):
        return Commit(tables.open(_INDEX).version, 0, 0)
    rows = tables.open(_SAMPLES).read(_COLUMNS, slice_, exclude=False)
    prefixes = [int(i[:PREFIX_DIGITS], 16) for i in rows["sample_id"].to_pylist()]
    names = contract(_INDEX).names
    table = rows.append_column("hash_prefix", pa.array(prefixes, pa.int64())).select(names)
    table = table.cast(contract(_INDEX).arrow_schema).sort_by("hash_prefix")
    return tables.commit(_INDEX, table, slice=slice_, inputs=inputs, job="index")


def index_all(tables: Tables) -> int:
    """Make the index of every batch that lacks it; return of how many."""
    done = 0
    for batch in _unindexed(tables) if tables.exists(_SAMPLES) else ():
        index_batch(tables, batch)
        done += 1
    return done


def find(tables: Tables, digits: str) -> pa.Table:
    """Return sample_row, sample_id and ingest_batch of samples by the beginning of their ids.

    Samples that were taken down are found too. A batch that is not indexed yet is scanned.

    Args:
        tables: of a root.
        digits: of a sample_id, from the first one on; lower case.
    """
    samples = tables.open(_SAMPLES)
    found = [contract(_SAMPLES).empty().select(_COLUMNS)]
    if unindexed := _unindexed(tables):
        rows = samples.read(_COLUMNS, {"ingest_batch": unindexed}, exclude=False)
        found.append(rows.filter(pc.starts_with(rows["sample_id"], digits)))
    for batch, rows_of_batch in _candidates(tables, digits, unindexed):
        for row in rows_of_batch:
            read = samples.read(
                _COLUMNS, {"ingest_batch": batch}, between={"sample_row": (row, row)}, exclude=False
            )
            found.append(read.filter(pc.starts_with(read["sample_id"], digits)))
    return pa.concat_tables(found)


def _candidates(tables: Tables, digits: str, unindexed: list[str]) -> list[tuple[str, list[int]]]:
    if not tables.exists(_INDEX):
        return []
    some = digits[:PREFIX_DIGITS]
    low, high = (int(some.ljust(PREFIX_DIGITS, fill), 16) for fill in "0f")
    read = tables.open(_INDEX).read(
        ["sample_row", "ingest_batch"], between={"hash_prefix": (low, high)}, exclude=False
    )
    read = read.filter(pc.invert(pc.is_in(read["ingest_batch"], pa.array(unindexed, pa.string()))))
    grouped = read.group_by("ingest_batch").aggregate([("sample_row", "list")])
    return list(
        zip(
            grouped["ingest_batch"].to_pylist(), grouped["sample_row_list"].to_pylist(), strict=True
        )
    )


def _unindexed(tables: Tables) -> list[str]:
    samples = tables.open(_SAMPLES)
    index = tables.open(_INDEX) if tables.exists(_INDEX) else None
    return [
        slice_["ingest_batch"]
        for slice_, _ in slice_paths(samples.delta)
        if index is None or not _is_indexed(samples, index, slice_)
    ]


def _is_indexed(samples: Snapshot, index: Snapshot, slice_: dict[str, str]) -> bool:
    return index.fingerprint(slice_) == fingerprint_of({_SAMPLES: samples.fingerprint(slice_)})
