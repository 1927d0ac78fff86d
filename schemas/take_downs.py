"""What was taken down, as readers apply it: sample ids, and the rows they ever had."""

import json
import urllib.parse
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.dataset as ds

from schemas.registry import contract
from schemas.snapshot import Snapshot, live_paths
from schemas.store import Store

_SAMPLES = "samples"


class TakeDowns:
    """The exclusions of one root, kept for as long as the versions they were read from stand."""

    def __init__(self, tables: Store) -> None:
        self._exclusions = tables.child("exclusions")
        self._samples = tables.child(_SAMPLES)
        self._ids: tuple[int, frozenset[str]] = (-1, frozenset())
        self._rows: tuple[tuple[int, int], frozenset[int]] = ((-1, -1), frozenset())

    @property
    def sample_ids(self) -> frozenset[str]:
        """Sample ids that were taken down, by whichever process."""
        delta = self._exclusions.delta()
        if delta is None:
            return frozenset()
        version = int(delta.version())
        if self._ids[0] != version:
            read = Snapshot(contract("exclusions"), self._exclusions, delta, None)
            self._ids = (version, frozenset(read.read(["sample_id"])["sample_id"].to_pylist()))
        return self._ids[1]

    @property
    def sample_rows(self) -> frozenset[int]:
        """Sample rows, in all batches, that are or ever were those of a sample taken down.

        An image may leave its source, and so `samples`, while facts about its row still stand.
        """
        ids = self.sample_ids
        samples = self._samples.delta() if ids else None
        if samples is None:
            return frozenset()
        versions = (self._ids[0], int(samples.version()))
        if self._rows[0] != versions:
            found = self._ever_of(ids, ["sample_row"])
            self._rows = (versions, frozenset(found["sample_row"].to_pylist()))
        return self._rows[1]

    def places_ever_of(self, sample_ids: frozenset[str]) -> pa.Table:
        """Return shard, byte_offset and num_bytes of every place where samples ever lay.

        A batch that grows gets new shards, and those of its earlier versions stay on disk.
        """
        return self._ever_of(sample_ids, ["shard", "byte_offset", "num_bytes"])

    def _ever_of(self, sample_ids: frozenset[str], columns: Sequence[str]) -> pa.Table:
        rule = ds.field("sample_id").isin(pa.array(sorted(sample_ids), pa.string()))
        stored = ds.dataset(
            [self._samples.full(name) for name in self._ever_committed()],
            schema=contract(_SAMPLES).stored_schema,
            format="parquet",
            filesystem=self._samples.filesystem,
        )
        return stored.to_table(columns=list(columns), filter=rule)

    def _ever_committed(self) -> list[str]:
        """Return the data files, as far as they are there, of all versions the log still tells."""
        delta = self._samples.delta()
        found = set() if delta is None else live_paths(delta)
        there = set(self._samples.names())
        for entry in there:
            if entry.startswith("_delta_log/") and entry.endswith(".json"):
                for line in self._samples.read_text(entry).splitlines():
                    added = json.loads(line).get("add")
                    if added is not None:
                        found.add(urllib.parse.unquote(added["path"]))
        return sorted(found & there)
