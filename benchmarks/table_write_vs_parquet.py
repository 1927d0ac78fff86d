"""A million rows through the door beside the same rows in a plain Parquet file.

`python -m benchmarks.table_write_vs_parquet [--rows 1000000] [--rounds 7]`
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ambient_omni import rng
from benchmarks.common import interleaved, ratio_of_rounds, record
from schemas.registry import contract
from schemas.root import Root
from schemas.slice_writer import ROWS_PER_GROUP

TABLE = "scores/classical"
SLICE = {"scorer_version": "v1", "ingest_batch": "b"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    rows = scores(options.rows)
    stored = rows.select(contract(TABLE).stored_schema.names)
    numbers = itertools.count()
    with tempfile.TemporaryDirectory() as work:
        root, plain = Root.create(Path(work) / "root"), Path(work) / "plain.parquet"

        def ours() -> None:
            inputs = {"n": next(numbers)}
            root.tables.commit(TABLE, rows, slice=SLICE, inputs=inputs, job="bench")

        def parquet() -> None:
            pq.write_table(
                stored, plain, compression="zstd", compression_level=3,
                row_group_size=ROWS_PER_GROUP,
            )  # fmt: skip

        times = interleaved({"ours": ours, "parquet": parquet}, options.rounds)
        assert root.tables.read(TABLE, ["sample_row"]).num_rows == options.rows
    ratio, spread = ratio_of_rounds(times["parquet"], times["ours"])
    record(
        "table_write_vs_parquet",
        ratio,
        unit="ratio",
        goal=0.6,
        better="higher",
        compared_with="pyarrow's write_table of the same rows, codec and row groups",
        spread=spread,
        note=f"{options.rows:,} rows of {TABLE}; ours checks every value and key, writes "
        f"statistics and commits; {min(times['ours']):.2f} s at best",
        packages=("pyarrow", "deltalake"),
    )


def scores(count: int) -> pa.Table:
    """Rows of the classical pack: random numbers inside each column's range."""
    wanted, uniform = contract(TABLE), rng.generator(0, "bench-tables")
    columns: dict[str, object] = {}
    for column in wanted.columns:
        if column.name == "sample_row":
            columns[column.name] = np.arange(count)
        elif column.name in SLICE:
            columns[column.name] = pa.repeat(SLICE[column.name], count)
        elif pa.types.is_floating(column.type):
            low = column.minimum if column.minimum is not None else 0.0
            high = column.maximum if column.maximum is not None else low + 100.0
            columns[column.name] = low + (high - low) * uniform.random(count)
        elif column.nullable:
            columns[column.name] = pa.nulls(count, column.type)
        else:
            columns[column.name] = pa.repeat(pa.scalar("{}", column.type), count)
    return pa.table(columns).cast(wanted.arrow_schema)


if __name__ == "__main__":
    main()
