"""Adding a batch to a table of 1e5 rows and to one of 1e8.

The large table is a real log of synthetic files: a thousand batches of 1e5 rows, in one file each,
as compaction leaves them (`--files 8`: as eight tasks do). A commit reads its log and no file.

`python -m benchmarks.table_growth [--batches 1000] [--files 1] [--rounds 15]`
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from deltalake import Schema
from deltalake.transaction import AddAction

from benchmarks.common import interleaved, ratio_of_rounds, record
from benchmarks.table_write_vs_parquet import SLICE, TABLE, scores
from schemas.registry import contract
from schemas.root import Root
from schemas.tables import Tables

ROWS = 100_000
BATCHES_A_COMMIT = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--files", type=int, default=1, help="files a batch of the large table")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        small, large = (Root.create(Path(work) / name).tables for name in ("small", "large"))
        fill(small, 0, 1)
        fill(large, options.batches - 1, options.files)
        add_small, add_large = _adding(small), _adding(large)
        times = interleaved({"small": add_small, "large": add_large}, options.rounds, warmups=2)
        num_files = len(large.open(TABLE).file_uris())
    ratio, spread = ratio_of_rounds(times["large"], times["small"])
    record(
        "table_growth",
        ratio,
        unit="ratio",
        goal=1.1,
        better="lower",
        compared_with=f"adding {ROWS:,} rows to a table of {ROWS:,}",
        spread=spread,
        note=f"the table has {options.batches * ROWS:,} rows in {num_files:,} files (synthetic "
        f"entries of a real log); {min(times['large']):.2f} s a batch at best",
        packages=("pyarrow", "deltalake"),
    )


def fill(tables: Tables, batches: int, files: int) -> None:
    """Enter batches of ROWS rows in so many files each: one real file shows what entries say."""
    slice_ = SLICE | {"ingest_batch": "real"}
    writer = tables.writer(TABLE, slice_, "bench")
    writer.write(scores(ROWS).drop_columns([*SLICE]))
    written = writer.close()
    tables.commit(TABLE, written, slice=slice_, inputs={"n": 0}, job="bench")
    statistics = json.loads(written[0].statistics) | {"numRecords": ROWS // files}
    size, now = written[0].size // files, written[0].modified_ms
    delta = tables.open(TABLE).delta
    for start in range(0, batches, BATCHES_A_COMMIT):
        actions = []
        for number in range(start, min(start + BATCHES_A_COMMIT, batches)):
            values = SLICE | {"ingest_batch": f"b{number:05d}"}
            folder = "/".join(f"{key}={values[key]}" for key in contract(TABLE).partition_by)
            actions += [
                AddAction(f"{folder}/part-{f}.parquet", size, values, now, True,
                          json.dumps(statistics))
                for f in range(files)
            ]  # fmt: skip
        schema = Schema.from_arrow(contract(TABLE).arrow_schema)
        parts = list(contract(TABLE).partition_by)
        delta.create_write_transaction(actions, "append", schema, parts)
    delta.create_checkpoint()


def _adding(tables: Tables) -> Callable[[], object]:
    numbers, rows = itertools.count(), scores(ROWS).drop_columns([*SLICE])

    def add() -> None:
        batch = f"new{next(numbers):05d}"
        slice_ = SLICE | {"ingest_batch": batch}
        writer = tables.writer(TABLE, slice_, "bench")
        writer.write(rows)
        tables.commit(TABLE, writer.close(), slice=slice_, inputs={"batch": batch}, job="bench")

    return add


if __name__ == "__main__":
    main()
