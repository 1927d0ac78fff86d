"""The register of batches: which there are, and the ordinal of each."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow.compute as pc

from pipelines.ingest.items import Source
from schemas.contract import PARTITION_VALUE_PATTERN
from schemas.errors import BadInput, JobAlreadyRunning
from schemas.ingest_batches import CONTRACT, ROLES
from schemas.root import Root

TABLE = CONTRACT.name
# A registration takes milliseconds; many at once wait for each other.
WAIT_SECONDS = 60.0
RETRY_SECONDS = 0.05


def check_batch(root: Root, batch: str, role: str) -> None:
    """Refuse a batch name or role that cannot be registered.

    Raises:
        BadInput: a name that cannot stand in a path, an unknown role, or another role than before.
    """
    check_batch_name(batch)
    if role not in ROLES:
        raise BadInput(f"role {role!r} is none of {list(ROLES)}")
    known = _find(root, batch)
    if known is not None and known["role"] != role:
        raise BadInput(
            f"batch {batch} was ingested as {known['role']}; take another batch name for {role}"
        )


def check_source(root: Root, batch: str, uri: str) -> None:
    """Refuse to put another source's images in the place of a batch's.

    Raises:
        BadInput: the batch came from elsewhere.
    """
    known = _find(root, batch)
    if known is not None and known["source_uri"] != uri:
        raise BadInput(
            f"batch {batch} holds the images of {known['source_uri']}, not of {uri}; give these "
            "another --batch, or put them in the place of those with --replace-source"
        )


def check_batch_name(batch: str) -> None:
    """Refuse a name of a batch that cannot stand in a path; no root is needed.

    Raises:
        BadInput: it cannot.
    """
    if not re.fullmatch(PARTITION_VALUE_PATTERN.strip("^$"), batch) or batch in (".", ".."):
        raise BadInput(
            f"batch name {batch!r} cannot be used; take letters, digits, '_', '.', '-', up to 128"
        )


def register(root: Root, batch: str, role: str, source: Source) -> int:
    """Return the ordinal of a batch, giving it one if it is new."""
    with _waiting_lock(root):
        rows = root.tables.read(TABLE)
        known = _find(root, batch)
        highest = pc.max(rows["batch_ordinal"]).as_py()
        row = {
            "ingest_batch": batch,
            "batch_ordinal": (
                known["batch_ordinal"] if known else 0 if highest is None else highest + 1
            ),
            "role": role,
            "source_kind": source.kind,
            "source_uri": source.uri,
        }
        if row != known:
            root.tables.upsert(TABLE, CONTRACT.table([row]), job="ingest")
        return int(row["batch_ordinal"])


def _find(root: Root, batch: str) -> dict[str, Any] | None:
    rows = root.tables.read(TABLE, where={"ingest_batch": batch}).to_pylist()
    return rows[0] if rows else None


@contextmanager
def _waiting_lock(root: Root) -> Iterator[None]:
    give_up = time.monotonic() + WAIT_SECONDS
    while True:
        held = root.lock("register", "batches")
        try:
            held.__enter__()
        except JobAlreadyRunning:
            if time.monotonic() > give_up:
                raise
            time.sleep(RETRY_SECONDS)
            continue
        break
    try:
        yield
    finally:
        held.__exit__(None, None, None)
